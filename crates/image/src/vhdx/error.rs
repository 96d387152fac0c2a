//! Why a VHDX file is not opened: one variant for each rule that it can break.

use block::{BlockError, ErrorKind};
use thiserror::Error;
use uuid::Uuid;

use super::space::Owner;

/// The rule of the format that a file breaks, or the failure of the host that kept us from finding out.
///
/// Offsets are bytes of the host file.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Shorter than the 1 MiB header area.
    #[error("the file is {file_bytes} bytes long, shorter than the 1 MiB header area of a vhdx file")]
    TooShort {
        /// Length of the host file.
        file_bytes: u64,
    },
    /// Longer than any VHDX file can have a use for.
    #[error("the file is {file_bytes} bytes long, more than the {max} bytes that are handled")]
    TooLong {
        /// Length of the host file.
        file_bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The first eight bytes are not `vhdxfile`.
    #[error("the file does not start with the signature \"vhdxfile\"")]
    NotVhdx,
    /// Neither header has its signature and checksum.
    #[error("neither of the headers at 0x10000 and 0x20000 is valid (first: {first}; second: {second})")]
    NoHeader {
        /// What is wrong with the first.
        first: TableFault,
        /// What is wrong with the second.
        second: TableFault,
    },
    /// Both headers carry the same sequence number but differ elsewhere.
    #[error("the headers at 0x10000 and 0x20000 have the same sequence number {sequence_number} but differ")]
    HeadersContradict {
        /// The number that both carry.
        sequence_number: u64,
    },
    /// The format version is not 1.
    #[error("the header asks for version {version} of the format; only version 1 is known")]
    UnknownVersion {
        /// What the header says.
        version: u16,
    },
    /// The header's sequence number leaves no room for further updates.
    #[error("the header's sequence number {sequence_number:#x} leaves no room for further updates")]
    SequenceExhausted {
        /// The current header's number.
        sequence_number: u64,
    },
    /// The log is in use and of an unknown version.
    #[error("the log {log_guid} is in use and has version {version}; only version 0 is known")]
    UnknownLogVersion {
        /// The identifier of the log.
        log_guid: Uuid,
        /// What the header says.
        version: u16,
    },
    /// Log offset or length is not a multiple of 1 MiB, or the log lies in the header area or beyond the file.
    #[error("the log of {len:#x} bytes at {offset:#x} {fault}")]
    LogPlace {
        /// Where the header says that the log starts.
        offset: u64,
        /// How long the header says that it is.
        len: u64,
        /// What is wrong with that.
        fault: PlaceFault,
    },
    /// The header says that the log holds updates, and it holds no valid sequence of entries.
    #[error(
        "the header says that the log {log_guid} holds updates, but no valid sequence of entries is in it"
    )]
    LogEmpty {
        /// The identifier that the entries must carry.
        log_guid: Uuid,
    },
    /// The file was cut: the log knows it longer.
    #[error("the file is {file_bytes} bytes long, but the log says that {flushed_bytes} bytes were durable")]
    LogFileCut {
        /// Length of the host file.
        file_bytes: u64,
        /// FlushedFileOffset of the newest entry.
        flushed_bytes: u64,
    },
    /// An update in the log lies beyond what a file may hold.
    #[error("an update in the log reaches to {end:#x}, beyond the {max:#x} bytes that are handled")]
    LogBeyondLimit {
        /// One past the last byte of the update.
        end: u64,
        /// The limit.
        max: u64,
    },
    /// Neither region table is valid.
    #[error(
        "neither of the region tables at 0x30000 and 0x40000 is valid (first: {first}; second: {second})"
    )]
    NoRegionTable {
        /// What is wrong with the first.
        first: TableFault,
        /// What is wrong with the second.
        second: TableFault,
    },
    /// A region that must be understood to open the file is unknown.
    #[error("the file needs the unknown region {guid}")]
    UnknownRegion {
        /// The region.
        guid: Uuid,
    },
    /// A region stands in the table twice.
    #[error("the region {guid} is listed twice")]
    DuplicateRegion {
        /// The region.
        guid: Uuid,
    },
    /// The block allocation table or the metadata region is missing.
    #[error("the file has no {name} region")]
    MissingRegion {
        /// Which one.
        name: &'static str,
    },
    /// A region's place breaks a rule.
    #[error("the region {guid} of {len:#x} bytes at {offset:#x} {fault}")]
    RegionPlace {
        /// The region.
        guid: Uuid,
        /// Where the table says that it starts.
        offset: u64,
        /// How long the table says that it is.
        len: u64,
        /// What is wrong with that.
        fault: PlaceFault,
    },
    /// Header area, log and regions overlap.
    #[error("the {first} and the {second} overlap at {offset:#x}")]
    StructuresOverlap {
        /// One of them.
        first: Owner,
        /// The other.
        second: Owner,
        /// First byte that both take.
        offset: u64,
    },
    /// The metadata table's head breaks a rule.
    #[error("the metadata table at {offset:#x} {fault}")]
    MetadataTable {
        /// Where the metadata region starts.
        offset: u64,
        /// What is wrong.
        fault: TableFault,
    },
    /// A metadata item's place breaks a rule.
    #[error("the metadata item {item} of {len:#x} bytes at {offset:#x} of its region {fault}")]
    ItemPlace {
        /// The item.
        item: Uuid,
        /// From the start of the metadata region.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// What is wrong with that.
        fault: PlaceFault,
    },
    /// A metadata item stands in the table twice.
    #[error("the metadata item {item} is listed twice")]
    DuplicateItem {
        /// The item.
        item: Uuid,
    },
    /// A metadata item that must be understood to open the file is unknown.
    #[error("the file needs the unknown metadata item {item}")]
    UnknownItem {
        /// The item.
        item: Uuid,
    },
    /// A metadata item that every file has is missing.
    #[error("the metadata item \"{name}\" is missing")]
    MissingItem {
        /// Which one.
        name: &'static str,
    },
    /// A metadata item's flags are not those that the format gives it.
    #[error("the metadata item \"{name}\" has flags {flags:#x}; the format gives it {expected:#x}")]
    ItemFlags {
        /// Which one.
        name: &'static str,
        /// The flags in the table.
        flags: u32,
        /// Those of the format.
        expected: u32,
    },
    /// A metadata item has another length than the format gives it.
    #[error("the metadata item \"{name}\" is {len} bytes long; the format gives it {expected}")]
    ItemLength {
        /// Which one.
        name: &'static str,
        /// Length in the table.
        len: u32,
        /// That of the format.
        expected: u32,
    },
    /// Whoever created the file did not finish.
    #[error("the file is marked as incomplete: its creation was not finished")]
    Incomplete,
    /// The block size is not a power of two from 1 MiB to 256 MiB.
    #[error("the block size {block_bytes} is not a power of two from 1 MiB to 256 MiB")]
    BlockSize {
        /// What the file parameters say.
        block_bytes: u32,
    },
    /// Reserved bits of the file parameters are set.
    #[error("the file parameters have unknown flags {flags:#x}")]
    ParameterFlags {
        /// The flags.
        flags: u32,
    },
    /// A sector size is neither 512 nor 4096.
    #[error("the {which} sector size {bytes} is neither 512 nor 4096")]
    SectorSize {
        /// `logical` or `physical`.
        which: &'static str,
        /// What the item says.
        bytes: u32,
    },
    /// The virtual size is not a multiple of the logical sector.
    #[error(
        "the virtual size {virtual_size} is not a multiple of the logical sector of {sector_bytes} bytes"
    )]
    SizeNotSectors {
        /// What the item says.
        virtual_size: u64,
        /// The logical sector.
        sector_bytes: u32,
    },
    /// The virtual size is above 64 TiB.
    #[error("the virtual size {virtual_size} is above the format's limit of 64 TiB")]
    SizeTooLarge {
        /// What the item says.
        virtual_size: u64,
    },
    /// The parent locator cannot be read.
    #[error("the parent locator {fault}")]
    Locator {
        /// What is wrong.
        fault: LocatorFault,
    },
    /// The block allocation table's region is too short for the disk.
    #[error("the block allocation table has room for {entries} entries; the disk needs {needed}")]
    BatTooShort {
        /// What fits the region.
        entries: u64,
        /// What the geometry asks for.
        needed: u64,
    },
    /// An entry of the block allocation table breaks a rule.
    #[error("the entry {index} of the block allocation table, {entry:#018x}, {fault}")]
    BatEntry {
        /// Position in the table.
        index: u64,
        /// The entry as it stands there.
        entry: u64,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// The file cannot be written because it has no log.
    #[error("the file has no log, so it can only be opened read-only")]
    NoLog,
    /// The host failed.
    #[error("{doing}")]
    Host {
        /// Present-tense action.
        doing: &'static str,
        /// What the host said.
        source: BlockError,
    },
}

/// What is wrong with a header, a region table or a metadata table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableFault {
    /// It would pass by itself.
    #[error("valid")]
    None,
    /// The signature is not there.
    #[error("has no signature")]
    Signature,
    /// The checksum does not match.
    #[error("has a wrong checksum")]
    Checksum,
    /// It lists more entries than it may.
    #[error("lists {count} entries, more than {max}")]
    Count {
        /// What it says.
        count: u32,
        /// The limit.
        max: u32,
    },
    /// Bytes or bits that must be zero are not.
    #[error("has reserved bits set")]
    Reserved,
}

/// What is wrong with the place of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlaceFault {
    /// Offset or length is not a multiple of 1 MiB.
    #[error("is not aligned to 1 MiB")]
    Unaligned,
    /// It starts inside the first MiB of the file.
    #[error("lies in the header area")]
    InHeader,
    /// It ends beyond the end of the file, or of its region.
    #[error("ends beyond the end")]
    BeyondEnd,
    /// It has no bytes.
    #[error("is empty")]
    Empty,
    /// It lies inside the table that names it.
    #[error("lies inside its table")]
    InTable,
    /// It is larger than the format allows.
    #[error("is larger than the format allows")]
    TooLarge,
    /// It overlaps another of its kind.
    #[error("overlaps another")]
    Overlap,
    /// Reserved bits of its entry are set.
    #[error("has reserved bits set in its entry")]
    Reserved,
}

/// What is wrong with an entry of the block allocation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EntryFault {
    /// The state is one that the format reserves, or that this kind of entry cannot have.
    #[error("has the reserved state {state}")]
    State {
        /// The three state bits.
        state: u8,
    },
    /// Bits 3 to 19 are not zero.
    #[error("has reserved bits set")]
    Reserved,
    /// The state says that space is allocated, and the offset is zero.
    #[error("is allocated but has no offset")]
    NoOffset,
    /// The space starts at or beyond the end of the file.
    #[error("lies beyond the end of the file, which is at {file_bytes:#x}")]
    BeyondEnd {
        /// Length of the host file.
        file_bytes: u64,
    },
    /// The space belongs to something else.
    #[error("takes space of the {owner}")]
    Taken {
        /// Who has it.
        owner: Owner,
    },
    /// The space belongs to another block.
    #[error("shares its space with the entry {index}")]
    SharedWith {
        /// The other entry's position in the table.
        index: u64,
    },
    /// The block is partially present in a file that has no parent.
    #[error("is partially present, but the file has no parent")]
    PartialWithoutParent,
    /// The block is partially present and its chunk has no sector bitmap.
    #[error("is partially present, but its sector bitmap (entry {bitmap_index}) is not allocated")]
    PartialWithoutBitmap {
        /// The bitmap's position in the table.
        bitmap_index: u64,
    },
    /// A sector bitmap is allocated in a file that has no parent.
    #[error("allocates a sector bitmap, but the file has no parent")]
    BitmapWithoutParent,
}

/// What is wrong with a parent locator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LocatorFault {
    /// Its type is not that of VHDX parents.
    #[error("has the unknown type {0}")]
    Type(Uuid),
    /// Shorter than its own structures.
    #[error("is cut short")]
    Short,
    /// More pairs than a locator may have.
    #[error("has {0} pairs, more than 256")]
    Count(u16),
    /// A key or a value is empty or lies outside the item.
    #[error("has a key or a value outside of itself (pair {0})")]
    Place(u16),
    /// A key or a value is not UTF-16.
    #[error("has a key or a value that is not utf-16 (pair {0})")]
    Text(u16),
    /// A key stands there twice.
    #[error("has a key twice (pair {0})")]
    Duplicate(u16),
    /// No `parent_linkage`.
    #[error("has no parent_linkage")]
    NoLinkage,
    /// A linkage is not a GUID.
    #[error("has a linkage that is not a guid")]
    Linkage,
}

impl OpenError {
    /// The kind by which code tells it apart: `Corrupt`, or `Unsupported` for what a later version of the format may
    /// mean, or the host's.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Host { source, .. } => source.kind(),
            Self::TooLong { .. }
            | Self::NotVhdx
            | Self::UnknownVersion { .. }
            | Self::UnknownLogVersion { .. }
            | Self::UnknownRegion { .. }
            | Self::UnknownItem { .. }
            | Self::ParameterFlags { .. }
            | Self::NoLog
            | Self::Locator { fault: LocatorFault::Type(_) } => ErrorKind::Unsupported,
            _ => ErrorKind::Corrupt,
        }
    }

    /// The broken rule in a few words that never change, for scripts and for [`super::check()`].
    pub fn rule(&self) -> &'static str {
        match self {
            Self::TooShort { .. } => "file-too-short",
            Self::TooLong { .. } => "file-too-long",
            Self::NotVhdx => "identifier",
            Self::NoHeader { .. } => "no-header",
            Self::HeadersContradict { .. } => "headers-contradict",
            Self::UnknownVersion { .. } => "version",
            Self::SequenceExhausted { .. } => "header-sequence",
            Self::UnknownLogVersion { .. } => "log-version",
            Self::LogPlace { .. } => "log-place",
            Self::LogEmpty { .. } => "log-empty",
            Self::LogFileCut { .. } => "log-file-cut",
            Self::LogBeyondLimit { .. } => "log-beyond-limit",
            Self::NoRegionTable { .. } => "no-region-table",
            Self::UnknownRegion { .. } => "region-unknown",
            Self::DuplicateRegion { .. } => "region-duplicate",
            Self::MissingRegion { .. } => "region-missing",
            Self::RegionPlace { .. } => "region-place",
            Self::StructuresOverlap { .. } => "structure-overlap",
            Self::MetadataTable { .. } => "metadata-table",
            Self::ItemPlace { .. } => "item-place",
            Self::DuplicateItem { .. } => "item-duplicate",
            Self::UnknownItem { .. } => "item-unknown",
            Self::MissingItem { .. } => "item-missing",
            Self::ItemFlags { .. } => "item-flags",
            Self::ItemLength { .. } => "item-length",
            Self::Incomplete => "incomplete",
            Self::BlockSize { .. } => "block-size",
            Self::ParameterFlags { .. } => "parameter-flags",
            Self::SectorSize { .. } => "sector-size",
            Self::SizeNotSectors { .. } => "size-not-sectors",
            Self::SizeTooLarge { .. } => "size-too-large",
            Self::Locator { .. } => "parent-locator",
            Self::BatTooShort { .. } => "bat-too-short",
            Self::BatEntry { fault, .. } => fault.rule(),
            Self::NoLog => "no-log",
            Self::Host { .. } => "host",
        }
    }

    /// The error of a host that failed while `doing`, a present-tense action.
    pub fn host(doing: &'static str) -> impl Fn(BlockError) -> Self {
        move |source| Self::Host { doing, source }
    }
}

impl EntryFault {
    /// The broken rule in a few words that never change.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::State { .. } => "bat-state",
            Self::Reserved => "bat-reserved",
            Self::NoOffset => "bat-no-offset",
            Self::BeyondEnd { .. } => "bat-beyond-end",
            Self::Taken { .. } | Self::SharedWith { .. } => "bat-overlap",
            Self::PartialWithoutParent => "bat-partial-without-parent",
            Self::PartialWithoutBitmap { .. } => "bat-partial-without-bitmap",
            Self::BitmapWithoutParent => "bat-bitmap-without-parent",
        }
    }
}

impl From<OpenError> for BlockError {
    fn from(error: OpenError) -> Self {
        Self::with_source(error.kind(), "open the vhdx file", error)
    }
}
