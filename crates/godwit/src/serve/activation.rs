//! Sockets that the service manager, or a client such as nbdinfo, has opened before it started this process.
#![expect(
    unsafe_code,
    reason = "takes descriptors over by their numbers, which is all that the protocol hands over"
)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The first descriptor that is handed over.
///
/// Source: sd_listen_fds(3), `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;
/// The most that are taken.
const COUNT_MAX: RawFd = 16;

/// The sockets that were handed to this process; none if they were meant for another one. May be called once, before
/// anything else opens descriptors.
pub(super) fn sockets() -> Vec<OwnedFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => return Vec::new(),
    };
    let count = RawFd::try_from(count).unwrap_or(COUNT_MAX).min(COUNT_MAX);
    let open =
        (FIRST..FIRST + count).filter(|fd| std::fs::exists(format!("/proc/self/fd/{fd}")).unwrap_or(false));
    // SAFETY: these descriptors are open, and by the protocol they are ours; nothing in this process has them,
    // because it has only begun.
    open.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}
