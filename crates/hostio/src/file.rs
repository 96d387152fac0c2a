//! A host file or block device as a device.

mod access;
mod extents;
mod geometry;
mod open;
mod zeroes;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_lock::{RwLock, RwLockReadGuard};
use block::{
    BlockDev, BlockError, ByteRange, DevInfo, ErrorKind, Extent, Result, SgList, WriteFlags, ZeroFlags,
};

use self::access::Access as DataAccess;
use self::geometry::Geometry;
use crate::op::OpenFile;

pub use self::open::{Access, Cache, Inline, Lock, OpenOptions};

/// A regular file or a block device of the host.
///
/// It may be used from any thread; each request runs on the ring of the thread that polls it, or on that thread
/// itself where the bytes are in memory anyway. The size is the one found when it was opened: somebody else's growth
/// of the file is not noticed, and a file that somebody else cut gives `Corrupt` for reads beyond its new end.
///
/// The lock, the descriptor and everything in flight belong to the object, and end with [`BlockDev::close`] or drop.
pub struct HostFile {
    path: PathBuf,
    /// Read-locked by every request for as long as it runs, so that `resize` and `close`, which write-lock it, see
    /// nothing new; they also wait for operations whose requests were given up. None once closed. It is the only lock
    /// of a file.
    file: RwLock<Option<OpenFile>>,
    size: Arc<AtomicU64>,
    info: DevInfo,
    geometry: Geometry,
    data: DataAccess,
    /// Set when a flush failed: the kernel reports lost writes once, so a later flush that succeeds proves nothing.
    poisoned: AtomicBool,
}

/// The open file, for as long as one request runs.
type InUse<'a> = RwLockReadGuard<'a, Option<OpenFile>>;

impl HostFile {
    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Allocates space for `range`, so that later writes to it cannot fail for want of room; content is kept.
    ///
    /// # Errors
    /// `OutOfRange`, `NoSpace`, `Unsupported` where the file system has no such call, `Io`.
    pub async fn preallocate(&self, range: ByteRange) -> Result<()> {
        let file = self.to_change(range).await?;
        if range.is_empty() {
            return Ok(());
        }
        zeroes::allocate(self.fd(&file), range)
            .await
            .map_err(|error| self.failed(&format!("allocate {range}"), error))
    }

    fn fd<'a>(&self, file: &'a InUse<'_>) -> &'a OpenFile {
        file.as_ref().expect("a request runs only on an open file")
    }

    async fn in_use(&self) -> Result<InUse<'_>> {
        let file = match self.file.try_read() {
            Some(file) => file,
            None => self.file.read().await,
        };
        if file.is_none() {
            return Err(self.error(ErrorKind::Io, "the file was closed"));
        }
        Ok(file)
    }

    /// The open file for a request that reads `range`.
    async fn to_read(&self, offset: u64, len: u64) -> Result<InUse<'_>> {
        let file = self.in_use().await?;
        let size = self.size.load(Ordering::Acquire);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let text = format!("{len} bytes at {offset:#x} end beyond the file's {size} bytes");
            return Err(self.error(ErrorKind::OutOfRange, &text));
        }
        Ok(file)
    }

    /// The open file for a request that changes `range`.
    async fn to_change(&self, range: ByteRange) -> Result<InUse<'_>> {
        let file = self.to_read(range.start(), range.len()).await?;
        self.check_changeable()?;
        Ok(file)
    }

    fn check_changeable(&self) -> Result<()> {
        if self.info.read_only {
            return Err(self.error(ErrorKind::ReadOnly, "the file was opened read-only"));
        }
        if self.poisoned.load(Ordering::Acquire) {
            let text = "an earlier flush failed, so written data may be lost; the file must be opened again";
            return Err(self.error(ErrorKind::Poisoned, text));
        }
        Ok(())
    }

    async fn sync(&self, file: &OpenFile) -> Result<()> {
        let synced = self.data.sync(file).await;
        self.latch(synced).map_err(|error| self.failed("flush", error))
    }

    /// Poisons the file where something that should have become durable did not.
    fn latch<T>(&self, result: std::io::Result<T>) -> std::io::Result<T> {
        if let Err(error) = &result
            && !self.poisoned.swap(true, Ordering::AcqRel)
        {
            tracing::error!(path = %self.path.display(), %error, "a flush failed, no more changes are accepted");
        }
        result
    }

    fn error(&self, kind: ErrorKind, text: &str) -> BlockError {
        BlockError::new(kind, format!("{}: {text}", self.path.display()))
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> BlockError {
        BlockError::host(format!("{}: {doing}", self.path.display()), error)
    }
}

impl BlockDev for HostFile {
    fn info(&self) -> DevInfo {
        self.info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        let len = into.len();
        let file = self.to_read(offset, len).await?;
        let read = self.data.read(self.fd(&file), offset, into).await;
        let done = read.map_err(|error| self.failed(&format!("read {len} bytes at {offset:#x}"), error))?;
        if done < len {
            let end = offset + done;
            let text = format!("the file ends at {end:#x}: somebody else made it shorter while it was open");
            return Err(self.error(ErrorKind::Corrupt, &text));
        }
        Ok(())
    }

    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        let len = from.len();
        let file = self.to_read(offset, len).await?;
        self.check_changeable()?;
        let mut written = self.data.write(self.fd(&file), offset, from, flags.fua).await;
        if flags.fua {
            // The error may be that of write-back, which a later flush would not be told again.
            written = self.latch(written);
        }
        written.map_err(|error| self.failed(&format!("write {len} bytes at {offset:#x}"), error))
    }

    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let file = self.to_change(range).await?;
        if range.is_empty() {
            return Ok(());
        }
        let zeroed = self.zero(self.fd(&file), range, flags.may_unmap, flags.fast_only).await;
        zeroed.map_err(|error| self.failed(&format!("write zeroes to {range}"), error))?;
        if flags.fua { self.sync(self.fd(&file)).await } else { Ok(()) }
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        let file = self.to_change(range).await?;
        if range.is_empty() || self.info.discard == block::Discard::Ignored {
            return Ok(());
        }
        let zeroed = self.zero(self.fd(&file), range, true, false).await;
        zeroed.map_err(|error| self.failed(&format!("discard {range}"), error))
    }

    async fn flush(&self) -> Result<()> {
        let file = self.in_use().await?;
        if self.info.read_only {
            return Ok(());
        }
        self.check_changeable()?;
        self.sync(self.fd(&file)).await
    }

    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        let file = self.to_read(range.start(), range.len()).await?;
        if range.is_empty() {
            return Ok(());
        }
        let found = extents::of(self.fd(&file), &self.geometry, range).await;
        let found = found.map_err(|error| self.failed(&format!("look up the extents of {range}"), error))?;
        found.into_iter().for_each(|extent| block::push_extent(out, extent));
        Ok(())
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let file = self.file.write().await;
        let Some(fd) = file.as_ref() else { return Err(self.error(ErrorKind::Io, "the file was closed")) };
        self.check_changeable()?;
        if self.geometry.is_block_device {
            return Err(self.error(ErrorKind::Unsupported, "a block device has a fixed size"));
        }
        fd.unused().await;
        let (fd, known) = (fd.hold(), self.size.clone());
        // The size is noted where the file is cut, so that both happen or none, whoever stops waiting.
        let resized = crate::pool::run(move || {
            rustix::fs::ftruncate(&fd, size)?;
            known.store(size, Ordering::Release);
            Ok::<(), rustix::io::Errno>(())
        });
        resized.await.map_err(|error| self.failed(&format!("resize to {size} bytes"), error.into()))
    }

    async fn close(&self) -> Result<()> {
        let mut file = self.file.write().await;
        let Some(fd) = file.take() else { return Ok(()) };
        fd.unused().await;
        if self.info.read_only {
            return Ok(());
        }
        self.check_changeable()?;
        let synced = self.sync(&fd).await;
        fd.unused().await;
        synced
    }
}

impl fmt::Debug for HostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostFile").field("path", &self.path).field("info", &self.info).finish_non_exhaustive()
    }
}
