//! System calls that take memory by address, because a scatter list has no Rust reference to give.
#![expect(unsafe_code, reason = "vectored reads and writes, ioctls and locks take raw addresses")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use block::SgList;
use smallvec::SmallVec;

/// The most segments that one call may carry (UIO_MAXIOV).
const SEGMENTS_MAX: usize = 1024;
/// The most bytes that one call moves; the kernel would cut at 2 GiB less a page.
const CALL_BYTES_MAX: u64 = 1 << 30;

/// The addresses of a request's memory, for one call.
pub(crate) type IoVecs = SmallVec<[libc::iovec; 4]>;

/// Which way bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// Addresses of the first bytes of `memory`, as many as one call takes.
///
/// They are good for as long as a clone of `memory` lives.
pub(crate) fn iovecs(memory: &SgList, into: &mut IoVecs) {
    into.clear();
    let mut room = CALL_BYTES_MAX;
    for segment in memory.segments().iter().take(SEGMENTS_MAX) {
        let len = room.min(segment.len() as u64);
        if len == 0 {
            break;
        }
        into.push(libc::iovec { iov_base: segment.as_ptr().cast(), iov_len: len as usize });
        room -= len;
    }
}

/// Reads or writes what one call takes of `memory` at `offset`, with the `RWF_*` `flags`.
///
/// Returns how many bytes were moved; 0 is the end of the file. A call that a signal cut off is made again.
pub(crate) fn transfer(
    fd: BorrowedFd<'_>,
    direction: Direction,
    offset: u64,
    memory: &SgList,
    flags: i32,
) -> io::Result<u64> {
    let mut vecs = IoVecs::new();
    iovecs(memory, &mut vecs);
    let (fd, count, at) = (fd.as_raw_fd(), vecs.len() as libc::c_int, offset as libc::off_t);
    loop {
        // SAFETY: the vectors hold addresses inside `memory`, which lives until the call has returned, and segments
        // are memory that may be read and written at any time.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv2(fd, vecs.as_ptr(), count, at, flags),
                Direction::Write => libc::pwritev2(fd, vecs.as_ptr(), count, at, flags),
            }
        };
        if moved >= 0 {
            return Ok(moved as u64);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes a shared lock on `byte` for the open file behind `fd`, which lasts until the last descriptor of it closes.
///
/// # Errors
/// `EAGAIN` where somebody holds an exclusive lock; what the file system says where it has no locks.
pub(crate) fn lock_shared(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    lock_call(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte, 1).map(drop)
}

/// Gives back what the open file behind `fd` holds of `len` bytes from `start`.
pub(crate) fn unlock(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    lock_call(fd, libc::F_OFD_SETLK, libc::F_UNLCK, start, len).map(drop)
}

/// Whether another open file holds any lock on `byte`.
///
/// # Errors
/// What the file system says where it has no locks.
pub(crate) fn is_locked_elsewhere(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    lock_call(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte, 1).map(|kind| kind != libc::F_UNLCK)
}

/// Makes a lock call for `len` bytes from `start`; returns the kind of lock that the kernel answered with.
fn lock_call(fd: BorrowedFd<'_>, call: i32, kind: i32, start: u64, len: u64) -> io::Result<i32> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: len as libc::off_t,
        // Open-file locks want 0 here.
        l_pid: 0,
    };
    loop {
        // SAFETY: the structure is of the type that the call reads and writes, and outlives it.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), call, &raw mut lock) };
        if result == 0 {
            return Ok(i32::from(lock.l_type));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
