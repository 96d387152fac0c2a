//! A running QEMU.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::machine::default_binary;
use crate::{Child, Console, Machine, MachineError, Qmp, QmpError, Version};

/// How long `quit` may take before QEMU is killed: it flushes its block devices first.
const QUIT_TIMEOUT: Duration = Duration::from_secs(30);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// As much of what QEMU said on its standard error goes into an error.
const STDERR_BYTES_MAX: u64 = 4096;

/// A QEMU process with our monitor connection. It is killed when dropped; [`Vm::stop`] ends it in order.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    qmp: Qmp,
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such program, or it is not QEMU.
    #[error("find out the version of qemu: {0}")]
    Version(String),
    /// It is older than what this crate is held against.
    #[error("{} is qemu {version}; the oldest that works is {}", binary.display(), Version::OLDEST)]
    TooOld {
        /// The program.
        binary: PathBuf,
        /// Its version.
        version: Version,
    },
    /// The machine itself cannot be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The process could not be started.
    #[error("start qemu")]
    Spawn(#[from] io::Error),
    /// QEMU ended instead of answering; mostly it does not accept something in the command line.
    #[error("qemu ended with {status} instead of starting the machine: {said}")]
    Ended {
        /// What it ended with.
        status: ExitStatus,
        /// What it said on standard error.
        said: String,
    },
    /// The monitor does not answer as it should.
    #[error("talk to qemu")]
    Qmp(#[from] QmpError),
}

/// How a machine came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The guest powered itself off.
    ByGuest,
    /// The guest did not react to the power button in time; QEMU ended in order.
    ByQuit,
    /// QEMU did not react either and was killed.
    ByKill,
}

impl Vm {
    /// Starts `machine` with the QEMU at `binary` (by default the one in the path).
    ///
    /// QEMU ends when the calling thread does; see [`Child`]. Its standard error is ours once it has started.
    ///
    /// # Errors
    /// When this returns an error no process is left behind.
    pub fn start(machine: &Machine, binary: Option<&Path>) -> Result<Self, StartError> {
        let binary = binary.unwrap_or(default_binary());
        let version = Version::of(binary).map_err(StartError::Version)?;
        if version < Version::OLDEST {
            return Err(StartError::TooOld { binary: binary.into(), version });
        }
        machine.memory.check_room()?;
        let (ours, theirs) = UnixStream::pair()?;
        let args = machine.arguments(version, theirs.as_raw_fd())?;
        tracing::info!(binary = %binary.display(), %version, ?args, "starting qemu");
        let mut command = Command::new(binary);
        command.args(args).stderr(Stdio::piped());
        if machine.console != Console::Stdio {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        let mut child = Child::spawn(&mut command, &[theirs.as_fd()])?;
        // QEMU holds the only other end now: its end is the end of the connection.
        drop(theirs);
        match Qmp::over(ours) {
            Ok(qmp) => {
                relay_stderr(&mut child);
                Ok(Self { child, qmp })
            }
            Err(error) => Err(why_ended(child, error)),
        }
    }

    /// The process, to wait for or to kill.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Our monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Presses the guest's power button. The guest may ignore it.
    ///
    /// # Errors
    /// What QEMU or the connection to it reports.
    pub fn press_power_button(&mut self) -> Result<(), QmpError> {
        self.qmp.execute("system_powerdown", json!({}), COMMAND_TIMEOUT).map(drop)
    }

    /// Tells QEMU to end without asking the guest, whose unwritten data is lost, as when a plug is pulled. QEMU still
    /// flushes what its disks have been sent; wait for its end.
    ///
    /// # Errors
    /// What QEMU or the connection to it reports.
    pub fn ask_to_quit(&mut self) -> Result<(), QmpError> {
        self.qmp.execute("quit", json!({}), COMMAND_TIMEOUT).map(drop)
    }

    /// Ends the machine in order: power button, `quit` if the guest has not gone off within `patience`, and a kill if
    /// that does not help either.
    ///
    /// # Errors
    /// What waiting for the process reports.
    pub fn stop(mut self, patience: Duration) -> io::Result<(Stopped, ExitStatus)> {
        // A monitor that is gone or does not answer is a reason to go on with the next step, not to give up.
        if let Err(error) = self.press_power_button() {
            tracing::info!(%error, "the power button cannot be pressed");
        }
        if let Some(status) = self.child.wait_timeout(patience)? {
            return Ok((Stopped::ByGuest, status));
        }
        self.quit()
    }

    /// [`Self::ask_to_quit`], and a kill if that does not help within half a minute.
    ///
    /// # Errors
    /// What waiting for the process reports.
    pub fn quit(mut self) -> io::Result<(Stopped, ExitStatus)> {
        if let Err(error) = self.ask_to_quit() {
            tracing::info!(%error, "qemu did not accept to quit");
        }
        match self.child.wait_timeout(QUIT_TIMEOUT)? {
            Some(status) => Ok((Stopped::ByQuit, status)),
            None => Ok((Stopped::ByKill, self.child.kill()?)),
        }
    }
}

/// Hands on what QEMU says while it runs, line by line, marked as its words.
fn relay_stderr(child: &mut Child) {
    use std::io::BufRead;
    let Some(stderr) = child.process().stderr.take() else { return };
    let relay = move || {
        let mut lines = io::BufReader::new(stderr);
        let mut line = Vec::new();
        while lines.by_ref().take(STDERR_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|count| count > 0)
        {
            tracing::warn!("qemu: {}", String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    };
    // Without the thread QEMU would be stopped by a full pipe or a broken one in the end; it is as good as a start
    // that failed, but there is nobody left to tell.
    if let Err(error) = std::thread::Builder::new().name("qemu-stderr".into()).spawn(relay) {
        tracing::warn!(%error, "what qemu says cannot be handed on");
    }
}

fn why_ended(mut child: Child, error: QmpError) -> StartError {
    if !matches!(error, QmpError::Closed | QmpError::Io(_)) {
        return error.into();
    }
    let mut said = Vec::new();
    // It closes its files before its status can be had; the kill is for one that hangs.
    let status = match child.wait_timeout(COMMAND_TIMEOUT) {
        Ok(Some(status)) => Ok(status),
        _ => child.kill(),
    };
    match status {
        Err(error) => error.into(),
        Ok(status) => {
            if let Some(stderr) = child.process().stderr.take() {
                let _ = stderr.take(STDERR_BYTES_MAX).read_to_end(&mut said);
            }
            let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
            StartError::Ended { status, said }
        }
    }
}
