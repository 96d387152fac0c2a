//! Opening what a command looks at.

use std::path::{Path, PathBuf};

use anyhow::bail;
use block::Disk;
use clap::Args;
use hostio::{HostFile, Lock, OpenOptions};
use image::ImageDev;
use image::vhdx::{self, Access, Vhdx};

use super::Format;

/// The image that a command looks at.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// The image file, or a block device.
    pub(crate) path: PathBuf,

    /// The format; otherwise the name decides: .raw and .img are raw, .vhdx and .avhdx VHDX.
    #[arg(short, long)]
    pub(crate) format: Option<Format>,

    /// Look although somebody has the image open for writing; what is seen may then contradict itself.
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
}

impl Source {
    pub(crate) fn format(&self) -> anyhow::Result<Format> {
        let format = self.format.or_else(|| Format::of_file(&self.path));
        let Some(format) = format else {
            // What a guest wrote into a raw disk must not be taken for a format that names further files.
            bail!(
                "the name of {} does not tell its format; say --format raw or --format vhdx",
                self.path.display()
            );
        };
        Ok(format)
    }

    pub(crate) fn open_file(&self) -> anyhow::Result<Disk> {
        let lock = if self.force_share { Lock::None } else { Lock::Qemu };
        Ok(Disk::new(HostFile::open(&self.path, &OpenOptions { lock, ..OpenOptions::default() })?))
    }
}

/// An opened image with everything that it depends on.
pub(crate) struct OpenedChain {
    pub(crate) disk: Disk,
    pub(crate) files: Vec<PathBuf>,
}

impl OpenedChain {
    pub(crate) fn layer_names(&self) -> Vec<String> {
        self.files.iter().map(|path| path.display().to_string()).collect()
    }
}

/// Opens the image and all its parents, to read.
pub(crate) async fn chain(source: &Source) -> anyhow::Result<OpenedChain> {
    let file = source.open_file()?;
    let disk = match source.format()? {
        Format::Raw => image::raw::open(file)?,
        Format::Vhdx => {
            let opened = vhdx::open(file, Access::ReadOnly).await?;
            Disk::new(ImageDev::new(Vhdx::new(opened), None))
        }
    };
    Ok(OpenedChain { disk, files: vec![source.path.clone()] })
}

/// Opens the VHDX that a new one will depend on.
pub(crate) async fn parent_of_new_child(path: &Path) -> anyhow::Result<vhdx::Opened> {
    let source = Source { path: path.to_owned(), format: Some(Format::Vhdx), force_share: false };
    Ok(vhdx::open(source.open_file()?, Access::ReadOnly).await?)
}
