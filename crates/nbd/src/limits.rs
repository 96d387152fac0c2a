//! What a client may ask for, and what a connection holds at most.

/// The longest payload of one read or write, which is also the advertised maximum block size.
///
/// proto.md, "Block size constraints": a length below 2^25 should not be taken for an attack.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// The longest string: export names, context queries, error messages.
///
/// proto.md, "Conventions": a string must be no longer than 4096 bytes.
pub const STRING_BYTES_MAX: usize = 4096;

/// The longest data of one option that is looked at; longer data is skipped and the option refused.
pub const OPTION_BYTES_MAX: u32 = 32 << 10;

/// The longest data of one option that is skipped; a longer one ends the connection.
pub const OPTION_SKIP_BYTES_MAX: u32 = 16 << 20;

/// How many options a client may send before it enters the transmission phase.
pub const OPTIONS_MAX: u32 = 1024;

/// How many context queries one option may hold.
pub const QUERIES_MAX: u32 = 64;

/// How many requests a connection holds, from arrival to the last byte of the reply.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;

/// How many bytes of payload a connection holds before it takes no further request.
///
/// The last request taken may go beyond it, so that a connection holds at most this and [`PAYLOAD_BYTES_MAX`] more.
pub const PAYLOAD_BYTES_IN_FLIGHT_MAX: u64 = 32 << 20;

/// How many descriptors one block status reply holds for each context.
pub const EXTENTS_MAX: usize = 8192;

/// Bytes that are received at once, apart from the payload of a large write.
pub(crate) const INPUT_BYTES: usize = 128 << 10;
