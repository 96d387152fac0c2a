//! Listening sockets, and the connections that they give.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use block::Disk;
use nbd::{Export, Exports, Security};
use rustix::net::sockopt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::warn;

use super::session::Session;
use super::socket::{Socket, SocketFile};
use super::tls::TlsIdentity;
use super::transport::Plain;
use super::uri::NbdUri;

/// How many connections one server holds. Further ones wait in the backlog of the socket until one ends.
pub const CONNECTIONS_MAX: usize = 64;

/// How long accepting pauses after the host refused a connection, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket that a disk is offered on.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    uri: NbdUri,
    exports: Arc<Exports>,
    tls: Option<TlsIdentity>,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The socket could not be bound; `AddrInUse` if somebody answers there.
    #[error("listen on {uri}")]
    Bind {
        /// Where.
        uri: String,
        /// The host's reason.
        source: io::Error,
    },
    /// The URI asks for TLS, and there are no certificates.
    #[error("listen on {uri}: TLS needs certificates (--tls-certificates DIR)")]
    NoCertificates {
        /// Where.
        uri: String,
    },
    /// A descriptor that was handed over is no listening Unix or TCP socket.
    #[error("listen on descriptor {fd}")]
    Inherited {
        /// The descriptor.
        fd: RawFd,
        /// The reason.
        source: io::Error,
    },
    /// The export's name cannot be one.
    #[error("{name:?} cannot be the name of an export: at most 4096 bytes, without NUL")]
    ExportName {
        /// The name.
        name: String,
    },
}

impl Listener {
    /// Binds the socket that `uri` names and offers `disk` there under the URI's export name. Must not be called on a
    /// thread that serves, because it may look up a host name.
    ///
    /// A Unix socket that nobody answers on is replaced; it is removed when the listener is dropped. Port 0 lets the
    /// host choose; [`Self::uri`] has its choice.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(
        uri: &NbdUri,
        disk: &Disk,
        description: &str,
        tls: Option<&TlsIdentity>,
    ) -> Result<Self, ListenError> {
        let tls = if uri.tls { tls.cloned() } else { None };
        if uri.tls && tls.is_none() {
            return Err(ListenError::NoCertificates { uri: uri.to_string() });
        }
        let exports = exports_of(uri, disk, description)?;
        let mut bound = uri.clone();
        let socket = Socket::bind(&mut bound.address)
            .map_err(|source| ListenError::Bind { uri: uri.to_string(), source })?;
        Ok(Self { socket, uri: bound, exports, tls })
    }

    /// Takes a listening socket that somebody else has bound, of either kind, and offers `disk` there as `export`. It
    /// is not removed when the listener is dropped.
    ///
    /// # Errors
    /// [`ListenError::Inherited`] if it is not such a socket.
    pub fn inherited(
        socket: OwnedFd,
        export: &str,
        disk: &Disk,
        description: &str,
    ) -> Result<Self, ListenError> {
        let fd = socket.as_raw_fd();
        let (socket, address) =
            Socket::take_over(socket).map_err(|source| ListenError::Inherited { fd, source })?;
        let uri = NbdUri { address, export: export.to_owned(), tls: false };
        let exports = exports_of(&uri, disk, description)?;
        Ok(Self { socket, uri, exports, tls: None })
    }

    /// Where clients connect.
    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }
}

fn exports_of(uri: &NbdUri, disk: &Disk, description: &str) -> Result<Arc<Exports>, ListenError> {
    let security = if uri.tls { Security::TlsRequired } else { Security::Plain };
    let name = uri.export.clone();
    let export = Export { name, description: description.to_owned(), disk: disk.clone() };
    let exports = Exports::new(vec![export], security).map_err(|name| ListenError::ExportName { name })?;
    Ok(Arc::new(exports))
}

/// Serves on `listeners` until `stop` resolves; then accepts nothing more, lets every session finish the requests it
/// has taken, and removes the sockets.
///
/// Runs on a thread with local tasks. The disk is neither flushed nor closed; that is its owner's part.
///
/// # Errors
/// The host's, if a listener cannot be used with the runtime.
pub async fn serve(listeners: Vec<Listener>, stop: impl Future<Output = ()>) -> io::Result<()> {
    let server = Rc::new(Server::default());
    let mut acceptors = JoinSet::new();
    for listener in listeners {
        acceptors.spawn_local(listener.into_acceptor(server.clone())?.run());
    }
    stop.await;
    // An acceptor holds nothing but its listener, which is closed and removed with it.
    acceptors.shutdown().await;
    server.stop();
    server.idle().await;
    Ok(())
}

/// What the acceptors of one server share.
#[derive(Default)]
struct Server {
    sessions: RefCell<Vec<Weak<Session>>>,
    /// How many connections there have been.
    count: Cell<u64>,
    changed: Notify,
}

impl Server {
    fn connections(&self) -> usize {
        let mut sessions = self.sessions.borrow_mut();
        sessions.retain(|session| session.strong_count() > 0);
        sessions.len()
    }

    fn stop(&self) {
        let sessions: Vec<_> = self.sessions.borrow().iter().filter_map(Weak::upgrade).collect();
        sessions.iter().for_each(|session| session.stop());
    }

    /// Waits until there is room for a connection.
    async fn room(&self) {
        self.below(CONNECTIONS_MAX).await;
    }

    /// Waits until there are no connections.
    async fn idle(&self) {
        self.below(1).await;
    }

    async fn below(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            if self.connections() < count {
                return;
            }
            changed.await;
        }
    }

    fn start<S: Plain + 'static>(self: &Rc<Self>, stream: S, acceptor: &Acceptor) {
        self.count.update(|count| count + 1);
        let session = Session::new(self.count.get(), acceptor.exports.clone());
        self.sessions.borrow_mut().push(Rc::downgrade(&session));
        let tls = acceptor.tls.as_ref().map(TlsIdentity::acceptor);
        let place = Place { server: self.clone() };
        tokio::task::spawn_local(async move {
            session.run(stream, tls).await;
            drop(place);
        });
    }
}

/// A connection's place among those that a server holds; others hear when it is free, also after a panic.
struct Place {
    server: Rc<Server>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.changed.notify_waiters();
    }
}

struct Acceptor {
    server: Rc<Server>,
    socket: AsyncSocket,
    exports: Arc<Exports>,
    tls: Option<TlsIdentity>,
}

enum AsyncSocket {
    Unix(
        tokio::net::UnixListener,
        #[expect(dead_code, reason = "removes the file on drop")] Option<SocketFile>,
    ),
    Tcp(tokio::net::TcpListener),
}

impl Listener {
    fn into_acceptor(self, server: Rc<Server>) -> io::Result<Acceptor> {
        let socket = match self.socket {
            Socket::Unix(listener, file) => {
                AsyncSocket::Unix(tokio::net::UnixListener::from_std(listener)?, file)
            }
            Socket::Tcp(listener) => AsyncSocket::Tcp(tokio::net::TcpListener::from_std(listener)?),
        };
        Ok(Acceptor { server, socket, exports: self.exports, tls: self.tls })
    }
}

impl Acceptor {
    async fn run(self) {
        loop {
            self.server.room().await;
            if let Err(error) = self.accept().await {
                warn!(error = &error as &dyn std::error::Error, "could not accept an NBD connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    async fn accept(&self) -> io::Result<()> {
        match &self.socket {
            AsyncSocket::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                self.server.start(stream, self);
            }
            AsyncSocket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Replies are gathered before they are sent; waiting for more would only delay them.
                stream.set_nodelay(true)?;
                // A client whose host has gone without a word gives its place back one day.
                sockopt::set_socket_keepalive(&stream, true)?;
                self.server.start(stream, self);
            }
        }
        Ok(())
    }
}
