//! What ends a connection.

use crate::limits;

/// A rule of the protocol that the client broke in a way that no error reply can answer.
///
/// proto.md, "Termination of the session during option haggling": a party that detects a violation of a mandatory
/// condition may initiate a hard disconnect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// proto.md, "Client flags": the server must drop the connection if the client sets an unknown flag.
    #[error("client flags {0:#x} hold a flag that is not known")]
    ClientFlags(u32),
    /// proto.md, "Newstyle negotiation": every option starts with IHAVEOPT.
    #[error("an option starts with {0:#x} instead of its magic number")]
    OptionMagic(u64),
    /// The client keeps the handshake going without end.
    #[error("more than {} options in one handshake", limits::OPTIONS_MAX)]
    OptionCount,
    /// The data of an option is longer than what is even skipped.
    #[error("option {option} announces {len} bytes of data")]
    OptionLength {
        /// The option's number.
        option: u32,
        /// What it announced.
        len: u32,
    },
    /// proto.md, "Option types", EXPORT_NAME: there is no error reply, so the session ends.
    #[error("the client asked with EXPORT_NAME for what it cannot have: {0}")]
    ExportName(&'static str),
    /// Bytes that came before TLS was up could have been put there by anybody.
    #[error("{0} bytes follow STARTTLS before its reply")]
    BytesAfterStartTls(usize),
    /// proto.md, "Request message": every request starts with its magic number.
    #[error("a request starts with {0:#x} instead of its magic number")]
    RequestMagic(u32),
    /// A request announces a payload that would take for ever to skip.
    #[error("a request announces {0} bytes of payload")]
    PayloadLength(u64),
}
