//! The process that serves one disk of a machine, started again whenever it dies.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use qemu::{Attachment, Child};
use rustix::process::Signal;
use serve::nbd::{Address, NbdUri};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::args::{Attach, DiskArg};

/// How long a server may take to close its disk: it writes back and makes durable what the guest has written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before a server is started again that died before it ever listened; doubled each time it does so again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// What the threads that watch processes tell the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Server number `.0` listens.
    Ready(usize),
    /// Server number `.0` closed its output: it has ended, or is about to.
    Ended(usize),
    /// QEMU has ended.
    QemuEnded,
}

/// One disk's server.
#[derive(Debug)]
pub(super) struct DiskServer {
    index: usize,
    pub(super) id: String,
    pub(super) disk: DiskArg,
    pub(super) attach: Attach,
    pub(super) socket: PathBuf,
    notices: UnboundedSender<Notice>,
    child: Option<Child>,
    /// Ends since the last time that it listened.
    failures: u32,
    /// When it is to be started again.
    pub(super) restart_at: Option<Instant>,
}

impl DiskServer {
    pub(super) fn new(
        index: usize,
        disk: DiskArg,
        attach: Attach,
        socket: PathBuf,
        notices: UnboundedSender<Notice>,
    ) -> Self {
        let id = format!("disk{index}");
        Self { index, id, disk, attach, socket, notices, child: None, failures: 0, restart_at: None }
    }

    /// How QEMU reaches it.
    pub(super) fn attachment(&self, queues: u16) -> Attachment {
        let socket = self.socket.clone();
        match self.attach {
            Attach::VhostUserBlk => Attachment::VhostUserBlk { socket, queues },
            Attach::Nbd => Attachment::Nbd { socket, export: String::new() },
        }
    }

    /// The process id while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::pid)
    }

    /// Starts the process. That it listens comes as a notice.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        self.restart_at = None;
        let mut command = self.command()?;
        let mut child = Child::spawn(&mut command, &[]).with_context(|| format!("start {command:?}"))?;
        let output = child.process().stdout.take().context("the server has no output")?;
        let (index, notices, id) = (self.index, self.notices.clone(), self.id.clone());
        let relay = move || {
            // The first line says that it listens; a receiver that is gone needs no notice.
            for (number, line) in BufReader::new(output).lines().map_while(Result::ok).enumerate() {
                tracing::debug!("{id}: {line}");
                if number == 0 {
                    let _ = notices.send(Notice::Ready(index));
                }
            }
            let _ = notices.send(Notice::Ended(index));
        };
        std::thread::Builder::new().name(format!("{}-output", self.id)).spawn(relay)?;
        self.child = Some(child);
        Ok(())
    }

    fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(["serve", "--json"]).arg(&self.disk.path);
        if let Some(format) = &self.disk.format {
            command.args(["--format", format]);
        }
        if self.disk.read_only {
            command.arg("--read-only");
        }
        match self.attach {
            Attach::VhostUserBlk => command.arg("--vhost-user-blk").arg(&self.socket),
            Attach::Nbd => {
                let address = Address::Unix(self.socket.clone());
                let uri = NbdUri { address, export: String::new(), tls: false };
                command.arg("--nbd").arg(uri.to_string())
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command)
    }

    /// The server listens.
    pub(super) fn ready(&mut self) {
        self.failures = 0;
    }

    /// Collects the process after its end, and plans the next start.
    pub(super) fn collect(&mut self) -> anyhow::Result<Option<(u32, ExitStatus)>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        // It has closed its output; should it still run, it is of no use any more.
        let status = match child.wait_timeout(Duration::from_secs(1))? {
            Some(status) => status,
            None => child.kill()?,
        };
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => RETRY_PAUSE.saturating_mul(1 << failures.min(16)).min(RETRY_PAUSE_MAX),
        };
        self.failures += 1;
        self.restart_at = Some(Instant::now() + pause);
        Ok(Some((child.pid(), status)))
    }

    /// Lets the process close its disk and end.
    pub(super) fn close(mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.signal(Signal::TERM)?;
        match child.wait_timeout(CLOSE_TIMEOUT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => anyhow::bail!("the server of {} ended with {status}", self.disk.path.display()),
            None => {
                child.kill()?;
                anyhow::bail!(
                    "the server of {} has not closed it within {CLOSE_TIMEOUT:?} and was killed; what the guest \
                     flushed is safe, and the next open replays the log",
                    self.disk.path.display()
                )
            }
        }
    }
}
