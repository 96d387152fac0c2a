//! Where a running machine keeps its sockets.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The longest path that a Unix socket can have, without its end (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A directory that only its owner can enter, and that goes when the machine ends.
#[derive(Debug)]
pub(super) struct RuntimeDir(tempfile::TempDir);

impl RuntimeDir {
    /// Makes one below `$XDG_RUNTIME_DIR`, `/run` or the temporary directory, the first that can be written.
    pub(super) fn create() -> anyhow::Result<Self> {
        let places = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).into_iter();
        let places = places.chain([PathBuf::from("/run"), std::env::temp_dir()]);
        let mut refused = None;
        for place in places {
            // tempfile makes directories with mode 0700.
            match tempfile::Builder::new().prefix("godwit-vm-").tempdir_in(&place) {
                Ok(dir) => return Ok(Self(dir)),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.expect("there was at least one place")).context("make a directory for sockets")
    }

    /// The path of a socket in it.
    pub(super) fn socket(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.path().join(name);
        check_socket_path(&path)?;
        Ok(path)
    }
}

/// Refuses a path that the kernel would.
pub(super) fn check_socket_path(path: &Path) -> anyhow::Result<()> {
    let len = path.as_os_str().len();
    anyhow::ensure!(
        len <= SOCKET_PATH_BYTES_MAX,
        "{} has {len} bytes; the path of a socket can have {SOCKET_PATH_BYTES_MAX}: use a shorter directory",
        path.display()
    );
    Ok(())
}
