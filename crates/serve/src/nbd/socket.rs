//! Listening sockets: bound here, or handed over.

use std::io;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, sockopt};

use super::uri::Address;

/// A listening socket that does not block.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixListener, Option<SocketFile>),
    Tcp(TcpListener),
}

/// Removes a socket's file when the listener goes.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already; there is nothing to be done about any other reason.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Socket {
    /// Binds `address`, and puts the port that the host chose in the place of port 0. A Unix socket that nobody
    /// answers on is replaced.
    ///
    /// # Errors
    /// `AddrInUse` if somebody answers, or if something else has the name; what the host says otherwise.
    pub(super) fn bind(address: &mut Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => bind_unix(path),
            Address::Tcp { host, port } => bind_tcp(host, port).map(Self::Tcp),
        }
    }

    /// A listening socket by its descriptor, and its address.
    ///
    /// # Errors
    /// `InvalidInput` if it does not listen; what the host says otherwise.
    pub(super) fn take_over(socket: OwnedFd) -> io::Result<(Self, Address)> {
        if !sockopt::socket_acceptconn(&socket)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket does not listen"));
        }
        if sockopt::socket_domain(&socket)? == AddressFamily::UNIX {
            let listener = UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
            return Ok((Self::Unix(listener, None), Address::Unix(path)));
        }
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((Self::Tcp(listener), Address::Tcp { host: address.ip().to_string(), port: address.port() }))
    }
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_socket(path) => {
            // A server that was killed leaves its socket behind.
            if UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        result => result?,
    };
    listener.set_nonblocking(true)?;
    Ok(Socket::Unix(listener, Some(SocketFile(path.to_owned()))))
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Binds the first address of `host` that can be bound; without a host, all addresses.
fn bind_tcp(host: &str, port: &mut u16) -> io::Result<TcpListener> {
    let hosts = if host.is_empty() { vec!["::", "0.0.0.0"] } else { vec![host] };
    let mut addresses = Vec::new();
    for host in hosts {
        addresses.extend((host, *port).to_socket_addrs()?);
    }
    let listener = TcpListener::bind(&addresses[..])?;
    listener.set_nonblocking(true)?;
    *port = listener.local_addr()?.port();
    Ok(listener)
}
