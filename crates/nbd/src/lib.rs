//! The NBD protocol, server side, without I/O.
//!
//! A [`Connection`] takes the bytes that a client sends and gives the requests that they ask for; it takes the replies
//! and gives the bytes that go back. It holds no socket, knows no clock and starts nothing, so that the same code is
//! driven by `serve`, by a test and by a fuzzer.
//!
//! ```text
//!              received bytes                       events
//!   socket --> spaces()/received() --> Connection --> next_event() --> session --> block::Disk
//!   socket <-- output()/sent()     <-- Connection <-- reply_*()    <-- session <-- block::Disk
//! ```
//!
//! # What a connection keeps within bounds
//!
//! It stops giving requests while [`limits::REQUESTS_IN_FLIGHT_MAX`] requests or
//! [`limits::PAYLOAD_BYTES_IN_FLIGHT_MAX`] bytes of payload are between the arrival of a request and the departure of
//! the last byte of its reply. A client that does not read its replies therefore holds a known amount of memory. A
//! client that breaks the protocol gets the error that the protocol has for it, or, where it has none, a [`Violation`],
//! after which nothing more is read from it.
//!
//! Source: `doc/proto.md` of the Network Block Device project, cited as "proto.md" with the section's name.

mod connection;
mod errno;
mod export;
mod handshake;
mod input;
pub mod limits;
mod meta;
mod option;
mod output;
mod request;
#[cfg(test)]
mod tests;
mod violation;
mod wire;

pub use connection::{Connection, Event};
pub use errno::Errno;
pub use export::{Export, Exports, Security};
pub use meta::{StateWord, state_word};
pub use request::{Command, Pending, Request};
pub use violation::Violation;
