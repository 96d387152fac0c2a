//! Finding the parent of a differencing disk.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::{Disk, ErrorKind};
use hostio::{HostFile, OpenOptions};
use image::vhdx::{Access, Opened, ParentLocator, open};

use crate::ChainError;
use crate::chain::{ChainOptions, ParentMismatch};
use crate::layer::Mismatch;

/// Symbolic links from a child's name to its file that are followed to find the parent.
const LINKS_MAX: usize = 8;

/// A parent that was found, opened read-only.
#[derive(Debug)]
pub struct Parent {
    /// Where.
    pub path: PathBuf,
    /// The file.
    pub file: Disk,
    /// What is in it.
    pub opened: Opened,
    /// What does not fit, where the caller allowed for it.
    pub mismatch: Option<Mismatch>,
}

/// A file's identity on this host.
pub(crate) type FileId = (u64, u64);

/// The identity of the file at `path`; `None` where there is none.
pub(crate) fn file_id(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Finds the parent of the disk `child` in the file at `child_path`; `None` where it has none.
///
/// The places are tried in the locator's order until one holds the disk that the child was made on. One that holds
/// another disk is passed over, so that a file of the same name cannot hide the parent; if nothing else is found, it
/// is the mismatch that is told, or allowed.
///
/// # Errors
/// `ParentMissing`, `ParentMismatch`, `SectorSizes`; `ParentUnusable` where the parent is in use or breaks a rule.
pub async fn find_parent(
    child_path: &Path,
    child: &Opened,
    options: &ChainOptions,
) -> Result<Option<Parent>, ChainError> {
    find(child_path, child, options, &[]).await
}

/// As [`find_parent`]; `above` are the files of the chain so far, of which the parent must not be one.
pub(crate) async fn find(
    child_path: &Path,
    child: &Opened,
    options: &ChainOptions,
    above: &[FileId],
) -> Result<Option<Parent>, ChainError> {
    let Some(locator) = &child.locator else { return Ok(None) };
    let search = Search { child_path, child, locator, options, above };
    let looked_for = candidates(child_path, locator);
    let mut first_failure = None;
    let mut first_mismatch = None;
    for path in &looked_for {
        match search.try_at(path).await {
            Ok(Some(parent)) if parent.mismatch.is_none() => return search.usable(parent).map(Some),
            Ok(Some(parent)) => first_mismatch = first_mismatch.or(Some(parent)),
            Ok(None) => {}
            Err(error) => first_failure = first_failure.or(Some(error)),
        }
    }
    // A parent that is in use or damaged may be the right one; a mismatch certainly is not.
    if let Some(error) = first_failure {
        return Err(error);
    }
    let child = child_path.to_owned();
    let Some(parent) = first_mismatch else { return Err(ChainError::ParentMissing { child, looked_for }) };
    match (&parent.mismatch, options.parent_mismatch) {
        (Some(mismatch), ParentMismatch::Refuse) => {
            Err(ChainError::ParentMismatch(Box::new(mismatch.clone())))
        }
        _ => search.usable(parent).map(Some),
    }
}

struct Search<'a> {
    child_path: &'a Path,
    child: &'a Opened,
    locator: &'a ParentLocator,
    options: &'a ChainOptions,
    above: &'a [FileId],
}

impl Search<'_> {
    /// The disk at `path`; `None` where there is no file.
    async fn try_at(&self, path: &Path) -> Result<Option<Parent>, ChainError> {
        // Before it is opened: a chain that is open for writing has locked its own files.
        if file_id(path).is_some_and(|id| self.above.contains(&id)) {
            let (child, parent) = (self.child_path.to_owned(), path.to_owned());
            return Err(ChainError::Loop { child, parent });
        }
        let options = OpenOptions {
            access: hostio::Access::ReadOnly,
            cache: self.options.cache,
            lock: self.options.lock,
            ..OpenOptions::default()
        };
        let file = match HostFile::open(path, &options) {
            Ok(file) => Disk::new(file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.unusable(ChainError::File { path: path.to_owned(), source })),
        };
        let opened = open(file.clone(), Access::ReadOnly).await;
        let opened =
            opened.map_err(|source| self.unusable(ChainError::Image { path: path.to_owned(), source }))?;
        let mismatch = self.mismatch(path, &opened);
        Ok(Some(Parent { path: path.to_owned(), file, opened, mismatch }))
    }

    fn mismatch(&self, path: &Path, parent: &Opened) -> Option<Mismatch> {
        let found = parent.header().data_write_guid;
        (!self.locator.matches(found)).then(|| Mismatch {
            child: self.child_path.to_owned(),
            expected: self.locator.linkage(),
            expected2: self.locator.linkage2(),
            parent: path.to_owned(),
            found,
        })
    }

    /// Refuses a parent that counts in other sectors than the child.
    fn usable(&self, parent: Parent) -> Result<Parent, ChainError> {
        let child_bytes = self.child.geometry.logical_sector_bytes;
        let parent_bytes = parent.opened.geometry.logical_sector_bytes;
        if child_bytes == parent_bytes {
            return Ok(parent);
        }
        let child = self.child_path.to_owned();
        Err(ChainError::SectorSizes { child, child_bytes, parent: parent.path, parent_bytes })
    }

    fn unusable(&self, source: ChainError) -> ChainError {
        ChainError::ParentUnusable { child: self.child_path.to_owned(), source: Box::new(source) }
    }
}

/// Where the parent may be: seen from the child's directory and, where the child's path is a symbolic link, from the
/// directories of what it leads to.
fn candidates(child_path: &Path, locator: &ParentLocator) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut child_path = child_path.to_owned();
    for _ in 0..=LINKS_MAX {
        let dir = directory_of(&child_path).to_owned();
        for path in locator.candidates(&dir) {
            if !found.contains(&path) {
                found.push(path);
            }
        }
        let Ok(target) = std::fs::read_link(&child_path) else { break };
        child_path = dir.join(target);
    }
    found
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}
