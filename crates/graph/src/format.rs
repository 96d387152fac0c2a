//! Image formats, and how the format of a file is decided.

use std::path::Path;

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// VHDX, version 1.
    Vhdx,
}

impl Format {
    /// The format that a file's name says; `None` where it says nothing.
    ///
    /// The content is never asked: a guest writes what it likes into a raw disk, and could make it look like an image
    /// that names other files of the host.
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "vhdx" | "avhdx" => Some(Self::Vhdx),
            "raw" | "img" => Some(Self::Raw),
            _ => None,
        }
    }

    /// The format's name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_decides_the_format_or_nothing_does() {
        let of = |name: &str| Format::of_name(Path::new(name));
        assert_eq!([of("a.vhdx"), of("/x/A.AVHDX")], [Some(Format::Vhdx); 2]);
        assert_eq!([of("a.raw"), of("a.vhdx.img")], [Some(Format::Raw); 2]);
        assert_eq!([of("/dev/sda"), of("vhdx"), of("a.qcow2")], [None; 3]);
    }
}
