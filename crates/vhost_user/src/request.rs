//! virtio-blk requests: a chain of descriptors in, a typed request on guest memory out (virtio 1.2, section 5.2.6).
//!
//! Nothing here does I/O or copies data: a read's or write's scatter list points into the guest's memory.

use std::sync::Arc;

use block::{ByteRange, SgList};
use smallvec::SmallVec;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::chain::{Chain, DescriptorTable, Span, Spans, take_front, take_last_byte, total_bytes};
use crate::config::{DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX};
use crate::error::ChainError;
use crate::memory::GuestMemory;

/// The unit of offsets and lengths in virtio-blk requests, whatever the block size of the disk.
pub const SECTOR_BYTES: u64 = 512;
/// The most that one request may read or write. The data is not copied, so this only bounds how long one request
/// keeps the disk busy; guests stay far below it.
pub const REQUEST_BYTES_MAX: u64 = 1 << 30;
/// Length of a disk's identification string.
pub const ID_BYTES: usize = 20;

const HEADER_BYTES: u32 = 16;
const RANGE_BYTES: u32 = 16;

/// How a request ended, as the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Failed.
    IoError,
    /// The device does not do such requests.
    Unsupported,
}

impl Status {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Ok => VIRTIO_BLK_S_OK as u8,
            Self::IoError => VIRTIO_BLK_S_IOERR as u8,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// A range to discard or to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroRange {
    /// The bytes of the disk.
    pub range: ByteRange,
    /// Whether zeroing may leave a hole; `false` in discards.
    pub may_unmap: bool,
}

/// What the guest asks for.
#[derive(Debug)]
pub enum Operation {
    /// Fill `into` from the disk.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// The guest's memory.
        into: SgList,
    },
    /// Write `from` to the disk.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// The guest's memory.
        from: SgList,
    },
    /// Make what was written durable.
    Flush,
    /// Fill `into` with the disk's identification, up to [`ID_BYTES`] bytes.
    GetId {
        /// The guest's memory.
        into: SgList,
    },
    /// The content of the ranges is not needed.
    Discard(SmallVec<[ZeroRange; 1]>),
    /// The ranges are to read as zeroes.
    WriteZeroes(SmallVec<[ZeroRange; 1]>),
}

impl Operation {
    /// How many bytes of the guest's memory it moves.
    pub fn data_bytes(&self) -> u64 {
        match self {
            Self::Read { into: data, .. } | Self::Write { from: data, .. } | Self::GetId { into: data } => {
                data.len()
            }
            Self::Flush | Self::Discard(_) | Self::WriteZeroes(_) => 0,
        }
    }
}

/// Where the answer to a request goes.
#[derive(Debug)]
pub struct ReplyTo {
    /// First descriptor of the request.
    pub(crate) head: u16,
    /// Guest-physical address of the status byte, which is in memory.
    pub(crate) status: GuestAddress,
    /// Bytes of the guest's memory that the request may write, the status byte among them.
    pub(crate) writable_bytes: u32,
    /// Where the data of a read goes, for the dirty log.
    pub(crate) data: Spans,
    /// The table of memory that the request was parsed with.
    pub(crate) memory: Arc<GuestMemory>,
}

/// A request that was taken off a ring.
#[derive(Debug)]
pub struct Request {
    /// What is asked, or the status to answer with where the request is refused.
    pub operation: Result<Operation, Status>,
    /// Where the answer goes.
    pub reply_to: ReplyTo,
}

impl Request {
    /// Parses the request at descriptor `head`.
    ///
    /// # Errors
    /// If the chain is so broken that it has no place for an answer. What is only wrong inside (an unknown type, data
    /// outside of memory) comes back as a request to refuse.
    pub(crate) fn parse(
        memory: &Arc<GuestMemory>,
        table: DescriptorTable,
        head: u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Chain::read(memory.regions(), table, head)?;
        let writable = total_bytes(&chain.writable);
        let status = take_last_byte(&mut chain.writable).ok_or(ChainError::NoStatus)?;
        if !memory.regions().address_in_range(status) {
            return Err(ChainError::StatusOutsideMemory { address: status.0 });
        }
        let operation = parse_operation(memory, &mut chain);
        let reply_to = ReplyTo {
            head,
            status,
            writable_bytes: u32::try_from(writable).unwrap_or(u32::MAX),
            data: chain.writable,
            memory: memory.clone(),
        };
        Ok(Self { operation, reply_to })
    }
}

fn parse_operation(memory: &Arc<GuestMemory>, chain: &mut Chain) -> Result<Operation, Status> {
    let mut header = [0; HEADER_BYTES as usize];
    take_bytes(memory, &mut chain.readable, &mut header)?;
    let (kind, sector) = (le_u32(&header, 0), le_u64(&header, 8));
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = data_offset(sector, &chain.writable)?;
            Ok(Operation::Read { offset, into: scatter_list(memory, &chain.writable)? })
        }
        VIRTIO_BLK_T_OUT => {
            let offset = data_offset(sector, &chain.readable)?;
            Ok(Operation::Write { offset, from: scatter_list(memory, &chain.readable)? })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Operation::GetId { into: scatter_list(memory, &chain.writable)? }),
        VIRTIO_BLK_T_DISCARD => take_ranges(memory, &mut chain.readable, 0).map(Operation::Discard),
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            take_ranges(memory, &mut chain.readable, known).map(Operation::WriteZeroes)
        }
        _ => Err(Status::Unsupported),
    }
}

/// Where a read or write of `data` starts on the disk, if its length is one that requests may have.
fn data_offset(sector: u64, data: &Spans) -> Result<u64, Status> {
    let len = total_bytes(data);
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
    if len > REQUEST_BYTES_MAX || !len.is_multiple_of(SECTOR_BYTES) || ByteRange::new(offset, len).is_none() {
        return Err(Status::IoError);
    }
    Ok(offset)
}

fn scatter_list(memory: &Arc<GuestMemory>, spans: &Spans) -> Result<SgList, Status> {
    let mut list = SgList::new();
    for span in spans {
        memory.push_segments(GuestAddress(span.start), span.len, &mut list).map_err(|_| Status::IoError)?;
    }
    Ok(list)
}

/// Reads the segments of a discard or write-zeroes request, whose flags may be those in `known_flags`.
fn take_ranges(
    memory: &GuestMemory,
    readable: &mut Spans,
    known_flags: u32,
) -> Result<SmallVec<[ZeroRange; 1]>, Status> {
    let bytes = total_bytes(readable);
    let count = bytes / u64::from(RANGE_BYTES);
    if !bytes.is_multiple_of(u64::from(RANGE_BYTES)) || count == 0 || count > u64::from(DISCARD_SEGMENTS_MAX)
    {
        return Err(Status::IoError);
    }
    let mut ranges = SmallVec::new();
    for _ in 0..count {
        let mut segment = [0; RANGE_BYTES as usize];
        take_bytes(memory, readable, &mut segment)?;
        ranges.push(parse_range(&segment, known_flags)?);
    }
    Ok(ranges)
}

fn parse_range(segment: &[u8; RANGE_BYTES as usize], known_flags: u32) -> Result<ZeroRange, Status> {
    let (sector, count, flags) = (le_u64(segment, 0), le_u32(segment, 8), le_u32(segment, 12));
    // Virtio 1.2, 5.2.6.2: the device answers UNSUPP if an unknown flag is set, or unmap in a discard.
    if flags & !known_flags != 0 {
        return Err(Status::Unsupported);
    }
    if count > DISCARD_SECTORS_MAX {
        return Err(Status::IoError);
    }
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
    let range = ByteRange::new(offset, u64::from(count) * SECTOR_BYTES).ok_or(Status::IoError)?;
    Ok(ZeroRange { range, may_unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
}

/// Copies the first bytes of `spans` out and takes them off.
fn take_bytes(memory: &GuestMemory, spans: &mut Spans, into: &mut [u8]) -> Result<(), Status> {
    let count = u32::try_from(into.len()).expect("headers and segments are a few bytes long");
    let mut done = 0;
    let mut all_read = true;
    let complete = take_front(spans, count, |Span { start, len }| {
        let part = &mut into[done..done + len as usize];
        all_read &= memory.regions().read_slice(part, GuestAddress(start)).is_ok();
        done += len as usize;
    });
    if complete && all_read { Ok(()) } else { Err(Status::IoError) }
}

fn le_u32(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le_u64(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
