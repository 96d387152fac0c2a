//! The guest that the tour boots.

use std::path::{Path, PathBuf};

/// What `guest/build` made.
pub(super) struct Guest {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// An ext4 root file system as a raw image.
    pub(super) root: PathBuf,
    /// The Debian packages that it was made from.
    pub(super) packages: String,
}

impl Guest {
    pub(super) fn find(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir)?;
        let packages = std::fs::read_to_string(dir.join("packages"));
        let complete = dir.join("stamp").is_file();
        let (Ok(packages), true) = (packages, complete) else {
            anyhow::bail!(
                "there is no guest in {}; scripts/quickstart makes one, or guest/build DIR and then --guest DIR",
                dir.display()
            );
        };
        Ok(Self {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd"),
            root: dir.join("root.ext4"),
            packages: packages.lines().collect::<Vec<_>>().join(" and "),
        })
    }
}
