//! How a file's bytes are moved: on the spot, through the ring, or through an aligned copy.
//!
//! Bytes that are in memory are fastest moved by the thread that asks. A read of the page cache with RWF_NOWAIT costs
//! what one of a batch of 32 costs in a ring, without the wake-up; buffered writes are much dearer in a ring, because
//! it hands them to a kernel thread, as it does both on tmpfs. So a buffered request is first tried here, and goes to
//! the ring where it would wait: reads that miss the cache, and writes while the host throttles writers.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use block::{Buffer, SgList};

use crate::engine::submit;
use crate::op::{Op, OpenFile, Request};
use crate::sys::{self, Direction};

/// Requests above this go to the ring, so that one large copy does not keep the thread's other tasks waiting.
const INLINE_BYTES_MAX: u64 = 256 << 10;
/// An attempt that took longer was made to wait.
const INLINE_TIME_MAX: Duration = Duration::from_micros(500);
/// How many requests go to the ring untried after an attempt that waited or was refused.
const SKIPPED_AFTER_WAIT: u32 = 32;
/// Bytes that go through one aligned copy at a time.
const BOUNCE_BYTES_MAX: u64 = 1 << 20;

/// How one file's bytes are moved.
pub(crate) struct Access {
    how: How,
    /// Requests that are not to be tried inline, counted down.
    reads_to_skip: AtomicU32,
    writes_to_skip: AtomicU32,
}

/// The kinds of files there are for moving bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// The file is memory (tmpfs): calls never wait.
    Memory,
    /// The file has a page cache.
    Cached,
    /// Every request waits for the engine.
    Queued,
    /// The cache is bypassed: queued, from memory with this alignment.
    Direct { memory_align: usize },
}

impl Access {
    pub(crate) fn new(how: How) -> Self {
        Self { how, reads_to_skip: AtomicU32::new(0), writes_to_skip: AtomicU32::new(0) }
    }

    /// Reads until `into` is full or the file ends; returns the number of bytes.
    pub(crate) async fn read(&self, file: &OpenFile, offset: u64, into: SgList) -> io::Result<u64> {
        if let How::Direct { memory_align } = self.how
            && !into.is_aligned(memory_align)
        {
            return read_bounced(file, offset, &into).await;
        }
        let done = self.read_inline(file, offset, &into)?;
        if done == into.len() {
            return Ok(done);
        }
        transfer_all(file, Direction::Read, offset, into, done, false).await
    }

    /// Writes all of `from`; durable at completion if `dsync`.
    pub(crate) async fn write(
        &self,
        file: &OpenFile,
        offset: u64,
        from: SgList,
        dsync: bool,
    ) -> io::Result<()> {
        if let How::Direct { memory_align } = self.how
            && !from.is_aligned(memory_align)
        {
            return write_bounced(file, offset, &from, dsync).await;
        }
        let done = if dsync { 0 } else { self.write_inline(file, offset, &from)? };
        if done == from.len() {
            return Ok(());
        }
        let len = from.len();
        let written = transfer_all(file, Direction::Write, offset, from, done, dsync).await?;
        if written == len { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Makes everything written durable.
    pub(crate) async fn sync(&self, file: &OpenFile) -> io::Result<()> {
        if self.how == How::Memory {
            return Ok(rustix::fs::fdatasync(file)?);
        }
        submit(Op { file: file.hold(), request: Request::Sync }).await.0.map(drop)
    }

    /// Reads what can be read without waiting; 0 where that is nothing.
    fn read_inline(&self, file: &OpenFile, offset: u64, into: &SgList) -> io::Result<u64> {
        let flags = match self.how {
            How::Memory => 0,
            How::Cached if is_tried(&self.reads_to_skip, into.len()) => libc::RWF_NOWAIT,
            How::Cached | How::Queued | How::Direct { .. } => return Ok(0),
        };
        match sys::transfer(file.as_fd(), Direction::Read, offset, into, flags) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP)) => {
                self.reads_to_skip.store(SKIPPED_AFTER_WAIT, Ordering::Relaxed);
                Ok(0)
            }
            read => read,
        }
    }

    /// Writes into the page cache; 0 bytes where that may wait.
    fn write_inline(&self, file: &OpenFile, offset: u64, from: &SgList) -> io::Result<u64> {
        match self.how {
            How::Memory => return sys::transfer(file.as_fd(), Direction::Write, offset, from, 0),
            How::Cached if is_tried(&self.writes_to_skip, from.len()) => {}
            How::Cached | How::Queued | How::Direct { .. } => return Ok(0),
        }
        // Most file systems have no NOWAIT for buffered writes. A write of cached pages waits only for the journal or
        // when the host has too many dirty pages, and then many do: the first one that did sends others to the ring.
        let start = Instant::now();
        let written = sys::transfer(file.as_fd(), Direction::Write, offset, from, 0);
        if start.elapsed() > INLINE_TIME_MAX {
            self.writes_to_skip.store(SKIPPED_AFTER_WAIT, Ordering::Relaxed);
        }
        written
    }
}

/// Whether a request of `len` bytes is tried inline; counts down `to_skip` where it is not.
///
/// The count is a hint: threads that race for it skip one more or one less.
fn is_tried(to_skip: &AtomicU32, len: u64) -> bool {
    if len > INLINE_BYTES_MAX {
        return false;
    }
    let left = to_skip.load(Ordering::Relaxed);
    if left > 0 {
        to_skip.store(left - 1, Ordering::Relaxed);
    }
    left == 0
}

/// Moves `memory` from its byte `done` on, in as many operations as it takes; returns where it ended.
async fn transfer_all(
    file: &OpenFile,
    direction: Direction,
    offset: u64,
    memory: SgList,
    mut done: u64,
    dsync: bool,
) -> io::Result<u64> {
    let len = memory.len();
    while done < len {
        let rest = memory.slice(done, len - done);
        let request = Request::Transfer { direction, offset: offset + done, memory: rest, dsync };
        let moved = submit(Op { file: file.hold(), request }).await.0?;
        if moved == 0 {
            break;
        }
        done += moved;
    }
    Ok(done)
}

async fn read_bounced(file: &OpenFile, offset: u64, into: &SgList) -> io::Result<u64> {
    let mut done = 0;
    while done < into.len() {
        let len = BOUNCE_BYTES_MAX.min(into.len() - done);
        let bounce = SgList::unspecified(len as usize);
        let read = transfer_all(file, Direction::Read, offset + done, bounce.clone(), 0, false).await?;
        let bounce = Buffer::reclaim(bounce).expect("the operation is over and kept no clone");
        into.copy_from_slice(done, &bounce[..read as usize]);
        done += read;
        if read < len {
            break;
        }
    }
    Ok(done)
}

async fn write_bounced(file: &OpenFile, offset: u64, from: &SgList, dsync: bool) -> io::Result<()> {
    let mut done = 0;
    while done < from.len() {
        let len = BOUNCE_BYTES_MAX.min(from.len() - done);
        let mut bounce = Buffer::unspecified(len as usize);
        from.copy_to_slice(done, &mut bounce);
        let written = transfer_all(file, Direction::Write, offset + done, bounce.into_sg(), 0, dsync).await?;
        if written < len {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += len;
    }
    Ok(())
}
