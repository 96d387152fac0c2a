//! The handle that everything above a device holds.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::{
    BlockDev, BlockError, ByteRange, DevInfo, ErrorKind, Extent, Result, SgList, WriteFlags, ZeroFlags,
};

/// A handle to a block device: cheap to clone, the same device behind every clone.
///
/// It checks what is common to all devices, so that a device is never called with a misaligned range, and adds
/// flushes where a device has no FUA of its own.
#[derive(Clone)]
pub struct Disk {
    dev: Arc<dyn DynBlockDev>,
    info: DevInfo,
}

impl Disk {
    /// A handle to `dev`.
    pub fn new(dev: impl BlockDev) -> Self {
        Self::from_arc(Arc::new(dev))
    }

    /// A handle to a device that its creator also keeps, to ask it what the contract does not cover.
    pub fn from_arc<D: BlockDev>(dev: Arc<D>) -> Self {
        let info = dev.info();
        assert!(info.block_bytes.is_power_of_two(), "a device's block size is a power of two");
        Self { dev, info }
    }

    /// The fixed facts of the device.
    pub fn info(&self) -> &DevInfo {
        &self.info
    }

    /// Size in bytes, now.
    pub fn size(&self) -> u64 {
        self.dev.size()
    }

    /// The whole device, now.
    pub fn range(&self) -> ByteRange {
        ByteRange::new(0, self.size()).expect("a device is at most i64::MAX bytes long")
    }

    /// Reads `into.len()` bytes from `offset`.
    ///
    /// # Errors
    /// `Misaligned` and `OutOfRange` for the range; what the device reports.
    pub async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        self.check(offset, into.len())?;
        self.dev.read(offset, into).await
    }

    /// Writes `from.len()` bytes at `offset`; durable at completion if `flags.fua`.
    ///
    /// # Errors
    /// `ReadOnly`, `Misaligned` and `OutOfRange`; what the device reports.
    pub async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        self.check_change(offset, from.len())?;
        if !flags.fua || self.info.native_fua {
            return self.dev.write(offset, from, flags).await;
        }
        self.dev.write(offset, from, WriteFlags { fua: false }).await?;
        self.dev.flush().await
    }

    /// Makes `range` read as zeroes.
    ///
    /// # Errors
    /// `ReadOnly`, `Misaligned` and `OutOfRange`; `Unsupported` where `fast_only` cannot be kept; what the device
    /// reports.
    pub async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        self.check_change(range.start(), range.len())?;
        if flags.fast_only && !self.info.fast_zeroes {
            return Err(BlockError::new(ErrorKind::Unsupported, "the device cannot write zeroes fast"));
        }
        if !flags.fua || self.info.native_fua {
            return self.dev.write_zeroes(range, flags).await;
        }
        self.dev.write_zeroes(range, ZeroFlags { fua: false, ..flags }).await?;
        self.dev.flush().await
    }

    /// Tells the device that the content of `range` is not needed.
    ///
    /// # Errors
    /// `ReadOnly`, `Misaligned` and `OutOfRange`; what the device reports.
    pub async fn discard(&self, range: ByteRange) -> Result<()> {
        self.check_change(range.start(), range.len())?;
        self.dev.discard(range).await
    }

    /// Makes every write that completed before the call, through any clone, durable.
    ///
    /// # Errors
    /// What the device reports; after a failure it is `Poisoned`.
    pub async fn flush(&self) -> Result<()> {
        self.dev.flush().await
    }

    /// Appends the extents of `range` to `out`: ascending, gapless, at least one unless the range is empty.
    ///
    /// # Errors
    /// `Misaligned` and `OutOfRange`; what the device reports.
    pub async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        self.check(range.start(), range.len())?;
        self.dev.block_status(range, out).await
    }

    /// Grows or shrinks the device.
    ///
    /// # Errors
    /// `ReadOnly`, `Misaligned`; `Unsupported` where the size is fixed; what the device reports.
    pub async fn resize(&self, size: u64) -> Result<()> {
        self.check_change(size, 0)?;
        self.dev.resize(size).await
    }

    /// Waits for what is in flight, makes everything durable, and gives the file and its locks back.
    ///
    /// # Errors
    /// What the device reports; the locks are gone all the same.
    pub async fn close(&self) -> Result<()> {
        self.dev.close().await
    }

    /// Reads `len` bytes from `offset` into memory of their own: for metadata and for tests.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let memory = SgList::unspecified(len);
        self.read(offset, memory.clone()).await?;
        Ok(memory.to_vec())
    }

    /// Writes a copy of `bytes` at `offset`: for metadata and for tests.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_all(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write(offset, SgList::copy_of(bytes), WriteFlags::default()).await
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<()> {
        if self.info.read_only {
            return Err(BlockError::new(ErrorKind::ReadOnly, "the disk is read-only"));
        }
        self.check(offset, len)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        let unit = u64::from(self.info.block_bytes);
        if (offset | len) & (unit - 1) != 0 {
            let message =
                format!("offset {offset:#x} and length {len:#x} are not multiples of the {unit}-byte block");
            return Err(BlockError::new(ErrorKind::Misaligned, message));
        }
        if ByteRange::new(offset, len).is_none() {
            let message = format!("{len:#x} bytes at {offset:#x} end beyond the largest offset");
            return Err(BlockError::new(ErrorKind::OutOfRange, message));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("size", &self.size()).field("info", &self.info).finish()
    }
}

type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The object-safe face of [`BlockDev`]: its futures boxed, at some 30 ns a call.
trait DynBlockDev: Send + Sync {
    fn size(&self) -> u64;
    fn read(&self, offset: u64, into: SgList) -> LocalFuture<'_, Result<()>>;
    fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> LocalFuture<'_, Result<()>>;
    fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> LocalFuture<'_, Result<()>>;
    fn discard(&self, range: ByteRange) -> LocalFuture<'_, Result<()>>;
    fn flush(&self) -> LocalFuture<'_, Result<()>>;
    fn block_status<'a>(&'a self, range: ByteRange, out: &'a mut Vec<Extent>) -> LocalFuture<'a, Result<()>>;
    fn resize(&self, size: u64) -> LocalFuture<'_, Result<()>>;
    fn close(&self) -> LocalFuture<'_, Result<()>>;
}

impl<D: BlockDev> DynBlockDev for D {
    fn size(&self) -> u64 {
        BlockDev::size(self)
    }

    fn read(&self, offset: u64, into: SgList) -> LocalFuture<'_, Result<()>> {
        Box::pin(BlockDev::read(self, offset, into))
    }

    fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> LocalFuture<'_, Result<()>> {
        Box::pin(BlockDev::write(self, offset, from, flags))
    }

    fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        Box::pin(BlockDev::write_zeroes(self, range, flags))
    }

    fn discard(&self, range: ByteRange) -> LocalFuture<'_, Result<()>> {
        Box::pin(BlockDev::discard(self, range))
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(BlockDev::flush(self))
    }

    fn block_status<'a>(&'a self, range: ByteRange, out: &'a mut Vec<Extent>) -> LocalFuture<'a, Result<()>> {
        Box::pin(BlockDev::block_status(self, range, out))
    }

    fn resize(&self, size: u64) -> LocalFuture<'_, Result<()>> {
        Box::pin(BlockDev::resize(self, size))
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(BlockDev::close(self))
    }
}
