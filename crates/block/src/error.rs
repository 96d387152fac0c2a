//! Errors of block devices: a small kind for code, a chain of sentences for people.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// The result of a block operation.
pub type Result<T, E = BlockError> = std::result::Result<T, E>;

/// What went wrong, as far as code needs to tell; front ends turn each kind into their protocol's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The range ends beyond the device or beyond what an offset can express.
    OutOfRange,
    /// Offset or length is not a multiple of the device's block.
    Misaligned,
    /// A change was asked of a read-only device.
    ReadOnly,
    /// No room is left where the data would go.
    NoSpace,
    /// The device cannot do this, or cannot do it fast.
    Unsupported,
    /// What is stored breaks a rule of its format.
    Corrupt,
    /// An earlier failure made the state of the device uncertain; it must be opened again.
    Poisoned,
    /// Somebody else holds the file or device in a way that forbids this.
    Busy,
    /// What was named does not exist.
    NotFound,
    /// The host reported an input/output error.
    Io,
}

/// An error of a block device: a kind, a sentence, and the error that caused it.
///
/// Printed with `{}` it gives its own sentence; [`BlockError::chain`] gives the whole chain, outermost first.
pub struct BlockError(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl BlockError {
    /// An error of `kind` that `message` explains: lower case, no full stop, facts and figures in it.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    /// An error of `kind` with the error that caused it.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: Some(source.into()) }))
    }

    /// The error of a host call that `doing` describes ("write 4096 bytes at 0x1000"); the kind follows the errno.
    pub fn host(doing: impl Into<Cow<'static, str>>, error: std::io::Error) -> Self {
        Self::with_source(kind_of(&error), doing, error)
    }

    /// What code needs to know.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Wraps the error in what was being done, which is a present-tense action: "read the log".
    #[must_use]
    pub fn context(self, doing: impl Into<Cow<'static, str>>) -> Self {
        Self::with_source(self.kind(), doing, self)
    }

    /// The whole chain in one line, joined by ": ".
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut next = self.source();
        while let Some(error) = next {
            line.push_str(": ");
            line.push_str(&error.to_string());
            next = error.source();
        }
        line
    }
}

fn kind_of(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Host;
    match error.kind() {
        Host::StorageFull | Host::QuotaExceeded | Host::FileTooLarge => ErrorKind::NoSpace,
        Host::ReadOnlyFilesystem | Host::PermissionDenied => ErrorKind::ReadOnly,
        Host::Unsupported => ErrorKind::Unsupported,
        Host::NotFound => ErrorKind::NotFound,
        Host::ResourceBusy | Host::WouldBlock => ErrorKind::Busy,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())
    }
}

impl Error for BlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// Adds what was being done to the errors of a result.
pub trait ResultExt<T> {
    /// Wraps an error in the present-tense action that `doing` gives.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.context(doing()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_reads_from_the_outside_in_and_keeps_the_kind() {
        let host = std::io::Error::from_raw_os_error(28);
        let error = BlockError::host("write 512 bytes at 0x1000", host).context("store the log entry");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.chain().starts_with("store the log entry: write 512 bytes at 0x1000: No space left"));
    }
}
