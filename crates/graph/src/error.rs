//! Why a chain is not opened.

use std::fmt;
use std::path::PathBuf;

use block::{BlockError, ErrorKind};
use image::vhdx::OpenError;
use thiserror::Error;

use crate::layer::Mismatch;

/// Why a chain is not opened. Each says which files are meant and, where there is one, the way out.
#[derive(Debug, Error)]
pub enum ChainError {
    /// Neither the caller nor the name says what the file is.
    #[error("the name of {path} does not tell its format; give the format, raw or vhdx")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The host does not open the file.
    #[error("open {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: BlockError,
    },
    /// The file breaks a rule of its format.
    #[error("open {path}")]
    Image {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: OpenError,
    },
    /// No file is where the parent may be.
    #[error("the parent of {child} is missing: looked for {}", Places(looked_for))]
    ParentMissing {
        /// The file whose parent it is.
        child: PathBuf,
        /// Where it was looked for, in this order.
        looked_for: Vec<PathBuf>,
    },
    /// The parent was found and cannot be used.
    #[error("use the parent of {child}")]
    ParentUnusable {
        /// The file whose parent it is.
        child: PathBuf,
        /// Why not.
        source: Box<Self>,
    },
    /// The parent is not what the child was made on.
    #[error("{0}")]
    ParentMismatch(Box<Mismatch>),
    /// A chain that does not fit was to be opened for writing.
    #[error("{mismatch}; it can be looked at, but not written")]
    MismatchIsReadOnly {
        /// What does not fit.
        mismatch: Box<Mismatch>,
    },
    /// Child and parent count in different sectors.
    #[error(
        "{child} has logical sectors of {child_bytes} bytes and its parent {parent} of {parent_bytes}; a child \
         must have its parent's"
    )]
    SectorSizes {
        /// The child's file.
        child: PathBuf,
        /// The child's logical sector.
        child_bytes: u32,
        /// The parent's file.
        parent: PathBuf,
        /// The parent's logical sector.
        parent_bytes: u32,
    },
    /// A file is its own ancestor.
    #[error("{child} names {parent} as its parent, which depends on it or is the same file")]
    Loop {
        /// The file that closes the loop.
        child: PathBuf,
        /// The file that is in the chain already.
        parent: PathBuf,
    },
    /// The chain has more layers than are handled.
    #[error("the chain of {path} has more than {max} layers; merge some of them")]
    TooDeep {
        /// The top of the chain.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
}

impl ChainError {
    /// The kind by which code tells it apart.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownFormat { .. } | Self::TooDeep { .. } => ErrorKind::Unsupported,
            Self::File { source, .. } => source.kind(),
            Self::Image { source, .. } => source.kind(),
            Self::ParentMissing { .. } => ErrorKind::NotFound,
            Self::ParentUnusable { source, .. } => source.kind(),
            Self::ParentMismatch(_) | Self::SectorSizes { .. } | Self::Loop { .. } => ErrorKind::Corrupt,
            Self::MismatchIsReadOnly { .. } => ErrorKind::ReadOnly,
        }
    }
}

impl From<ChainError> for BlockError {
    fn from(error: ChainError) -> Self {
        Self::with_source(error.kind(), "open the disk", error)
    }
}

struct Places<'a>(&'a [PathBuf]);

impl fmt::Display for Places<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing, because the child's parent locator has no path of this host");
        }
        for (index, path) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", then " };
            write!(f, "{separator}{}", path.display())?;
        }
        Ok(())
    }
}
