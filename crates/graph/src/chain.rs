//! Opening a disk and its ancestors as one.

use std::path::{Path, PathBuf};

use block::Disk;
use hostio::{Cache, HostFile, Lock, OpenOptions};
use image::ImageDev;
use image::vhdx::{Access, Opened, Vhdx, open};

use crate::layer::{LayerInfo, Mismatch, VhdxInfo};
use crate::parent::{self, FileId, Parent, file_id};
use crate::{ChainError, Format};

/// The most layers that a chain may have: enough for any use, and a bound for what a read goes through.
pub const DEPTH_MAX: usize = 128;

/// What to do with a parent that is not what its child was made on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ParentMismatch {
    /// Refuse the chain: the disk may be corrupt.
    #[default]
    Refuse,
    /// Let it be looked at. A chain that is to be written is refused all the same.
    AllowReadOnly,
}

/// How a chain is opened. The default reads, through the page cache, with QEMU's locks.
#[derive(Clone, Copy, Debug)]
pub struct ChainOptions {
    /// What may be done to the top layer; its ancestors are never changed.
    pub access: Access,
    /// What the top layer is; `None` goes by its name.
    pub format: Option<Format>,
    /// How the host reads and writes the files.
    pub cache: Cache,
    /// Whether others are kept from using the files: from writing to any, and from more where the top is written.
    pub lock: Lock,
    /// Whether trims give space back to the host.
    pub discard: bool,
    /// What to do with a parent that does not fit.
    pub parent_mismatch: ParentMismatch,
}

impl Default for ChainOptions {
    fn default() -> Self {
        Self {
            access: Access::ReadOnly,
            format: None,
            cache: Cache::default(),
            lock: Lock::default(),
            discard: true,
            parent_mismatch: ParentMismatch::default(),
        }
    }
}

impl ChainOptions {
    /// The default for a disk that is to be changed.
    pub fn read_write() -> Self {
        Self { access: Access::ReadWrite, ..Self::default() }
    }
}

/// A disk with all layers that it depends on. Closing [`Self::disk`] closes all of them.
#[derive(Debug)]
pub struct Chain {
    /// The disk.
    pub disk: Disk,
    /// Its layers, the top first. [`block::Extent::depth`] is an index into it.
    pub layers: Vec<LayerInfo>,
}

/// What can be told of a chain, sound or not.
#[derive(Debug)]
pub struct ChainDescription {
    /// The layers that could be opened, the top first.
    pub layers: Vec<LayerInfo>,
    /// Why there is not more.
    pub problem: Option<ChainError>,
}

/// Opens the disk at `path` with all its ancestors.
///
/// Nothing is changed before the whole chain was found and fits. Then a writable open replays the top layer's log;
/// those of ancestors are replayed in memory. Ancestors are locked against writers for as long as the chain is open.
///
/// # Errors
/// Which file cannot be used, why, and what can be done.
pub async fn open_chain(path: impl AsRef<Path>, options: &ChainOptions) -> Result<Chain, ChainError> {
    let path = path.as_ref();
    let file = open_top(path, options)?;
    match format_of(path, options)? {
        Format::Raw => open_raw(path, file),
        Format::Vhdx => {
            let top = open_vhdx(path, &file).await?;
            let (ancestors, problem) = load_ancestors(path, &top, options).await;
            match problem {
                Some(problem) => Err(problem),
                None => assemble(path, file, top, ancestors, options).await,
            }
        }
    }
}

/// Tells what there is of the chain at `path`, also where it cannot be opened as a whole. A parent that does not fit
/// is told as the mismatch of its child's layer. Nothing is changed.
///
/// # Errors
/// Why not even the top layer can be opened.
pub async fn describe_chain(
    path: impl AsRef<Path>,
    options: &ChainOptions,
) -> Result<ChainDescription, ChainError> {
    let path = path.as_ref();
    let options =
        ChainOptions { access: Access::ReadOnly, parent_mismatch: ParentMismatch::AllowReadOnly, ..*options };
    let file = open_top(path, &options)?;
    if format_of(path, &options)? == Format::Raw {
        return open_raw(path, file).map(|chain| ChainDescription { layers: chain.layers, problem: None });
    }
    let top = open_vhdx(path, &file).await?;
    let (ancestors, problem) = load_ancestors(path, &top, &options).await;
    Ok(ChainDescription { layers: layers_of(path, &file, &top, &ancestors), problem })
}

fn format_of(path: &Path, options: &ChainOptions) -> Result<Format, ChainError> {
    let format = options.format.or_else(|| Format::of_name(path));
    format.ok_or_else(|| ChainError::UnknownFormat { path: path.to_owned() })
}

fn open_top(path: &Path, options: &ChainOptions) -> Result<Disk, ChainError> {
    // Before the file is locked and waited for.
    format_of(path, options)?;
    let access = match options.access {
        Access::ReadOnly => hostio::Access::ReadOnly,
        Access::ReadWrite => hostio::Access::ReadWrite,
    };
    let ChainOptions { cache, lock, discard, .. } = *options;
    let file = HostFile::open(path, &OpenOptions { access, cache, lock, discard, ..OpenOptions::default() });
    file.map(Disk::new).map_err(|source| ChainError::File { path: path.to_owned(), source })
}

fn open_raw(path: &Path, file: Disk) -> Result<Chain, ChainError> {
    let disk = image::raw::open(file).map_err(|source| ChainError::File { path: path.to_owned(), source })?;
    let size = disk.size();
    let layer = LayerInfo {
        path: path.to_owned(),
        format: Format::Raw,
        virtual_size: size,
        file_bytes: size,
        vhdx: None,
        mismatch: None,
    };
    Ok(Chain { disk, layers: vec![layer] })
}

async fn open_vhdx(path: &Path, file: &Disk) -> Result<Opened, ChainError> {
    let opened = open(file.clone(), Access::ReadOnly).await;
    opened.map_err(|source| ChainError::Image { path: path.to_owned(), source })
}

/// The ancestors of the disk at `path`, its parent first, as far as they could be opened, and why there are not more.
async fn load_ancestors(
    path: &Path,
    top: &Opened,
    options: &ChainOptions,
) -> (Vec<Parent>, Option<ChainError>) {
    let mut above: Vec<FileId> = file_id(path).into_iter().collect();
    let mut ancestors: Vec<Parent> = Vec::new();
    loop {
        let (child_path, child) = match ancestors.last() {
            Some(parent) => (parent.path.as_path(), &parent.opened),
            None => (path, top),
        };
        let parent = match parent::find(child_path, child, options, &above).await {
            Ok(Some(parent)) => parent,
            Ok(None) => return (ancestors, None),
            Err(error) => return (ancestors, Some(error)),
        };
        above.extend(file_id(&parent.path));
        ancestors.push(parent);
        if ancestors.len() >= DEPTH_MAX {
            return (ancestors, Some(ChainError::TooDeep { path: path.to_owned(), max: DEPTH_MAX }));
        }
    }
}

async fn assemble(
    path: &Path,
    file: Disk,
    top: Opened,
    ancestors: Vec<Parent>,
    options: &ChainOptions,
) -> Result<Chain, ChainError> {
    let mismatches = ancestors.iter().filter_map(|parent| parent.mismatch.as_ref());
    for mismatch in mismatches {
        if options.access == Access::ReadWrite {
            return Err(ChainError::MismatchIsReadOnly { mismatch: Box::new(mismatch.clone()) });
        }
        tracing::warn!(
            child = %mismatch.child.display(),
            parent = %mismatch.parent.display(),
            expected = %mismatch.expected,
            found = %mismatch.found,
            "a chain that does not fit is read because that was allowed"
        );
    }
    let layers = layers_of(path, &file, &top, &ancestors);
    let top = match options.access {
        Access::ReadOnly => top,
        Access::ReadWrite => top
            .into_writable(file)
            .await
            .map_err(|source| ChainError::Image { path: path.to_owned(), source })?,
    };
    let mut backing = None;
    for parent in ancestors.into_iter().rev() {
        backing = Some(Disk::new(ImageDev::new(Vhdx::new(parent.opened), backing)));
    }
    Ok(Chain { disk: Disk::new(ImageDev::new(Vhdx::new(top), backing)), layers })
}

fn layers_of(path: &Path, file: &Disk, top: &Opened, ancestors: &[Parent]) -> Vec<LayerInfo> {
    let below = |index: usize| ancestors.get(index).and_then(|parent| parent.mismatch.clone());
    let mut layers = vec![layer_of(path.to_owned(), file, top, below(0))];
    for (index, parent) in ancestors.iter().enumerate() {
        layers.push(layer_of(parent.path.clone(), &parent.file, &parent.opened, below(index + 1)));
    }
    layers
}

fn layer_of(path: PathBuf, file: &Disk, opened: &Opened, mismatch: Option<Mismatch>) -> LayerInfo {
    LayerInfo {
        path,
        format: Format::Vhdx,
        virtual_size: opened.geometry.virtual_size,
        file_bytes: file.size(),
        vhdx: Some(VhdxInfo::of(opened)),
        mismatch,
    }
}
