//! The structures of a VHDX file as they lie on disk.
//!
//! ```text
//!        0  file identifier   64 KiB, written once
//!   64 KiB  header 1           4 KiB of 64
//!  128 KiB  header 2           4 KiB of 64
//!  192 KiB  region table 1    64 KiB
//!  256 KiB  region table 2    64 KiB
//!    1 MiB  log, metadata region, block allocation table, blocks: anywhere, each aligned to 1 MiB
//! ```
//!
//! All numbers are little-endian. Every struct here can be made from any bytes; whether the bytes keep the rules is
//! for the modules to say that read them. Source: MS-VHDX 2.

use block::ByteRange;
use uuid::{Uuid, uuid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 1 KiB.
pub const KIB: u64 = 1 << 10;
/// 1 MiB, to which everything after the header area is aligned.
pub const MIB: u64 = 1 << 20;

/// What the file starts with.
pub const FILE_SIGNATURE: [u8; 8] = *b"vhdxfile";
/// Length of the creator field in bytes of UTF-16.
pub const CREATOR_BYTES: usize = 512;
/// Where the two headers lie.
pub const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Length of a header, and the part that its checksum covers.
pub const HEADER_BYTES: usize = 4096;
/// Where the two copies of the region table lie.
pub const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
/// Length of a region table, and the part that its checksum covers.
pub const REGION_TABLE_BYTES: usize = 64 << 10;
/// The most entries that a region table may have.
pub const REGION_COUNT_MAX: u32 = 2047;
/// The first MiB: identifier, headers, region tables.
pub const HEADER_AREA_BYTES: u64 = MIB;
/// The only version of the format.
pub const VERSION: u16 = 1;
/// The only version of the log.
pub const LOG_VERSION: u16 = 0;

/// Length of the metadata table, where the first item may start.
pub const METADATA_TABLE_BYTES: usize = 64 << 10;
/// The most entries that a metadata table may have.
pub const ITEM_COUNT_MAX: u16 = 2047;
/// The most of them that users may have.
pub const USER_ITEM_COUNT_MAX: u16 = 1024;
/// The longest metadata item.
pub const ITEM_BYTES_MAX: u32 = 1 << 20;

/// Unit of the log: its entries are made of sectors of this size.
pub const LOG_SECTOR_BYTES: usize = 4096;
/// Descriptors in the first sector of a log entry, after its header.
pub const LOG_DESCRIPTORS_FIRST: u32 = 126;
/// Descriptors in each further sector.
pub const LOG_DESCRIPTORS_NEXT: u32 = 128;
/// Length of the header of a log entry, and of two descriptors.
pub const LOG_ENTRY_HEADER_BYTES: usize = 64;
/// Length of a descriptor.
pub const LOG_DESCRIPTOR_BYTES: usize = 32;

/// Smallest block.
pub const BLOCK_BYTES_MIN: u32 = 1 << 20;
/// Largest block.
pub const BLOCK_BYTES_MAX: u32 = 256 << 20;
/// Largest virtual disk: 64 TiB.
pub const VIRTUAL_SIZE_MAX: u64 = 64 << 40;
/// Sectors that one sector bitmap block describes, one bit each.
pub const SECTORS_PER_BITMAP: u64 = 1 << 23;
/// Length of a sector bitmap block.
pub const BITMAP_BLOCK_BYTES: u64 = MIB;
/// Length of an entry of the block allocation table.
pub const BAT_ENTRY_BYTES: u64 = 8;

/// The longest host file that is handled, four times the largest virtual disk: it bounds what open allocates.
pub const FILE_BYTES_MAX: u64 = 4 * VIRTUAL_SIZE_MAX;

/// The region of the block allocation table.
pub const BAT_REGION: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
/// The region of the metadata.
pub const METADATA_REGION: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");

/// Item: block size and flags ([`FileParameters`]).
pub const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
/// Item: size of the virtual disk in bytes.
pub const VIRTUAL_DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
/// Item: identifier of the virtual disk, which a guest sees as SCSI page 83.
pub const VIRTUAL_DISK_ID: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
/// Item: logical sector size in bytes.
pub const LOGICAL_SECTOR_SIZE: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
/// Item: physical sector size in bytes.
pub const PHYSICAL_SECTOR_SIZE: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
/// Item: where the parent is and which state of it is meant.
pub const PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
/// Item: the file's creation is not finished.
pub const INCOMPLETE_FILE: Uuid = uuid!("71cc85f0-1b69-4e28-9558-c3bf83ae75d3");
/// Item: cylinders, heads and sectors of the disk as an old BIOS would see it; later than the published format.
pub const CHS_PARAMETERS: Uuid = uuid!("da02d7bc-3d3a-423c-ac88-2a36ab21479b");
/// Item: label storage of a persistent-memory disk; later than the published format.
pub const PMEM_LABEL: Uuid = uuid!("10e1ae8a-4b7e-4169-a40f-cd70de928393");
/// The type of parent locator that VHDX files have.
pub const PARENT_LOCATOR_TYPE: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");

/// A GUID as Windows stores it: the first three fields little-endian.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug,
)]
#[repr(transparent)]
pub struct GuidLe(pub [u8; 16]);

impl GuidLe {
    /// The GUID.
    pub fn uuid(self) -> Uuid {
        Uuid::from_bytes_le(self.0)
    }
}

impl From<Uuid> for GuidLe {
    fn from(uuid: Uuid) -> Self {
        Self(uuid.to_bytes_le())
    }
}

/// The start of the file; never written again. MS-VHDX 2.2.1.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FileIdentifier {
    /// [`FILE_SIGNATURE`].
    pub signature: [u8; 8],
    /// UTF-16, not always terminated.
    pub creator: [U16; CREATOR_BYTES / 2],
}

/// A header. MS-VHDX 2.2.2.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// `head`.
    pub signature: [u8; 4],
    /// CRC-32C of the 4096 bytes with this field as zero.
    pub checksum: U32,
    /// The larger one is current.
    pub sequence_number: U64,
    /// New with the first change of the file in each writable open.
    pub file_write_guid: GuidLe,
    /// New before the first change that a guest could see.
    pub data_write_guid: GuidLe,
    /// Zero where the log holds nothing to replay.
    pub log_guid: GuidLe,
    /// [`LOG_VERSION`]; matters only where `log_guid` is not zero.
    pub log_version: U16,
    /// [`VERSION`].
    pub version: U16,
    /// Bytes; a multiple of 1 MiB.
    pub log_length: U32,
    /// Bytes; a multiple of 1 MiB.
    pub log_offset: U64,
    /// Zero.
    pub reserved: [u8; 4016],
}

/// The head of a region table. MS-VHDX 2.2.3.1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionTableHeader {
    /// `regi`.
    pub signature: [u8; 4],
    /// CRC-32C of the 64 KiB with this field as zero.
    pub checksum: U32,
    /// At most [`REGION_COUNT_MAX`].
    pub entry_count: U32,
    /// Zero.
    pub reserved: U32,
}

/// An entry of a region table. MS-VHDX 2.2.3.2.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RegionTableEntry {
    /// Which region.
    pub guid: GuidLe,
    /// Bytes; a multiple of 1 MiB.
    pub file_offset: U64,
    /// Bytes; a multiple of 1 MiB.
    pub length: U32,
    /// Bit 0: the file must not be opened by who does not know the region.
    pub flags: U32,
}

/// Bit of [`RegionTableEntry::flags`].
pub const REGION_REQUIRED: u32 = 1;

/// The head of the metadata table. MS-VHDX 2.6.1.1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MetadataTableHeader {
    /// `metadata`.
    pub signature: [u8; 8],
    /// Zero.
    pub reserved: U16,
    /// At most [`ITEM_COUNT_MAX`].
    pub entry_count: U16,
    /// Zero.
    pub reserved2: [u8; 20],
}

/// An entry of the metadata table. MS-VHDX 2.6.1.2.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MetadataTableEntry {
    /// Which item; unique together with the user bit.
    pub item_id: GuidLe,
    /// From the start of the region, at least 64 KiB; 0 where the item is empty.
    pub offset: U32,
    /// At most [`ITEM_BYTES_MAX`].
    pub length: U32,
    /// [`ITEM_IS_USER`], [`ITEM_IS_VIRTUAL_DISK`], [`ITEM_IS_REQUIRED`].
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
}

/// The item belongs to a user of the file, not to the format.
pub const ITEM_IS_USER: u32 = 1;
/// The item describes the virtual disk rather than the file.
pub const ITEM_IS_VIRTUAL_DISK: u32 = 2;
/// The file must not be opened by who does not know the item.
pub const ITEM_IS_REQUIRED: u32 = 4;

/// The item [`FILE_PARAMETERS`]. MS-VHDX 2.6.2.1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FileParameters {
    /// A power of two from [`BLOCK_BYTES_MIN`] to [`BLOCK_BYTES_MAX`].
    pub block_size: U32,
    /// [`PARAMETER_LEAVE_BLOCKS_ALLOCATED`], [`PARAMETER_HAS_PARENT`].
    pub flags: U32,
}

/// The disk is fixed: blocks are not freed.
pub const PARAMETER_LEAVE_BLOCKS_ALLOCATED: u32 = 1;
/// The disk is differencing.
pub const PARAMETER_HAS_PARENT: u32 = 2;

/// The head of a log entry. MS-VHDX 2.3.1.1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogEntryHeader {
    /// `loge`.
    pub signature: [u8; 4],
    /// CRC-32C of the whole entry with this field as zero.
    pub checksum: U32,
    /// Bytes; a multiple of 4 KiB.
    pub entry_length: U32,
    /// Offset in the log of the oldest entry that is still needed.
    pub tail: U32,
    /// One more than that of the entry before; never 0.
    pub sequence_number: U64,
    /// How many descriptors follow.
    pub descriptor_count: U32,
    /// Zero.
    pub reserved: U32,
    /// The header's log GUID when the entry was written.
    pub log_guid: GuidLe,
    /// File size in bytes that was durable when the entry was written.
    pub flushed_file_offset: U64,
    /// File size in bytes that holds all structures, the entry's included.
    pub last_file_offset: U64,
}

/// A descriptor of a log entry, read by its signature. MS-VHDX 2.3.1.2 and 2.3.1.3.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogDescriptor {
    /// `desc` or `zero`.
    pub signature: [u8; 4],
    /// `desc`: last 4 bytes of the page. `zero`: zero.
    pub trailing_bytes: [u8; 4],
    /// `desc`: first 8 bytes of the page. `zero`: length of the range as a number, a multiple of 4 KiB.
    pub leading_bytes: [u8; 8],
    /// Where in the file the page or the range goes; a multiple of 4 KiB.
    pub file_offset: U64,
    /// That of the entry.
    pub sequence_number: U64,
}

/// The sector of a log entry that holds a page but for its first 8 and last 4 bytes. MS-VHDX 2.3.1.4.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogDataSector {
    /// `data`.
    pub signature: [u8; 4],
    /// Upper half of the entry's sequence number.
    pub sequence_high: U32,
    /// Bytes 8 to 4091 of the page.
    pub data: [u8; 4084],
    /// Lower half of the entry's sequence number.
    pub sequence_low: U32,
}

/// Signature of a header.
pub const HEADER_SIGNATURE: [u8; 4] = *b"head";
/// Signature of a region table.
pub const REGION_TABLE_SIGNATURE: [u8; 4] = *b"regi";
/// Signature of the metadata table.
pub const METADATA_SIGNATURE: [u8; 8] = *b"metadata";
/// Signature of a log entry.
pub const LOG_ENTRY_SIGNATURE: [u8; 4] = *b"loge";
/// Signature of a descriptor with a data sector.
pub const LOG_DATA_DESCRIPTOR_SIGNATURE: [u8; 4] = *b"desc";
/// Signature of a descriptor of zeroes.
pub const LOG_ZERO_DESCRIPTOR_SIGNATURE: [u8; 4] = *b"zero";
/// Signature of a data sector.
pub const LOG_DATA_SIGNATURE: [u8; 4] = *b"data";

/// The sectors of 4 KiB that `descriptors` and the header of an entry take in a log entry.
pub const fn log_descriptor_sectors(descriptors: u32) -> u32 {
    1 + descriptors.saturating_sub(LOG_DESCRIPTORS_FIRST).div_ceil(LOG_DESCRIPTORS_NEXT)
}

/// The state of a payload block. MS-VHDX 2.5.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PayloadState {
    /// Not described by this file: the parent's content, or undefined where there is no parent.
    NotPresent = 0,
    /// Undefined content, never the parent's.
    Undefined = 1,
    /// Zeroes.
    Zero = 2,
    /// Trimmed by the guest; never the parent's content. May keep its space.
    Unmapped = 3,
    /// All sectors are in this file.
    FullyPresent = 6,
    /// The sector bitmap tells which sectors are in this file.
    PartiallyPresent = 7,
}

impl PayloadState {
    /// Decodes the three state bits; `None` for the reserved values 4 and 5.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::NotPresent,
            1 => Self::Undefined,
            2 => Self::Zero,
            3 => Self::Unmapped,
            6 => Self::FullyPresent,
            7 => Self::PartiallyPresent,
            _ => return None,
        })
    }

    /// Whether reads of the block go to its space in this file.
    pub const fn is_data(self) -> bool {
        matches!(self, Self::FullyPresent | Self::PartiallyPresent)
    }

    /// Whether a non-zero offset in an entry of this state means that the block owns that space.
    ///
    /// The format reserves the offset of [`Self::NotPresent`] and [`Self::Zero`], where it means nothing; in
    /// [`Self::Undefined`] and [`Self::Unmapped`] it may keep what the block had, for its next write.
    pub const fn owns_offset(self) -> bool {
        matches!(self, Self::Undefined | Self::Unmapped | Self::FullyPresent | Self::PartiallyPresent)
    }
}

/// The state of a sector bitmap block. MS-VHDX 2.5.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BitmapState {
    /// No bitmap; no block of the chunk is partially present.
    NotPresent = 0,
    /// The bitmap is in the file.
    Present = 6,
}

impl BitmapState {
    /// Decodes the three state bits; `None` for reserved values.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::NotPresent),
            6 => Some(Self::Present),
            _ => None,
        }
    }
}

/// An entry of the block allocation table: state in bits 0 to 2, offset in MiB in bits 20 to 63. MS-VHDX 2.5.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BatEntry(pub u64);

impl BatEntry {
    /// Bits that must be zero.
    pub const RESERVED: u64 = 0xf_fff8;

    /// An entry with the three `state` bits and the offset of its space, a multiple of 1 MiB.
    pub const fn from_bits(state: u8, offset_bytes: u64) -> Self {
        assert!(state < 8 && offset_bytes.is_multiple_of(MIB), "blocks lie at multiples of 1 MiB");
        Self(offset_bytes | state as u64)
    }

    /// A payload block's entry.
    pub const fn new(state: PayloadState, offset_bytes: u64) -> Self {
        Self::from_bits(state as u8, offset_bytes)
    }

    /// A sector bitmap's entry.
    pub const fn bitmap(state: BitmapState, offset_bytes: u64) -> Self {
        Self::from_bits(state as u8, offset_bytes)
    }

    /// The three state bits.
    pub const fn state_bits(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// The state of a payload block; `None` where it is reserved, which open refuses.
    pub const fn state(self) -> Option<PayloadState> {
        PayloadState::from_bits(self.state_bits())
    }

    /// The state of a sector bitmap; `None` where it is reserved, which open refuses.
    pub const fn bitmap_state(self) -> Option<BitmapState> {
        BitmapState::from_bits(self.state_bits())
    }

    /// The offset field in bytes of the host file; 0 where there is none.
    pub const fn offset_bytes(self) -> u64 {
        self.0 & !(MIB - 1)
    }

    /// Whether a reserved bit is set.
    pub const fn has_reserved_bits(self) -> bool {
        self.0 & Self::RESERVED != 0
    }

    /// The space that a payload block owns in the host file, in whatever state; `None` where it owns none.
    ///
    /// Also `None` where the offset field is larger than any file is long, which open refuses.
    pub fn owned(self, block_bytes: u32) -> Option<ByteRange> {
        let owns = self.state().is_some_and(PayloadState::owns_offset) && self.offset_bytes() != 0;
        if owns { ByteRange::new(self.offset_bytes(), u64::from(block_bytes)) } else { None }
    }
}

/// The CRC-32C of `bytes` whose bytes 4 to 7 hold the checksum itself and count as zero.
///
/// # Panics
/// If there are fewer than 8 bytes.
pub fn checksum(bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&bytes[..4]);
    digest.update(&[0; 4]);
    digest.update(&bytes[8..]);
    u32::try_from(digest.finalize()).expect("a 32-bit checksum fits 32 bits")
}

/// Computes the checksum of a header, a region table or a log entry and stores it in its bytes 4 to 7.
///
/// # Panics
/// If there are fewer than 8 bytes.
pub fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Whether bytes 4 to 7 hold the checksum of the whole.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.len() >= 8 && bytes[4..8] == checksum(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_have_the_lengths_of_the_format() {
        assert_eq!(size_of::<RawHeader>(), HEADER_BYTES);
        assert_eq!(size_of::<FileIdentifier>(), 520);
        assert_eq!(size_of::<RegionTableHeader>(), 16);
        assert_eq!(size_of::<RegionTableEntry>(), 32);
        assert_eq!(size_of::<MetadataTableHeader>(), 32);
        assert_eq!(size_of::<MetadataTableEntry>(), 32);
        assert_eq!(size_of::<LogEntryHeader>(), LOG_ENTRY_HEADER_BYTES);
        assert_eq!(size_of::<LogDescriptor>(), LOG_DESCRIPTOR_BYTES);
        assert_eq!(size_of::<LogDataSector>(), LOG_SECTOR_BYTES);
    }

    #[test]
    fn the_checksum_is_crc_32c_and_skips_its_own_field() {
        // The check value of CRC-32C for "123456789" with the four bytes in its middle as zero.
        let expected = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, b"1234\0\0\0\x009");
        assert_eq!(u64::from(checksum(b"1234ABCD9")), expected);
        assert_eq!(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, b"123456789"), 0xe306_9283);
        let mut page = [7; 4096];
        seal(&mut page);
        assert!(is_sealed(&page));
        page[4095] ^= 1;
        assert!(!is_sealed(&page));
    }

    #[test]
    fn entries_keep_state_and_offset_apart() {
        let entry = BatEntry::new(PayloadState::FullyPresent, 5 * MIB);
        assert_eq!(entry.0, 0x50_0006);
        assert_eq!((entry.state(), entry.offset_bytes()), (Some(PayloadState::FullyPresent), 5 * MIB));
        assert_eq!(BatEntry(5).state(), None);
        assert_eq!(BatEntry(3).bitmap_state(), None);
        assert!(BatEntry(8).has_reserved_bits() && BatEntry(1 << 19).has_reserved_bits());
        assert!(!BatEntry(1 << 20).has_reserved_bits());
        assert_eq!(BatEntry::new(PayloadState::Zero, 5 * MIB).owned(1 << 20), None);
        assert_eq!(
            BatEntry::new(PayloadState::Unmapped, 5 * MIB).owned(1 << 20),
            ByteRange::new(5 * MIB, MIB)
        );
        assert_eq!(BatEntry(!BatEntry::RESERVED).owned(1 << 20), None);
    }

    #[test]
    fn descriptors_fill_sectors() {
        let sectors = [0, 1, 126, 127, 254, 255].map(log_descriptor_sectors);
        assert_eq!(sectors, [1, 1, 1, 2, 2, 3]);
    }
}
