//! The NBD front end: listeners on Unix sockets and TCP, and a session for each connection.
//!
//! All of it runs on the thread that calls [`serve`], in tokio's local tasks. A session is one task that owns the
//! socket and the protocol state ([`nbd::Connection`]); each request is a task of its own, so that slow requests do not
//! hold up fast ones. When several requests complete in one turn of the runtime, the session runs after all of them
//! and sends their replies with one call.
//!
//! | Limit | Value |
//! | --- | --- |
//! | [`CONNECTIONS_MAX`] | connections of one server; further ones wait in the socket's backlog |
//! | [`HANDSHAKE_TIMEOUT`] | from the connection to the transmission phase |
//! | [`DRAIN_TIMEOUT`] | for a client to take its last replies after its goodbye or the server's stop |
//! | [`nbd::limits`] | requests and bytes of one connection |

mod execute;
mod listener;
mod session;
mod socket;
mod tls;
mod transport;
mod uri;

pub use listener::{CONNECTIONS_MAX, ListenError, Listener, serve};
pub use session::{DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT};
pub use tls::{TlsError, TlsIdentity};
pub use uri::{Address, NbdUri, UriError};
