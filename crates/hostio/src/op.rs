//! What a ring or the thread pool can be asked to do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use block::SgList;
use rustix::fs::FallocateFlags;

use crate::sys::{self, Direction};

/// One call to the kernel and what must stay alive until it is over.
pub(crate) struct Op {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) request: Request,
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
