//! Requests of the transmission phase: headers, what they ask for, and which are refused.

use block::{Buffer, ByteRange, DevInfo, ErrorKind, WriteFlags, ZeroFlags};

use crate::errno::{Errno, Purpose, errno_of};
use crate::limits;
use crate::output::Framing;
use crate::wire;

/// A request that is to be carried out and then answered through [`crate::Connection`].
#[derive(Debug)]
pub struct Request {
    /// What it asks for.
    pub command: Command,
    /// What its reply needs.
    pub pending: Pending,
}

/// What a request asks for. Ranges are not compared with the size of the disk; the device does that.
#[derive(Debug)]
pub enum Command {
    /// Read; answered by [`crate::Connection::reply_data`] with as many bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes; at most [`limits::PAYLOAD_BYTES_MAX`].
        len: u32,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// What is to be written; page aligned.
        payload: Buffer,
        /// Durability.
        flags: WriteFlags,
    },
    /// Make everything that was answered durable.
    Flush,
    /// The range's content is not needed.
    Trim {
        /// The range.
        range: ByteRange,
        /// Durable when answered.
        fua: bool,
    },
    /// The range will be read soon.
    Cache {
        /// The range.
        range: ByteRange,
    },
    /// The range is to read as zeroes.
    WriteZeroes {
        /// The range.
        range: ByteRange,
        /// How.
        flags: ZeroFlags,
    },
    /// Tell the extents of the range; answered by [`crate::Connection::reply_extents`].
    BlockStatus {
        /// The range; not empty.
        range: ByteRange,
        /// Only the first extent is wanted.
        first_only: bool,
    },
}

/// The claim of a request to exactly one reply. It is given back to the connection with that reply; if it is dropped
/// instead, the client waits for ever and the request stays in flight.
#[derive(Debug)]
#[must_use = "a request that is not answered stays in flight"]
pub struct Pending {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Bytes that count against [`limits::PAYLOAD_BYTES_IN_FLIGHT_MAX`] until the reply is out.
    pub(crate) cost: u64,
    pub(crate) purpose: Purpose,
    pub(crate) is_read: bool,
    /// One content chunk, or one extent for each context.
    pub(crate) single: bool,
}

/// A request's header, of either length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What the connection allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) framing: Framing,
    pub(crate) read_only: bool,
    pub(crate) contexts_selected: bool,
}

/// Why a request is answered with an error before anybody else sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) reason: &'static str,
}

const fn refuse<T>(errno: Errno, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { errno, reason })
}

impl Rules {
    pub(crate) fn new(framing: Framing, info: &DevInfo, contexts_selected: bool) -> Self {
        Self { framing, read_only: info.read_only, contexts_selected }
    }
}

impl Header {
    /// Bytes that follow the header.
    pub(crate) fn payload_len(&self, framing: Framing) -> u64 {
        // With extended headers a flag says of any request that a payload follows; without the flag, a write has one
        // all the same, because QEMU accepts that too.
        let flagged = framing == Framing::Extended && self.flags & wire::CMD_FLAG_PAYLOAD_LEN != 0;
        if self.kind == wire::CMD_WRITE || flagged { self.len } else { 0 }
    }

    pub(crate) fn pending(&self) -> Pending {
        let purpose = match self.kind {
            wire::CMD_WRITE_ZEROES if self.flags & wire::CMD_FLAG_FAST_ZERO != 0 => Purpose::FastZero,
            wire::CMD_WRITE | wire::CMD_WRITE_ZEROES => Purpose::Write,
            _ => Purpose::Other,
        };
        Pending {
            cookie: self.cookie,
            offset: self.offset,
            len: self.len,
            cost: 0,
            purpose,
            is_read: self.kind == wire::CMD_READ,
            single: self.flags & (wire::CMD_FLAG_DF | wire::CMD_FLAG_REQ_ONE) != 0,
        }
    }

    /// What the request asks for; a write's payload is left empty.
    pub(crate) fn command(&self, rules: &Rules) -> Result<Command, Refusal> {
        self.check_flags(rules)?;
        self.check_permission(rules)?;
        let fua = self.flags & wire::CMD_FLAG_FUA != 0;
        match self.kind {
            wire::CMD_READ => Ok(Command::Read { offset: self.offset, len: self.payload_len_checked()? }),
            wire::CMD_WRITE => {
                self.payload_len_checked()?;
                let payload = Buffer::unspecified(0);
                Ok(Command::Write { offset: self.offset, payload, flags: WriteFlags { fua } })
            }
            wire::CMD_FLUSH => Ok(Command::Flush),
            wire::CMD_TRIM => Ok(Command::Trim { range: self.range()?, fua }),
            wire::CMD_CACHE => {
                // proto.md, "Block size constraints": the maximum block size binds CACHE too.
                self.payload_len_checked()?;
                Ok(Command::Cache { range: self.range()? })
            }
            wire::CMD_WRITE_ZEROES => {
                Ok(Command::WriteZeroes { range: self.range()?, flags: self.zero_flags() })
            }
            wire::CMD_BLOCK_STATUS => self.block_status(rules),
            // proto.md, "Error values": the server should return EINVAL if it receives an unknown command.
            _ => refuse(Errno::Inval, "the command is not known"),
        }
    }

    fn block_status(&self, rules: &Rules) -> Result<Command, Refusal> {
        // proto.md, "Metadata querying": EINVAL for a client that selected no context.
        if !rules.contexts_selected {
            return refuse(Errno::Inval, "no metadata context was selected for this export");
        }
        if self.len == 0 {
            return refuse(Errno::Inval, "a block status request covers at least one byte");
        }
        let first_only = self.flags & wire::CMD_FLAG_REQ_ONE != 0;
        Ok(Command::BlockStatus { range: self.range()?, first_only })
    }

    fn zero_flags(&self) -> ZeroFlags {
        ZeroFlags {
            fua: self.flags & wire::CMD_FLAG_FUA != 0,
            // proto.md, WRITE_ZEROES: by default the server may trim; NO_HOLE asks for a provisioned area.
            may_unmap: self.flags & wire::CMD_FLAG_NO_HOLE == 0,
            fast_only: self.flags & wire::CMD_FLAG_FAST_ZERO != 0,
        }
    }

    /// proto.md, "Error values": EINVAL for an unknown flag and for one that does not belong to the request.
    fn check_flags(&self, rules: &Rules) -> Result<(), Refusal> {
        // proto.md, "Command flags": FUA must be accepted with every command.
        let allowed = wire::CMD_FLAG_FUA
            | match self.kind {
                wire::CMD_READ if rules.framing != Framing::Simple => wire::CMD_FLAG_DF,
                wire::CMD_WRITE if rules.framing == Framing::Extended => wire::CMD_FLAG_PAYLOAD_LEN,
                wire::CMD_WRITE_ZEROES => wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO,
                wire::CMD_BLOCK_STATUS => wire::CMD_FLAG_REQ_ONE,
                _ => 0,
            };
        if self.flags & !allowed != 0 {
            return refuse(Errno::Inval, "a flag does not belong to the command");
        }
        Ok(())
    }

    /// proto.md, "Error values": EPERM for a write, zero or trim request on a read-only export.
    fn check_permission(&self, rules: &Rules) -> Result<(), Refusal> {
        let changes = matches!(self.kind, wire::CMD_WRITE | wire::CMD_TRIM | wire::CMD_WRITE_ZEROES);
        if changes && rules.read_only {
            return refuse(Errno::Perm, "the export is read-only");
        }
        Ok(())
    }

    fn payload_len_checked(&self) -> Result<u32, Refusal> {
        match u32::try_from(self.len) {
            Ok(len) if len <= limits::PAYLOAD_BYTES_MAX => Ok(len),
            _ => refuse(Errno::Inval, "the length is above the maximum block size of 32 MiB"),
        }
    }

    fn range(&self) -> Result<ByteRange, Refusal> {
        let purpose = self.pending_purpose();
        ByteRange::new(self.offset, self.len).ok_or(Refusal {
            errno: errno_of(ErrorKind::OutOfRange, purpose),
            reason: "the range ends beyond the largest offset",
        })
    }

    fn pending_purpose(&self) -> Purpose {
        if self.kind == wire::CMD_WRITE_ZEROES { Purpose::Write } else { Purpose::Other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Rules = Rules { framing: Framing::Structured, read_only: false, contexts_selected: true };

    fn header(kind: u16, flags: u16, offset: u64, len: u64) -> Header {
        Header { flags, kind, cookie: 7, offset, len }
    }

    fn refusal(header: Header, rules: Rules) -> Option<Errno> {
        header.command(&rules).err().map(|refusal| refusal.errno)
    }

    #[test]
    fn flags_that_do_not_belong_to_a_command_are_refused() {
        for kind in 0..12 {
            for bit in 0..16 {
                let flag = 1 << bit;
                let fits = flag == wire::CMD_FLAG_FUA
                    || (kind == wire::CMD_READ && flag == wire::CMD_FLAG_DF)
                    || (kind == wire::CMD_WRITE_ZEROES
                        && [wire::CMD_FLAG_NO_HOLE, wire::CMD_FLAG_FAST_ZERO].contains(&flag))
                    || (kind == wire::CMD_BLOCK_STATUS && flag == wire::CMD_FLAG_REQ_ONE);
                let known = kind <= wire::CMD_BLOCK_STATUS && kind != wire::CMD_DISC;
                let expected = if fits && known { None } else { Some(Errno::Inval) };
                assert_eq!(
                    refusal(header(kind, flag, 0, 512), OPEN),
                    expected,
                    "command {kind} flag {flag:#x}"
                );
            }
        }
    }

    #[test]
    fn changes_of_a_read_only_export_are_not_permitted() {
        let rules = Rules { read_only: true, ..OPEN };
        for kind in [wire::CMD_WRITE, wire::CMD_TRIM, wire::CMD_WRITE_ZEROES] {
            assert_eq!(refusal(header(kind, 0, 0, 512), rules), Some(Errno::Perm));
        }
        for kind in [wire::CMD_READ, wire::CMD_FLUSH, wire::CMD_CACHE, wire::CMD_BLOCK_STATUS] {
            assert_eq!(refusal(header(kind, 0, 0, 512), rules), None);
        }
    }

    #[test]
    fn ranges_beyond_the_largest_offset_get_the_number_of_their_command() {
        let beyond = |kind| refusal(header(kind, 0, u64::MAX - 3, 512), OPEN);
        assert_eq!(beyond(wire::CMD_WRITE_ZEROES), Some(Errno::NoSpc));
        assert_eq!(beyond(wire::CMD_TRIM), Some(Errno::Inval));
        assert_eq!(beyond(wire::CMD_BLOCK_STATUS), Some(Errno::Inval));
    }

    #[test]
    fn payloads_above_the_maximum_block_size_are_refused() {
        let most = u64::from(limits::PAYLOAD_BYTES_MAX);
        for kind in [wire::CMD_READ, wire::CMD_WRITE, wire::CMD_CACHE] {
            assert_eq!(refusal(header(kind, 0, 0, most), OPEN), None);
            assert_eq!(refusal(header(kind, 0, 0, most + 1), OPEN), Some(Errno::Inval));
        }
        assert_eq!(refusal(header(wire::CMD_WRITE_ZEROES, 0, 0, 1 << 32), OPEN), None);
    }
}
