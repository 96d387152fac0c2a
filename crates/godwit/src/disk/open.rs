//! What a command looks at, and how it is opened.

use std::path::{Path, PathBuf};

use block::Disk;
use clap::Args;
use graph::{Chain, ChainDescription, ChainError, ChainOptions, ParentMismatch};
use hostio::{HostFile, Lock, OpenOptions};
use image::vhdx::{self, Access};

use super::Format;

/// The image that a command looks at.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// The image file, or a block device.
    pub(crate) path: PathBuf,

    /// The format; otherwise the name decides: .raw and .img are raw, .vhdx and .avhdx VHDX.
    #[arg(short, long)]
    format: Option<Format>,

    /// Look although somebody has the image open for writing; what is seen may then contradict itself.
    #[arg(short = 'U', long)]
    force_share: bool,
}

impl Source {
    /// A source for an image that this process has just made, whose name may say nothing.
    pub(crate) fn made(path: &Path, format: Format) -> Self {
        Self { path: path.to_owned(), format: Some(format), force_share: false }
    }

    /// The format that was given, or that the name tells; never what the content looks like, which a guest can write.
    pub(crate) fn format(&self) -> Result<graph::Format, ChainError> {
        let format = self.format.map(Into::into).or_else(|| graph::Format::of_name(&self.path));
        format.ok_or_else(|| ChainError::UnknownFormat { path: self.path.clone() })
    }

    /// Opens the image with all that it depends on, to read.
    pub(crate) async fn open_chain(&self, parent_mismatch: ParentMismatch) -> Result<Chain, ChainError> {
        let options = ChainOptions { parent_mismatch, ..self.options() };
        graph::open_chain(&self.path, &options).await
    }

    /// Tells of the image and all that it depends on, as far as it is there and fits.
    pub(crate) async fn describe_chain(&self) -> Result<ChainDescription, ChainError> {
        graph::describe_chain(&self.path, &self.options()).await
    }

    /// Opens one of the chain's files by itself, to read.
    pub(crate) fn open_file(&self, path: &Path) -> block::Result<Disk> {
        let options = OpenOptions { lock: self.lock(), ..OpenOptions::default() };
        HostFile::open(path, &options).map(Disk::new)
    }

    fn options(&self) -> ChainOptions {
        ChainOptions { format: self.format.map(Into::into), lock: self.lock(), ..ChainOptions::default() }
    }

    fn lock(&self) -> Lock {
        if self.force_share { Lock::None } else { Lock::Qemu }
    }
}

/// A VHDX that a new one will depend on, and its ancestors, which are kept from changing while this is held.
pub(crate) struct ParentOfNewChild {
    pub(crate) opened: vhdx::Opened,
    _chain: Chain,
}

impl ParentOfNewChild {
    /// Opens the parent; its own chain must be whole, because a child of a broken one helps nobody.
    pub(crate) async fn open(path: &Path) -> anyhow::Result<Self> {
        let options = ChainOptions { format: Some(graph::Format::Vhdx), ..ChainOptions::default() };
        let chain = graph::open_chain(path, &options).await?;
        let file = HostFile::open(path, &OpenOptions::default()).map(Disk::new)?;
        let opened = vhdx::open(file, Access::ReadOnly).await?;
        Ok(Self { opened, _chain: chain })
    }
}
