//! `godwit vm run` as the tour drives it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use qemu::Child;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::guest::Guest;
use super::shell::{Shell, display};

/// How long the guest may be silent: a slow machine may need this to boot one without virtualization.
const SILENCE_MAX: Duration = Duration::from_secs(180);

/// What the guest's load has said to be durable: for each writer its blocks from `.0` up to, not including, `.1`.
pub(super) type Acknowledged = BTreeMap<u64, (u64, u64)>;

/// A running machine. It is killed when dropped.
pub(super) struct Machine {
    process: Child,
    events: Receiver<Value>,
    console: UnixStream,
    lines: Receiver<String>,
    qemu_pid: Pid,
    pub(super) server_pid: Pid,
    pub(super) acknowledged: Acknowledged,
}

impl Machine {
    /// Boots `guest` from `disk`; shows the command.
    pub(super) fn start(
        shell: &mut Shell<'_>,
        disk: &str,
        guest: &Guest,
        parameters: &str,
    ) -> anyhow::Result<Self> {
        let append = format!("console=ttyS0 loglevel=4 {parameters}");
        let mut line: Vec<OsString> =
            ["godwit", "vm", "run", "--disk", disk, "--memory", "256M", "--cpus", "2"]
                .map(OsString::from)
                .into();
        line.extend(["--kernel".into(), guest.kernel.clone().into()]);
        line.extend(["--initrd".into(), guest.initrd.clone().into(), "--append".into(), append.into()]);
        shell.narrator.command(&display(&line))?;
        line.push("--json".into());
        let mut process = shell.start(&line)?;
        let output = process.process().stdout.take().context("the machine has no output")?;
        let events = receive(BufReader::new(output), |line| serde_json::from_slice(line).ok());
        let server_pid = pid(&next_event(&events, "disk-served")?)?;
        let started = next_event(&events, "started")?;
        let socket = started["console"].as_str().context("the machine has no console")?;
        let console = UnixStream::connect(socket).with_context(|| format!("connect to {socket}"))?;
        let lines = receive(BufReader::new(console.try_clone()?), |line| {
            Some(String::from_utf8_lossy(line).trim_end().to_owned())
        });
        let qemu_pid = pid(&started)?;
        Ok(Self { process, events, console, lines, qemu_pid, server_pid, acknowledged: Acknowledged::new() })
    }

    /// The console's next line that is no acknowledgement, which are taken note of; `None` at the machine's end.
    pub(super) fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            match self.next_of_any_kind()? {
                Some(line) if line.is_empty() || self.acknowledges(&line) => {}
                other => return Ok(other),
            }
        }
    }

    /// Waits for `count` acknowledgements, showing the first of them and what else the guest says.
    pub(super) fn wait_for_acknowledgements(
        &mut self,
        shell: &mut Shell<'_>,
        count: usize,
    ) -> anyhow::Result<()> {
        const SHOWN: usize = 2;
        let mut seen = 0;
        while seen < count {
            let line = self.next_of_any_kind()?.context("the guest ended under load")?;
            let acknowledges = self.acknowledges(&line);
            seen += usize::from(acknowledges);
            if !line.is_empty() && (!acknowledges || seen <= SHOWN) {
                shell.narrator.console(&line)?;
            }
            check(&line)?;
        }
        Ok(shell.narrator.console(&format!("(and so on, {count} lines in all)"))?)
    }

    /// Types a line on the console.
    pub(super) fn type_line(&mut self) -> anyhow::Result<()> {
        Ok(writeln!(self.console)?)
    }

    /// Kills the disk's server and waits until another one listens.
    pub(super) fn kill_server(&mut self) -> anyhow::Result<()> {
        rustix::process::kill_process(self.server_pid, Signal::KILL)?;
        next_event(&self.events, "disk-server-ended")?;
        self.server_pid = pid(&next_event(&self.events, "disk-served")?)?;
        Ok(())
    }

    /// The processes of the machine: its supervisor, QEMU, the disk's server.
    pub(super) fn pids(&self) -> [u32; 3] {
        let number = |pid: Pid| pid.as_raw_nonzero().get().unsigned_abs();
        [self.process.pid(), number(self.qemu_pid), number(self.server_pid)]
    }

    /// Kills everything, the supervisor first: it would start a new server.
    pub(super) fn kill_everything(mut self) -> anyhow::Result<Acknowledged> {
        // The kernel takes the others along with their parent; by handle, no stranger can be hit.
        let others = [self.qemu_pid, self.server_pid].map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        self.process.kill()?;
        for other in others.into_iter().flatten() {
            let _ = pidfd_send_signal(&other, Signal::KILL);
            poll(&mut [PollFd::new(&other, PollFlags::IN)], None)?;
        }
        // What it had still said counts.
        while self.next_line()?.is_some() {}
        Ok(self.acknowledged)
    }

    /// Waits for the end of the machine, which must be in order.
    pub(super) fn wait(mut self) -> anyhow::Result<()> {
        let status = self.process.process().wait()?;
        ensure!(status.success(), "the machine ended with {status}");
        Ok(())
    }

    fn next_of_any_kind(&self) -> anyhow::Result<Option<String>> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.lines.recv_timeout(SILENCE_MAX) {
            Ok(line) => Ok(Some(line)),
            Err(Disconnected) => Ok(None),
            Err(Timeout) => bail!("the guest has said nothing for {SILENCE_MAX:?}"),
        }
    }

    fn acknowledges(&mut self, line: &str) -> bool {
        let Some((writer, floor, end)) = acknowledgement(line) else { return false };
        self.acknowledged.insert(writer, (floor, end));
        true
    }
}

/// Refuses a line in which the guest reports trouble.
pub(super) fn check(line: &str) -> anyhow::Result<()> {
    let trouble = ["ERROR", "FAILED", "LOST", "error", "panic"].iter().any(|mark| line.contains(mark));
    // The load says at its end that it saw none.
    ensure!(!trouble || line.contains("no error seen"), "the guest reports trouble: {line}");
    Ok(())
}

/// `ack WRITER FLOOR END.`: the writer's blocks from FLOOR up to END are durable. The point says that the line is whole.
fn acknowledgement(line: &str) -> Option<(u64, u64, u64)> {
    let mut words = line.strip_prefix("ack ")?.strip_suffix('.')?.split(' ').map(str::parse);
    let fields = (words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?);
    words.next().is_none().then_some(fields)
}

/// Reads lines on a thread of its own, until the end.
fn receive<T: Send + 'static>(
    from: impl BufRead + Send + 'static,
    parse: impl Fn(&[u8]) -> Option<T> + Send + 'static,
) -> Receiver<T> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for item in from.split(b'\n').map_while(Result::ok).filter_map(|line| parse(&line)) {
            if sender.send(item).is_err() {
                return;
            }
        }
    });
    receiver
}

fn next_event(events: &Receiver<Value>, name: &str) -> anyhow::Result<Value> {
    loop {
        let event = events
            .recv_timeout(SILENCE_MAX)
            .with_context(|| format!("the machine told nothing of {name:?}"))?;
        if event["event"] == name {
            return Ok(event);
        }
    }
}

fn pid(event: &Value) -> anyhow::Result<Pid> {
    let number = event["pid"].as_i64().and_then(|number| i32::try_from(number).ok());
    number.and_then(Pid::from_raw).with_context(|| format!("no process in {event}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_acknowledgements_count() {
        assert_eq!(acknowledgement("ack 1 0 24."), Some((1, 0, 24)));
        for line in ["ack 1 0 24", "ack 1 0.", "ack 1 0 24 3.", "ack 1 0 2[ 3.1] virtio_blk.", "ack"] {
            assert_eq!(acknowledgement(line), None, "{line}");
        }
    }

    #[test]
    fn trouble_is_told_from_its_absence() {
        assert!(check("load: stopped, no error seen").is_ok());
        assert!(check("I/O error, dev vda, sector 8").is_err());
    }
}
