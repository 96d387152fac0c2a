//! `godwit disk`: create, look at and check image files, without a daemon.

mod check;
mod create;
mod info;
mod map;
mod open;
mod progress;
pub(crate) mod size;
mod svg;

use clap::ValueEnum;

use crate::exit::Exit;
use crate::report::Form;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DiskCommand {
    /// Make a new, empty image.
    Create(create::CreateArgs),
    /// Tell what an image is and what it depends on.
    Info(info::InfoArgs),
    /// List every extent with its state, its layer and its place on the host.
    Map(map::MapArgs),
    /// Find everything that is wrong with an image.
    Check(check::CheckArgs),
}

pub(crate) fn run(command: DiskCommand, form: Form) -> anyhow::Result<Exit> {
    hostio::block_on(async {
        match command {
            DiskCommand::Create(args) => create::run(args, form).await,
            DiskCommand::Info(args) => info::run(args, form).await,
            DiskCommand::Map(args) => map::run(args, form).await,
            DiskCommand::Check(args) => check::run(args, form).await,
        }
    })
}

/// An image format, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The file is the disk.
    Raw,
    /// VHDX, version 1.
    Vhdx,
}

impl From<Format> for graph::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Vhdx => Self::Vhdx,
        }
    }
}
