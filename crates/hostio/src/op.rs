//! What a ring or the thread pool can be asked to do, and the open file that they do it to.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use block::SgList;
use rustix::fs::FallocateFlags;

use crate::lock::LockedFd;
use crate::sys::{self, Direction};

/// One call to the kernel and what must stay alive until it is over.
pub(crate) struct Op {
    pub(crate) request: Request,
    /// Dropped last: when nobody holds the file, nobody holds memory either.
    pub(crate) file: FileUse,
}

/// An open file, which knows how many operations hold it.
#[derive(Debug)]
pub(crate) struct OpenFile {
    fd: Arc<LockedFd>,
    usage: Arc<Usage>,
}

/// An operation's hold on an open file: the descriptor stays open for as long as it lives, and [`OpenFile::unused`]
/// waits for it, whether or not anybody waits for the operation itself.
#[derive(Debug)]
pub(crate) struct FileUse {
    /// There until drop, which lets go of it before it says so.
    fd: Option<Arc<LockedFd>>,
    usage: Arc<Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    holds: AtomicUsize,
    /// Whoever waits for the last operation to let go.
    waits: Mutex<Option<Waker>>,
}

/// What is asked of the file.
pub(crate) enum Request {
    /// Moves bytes between memory and the file; `dsync` makes a write durable at completion.
    Transfer { direction: Direction, offset: u64, memory: SgList, dsync: bool },
    /// Makes the file's data durable, and its size.
    Sync,
    /// Changes the allocation of a range.
    Allocate { mode: FallocateFlags, offset: u64, len: u64 },
}

impl OpenFile {
    pub(crate) fn new(fd: LockedFd) -> Self {
        Self { fd: Arc::new(fd), usage: Arc::default() }
    }

    /// A hold on the file for one operation.
    pub(crate) fn hold(&self) -> FileUse {
        self.usage.holds.fetch_add(1, Ordering::Relaxed);
        FileUse { fd: Some(self.fd.clone()), usage: self.usage.clone() }
    }

    /// Waits until no operation holds the file. One waits at a time, and sees to it that no new ones begin.
    pub(crate) async fn unused(&self) {
        poll_fn(|context| {
            let mut waits = self.usage.waits.lock().unwrap_or_else(PoisonError::into_inner);
            if self.usage.holds.load(Ordering::Acquire) == 0 {
                return Poll::Ready(());
            }
            *waits = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for FileUse {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("the descriptor is held until drop").as_fd()
    }
}

impl Drop for FileUse {
    fn drop(&mut self) {
        self.fd = None;
        if self.usage.holds.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // Whoever waits looks at the count under this lock, so either it saw the last one go or it is woken here.
        let waker = self.usage.waits.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Op {
    /// Does it on this thread, which blocks; returns the number of bytes moved, 0 for what moves none.
    pub(crate) fn perform(&self) -> io::Result<u64> {
        match &self.request {
            Request::Transfer { direction, offset, memory, dsync } => {
                let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
                sys::transfer(self.file.as_fd(), *direction, *offset, memory, flags)
            }
            Request::Sync => Ok(rustix::fs::fdatasync(&self.file).map(|()| 0)?),
            Request::Allocate { mode, offset, len } => {
                Ok(rustix::fs::fallocate(&self.file, *mode, *offset, *len).map(|()| 0)?)
            }
        }
    }
}
