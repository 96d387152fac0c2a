//! Sockets that the service manager, or a client such as nbdinfo, has opened before it started this process.

use std::os::fd::{OwnedFd, RawFd};

use anyhow::Context as _;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The first descriptor that is handed over.
///
/// Source: sd_listen_fds(3), `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;
/// The most that are taken.
const COUNT_MAX: RawFd = 16;

/// The sockets that were handed to this process; none if they were meant for another one.
///
/// They are duplicates: the descriptors themselves come as bare numbers, which nobody can prove to be ours.
pub(super) fn sockets() -> anyhow::Result<Vec<OwnedFd>> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => return Ok(Vec::new()),
    };
    let count = RawFd::try_from(count).unwrap_or(COUNT_MAX).min(COUNT_MAX);
    let this = pidfd_open(getpid(), PidfdFlags::empty()).context("find the sockets that were handed over")?;
    let duplicate = |fd| {
        let socket = pidfd_getfd(&this, fd, PidfdGetfdFlags::empty());
        socket.with_context(|| format!("take descriptor {fd}, which LISTEN_FDS says was handed over"))
    };
    (FIRST..FIRST + count).map(duplicate).collect()
}
