//! Making a new file.
//!
//! The layout is that of files that Windows makes: log at 1 MiB, then metadata, then the block allocation table, then
//! blocks. The identifier is written last, after everything else is durable, so that a file whose creation was cut
//! off is not taken for a VHDX.

use std::path::Path;

use block::{BlockError, ByteRange, Disk, ErrorKind, ZeroFlags};
use thiserror::Error;
use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use super::geometry::{Geometry, Slot};
use super::header::Header;
use super::layout::{
    BAT_ENTRY_BYTES, BAT_REGION, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BatEntry, CREATOR_BYTES, FILE_PARAMETERS,
    FILE_SIGNATURE, FileIdentifier, HEADER_AREA_BYTES, HEADER_OFFSETS, ITEM_BYTES_MAX, ITEM_COUNT_MAX,
    ITEM_IS_REQUIRED, ITEM_IS_VIRTUAL_DISK, LOG_VERSION, LOGICAL_SECTOR_SIZE, METADATA_REGION, MIB,
    PARAMETER_HAS_PARENT, PARAMETER_LEAVE_BLOCKS_ALLOCATED, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE,
    PayloadState, REGION_TABLE_OFFSETS, VERSION, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE, VIRTUAL_SIZE_MAX,
};
use super::locator::{ParentLocator, PathError};
use super::metadata::{self, NewItem};
use super::open::Opened;
use super::regions::{self, Region};

/// Blocks of a dynamic disk, as Windows makes them.
pub const DYNAMIC_BLOCK_BYTES: u32 = 32 << 20;
/// Blocks of a fixed or a differencing disk, as Windows makes them.
pub const SMALL_BLOCK_BYTES: u32 = 2 << 20;
/// The log of a new file.
pub const LOG_BYTES: u32 = 1 << 20;
/// The longest log of a new file.
pub const LOG_BYTES_MAX: u32 = 1 << 30;

/// What of the file identifier is written: all that is not zero, in whole blocks of any host.
const IDENTIFIER_BYTES: u64 = 4096;
/// Bytes of the block allocation table, and of preallocated space, that one request writes.
const PIECE_BYTES: u64 = 1 << 20;
const PREALLOCATE_PIECE_BYTES: u64 = 1 << 30;

/// What kind of disk a new file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All blocks are there from the start.
    Fixed {
        /// Whether the host gives the space now; otherwise the file is sparse and the host may run out later.
        preallocate: bool,
    },
    /// Blocks come when they are written.
    Dynamic,
    /// As [`Self::Dynamic`], over a parent.
    Differencing {
        /// Where the parent is and which state of it is meant.
        locator: ParentLocator,
    },
}

/// How to make a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the virtual disk in bytes: a multiple of the logical sector from one sector to 64 TiB.
    pub virtual_size: u64,
    /// What kind of disk.
    pub kind: Kind,
    /// A power of two from 1 to 256 MiB.
    pub block_bytes: u32,
    /// 512 or 4096. A child's is its parent's.
    pub logical_sector_bytes: u32,
    /// 512 or 4096.
    pub physical_sector_bytes: u32,
    /// Length of the log: a multiple of 1 MiB up to 1 GiB.
    pub log_bytes: u32,
    /// The identifier that a guest sees.
    pub disk_id: Uuid,
    /// The program that makes the file; cut at 256 UTF-16 units.
    pub creator: String,
    /// Metadata items beside those that every file has.
    pub items: Vec<NewItem>,
}

impl CreateOptions {
    /// A disk of `virtual_size` bytes with the block size that Windows gives its kind, sectors of 512 bytes on a
    /// medium of 4096, and a new identifier.
    pub fn new(virtual_size: u64, kind: Kind) -> Self {
        let block_bytes = match kind {
            Kind::Dynamic => DYNAMIC_BLOCK_BYTES,
            Kind::Fixed { .. } | Kind::Differencing { .. } => SMALL_BLOCK_BYTES,
        };
        Self {
            virtual_size,
            kind,
            block_bytes,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            log_bytes: LOG_BYTES,
            disk_id: Uuid::new_v4(),
            creator: concat!("godwit ", env!("CARGO_PKG_VERSION")).to_owned(),
            items: Vec::new(),
        }
    }

    /// A child of the opened disk at `parent_path`, in a file in `child_dir`: same size, same sectors, and the
    /// metadata that goes with the virtual disk.
    ///
    /// # Errors
    /// A path that a locator cannot hold; what the host reports.
    pub async fn child_of(
        parent: &Opened,
        parent_path: &Path,
        child_dir: &Path,
    ) -> Result<Self, CreateError> {
        let linkage = parent.header().data_write_guid;
        let locator = ParentLocator::for_parent(linkage, child_dir, parent_path)?;
        let items = metadata::inherited_items(&parent.file, parent.regions.metadata, &parent.items).await;
        let items = items.map_err(|error| CreateError::Host(error.into()))?;
        Ok(Self {
            logical_sector_bytes: parent.geometry.logical_sector_bytes,
            physical_sector_bytes: parent.geometry.physical_sector_bytes,
            disk_id: parent.parameters.disk_id,
            items,
            ..Self::new(parent.geometry.virtual_size, Kind::Differencing { locator })
        })
    }

    /// Checks the options.
    ///
    /// # Errors
    /// The first that is outside what the format allows.
    pub fn validate(&self) -> Result<(), CreateError> {
        for (which, bytes) in
            [("logical", self.logical_sector_bytes), ("physical", self.physical_sector_bytes)]
        {
            if !matches!(bytes, 512 | 4096) {
                return Err(CreateError::SectorSize { which, bytes });
            }
        }
        let (size, sector) = (self.virtual_size, self.logical_sector_bytes);
        if size == 0 || size > VIRTUAL_SIZE_MAX || !size.is_multiple_of(sector.into()) {
            return Err(CreateError::VirtualSize { size, sector });
        }
        if !self.block_bytes.is_power_of_two()
            || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&self.block_bytes)
        {
            return Err(CreateError::BlockSize { bytes: self.block_bytes });
        }
        let log_fits = (MIB as u32..=LOG_BYTES_MAX).contains(&self.log_bytes);
        if !log_fits || !self.log_bytes.is_multiple_of(MIB as u32) {
            return Err(CreateError::LogSize { bytes: self.log_bytes });
        }
        let too_long = self.items.iter().any(|item| item.content.len() > ITEM_BYTES_MAX as usize);
        // Six items describe the disk.
        if too_long || self.items.len() + 6 > ITEM_COUNT_MAX.into() {
            return Err(CreateError::Items);
        }
        Ok(())
    }

    fn geometry(&self) -> Geometry {
        let has_parent = matches!(self.kind, Kind::Differencing { .. });
        Geometry::new(
            self.virtual_size,
            self.block_bytes,
            self.logical_sector_bytes,
            self.physical_sector_bytes,
            has_parent,
        )
    }

    fn metadata_items(&self) -> Vec<NewItem> {
        let flags = match self.kind {
            Kind::Fixed { .. } => PARAMETER_LEAVE_BLOCKS_ALLOCATED,
            Kind::Dynamic => 0,
            Kind::Differencing { .. } => PARAMETER_HAS_PARENT,
        };
        let parameters = [self.block_bytes.to_le_bytes(), flags.to_le_bytes()].concat();
        let of_file = |id, content| NewItem { id, flags: ITEM_IS_REQUIRED, content };
        let of_disk = |id, content: &[u8]| NewItem {
            id,
            flags: ITEM_IS_REQUIRED | ITEM_IS_VIRTUAL_DISK,
            content: content.to_vec(),
        };
        let mut items = vec![
            of_file(FILE_PARAMETERS, parameters),
            of_disk(VIRTUAL_DISK_SIZE, &self.virtual_size.to_le_bytes()),
            of_disk(VIRTUAL_DISK_ID, &self.disk_id.to_bytes_le()),
            of_disk(LOGICAL_SECTOR_SIZE, &self.logical_sector_bytes.to_le_bytes()),
            of_disk(PHYSICAL_SECTOR_SIZE, &self.physical_sector_bytes.to_le_bytes()),
        ];
        if let Kind::Differencing { locator } = &self.kind {
            items.push(of_file(PARENT_LOCATOR, locator.encode()));
        }
        items.extend(self.items.iter().cloned());
        items
    }
}

/// Why a file cannot be made.
#[derive(Debug, Error)]
pub enum CreateError {
    /// A sector size that the format does not have.
    #[error("the {which} sector size {bytes} is neither 512 nor 4096")]
    SectorSize {
        /// `logical` or `physical`.
        which: &'static str,
        /// What was asked for.
        bytes: u32,
    },
    /// A size that the format cannot hold.
    #[error("the size {size} is not a multiple of the {sector}-byte sector between one sector and 64 TiB")]
    VirtualSize {
        /// What was asked for.
        size: u64,
        /// The logical sector.
        sector: u32,
    },
    /// A block size that the format does not have.
    #[error("the block size {bytes} is not a power of two from 1 MiB to 256 MiB")]
    BlockSize {
        /// What was asked for.
        bytes: u32,
    },
    /// A log that is too short, too long, or not a multiple of 1 MiB.
    #[error("the log size {bytes} is not a multiple of 1 MiB from 1 MiB to 1 GiB")]
    LogSize {
        /// What was asked for.
        bytes: u32,
    },
    /// More or longer metadata items than a file holds.
    #[error("the metadata items are more than 2047, or one is longer than 1 MiB")]
    Items,
    /// The parent's path does not fit a locator.
    #[error("describe where the parent is")]
    Path(#[from] PathError),
    /// The host failed.
    #[error("write the new file")]
    Host(#[from] BlockError),
}

/// Makes a VHDX of `file`, whose content is lost; everything is durable on return.
///
/// A regular file gets the length that the new disk needs; a device must be long enough. If the creation is cut off,
/// the file has no signature and is refused by every open.
///
/// # Errors
/// Options outside the format; what the host reports.
pub async fn create(file: &Disk, options: &CreateOptions) -> Result<(), CreateError> {
    options.validate()?;
    let plan = Plan::new(options);
    plan.make_room(file).await?;
    file.write_all(plan.metadata.offset, &plan.metadata_bytes).await?;
    if matches!(options.kind, Kind::Fixed { .. }) {
        plan.write_full_table(file).await?;
    }
    if matches!(options.kind, Kind::Fixed { preallocate: true }) {
        plan.preallocate(file).await?;
    }
    let table = regions::encode(&[plan.metadata, plan.bat]);
    for offset in REGION_TABLE_OFFSETS {
        file.write_all(offset, &table).await?;
    }
    let (file_write_guid, data_write_guid) = (Uuid::new_v4(), Uuid::new_v4());
    for (sequence_number, offset) in (1..).zip(HEADER_OFFSETS) {
        let header = Header {
            sequence_number,
            file_write_guid,
            data_write_guid,
            log_guid: Uuid::nil(),
            log_version: LOG_VERSION,
            version: VERSION,
            log_offset: HEADER_AREA_BYTES,
            log_len: options.log_bytes.into(),
        };
        file.write_all(offset, &header.encode()).await?;
    }
    file.flush().await?;
    file.write_all(0, &identifier(&options.creator)).await?;
    file.flush().await?;
    Ok(())
}

/// Where everything of a new file goes.
struct Plan {
    geometry: Geometry,
    metadata: Region,
    metadata_bytes: Vec<u8>,
    bat: Region,
    /// Where the first block goes.
    data_start: u64,
    file_bytes: u64,
}

impl Plan {
    fn new(options: &CreateOptions) -> Self {
        let geometry = options.geometry();
        let mut metadata_bytes = metadata::encode(&options.metadata_items());
        metadata_bytes.resize(metadata_bytes.len().next_multiple_of(4096), 0);
        let region = |guid, offset, bytes: u64| Region {
            guid,
            offset,
            len: bytes.next_multiple_of(MIB).max(MIB),
            required: true,
        };
        let metadata_offset = HEADER_AREA_BYTES + u64::from(options.log_bytes);
        let metadata = region(METADATA_REGION, metadata_offset, metadata_bytes.len() as u64);
        let bat = region(BAT_REGION, metadata.range().end(), geometry.bat_bytes());
        let data_start = bat.range().end();
        let blocks = match options.kind {
            Kind::Fixed { .. } => geometry.payload_blocks * u64::from(options.block_bytes),
            Kind::Dynamic | Kind::Differencing { .. } => 0,
        };
        Self { geometry, metadata, metadata_bytes, bat, data_start, file_bytes: data_start + blocks }
    }

    /// Empties the file, its old signature first, and gives it its length.
    async fn make_room(&self, file: &Disk) -> Result<(), CreateError> {
        let unmap = ZeroFlags { may_unmap: true, ..ZeroFlags::default() };
        let before = file.range();
        if !before.is_empty() {
            // By itself and first: while anything else of an old disk is half gone, it has no signature.
            let signature = ByteRange::new(0, before.len().min(IDENTIFIER_BYTES)).expect("a part of a range");
            file.write_zeroes(signature, unmap).await?;
            file.flush().await?;
            // Cut before it grows: what a regular file gives up comes back as zeroes.
            Self::resize(file, 0, before.len()).await?;
        }
        Self::resize(file, self.file_bytes, self.file_bytes).await?;
        if !before.is_empty() {
            file.write_zeroes(
                ByteRange::new(0, self.file_bytes).expect("a new file's length is small"),
                unmap,
            )
            .await?;
        }
        Ok(())
    }

    /// Sets the file's length; a device, which has its own, must have `needed` bytes.
    async fn resize(file: &Disk, size: u64, needed: u64) -> Result<(), CreateError> {
        match file.resize(size).await {
            Err(error) if error.kind() == ErrorKind::Unsupported && file.size() >= needed => Ok(()),
            resized => Ok(resized?),
        }
    }

    /// Writes a table in which every block is there, one after the other.
    async fn write_full_table(&self, file: &Disk) -> Result<(), CreateError> {
        let table = ByteRange::new(0, self.geometry.bat_bytes()).expect("a table has 513 MiB at most");
        for piece in table.split_by(PIECE_BYTES) {
            let first = piece.start() / BAT_ENTRY_BYTES;
            let entries = (first..).take((piece.len() / BAT_ENTRY_BYTES) as usize);
            let mut bytes: Vec<u8> =
                entries.flat_map(|index| self.full_entry(index).0.to_le_bytes()).collect();
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
            file.write_all(self.bat.offset + piece.start(), &bytes).await?;
        }
        Ok(())
    }

    fn full_entry(&self, index: u64) -> BatEntry {
        match self.geometry.slot(index) {
            Slot::Payload(block) => {
                let offset = self.data_start + self.geometry.block_start(block);
                BatEntry::new(PayloadState::FullyPresent, offset)
            }
            Slot::Bitmap(_) => BatEntry::default(),
        }
    }

    /// Makes the host give the space of all blocks now.
    async fn preallocate(&self, file: &Disk) -> Result<(), CreateError> {
        let data =
            ByteRange::between(self.data_start, self.file_bytes).expect("blocks end where the file ends");
        for piece in data.split_by(PREALLOCATE_PIECE_BYTES) {
            file.write_zeroes(piece, ZeroFlags::default()).await?;
        }
        Ok(())
    }
}

fn identifier(creator: &str) -> Vec<u8> {
    let mut raw = FileIdentifier::new_zeroed();
    raw.signature = FILE_SIGNATURE;
    for (unit, code) in raw.creator.iter_mut().zip(creator.encode_utf16().take(CREATOR_BYTES / 2)) {
        unit.set(code);
    }
    let mut bytes = raw.as_bytes().to_vec();
    bytes.resize(IDENTIFIER_BYTES as usize, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use testkit::{MemDev, block_on};

    use super::super::{Access, OpenError, open};
    use super::*;

    const GIB: u64 = 1 << 30;

    fn reopen(options: &CreateOptions) -> Opened {
        block_on(async {
            let file = Disk::new(MemDev::new(0));
            create(&file, options).await.unwrap();
            open(file, Access::ReadOnly).await.unwrap()
        })
    }

    fn child_locator() -> ParentLocator {
        let (dir, parent) = (Path::new("/d"), Path::new("/d/base.vhdx"));
        ParentLocator::for_parent(Uuid::from_u128(5), dir, parent).unwrap()
    }

    #[test]
    fn a_new_file_opens_as_what_was_asked_for() {
        let options = CreateOptions {
            block_bytes: 1 << 20,
            logical_sector_bytes: 4096,
            log_bytes: 3 << 20,
            creator: "a test".to_owned(),
            ..CreateOptions::new(5 * GIB + 4096, Kind::Dynamic)
        };
        let opened = reopen(&options);
        assert_eq!(opened.geometry, options.geometry());
        assert_eq!((opened.creator.as_str(), opened.parameters.disk_id), ("a test", options.disk_id));
        assert_eq!((opened.header().log_len, opened.header().sequence_number), (3 << 20, 2));
        assert_eq!((opened.space.end(), opened.file.size()), (6 << 20, 6 << 20));
        assert!(!opened.was_dirty && !opened.parameters.leave_blocks_allocated && opened.locator.is_none());
    }

    #[test]
    fn a_fixed_file_has_all_its_blocks_and_a_child_its_locator() {
        let fixed = reopen(&CreateOptions::new(5 * GIB, Kind::Fixed { preallocate: false }));
        assert!(fixed.parameters.leave_blocks_allocated);
        assert_eq!(fixed.space.used_bytes(), fixed.file.size());
        assert_eq!(fixed.file.size(), 5 * GIB + (4 << 20));
        let kind = Kind::Differencing { locator: child_locator() };
        let child = reopen(&CreateOptions::new(4 << 20, kind));
        assert_eq!(child.locator, Some(child_locator()));
        assert_eq!(child.geometry.bat_entries, 2049);
    }

    #[test]
    fn a_child_takes_over_what_goes_with_the_virtual_disk() {
        let item = |id: u128, flags| NewItem { id: Uuid::from_u128(id), flags, content: vec![id as u8; 9] };
        let kept = item(1, super::super::layout::ITEM_IS_USER | ITEM_IS_VIRTUAL_DISK);
        let mut options = CreateOptions::new(4 << 20, Kind::Dynamic);
        options.items = vec![kept.clone(), item(2, super::super::layout::ITEM_IS_USER)];
        let parent = reopen(&options);
        let paths = (Path::new("/d/base.vhdx"), Path::new("/d"));
        let child = block_on(CreateOptions::child_of(&parent, paths.0, paths.1)).unwrap();
        assert_eq!((&child.items, child.disk_id), (&vec![kept], options.disk_id));
        let child = reopen(&child);
        assert!(child.locator.unwrap().matches(parent.header().data_write_guid));
        assert_eq!(child.items.len(), 7);
    }

    #[test]
    fn a_file_whose_creation_was_cut_off_is_refused() {
        block_on(async {
            let file = Disk::new(MemDev::new(0));
            create(&file, &CreateOptions::new(GIB, Kind::Dynamic)).await.unwrap();
            // An old VHDX is being made anew; nothing of it may be taken for the new one.
            let options = CreateOptions::new(GIB, Kind::Fixed { preallocate: false });
            let plan = Plan::new(&options);
            plan.make_room(&file).await.unwrap();
            assert!(matches!(open(file.clone(), Access::ReadOnly).await, Err(OpenError::NotVhdx)));
            create(&file, &options).await.unwrap();
            assert!(open(file, Access::ReadOnly).await.is_ok());
        });
    }

    #[test]
    fn options_outside_the_format_are_refused() {
        let check = |change: &dyn Fn(&mut CreateOptions)| {
            let mut options = CreateOptions::new(GIB, Kind::Dynamic);
            change(&mut options);
            options.validate().unwrap_err()
        };
        assert!(matches!(check(&|o| o.virtual_size = 0), CreateError::VirtualSize { .. }));
        assert!(matches!(check(&|o| o.virtual_size = GIB + 511), CreateError::VirtualSize { .. }));
        assert!(matches!(check(&|o| o.virtual_size = (64 << 40) + 512), CreateError::VirtualSize { .. }));
        assert!(matches!(check(&|o| o.block_bytes = 3 << 20), CreateError::BlockSize { .. }));
        assert!(matches!(check(&|o| o.block_bytes = 512 << 20), CreateError::BlockSize { .. }));
        assert!(matches!(check(&|o| o.physical_sector_bytes = 520), CreateError::SectorSize { .. }));
        assert!(matches!(check(&|o| o.log_bytes = 0), CreateError::LogSize { .. }));
    }
}
