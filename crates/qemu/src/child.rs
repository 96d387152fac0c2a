//! Child processes whose life is bound to ours.
#![expect(unsafe_code, reason = "what must happen between fork and exec has no safe interface")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// A child process that is killed when this process dies, however that happens, and when the handle is dropped.
///
/// The child has a session of its own: Ctrl-C at the terminal reaches us alone, so that stopping is our decision.
///
/// The kernel ties the child to the *thread* that started it: start children from a thread that lives as long as
/// they should.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    pidfd: OwnedFd,
}

impl Child {
    /// Starts `command`. The file descriptors in `inherited` stay open, under the same numbers, in the child.
    ///
    /// # Errors
    /// What fork, exec or their preparations report; `NotFound` if there is no such program.
    pub fn spawn(command: &mut Command, inherited: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let inherited: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let parent = rustix::process::getpid();
        // SAFETY: the closure only makes system calls, which is what may be done between fork and exec. It allocates
        // nothing: the vector was made before.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                bind_to_parent(parent)?;
                // SAFETY: the caller's borrows live until `spawn` returns, and so do the descriptors' copies here.
                inherited.iter().try_for_each(|&fd| keep_across_exec(BorrowedFd::borrow_raw(fd)))
            });
        }
        let process = command.spawn()?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the kernel gave a process id that is none"))?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { process, pidfd })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A descriptor that becomes readable when the process ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The piped standard streams and the exit status as [`std::process::Child`] has them.
    pub fn process(&mut self) -> &mut std::process::Child {
        &mut self.process
    }

    /// Waits for the end of the process, at most `timeout`. `None` says that it still runs.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(Some(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            wait_readable(self.pidfd.as_fd(), left)?;
        }
    }

    /// Calls `notify` on a thread of its own when the process has ended. It is still to be waited for then.
    ///
    /// # Errors
    /// If there can be no more descriptors or threads.
    pub fn notify_end(&self, notify: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let pidfd = self.pidfd.try_clone()?;
        let wait = move || {
            loop {
                match wait_readable(pidfd.as_fd(), Duration::from_secs(3600)) {
                    Ok(false) => {}
                    // An error does not happen with a valid descriptor; if it does, the caller looks for itself.
                    Ok(true) | Err(_) => return notify(),
                }
            }
        };
        std::thread::Builder::new().name("child-end".into()).spawn(wait).map(drop)
    }

    /// Sends `signal`. Nothing happens if the process has ended.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills the process and waits until it is gone.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.process.wait()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have been waited for already; then there is nothing to kill.
        let _ = self.kill();
    }
}

fn bind_to_parent(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the line above; nobody would ever kill us.
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn keep_across_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
}

/// Waits until `fd` is readable, at most `timeout`; says whether it is. May return early.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_child_that_runs_is_not_waited_for_longer_than_asked_and_can_be_killed() {
        let mut child = Child::spawn(Command::new("sleep").arg("1000"), &[]).unwrap();
        assert!(child.wait_timeout(Duration::from_millis(1)).unwrap().is_none());
        let status = child.kill().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        assert!(child.wait_timeout(Duration::ZERO).unwrap().is_some(), "the end stays known");
    }

    #[test]
    fn the_end_of_a_child_is_notified() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut child = Child::spawn(Command::new("sleep").arg("1000"), &[]).unwrap();
        child.notify_end(move || sender.send(()).unwrap()).unwrap();
        assert!(receiver.try_recv().is_err());
        child.signal(Signal::TERM).unwrap();
        receiver.recv().unwrap();
        assert!(child.wait_timeout(Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn an_inherited_descriptor_is_open_in_the_child_and_others_are_not() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let script = format!("echo here >&{}; [ -e /proc/self/fd/{} ]", theirs.as_raw_fd(), ours.as_raw_fd());
        let mut child = Child::spawn(Command::new("sh").arg("-c").arg(script), &[theirs.as_fd()]).unwrap();
        drop(theirs);
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "here\n");
        assert!(!child.process().wait().unwrap().success());
    }

    #[test]
    fn a_child_dies_with_its_parent() {
        // A thread is a parent, too, as far as the kernel's notice goes.
        let mut child = std::thread::spawn(|| Child::spawn(Command::new("sleep").arg("1000"), &[]).unwrap())
            .join()
            .unwrap();
        let status = child.process().wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}
