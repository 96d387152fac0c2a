//! Small, sound files whose parts can be changed without breaking more than is meant.

use std::path::Path;
use std::process::{Command, Stdio};

use block::{DevInfo, Disk};
use image::vhdx::create::{CreateOptions, Kind, create};
use image::vhdx::layout::{
    BAT_REGION, BatEntry, BitmapState, METADATA_REGION, MIB, MetadataTableEntry, PayloadState, RawHeader,
    RegionTableEntry, seal,
};
use image::vhdx::locator::ParentLocator;
use testkit::{MemDev, SparseBytes, block_on};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const PARENT_GUID: Uuid = Uuid::from_u128(0x5678);

const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const REGION_TABLES: [usize; 2] = [192 << 10, 256 << 10];

/// A file in memory.
#[derive(Clone)]
pub(crate) struct Victim {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// An entry of the region table.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) guid: Uuid,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) required: u32,
}

/// An entry of the metadata table.
#[derive(Clone, Copy)]
pub(crate) struct Item {
    pub(crate) id: Uuid,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) flags: u32,
}

impl Item {
    pub(crate) const EMPTY: Self = Self { id: Uuid::nil(), offset: 0, len: 0, flags: 0 };
}

impl Victim {
    /// A dynamic disk of 64 blocks of 1 MiB, of which the first three are in the file, the last at its end.
    pub(crate) fn base() -> Self {
        Self::create("ours", &small(64 * MIB, Kind::Dynamic)).with_three_blocks()
    }

    /// As [`Self::base`], of more blocks than one chunk has.
    pub(crate) fn of_two_chunks() -> Self {
        Self::create("two chunks", &small(5 << 30, Kind::Dynamic)).with_three_blocks()
    }

    /// As [`Self::base`], with sectors of 4096 bytes.
    pub(crate) fn of_4096_byte_sectors() -> Self {
        let options = CreateOptions { logical_sector_bytes: 4096, ..small(64 * MIB, Kind::Dynamic) };
        Self::create("4096-byte sectors", &options).with_three_blocks()
    }

    /// A fixed disk of four blocks of 2 MiB.
    pub(crate) fn fixed() -> Self {
        let options = CreateOptions::new(8 * MIB, Kind::Fixed { preallocate: false });
        Self::create("fixed", &options)
    }

    /// A child of 64 blocks of 1 MiB: the first is in the file, the second partly, the rest is the parent's.
    pub(crate) fn child() -> Self {
        let paths = (Path::new("/disks"), Path::new("/disks/base.vhdx"));
        let locator = ParentLocator::for_parent(PARENT_GUID, paths.0, paths.1).unwrap();
        let mut child = Self::create("child", &small(64 * MIB, Kind::Differencing { locator }));
        let places = [child.append(MIB), child.append(MIB), child.append(MIB)];
        child.set_bat(0, BatEntry::new(PayloadState::FullyPresent, places[0]));
        child.set_bat(1, BatEntry::new(PayloadState::PartiallyPresent, places[1]));
        child.set_bat(4096, BatEntry::bitmap(BitmapState::Present, places[2]));
        child.bytes[places[2] as usize..][..MIB as usize].fill(0);
        child.bytes[places[2] as usize + 256] = 1;
        child
    }

    /// As [`Self::base`], made and written by qemu; `None`, with a message, where qemu is not here.
    pub(crate) fn qemu() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.vhdx");
        let run = |tool: &str, arguments: &[&str]| {
            let status = Command::new(tool).args(arguments).arg(&path).stdout(Stdio::null()).status();
            status.map(|status| assert!(status.success(), "{tool} {arguments:?}"))
        };
        // The size as an option, because the name comes last.
        let make = ["create", "-q", "-f", "vhdx", "-o", "block_size=1M,size=64M"];
        if run("qemu-img", &make).is_err() {
            eprintln!("skipped: there is no qemu-img here");
            return None;
        }
        run("qemu-io", &["-f", "vhdx", "-c", "write -P 7 0 3M"]).ok()?;
        let bytes = std::fs::read(&path).unwrap();
        Some(Self { name: "qemu", bytes })
    }

    fn create(name: &'static str, options: &CreateOptions) -> Self {
        let bytes = block_on(async {
            let file = Disk::new(MemDev::new(0));
            create(&file, options).await.unwrap();
            file.read_vec(0, file.size() as usize).await.unwrap()
        });
        Self { name, bytes }
    }

    fn with_three_blocks(mut self) -> Self {
        for index in 0..3 {
            let offset = self.append(MIB);
            self.set_bat(index, BatEntry::new(PayloadState::FullyPresent, offset));
        }
        self
    }

    /// The file as a disk of its own.
    pub(crate) fn disk(&self) -> Disk {
        let mut image = SparseBytes::new(self.bytes.len() as u64);
        // Comparing slices is fast in a debug build, where looking at bytes is not.
        for (index, page) in
            self.bytes.chunks(4096).enumerate().filter(|(_, page)| **page != [0; 4096][..page.len()])
        {
            image.write(index as u64 * 4096, page);
        }
        Disk::new(MemDev::from_image(image, DevInfo { block_bytes: 1, ..MemDev::INFO }))
    }

    /// Adds `len` bytes of data at the file's end and returns where they are.
    pub(crate) fn append(&mut self, len: u64) -> u64 {
        let offset = (self.bytes.len() as u64).next_multiple_of(MIB);
        self.bytes.resize(offset as usize, 0);
        self.bytes.resize((offset + len) as usize, 7);
        offset
    }

    pub(crate) fn header(&self, slot: usize) -> &RawHeader {
        RawHeader::ref_from_bytes(&self.bytes[HEADERS[slot]..][..4096]).unwrap()
    }

    pub(crate) fn edit_header(&mut self, slot: usize, edit: impl FnOnce(&mut RawHeader)) {
        let bytes = &mut self.bytes[HEADERS[slot]..][..4096];
        edit(RawHeader::mut_from_bytes(bytes).unwrap());
        seal(bytes);
    }

    pub(crate) fn edit_headers(&mut self, edit: impl Fn(&mut RawHeader)) {
        for slot in 0..2 {
            self.edit_header(slot, &edit);
        }
    }

    fn regions(&self) -> Vec<Region> {
        let table = &self.bytes[REGION_TABLES[0]..][..64 << 10];
        let count = u32::from_le_bytes(table[8..12].try_into().unwrap()) as usize;
        let entries = table[16..].chunks_exact(32).take(count);
        entries
            .map(|bytes| {
                let raw = RegionTableEntry::read_from_bytes(bytes).unwrap();
                Region {
                    guid: raw.guid.uuid(),
                    offset: raw.file_offset.get(),
                    len: raw.length.get(),
                    required: raw.flags.get(),
                }
            })
            .collect()
    }

    /// Changes both copies of the region table.
    pub(crate) fn edit_regions(&mut self, edit: impl FnOnce(&mut Vec<Region>)) {
        let mut regions = self.regions();
        edit(&mut regions);
        for start in REGION_TABLES {
            let table = &mut self.bytes[start..][..64 << 10];
            table[8..12].copy_from_slice(&(regions.len() as u32).to_le_bytes());
            for (bytes, region) in table[16..].chunks_exact_mut(32).zip(&regions) {
                let raw = RegionTableEntry {
                    guid: region.guid.into(),
                    file_offset: region.offset.into(),
                    length: region.len.into(),
                    flags: region.required.into(),
                };
                bytes.copy_from_slice(raw.as_bytes());
            }
            seal(table);
        }
    }

    pub(crate) fn region(&self, guid: Uuid) -> Region {
        self.regions().into_iter().find(|region| region.guid == guid).unwrap()
    }

    pub(crate) fn edit_region(&mut self, guid: Uuid, edit: impl FnOnce(&mut Region)) {
        self.edit_regions(|all| edit(all.iter_mut().find(|region| region.guid == guid).unwrap()));
    }

    fn metadata_start(&self) -> usize {
        self.region(METADATA_REGION).offset as usize
    }

    /// A byte of the metadata table.
    pub(crate) fn metadata_byte(&mut self, at: usize) -> &mut u8 {
        let start = self.metadata_start();
        &mut self.bytes[start + at]
    }

    fn items(&self) -> Vec<Item> {
        let table = &self.bytes[self.metadata_start()..][..64 << 10];
        let count = u16::from_le_bytes(table[10..12].try_into().unwrap());
        let entries = table[32..].chunks_exact(32).take(count.into());
        entries
            .map(|bytes| {
                let raw = MetadataTableEntry::read_from_bytes(bytes).unwrap();
                Item {
                    id: raw.item_id.uuid(),
                    offset: raw.offset.get(),
                    len: raw.length.get(),
                    flags: raw.flags.get(),
                }
            })
            .collect()
    }

    fn set_items(&mut self, items: &[Item]) {
        let start = self.metadata_start();
        let table = &mut self.bytes[start..][..64 << 10];
        table[10..12].copy_from_slice(&(items.len() as u16).to_le_bytes());
        for (bytes, item) in table[32..].chunks_exact_mut(32).zip(items) {
            let raw = MetadataTableEntry {
                item_id: item.id.into(),
                offset: item.offset.into(),
                length: item.len.into(),
                flags: item.flags.into(),
                reserved: 0.into(),
            };
            bytes.copy_from_slice(raw.as_bytes());
        }
    }

    pub(crate) fn item(&self, id: Uuid) -> Item {
        self.items().into_iter().find(|item| item.id == id).unwrap()
    }

    pub(crate) fn edit_item(&mut self, id: Uuid, edit: impl FnOnce(&mut Item)) {
        let mut items = self.items();
        edit(items.iter_mut().find(|item| item.id == id).unwrap());
        self.set_items(&items);
    }

    pub(crate) fn add_item(&mut self, item: Item) {
        let mut items = self.items();
        items.push(item);
        self.set_items(&items);
    }

    /// Overwrites part of an item's content.
    pub(crate) fn write_item(&mut self, id: Uuid, at: usize, bytes: &[u8]) {
        let start = self.metadata_start() + self.item(id).offset as usize + at;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn bat(&self, index: usize) -> BatEntry {
        let start = self.region(BAT_REGION).offset as usize + index * 8;
        BatEntry(u64::from_le_bytes(self.bytes[start..start + 8].try_into().unwrap()))
    }

    pub(crate) fn set_bat(&mut self, index: usize, entry: BatEntry) {
        let start = self.region(BAT_REGION).offset as usize + index * 8;
        self.bytes[start..start + 8].copy_from_slice(&entry.0.to_le_bytes());
    }
}

fn small(virtual_size: u64, kind: Kind) -> CreateOptions {
    CreateOptions { block_bytes: 1 << 20, ..CreateOptions::new(virtual_size, kind) }
}
