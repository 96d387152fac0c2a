//! The trait that devices implement.

use crate::{ByteRange, Extent, Result, SgList};

/// What reads of a discarded range return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The device ignores discards; the old content stays.
    Ignored,
    /// Each byte is the old one or zero, and stays what it is until it is written.
    Unspecified,
    /// Zeroes.
    Zeroes,
}

/// The fixed facts of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevInfo {
    /// Offsets and lengths of requests are multiples of this; a power of two, 1 for a buffered host file.
    pub block_bytes: u32,
    /// The unit that the medium writes atomically; a power of two, at least `block_bytes`.
    pub physical_block_bytes: u32,
    /// A request size that performs well; a multiple of `block_bytes`.
    pub optimal_bytes: u32,
    /// Whether the device refuses changes.
    pub read_only: bool,
    /// What a discard does.
    pub discard: Discard,
    /// Smallest aligned range whose discard can free space.
    pub discard_bytes: u32,
    /// Whether the device itself makes a write durable on request; where it does not, [`crate::Disk`] flushes.
    pub native_fua: bool,
    /// Whether `write_zeroes` with `fast_only` can succeed.
    pub fast_zeroes: bool,
    /// The deepest memory alignment that a scatter list needs (O_DIRECT); 1 where any will do.
    pub memory_align: u32,
}

/// How a write is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Durable when the write completes.
    pub fua: bool,
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Durable when the request completes.
    pub fua: bool,
    /// The range may become a hole.
    pub may_unmap: bool,
    /// Fail at once with `Unsupported` rather than write zeroes out.
    pub fast_only: bool,
}

/// A block device. The crate's documentation holds the semantics that every implementation keeps.
///
/// There are no provided methods: a new one must be decided on by every device and layer, or it does not build.
/// Objects may be shared between threads; their futures stay on the thread that polls them, which is what lets each
/// thread use its own ring.
#[expect(async_fn_in_trait, reason = "futures are local on purpose; callers go through `Disk`")]
pub trait BlockDev: Send + Sync + 'static {
    /// The fixed facts. Constant for the life of the device.
    fn info(&self) -> DevInfo;

    /// Size in bytes; may change through `resize`.
    fn size(&self) -> u64;

    /// Reads `into.len()` bytes from `offset`. On error the memory's content is unspecified.
    async fn read(&self, offset: u64, into: SgList) -> Result<()>;

    /// Writes `from.len()` bytes at `offset`. `flags.fua` is set only if `info().native_fua` is.
    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()>;

    /// Makes `range` read as zeroes.
    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()>;

    /// Tells the device that the content of `range` is not needed.
    async fn discard(&self, range: ByteRange) -> Result<()>;

    /// Makes every write that completed before the call durable.
    async fn flush(&self) -> Result<()>;

    /// Appends the extents of `range` to `out`.
    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()>;

    /// Grows or shrinks the device; new bytes read as zeroes. `Unsupported` where the size is fixed.
    ///
    /// The new size is durable after the next flush.
    async fn resize(&self, size: u64) -> Result<()>;

    /// Waits for what is in flight, makes everything durable, and gives the file and its locks back.
    ///
    /// Later requests fail. A device that is dropped without it loses nothing that was flushed.
    async fn close(&self) -> Result<()>;
}
