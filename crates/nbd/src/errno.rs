//! Error numbers of the protocol and where they come from.

use block::ErrorKind;

/// An error value of a reply.
///
/// proto.md, "Error values".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Invalid argument.
    Inval = 22,
    /// No space left on device.
    NoSpc = 28,
    /// Operation not supported: only for a fast zero request that would not be fast.
    NotSup = 95,
}

impl Errno {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// What a request was, as far as the choice of an error number needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It puts bytes in place.
    Write,
    /// It puts zeroes in place, but only if that is fast.
    FastZero,
    /// It does neither.
    Other,
}

/// The error number for an error of the device.
///
/// proto.md, "Error values": ENOSPC for a write beyond the end, EINVAL for a read or trim beyond the end and for what
/// is not aligned, EPERM for a change of a read-only export, ENOTSUP only for a fast zero request.
pub(crate) const fn errno_of(kind: ErrorKind, purpose: Purpose) -> Errno {
    match (kind, purpose) {
        (ErrorKind::OutOfRange, Purpose::Write | Purpose::FastZero) => Errno::NoSpc,
        (ErrorKind::OutOfRange, Purpose::Other) => Errno::Inval,
        (ErrorKind::Misaligned, _) => Errno::Inval,
        (ErrorKind::ReadOnly, _) => Errno::Perm,
        (ErrorKind::NoSpace, _) => Errno::NoSpc,
        (ErrorKind::Unsupported, Purpose::FastZero) => Errno::NotSup,
        (ErrorKind::Unsupported, Purpose::Write | Purpose::Other) => Errno::Inval,
        (
            ErrorKind::Corrupt | ErrorKind::Poisoned | ErrorKind::Busy | ErrorKind::NotFound | ErrorKind::Io,
            _,
        ) => Errno::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_number_that_the_protocol_names_for_it() {
        use ErrorKind::*;
        let table = [
            (OutOfRange, [Errno::NoSpc, Errno::NoSpc, Errno::Inval]),
            (Misaligned, [Errno::Inval; 3]),
            (ReadOnly, [Errno::Perm; 3]),
            (NoSpace, [Errno::NoSpc; 3]),
            (Unsupported, [Errno::Inval, Errno::NotSup, Errno::Inval]),
            (Corrupt, [Errno::Io; 3]),
            (Poisoned, [Errno::Io; 3]),
            (Busy, [Errno::Io; 3]),
            (NotFound, [Errno::Io; 3]),
            (Io, [Errno::Io; 3]),
        ];
        for (kind, expected) in table {
            let got = [Purpose::Write, Purpose::FastZero, Purpose::Other].map(|p| errno_of(kind, p));
            assert_eq!(got, expected, "{kind:?}");
        }
    }
}
