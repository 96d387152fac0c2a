//! `godwit disk`: create, look at and check image files, without a daemon.

mod check;
mod create;
mod info;
mod map;
mod open;
mod progress;
pub(crate) mod size;
mod svg;

use std::path::Path;

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

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The file is the disk.
    Raw,
    /// VHDX, version 1.
    Vhdx,
}

impl Format {
    /// The format's name in reports.
    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
        }
    }

    /// The format that the name of an existing file tells.
    fn of_file(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "raw" | "img" => Some(Self::Raw),
            "vhdx" | "avhdx" => Some(Self::Vhdx),
            _ => None,
        }
    }

    /// The format that a new file of this name gets.
    fn of_new_file(path: &Path) -> Self {
        Self::of_file(path).unwrap_or(Self::Vhdx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_tells_its_format_in_any_case() {
        let format = |path: &str| Format::of_file(Path::new(path));
        assert_eq!(format("a.vhdx"), Some(Format::Vhdx));
        assert_eq!(format("A.VHDX"), Some(Format::Vhdx));
        assert_eq!(format("b.snapshot.avhdx"), Some(Format::Vhdx));
        assert_eq!(format("c.img"), Some(Format::Raw));
        assert_eq!(format("vhdx"), None);
        assert_eq!(format("a.vhdx.bak"), None);
    }
}
