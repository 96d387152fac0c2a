//! What kind of request a device sees, for rules and logs.

use std::fmt;

use block::ByteRange;

/// The kind of a request to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// `read`
    Read,
    /// `write`
    Write,
    /// `write_zeroes`
    WriteZeroes,
    /// `discard`
    Discard,
    /// `flush`
    Flush,
    /// `block_status`
    BlockStatus,
    /// `resize`
    Resize,
    /// `close`
    Close,
}

/// A request as rules and logs see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    /// What is asked.
    pub kind: RequestKind,
    /// Where. Empty and at 0 for `flush` and `close`; empty and at the new size for `resize`.
    pub range: ByteRange,
}

impl Request {
    pub(crate) fn new(kind: RequestKind, offset: u64, len: u64) -> Self {
        // A range that cannot be expressed is refused further down; for rules it is empty.
        let range = ByteRange::new(offset, len).or(ByteRange::new(0, 0)).expect("an empty range fits");
        Self { kind, range }
    }

    pub(crate) fn without_range(kind: RequestKind) -> Self {
        Self::new(kind, 0, 0)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RequestKind::Flush | RequestKind::Close => write!(f, "{:?}", self.kind),
            RequestKind::Resize => write!(f, "Resize to {:#x}", self.range.start()),
            _ => write!(f, "{:?} {}", self.kind, self.range),
        }
    }
}
