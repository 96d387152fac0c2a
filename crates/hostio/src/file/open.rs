//! Opening and creating host files.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use async_lock::RwLock;
use block::{BlockError, ErrorKind, Result, ResultExt};
use rustix::fs::{FileType, Mode, OFlags};

use super::HostFile;
use super::access::Access as DataAccess;
use super::geometry::{self, Found};
use crate::lock::{LockedFd, Role};
use crate::op::OpenFile;

/// How often and how long a claim on a block device is waited for.
const CLAIM_RETRIES_MAX: u32 = 50;
const CLAIM_RETRY_AFTER: Duration = Duration::from_millis(4);

/// Whether the file may be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    #[default]
    ReadOnly,
    /// Reads and changes.
    ReadWrite,
}

/// Whether the host's page cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Yes; any offset and any memory will do.
    #[default]
    Buffered,
    /// No (O_DIRECT): requests are multiples of the disk's block, see `info().block_bytes`.
    Direct,
}

/// Whether others are kept from using the file in a way that does not go with ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// With the locks that QEMU takes: a writer is alone but for readers who insist; readers share, without writers.
    #[default]
    Qemu,
    /// Not at all. Only for looking at a file whose content may change meanwhile.
    None,
}

/// Whether requests that need not wait may run on the thread that makes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inline {
    /// Where that is faster.
    #[default]
    Auto,
    /// Never: every request goes through the ring or the pool.
    Never,
}

/// How a file is opened. The default reads through the page cache, with QEMU's locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Whether the file may be changed.
    pub access: Access,
    /// Whether the host's page cache is used.
    pub cache: Cache,
    /// Whether others are locked out.
    pub lock: Lock,
    /// Whether discards, and zeroes that may unmap, give space back to the host.
    pub discard: bool,
    /// Where requests run.
    pub inline: Inline,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::default(),
            cache: Cache::default(),
            lock: Lock::default(),
            discard: true,
            inline: Inline::default(),
        }
    }
}

impl OpenOptions {
    /// The default for a file that is to be changed.
    pub fn read_write() -> Self {
        Self { access: Access::ReadWrite, ..Self::default() }
    }
}

impl HostFile {
    /// Opens a regular file or a block device, which must exist. Blocks while the host looks it up.
    ///
    /// # Errors
    /// `NotFound`; `Busy` where somebody holds the file in a way that does not go with `options.access`, with who
    /// that is where it can be known; `Unsupported` for what is neither a file nor a block device; `Misaligned` for
    /// direct access to a file that does not end on a block; `ReadOnly`, `Io`.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let flags = flags_of(path, options);
        let file = open_patiently(path, flags).map_err(|error| host(path, "open", error))?;
        Self::from_open(path, file, options)
    }

    /// Creates a regular file of `size` zero bytes, which must not exist, and opens it for reading and writing.
    ///
    /// The name is durable when this returns; the size is with the first flush.
    ///
    /// # Errors
    /// `Busy` if the file exists; `NotFound` for a missing directory; `NoSpace`, `ReadOnly`, `Io`.
    pub fn create(path: impl AsRef<Path>, size: u64, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let options = OpenOptions { access: Access::ReadWrite, ..*options };
        let flags = flags_of(path, &options) | OFlags::CREATE | OFlags::EXCL;
        let file =
            rustix::fs::open(path, flags, Mode::from_raw_mode(0o666)).map_err(|error| match error {
                rustix::io::Errno::EXIST => BlockError::new(
                    ErrorKind::Busy,
                    format!("create {}: it exists already and is not overwritten", path.display()),
                ),
                error => host(path, "create", error),
            })?;
        let created = rustix::fs::ftruncate(&file, size)
            .map_err(|error| host(path, &format!("give {size} bytes to"), error))
            .and_then(|()| sync_directory_of(path))
            .and_then(|()| Self::from_open(path, file, &options));
        if created.is_err() {
            // The file is ours and of no use to anybody; what failed first is what is told.
            let _ = rustix::fs::unlink(path);
        }
        created
    }

    fn from_open(path: &Path, file: OwnedFd, options: &OpenOptions) -> Result<Self> {
        let doing = |what: &'static str| move |error| host(path, what, error);
        let stat = rustix::fs::fstat(&file).map_err(doing("look at"))?;
        // It was set so that opening a pipe does not hang; a ring would take it as a wish to fail rather than wait.
        let flags = rustix::fs::fcntl_getfl(&file).map_err(doing("look at"))?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(doing("set up"))?;
        let file = match (options.lock, options.access) {
            (Lock::Qemu, Access::ReadOnly) => LockedFd::marked(file, path, Role::Reader)?,
            (Lock::Qemu, Access::ReadWrite) => LockedFd::marked(file, path, Role::Writer)?,
            (Lock::None, _) => LockedFd::unmarked(file),
        };
        let found = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => geometry::of_regular_file(&file, &stat, options),
            FileType::BlockDevice => geometry::of_block_device(&file, &stat, options),
            other => {
                let text = format!("open {}: neither a file nor a block device ({other:?})", path.display());
                return Err(BlockError::new(ErrorKind::Unsupported, text));
            }
        };
        let found = found
            .map_err(|error| BlockError::host("ask the host what it can do", error))
            .context(|| format!("open {}", path.display()))?;
        check_end(path, &found)?;
        Ok(Self::assemble(path, file, found))
    }

    fn assemble(path: &Path, file: LockedFd, found: Found) -> Self {
        Self {
            path: path.to_owned(),
            file: RwLock::new(Some(OpenFile::new(file))),
            size: Arc::new(AtomicU64::new(found.size)),
            info: found.info,
            geometry: found.geometry,
            data: DataAccess::new(found.how),
            poisoned: AtomicBool::new(false),
        }
    }
}

/// Opens, and tries again for a moment where a block device is claimed: the claim of a file that was just closed ends
/// only when the ring's kernel thread lets go of it, which nothing tells.
fn open_patiently(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    for _ in 0..CLAIM_RETRIES_MAX {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::BUSY) if flags.contains(OFlags::EXCL) => {
                std::thread::sleep(CLAIM_RETRY_AFTER);
            }
            opened => return opened,
        }
    }
    rustix::fs::open(path, flags, Mode::empty())
}

fn flags_of(path: &Path, options: &OpenOptions) -> OFlags {
    let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    flags |= match options.access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    if options.cache == Cache::Direct {
        flags |= OFlags::DIRECT;
    }
    let is_block_device =
        || rustix::fs::stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_block_device());
    if options.access == Access::ReadWrite && options.lock == Lock::Qemu && is_block_device() {
        // On a block device this refuses what is mounted, or is part of another device.
        flags |= OFlags::EXCL;
    }
    flags
}

/// Requests in blocks could not reach the end of a file that does not end on one.
fn check_end(path: &Path, found: &Found) -> Result<()> {
    let block_bytes = u64::from(found.info.block_bytes);
    if found.size.is_multiple_of(block_bytes) {
        return Ok(());
    }
    let text = format!(
        "open {}: its {} bytes are not a multiple of the {block_bytes}-byte block that direct access needs; open it \
         buffered",
        path.display(),
        found.size
    );
    Err(BlockError::new(ErrorKind::Misaligned, text))
}

fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty())
        .and_then(rustix::fs::fsync)
        .map_err(|error| host(directory, "make the new name durable in", error))
}

fn host(path: &Path, doing: &str, error: rustix::io::Errno) -> BlockError {
    BlockError::host(format!("{doing} {}", path.display()), error.into())
}
