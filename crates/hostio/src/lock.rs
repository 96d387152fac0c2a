//! Image locks that QEMU understands.
//!
//! QEMU's programs mark how they use an image by shared locks on single bytes of it: byte 100 + n says "I use
//! permission n", byte 200 + n says "I do not let others use permission n". Whoever opens an image first sets its own
//! marks, then looks for marks of others that do not go with them, so two openers at once may both be refused, but
//! never both be let in. The locks belong to the open file and end with it, however the process ends.
//!
//! Source: QEMU, block/file-posix.c, `raw_apply_lock_bytes` and `raw_check_lock_bytes`.

mod holder;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use block::{BlockError, ErrorKind, Result};

use crate::sys;

/// Where the marks of used permissions begin.
const USED_BASE: u64 = 100;
/// Where the marks of permissions begin that others must not use.
const FORBIDDEN_BASE: u64 = 200;

/// One past the last byte that can be marked.
const MARKS_END: u64 = 300;

/// What a user of an image may do with it, by QEMU's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Permission {
    /// Reads content that nobody changes behind its back.
    ConsistentRead = 0,
    Write = 1,
    /// Writes only what is there already.
    WriteUnchanged = 2,
    Resize = 3,
}

/// How an image is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reads, beside other readers, and lets nobody write: also what a parent of a chain needs.
    Reader,
    /// Writes, and lets nobody else write. Those who read without asking for stable content may.
    Writer,
}

impl Role {
    const fn uses(self) -> &'static [Permission] {
        match self {
            Self::Reader => &[Permission::ConsistentRead],
            Self::Writer => &[Permission::ConsistentRead, Permission::Write, Permission::Resize],
        }
    }

    const fn forbids(self) -> &'static [Permission] {
        match self {
            Self::Reader => &[Permission::Write, Permission::Resize],
            Self::Writer => &[Permission::Write, Permission::WriteUnchanged, Permission::Resize],
        }
    }
}

/// What stands against a role: a mark that somebody else has set.
#[derive(Clone, Copy, Debug)]
struct Conflict {
    byte: u64,
    what: Clash,
}

#[derive(Clone, Copy, Debug)]
enum Clash {
    /// Somebody does what we must forbid.
    Does(Permission),
    /// Somebody forbids what we want to do.
    Forbids(Permission),
}

/// An open file and its marks, which both end when it is dropped.
#[derive(Debug)]
pub(crate) struct LockedFd {
    fd: OwnedFd,
    is_marked: bool,
}

/// How often, and at which distance, a lock is tried again whose holder is gone or cannot be seen.
const GONE_TURNS_MAX: u32 = 60;
const GONE_TURN: std::time::Duration = std::time::Duration::from_millis(50);

impl LockedFd {
    /// An open file without marks.
    pub(crate) fn unmarked(fd: OwnedFd) -> Self {
        Self { fd, is_marked: false }
    }

    /// Locks the open file at `path` for `role`.
    ///
    /// # Errors
    /// `Busy` where somebody else uses the image in a way that does not go with `role`, with who that is where it can
    /// be known; `Unsupported` where the file system has no locks.
    pub(crate) fn marked(fd: OwnedFd, path: &Path, role: Role) -> Result<Self> {
        let file = Self { fd, is_marked: true };
        for turn in 0.. {
            let conflict = set_marks(&file, role)
                .and_then(
                    |conflict| if conflict.is_some() { Ok(conflict) } else { find_conflict(&file, role) },
                )
                .map_err(|error| {
                    let text =
                        format!("lock {}: the file system refuses locks; open it without", path.display());
                    BlockError::with_source(ErrorKind::Unsupported, text, error)
                })?;
            let Some(conflict) = conflict else { return Ok(file) };
            let holders = holder::of(&file, conflict.byte);
            // The kernel keeps a killed process's file for as long as its last request runs.
            if holders.is_empty() && turn < GONE_TURNS_MAX {
                std::thread::sleep(GONE_TURN);
                continue;
            }
            let text = format!("lock {}: {holders} {}", path.display(), conflict.what);
            return Err(BlockError::new(ErrorKind::Busy, text));
        }
        unreachable!("the last turn returns")
    }
}

impl AsFd for LockedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for LockedFd {
    /// Takes the marks away before the descriptor is closed: a ring's kernel thread may hold the open file for some
    /// time after the last operation on it has completed, and its marks with it.
    fn drop(&mut self) {
        if self.is_marked {
            // It can fail only where the file system has lost its locks, and then there is nothing to take away.
            let _ = sys::unlock(self.fd.as_fd(), USED_BASE, MARKS_END - USED_BASE);
        }
    }
}

/// Sets the marks of `role`; returns what kept one from being set, which only an exclusive lock can.
fn set_marks(file: impl AsFd, role: Role) -> io::Result<Option<Conflict>> {
    let used = role.uses().iter().map(|&used| (USED_BASE, Clash::Forbids(used), used));
    let forbidden =
        role.forbids().iter().map(|&forbidden| (FORBIDDEN_BASE, Clash::Does(forbidden), forbidden));
    for (base, what, permission) in used.chain(forbidden) {
        let byte = base + permission as u64;
        match sys::lock_shared(file.as_fd(), byte) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Ok(Some(Conflict { byte, what }));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Looks for marks of others that do not go with `role`.
fn find_conflict(file: impl AsFd, role: Role) -> io::Result<Option<Conflict>> {
    let done = role.forbids().iter().map(|&done| (USED_BASE, Clash::Does(done), done));
    let forbidden = role.uses().iter().map(|&used| (FORBIDDEN_BASE, Clash::Forbids(used), used));
    for (base, what, permission) in done.chain(forbidden) {
        let byte = base + permission as u64;
        if sys::is_locked_elsewhere(file.as_fd(), byte)? {
            return Ok(Some(Conflict { byte, what }));
        }
    }
    Ok(None)
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Does(Permission::Write | Permission::WriteUnchanged) => "has it open for writing",
            Self::Does(Permission::Resize) => "may resize it",
            Self::Does(Permission::ConsistentRead) => "reads it",
            Self::Forbids(Permission::ConsistentRead) => "lets nobody read it",
            Self::Forbids(_) => "has it open and lets nobody else write to it",
        })
    }
}
