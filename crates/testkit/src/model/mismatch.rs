//! What a check of the model reports.

use std::fmt;

/// Content, a size or a status that the contract does not allow.
#[derive(Debug)]
pub struct Mismatch(String);

impl Mismatch {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    pub(crate) fn of_status(self) -> Self {
        Self(format!("block_status says that a range reads as zeroes: {}", self.0))
    }

    pub(crate) fn doing(self, what: impl fmt::Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}
