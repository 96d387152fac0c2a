//! A file with a log that a test fills entry by entry.

use std::ops::Range;

use block::{DevInfo, Disk};
use image::vhdx::create::{CreateOptions, Kind, create};
use image::vhdx::layout::{
    LOG_DATA_DESCRIPTOR_SIGNATURE, LOG_DATA_SIGNATURE, LOG_ENTRY_SIGNATURE, LOG_ZERO_DESCRIPTOR_SIGNATURE,
    LogDescriptor, LogEntryHeader, MIB, RawHeader, RegionTableEntry, log_descriptor_sectors, seal,
};
use testkit::{MemDev, SparseBytes, block_on};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const PAGE: usize = 4096;
/// The log has 1 MiB.
pub(crate) const RING_PAGES: usize = 256;
/// Pages of a region of our own, to which the entries write.
pub(crate) const SCRATCH_PAGES: usize = 256;

const LOG_GUID: Uuid = Uuid::from_u128(0x1234);
const SCRATCH_REGION: Uuid = Uuid::from_u128(0x5678);

/// A change of the scratch pages.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// A page is filled with a value.
    Page(usize, u8),
    /// Pages become zero.
    Zeroes(Range<usize>),
}

pub(crate) struct Ring {
    file: SparseBytes,
    scratch_start: u64,
    bytes: Vec<u8>,
    /// The page of the ring where the next entry goes.
    next: usize,
    /// The page of the tail that the next entry names; the first entry's where it is not set.
    pub(crate) tail: Option<usize>,
    first: usize,
    /// The number of the next entry.
    pub(crate) sequence: u64,
    /// What the next entry says was durable.
    pub(crate) flushed: u64,
    /// What the next entry says the file needs.
    pub(crate) last: u64,
}

impl Ring {
    /// A sound file whose header says that its empty log is in use; the scratch pages hold 0xee.
    pub(crate) fn new() -> Self {
        let mut file = new_file();
        let scratch_start = add_scratch_region(&mut file);
        edit_headers(&mut file, |header| header.log_guid = LOG_GUID.into());
        let size = file.size();
        Self {
            file,
            scratch_start,
            bytes: vec![0; RING_PAGES * PAGE],
            next: 0,
            tail: None,
            first: 0,
            sequence: 1,
            flushed: size,
            last: size,
        }
    }

    /// The file with the ring in its place.
    pub(crate) fn file(&self) -> SparseBytes {
        let mut file = self.file.clone();
        file.write(MIB, &self.bytes);
        file
    }

    /// Starts a new run of entries at a page of the ring.
    pub(crate) fn start_at(&mut self, page: usize) {
        self.next = page % RING_PAGES;
        self.first = self.next;
        self.tail = None;
    }

    /// The page of the ring where the next entry will go.
    pub(crate) fn next(&self) -> usize {
        self.next
    }

    /// Adds an entry and returns its page.
    pub(crate) fn append(&mut self, updates: &[Update]) -> usize {
        let place = |page: usize| self.scratch_start + (page * PAGE) as u64;
        let parts: Vec<_> = updates
            .iter()
            .map(|update| match update {
                Update::Page(page, value) => (place(*page), Part::Page(Box::new([*value; PAGE]))),
                Update::Zeroes(pages) => (place(pages.start), Part::Zeroes((pages.len() * PAGE) as u64)),
            })
            .collect();
        self.append_parts(&parts)
    }

    /// Adds an entry of whole pages anywhere in the file.
    pub(crate) fn append_raw(&mut self, pages: &[(u64, [u8; PAGE])]) -> usize {
        let parts: Vec<_> =
            pages.iter().map(|(offset, page)| (*offset, Part::Page(Box::new(*page)))).collect();
        self.append_parts(&parts)
    }

    fn append_parts(&mut self, parts: &[(u64, Part)]) -> usize {
        let sequence = self.sequence;
        let mut entry = self.entry_header(parts).as_bytes().to_vec();
        for (offset, part) in parts {
            entry.extend_from_slice(part.descriptor(*offset, sequence).as_bytes());
        }
        entry.resize(log_descriptor_sectors(parts.len() as u32) as usize * PAGE, 0);
        for page in parts.iter().filter_map(|(_, part)| part.page()) {
            entry.extend_from_slice(&LOG_DATA_SIGNATURE);
            entry.extend_from_slice(&((sequence >> 32) as u32).to_le_bytes());
            entry.extend_from_slice(&page[8..PAGE - 4]);
            entry.extend_from_slice(&(sequence as u32).to_le_bytes());
        }
        seal(&mut entry);
        let at = self.next;
        for (index, sector) in entry.chunks_exact(PAGE).enumerate() {
            self.bytes_at(at + index).copy_from_slice(sector);
        }
        self.next = (at + entry.len() / PAGE) % RING_PAGES;
        self.sequence = sequence.wrapping_add(1);
        at
    }

    fn entry_header(&self, parts: &[(u64, Part)]) -> LogEntryHeader {
        let pages = parts.iter().filter(|(_, part)| part.page().is_some()).count();
        let sectors = log_descriptor_sectors(parts.len() as u32) as usize + pages;
        LogEntryHeader {
            signature: LOG_ENTRY_SIGNATURE,
            checksum: 0.into(),
            entry_length: ((sectors * PAGE) as u32).into(),
            tail: ((self.tail.unwrap_or(self.first) * PAGE) as u32).into(),
            sequence_number: self.sequence.into(),
            descriptor_count: (parts.len() as u32).into(),
            reserved: 0.into(),
            log_guid: LOG_GUID.into(),
            flushed_file_offset: self.flushed.into(),
            last_file_offset: self.last.into(),
        }
    }

    /// A sector of the ring.
    pub(crate) fn bytes_at(&mut self, page: usize) -> &mut [u8] {
        &mut self.bytes[page % RING_PAGES * PAGE..][..PAGE]
    }

    /// Changes the header of the entry at `page` and gives the entry its checksum.
    pub(crate) fn edit(&mut self, page: usize, edit: impl FnOnce(&mut LogEntryHeader)) {
        edit(LogEntryHeader::mut_from_prefix(self.bytes_at(page)).unwrap().0);
        self.seal(page);
    }

    /// Changes one of the first 126 descriptors of the entry at `page`; its checksum is then wrong.
    pub(crate) fn edit_descriptor(
        &mut self,
        page: usize,
        index: usize,
        edit: impl FnOnce(&mut LogDescriptor),
    ) {
        let bytes = &mut self.bytes_at(page)[64 + index * 32..][..32];
        edit(LogDescriptor::mut_from_bytes(bytes).unwrap());
    }

    /// Gives the entry at `page`, which does not go round the ring's end, the checksum of what it says is its length.
    pub(crate) fn seal(&mut self, page: usize) {
        let len = LogEntryHeader::ref_from_prefix(self.bytes_at(page)).unwrap().0.entry_length.get() as usize;
        let rest = &mut self.bytes[page * PAGE..];
        let len = len.clamp(PAGE, rest.len());
        seal(&mut rest[..len]);
    }

    /// A page of the file as it is without replay.
    pub(crate) fn file_page(&self, offset: u64) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        self.file.read(offset, &mut page);
        page
    }

    /// Destroys a page of the file.
    pub(crate) fn damage_file(&mut self, offset: u64) {
        self.file.write(offset, &[0x99; PAGE]);
    }

    /// The value of each scratch page of an opened file, all of whose bytes are the same.
    pub(crate) async fn scratch(&self, file: &Disk) -> Vec<u8> {
        let bytes = file.read_vec(self.scratch_start, SCRATCH_PAGES * PAGE).await.unwrap();
        let value = |page: &[u8]| {
            assert!(page == [page[0]; PAGE], "a page is replayed as a whole");
            page[0]
        };
        bytes.chunks_exact(PAGE).map(value).collect()
    }
}

enum Part {
    Page(Box<[u8; PAGE]>),
    Zeroes(u64),
}

impl Part {
    fn page(&self) -> Option<&[u8; PAGE]> {
        match self {
            Self::Page(page) => Some(page),
            Self::Zeroes(_) => None,
        }
    }

    fn descriptor(&self, offset: u64, sequence: u64) -> LogDescriptor {
        let (signature, leading_bytes, trailing_bytes) = match self {
            Self::Page(page) => (
                LOG_DATA_DESCRIPTOR_SIGNATURE,
                page[..8].try_into().unwrap(),
                page[PAGE - 4..].try_into().unwrap(),
            ),
            Self::Zeroes(len) => (LOG_ZERO_DESCRIPTOR_SIGNATURE, len.to_le_bytes(), [0; 4]),
        };
        LogDescriptor {
            signature,
            trailing_bytes,
            leading_bytes,
            file_offset: offset.into(),
            sequence_number: sequence.into(),
        }
    }
}

fn new_file() -> SparseBytes {
    let device = std::sync::Arc::new(MemDev::with_info(0, DevInfo { block_bytes: 1, ..MemDev::INFO }));
    let options = CreateOptions::new(64 * MIB, Kind::Dynamic);
    block_on(create(&Disk::from_arc(device.clone()), &options)).unwrap();
    device.image()
}

/// Adds a region that no program knows, and none must, at the file's end.
fn add_scratch_region(file: &mut SparseBytes) -> u64 {
    let start = file.size();
    file.resize(start + (SCRATCH_PAGES * PAGE) as u64);
    file.write(start, &vec![0xee; SCRATCH_PAGES * PAGE]);
    let entry = RegionTableEntry {
        guid: SCRATCH_REGION.into(),
        file_offset: start.into(),
        length: ((SCRATCH_PAGES * PAGE) as u32).into(),
        flags: 0.into(),
    };
    for offset in [192 << 10, 256 << 10] {
        let mut table = vec![0; 64 << 10];
        file.read(offset, &mut table);
        assert_eq!(table[8], 2, "a new file has two regions");
        table[8] = 3;
        table[16 + 64..][..32].copy_from_slice(entry.as_bytes());
        seal(&mut table);
        file.write(offset, &table);
    }
    start
}

fn edit_headers(file: &mut SparseBytes, edit: impl Fn(&mut RawHeader)) {
    for offset in [64 << 10, 128 << 10] {
        let mut bytes = vec![0; PAGE];
        file.read(offset, &mut bytes);
        edit(RawHeader::mut_from_bytes(&mut bytes).unwrap());
        seal(&mut bytes);
        file.write(offset, &bytes);
    }
}
