//! Serves a disk as a vhost-user-blk device on a Unix socket.
//!
//! One front end is served at a time, because a device has one driver; the next one waits in the socket's backlog.
//! All of it runs on the thread that polls [`Listener::serve`]: the session, and one task for each queue, whose
//! requests are not tasks of their own but slots that the queue's task polls (see `slots`).

mod queue;
mod session;
mod slots;
mod watch;

use std::future::Future;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use block::Disk;
use tokio::net::UnixListener;

pub use ::vhost_user::DeviceOptions;

/// How long to wait after a connection could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A Unix socket on which front ends find a disk.
pub struct Listener {
    socket: std::os::unix::net::UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// `AddrInUse` if a living process listens there or something else than a socket has that name; what the host
    /// says otherwise.
    pub fn bind(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = std::os::unix::net::UnixListener::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Serves `disk` to one front end after the other until `shutdown` resolves. What the guest has asked for by then
    /// is done and answered before this returns; the disk is not closed.
    ///
    /// Must be polled on a thread that has a tokio runtime for local tasks.
    ///
    /// # Errors
    /// If the reactor cannot watch the socket. What a front end does wrong ends that front end's connection alone.
    pub async fn serve(
        self,
        disk: Disk,
        options: DeviceOptions,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let listener = UnixListener::from_std(self.socket.try_clone()?)?;
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                accepted = listener.accept() => accepted.and_then(|(stream, _)| stream.into_std()),
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    // The host is short of descriptors or memory, or the front end has left again.
                    tracing::warn!(socket = %self.path.display(), %error, "a front end could not be let in");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            tracing::info!(socket = %self.path.display(), "a front end has connected");
            match session::run(stream, &disk, &options, shutdown.as_mut()).await {
                Ok(session::End::FrontEndLeft) => {
                    tracing::info!(socket = %self.path.display(), "the front end has left");
                }
                Ok(session::End::Shutdown) => return Ok(()),
                Err(error) => {
                    tracing::error!(socket = %self.path.display(), %error, "the front end is disconnected");
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        let message = format!("{} is there and is no socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => {
            let message = format!("another process listens on {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
