//! Descriptors that the thread's reactor watches for input.
#![expect(unsafe_code, reason = "tokio cannot see that a descriptor stays open while it is watched")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that is watched for input as long as this lives.
pub(super) struct Watched(AsyncFd<Owned>);

/// A descriptor that nothing replaces or closes before it is dropped.
struct Owned(OwnedFd);

impl AsRawFd for Owned {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Watched {
    /// Watches an eventfd.
    ///
    /// # Errors
    /// If it is of a kind that cannot be waited for.
    pub(super) fn event(file: File) -> io::Result<Self> {
        Self::new(file.into())
    }

    /// Watches a socket that somebody else reads.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub(super) fn socket(socket: &UnixStream) -> io::Result<Self> {
        Self::new(socket.try_clone()?.into())
    }

    fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: `Owned` holds the descriptor open and lets nobody replace it; it is dropped by `AsyncFd` itself,
        // after it was taken off the reactor.
        Ok(Self(unsafe { AsyncFd::register_with_interest(Owned(fd), Interest::READABLE) }?))
    }

    /// Waits for the next edge of input; `true` if it says that no more will come.
    pub(super) async fn edge(&self) -> io::Result<bool> {
        let mut guard = self.0.readable().await?;
        let closed = guard.ready().is_read_closed();
        guard.clear_ready();
        Ok(closed)
    }

    /// Takes an edge of input if there was one since the last, and registers for the next otherwise.
    pub(super) fn poll_edge(&self, context: &mut Context<'_>) -> Poll<()> {
        match self.0.poll_read_ready(context) {
            Poll::Ready(Ok(mut guard)) => {
                guard.clear_ready();
                Poll::Ready(())
            }
            // The reactor is gone, and the thread's tasks with it.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// Gives the descriptor back, no longer watched.
    pub(super) fn into_file(self) -> File {
        self.0.into_inner().0.into()
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().0.as_fd()
    }
}
