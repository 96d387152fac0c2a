//! `godwit vm run` as a test drives it.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::assets::Assets;
use crate::console::Console;

/// Long enough for a translated guest on a machine that does other things, too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// How the disk is attached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attach {
    VhostUserBlk,
    Nbd,
}

impl Attach {
    fn name(self) -> &'static str {
        match self {
            Self::VhostUserBlk => "vhost-user-blk",
            Self::Nbd => "nbd",
        }
    }
}

pub(crate) struct Machine {
    process: Child,
    events: Receiver<Value>,
    pub(crate) console: Console,
    qemu: Process,
    server: Process,
}

impl Machine {
    /// Starts a guest with `disk` and lets it do what `parameters` say.
    pub(crate) fn start(assets: &Assets, disk: &Path, attach: Attach, parameters: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_godwit"))
            .args([
                "vm",
                "run",
                "--json",
                "--memory",
                "256M",
                "--cpus",
                "2",
                "--attach",
                attach.name(),
                "--disk",
            ])
            .arg(disk)
            .arg("--kernel")
            .arg(assets.kernel())
            .arg("--initrd")
            .arg(assets.initrd())
            .arg("--append")
            .arg(format!("console=ttyS0 loglevel=4 panic=-1 {parameters}"))
            .args(["--", "-no-reboot"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let events = read_events(&mut process);
        let deadline = Instant::now() + PATIENCE;
        let server = Process::of(&next_event(&events, "disk-served", deadline));
        let started = next_event(&events, "started", deadline);
        let console = Console::connect(Path::new(started["console"].as_str().unwrap()));
        Self { process, events, console, qemu: Process::of(&started), server }
    }

    /// Kills the disk's server as it stands, and waits until another one listens.
    pub(crate) fn kill_server(&mut self) {
        self.server.kill();
        let deadline = Instant::now() + PATIENCE;
        let ended = next_event(&self.events, "disk-server-ended", deadline);
        assert_eq!(ended["pid"], self.server.pid);
        self.server = Process::of(&next_event(&self.events, "disk-served", deadline));
    }

    /// Kills everything at once, as far as there is an at once: the supervisor first, which would start a new server.
    pub(crate) fn kill_everything(mut self) -> Console {
        self.process.kill().unwrap();
        self.qemu.kill();
        self.server.kill();
        self.process.wait().unwrap();
        self.qemu.wait();
        self.server.wait();
        self.console.read_to_end(PATIENCE);
        self.console
    }

    /// Asks for an end with the signal of Ctrl-C.
    pub(crate) fn interrupt(&self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::INT).unwrap();
    }

    /// Waits for the machine's own end, and for everything it told.
    pub(crate) fn wait(mut self) -> (ExitStatus, Console) {
        self.console.read_to_end(PATIENCE);
        next_event(&self.events, "stopped", Instant::now() + PATIENCE);
        (self.process.wait().unwrap(), self.console)
    }
}

/// A process that is not our child, held so that its number cannot come to mean another one.
struct Process {
    pid: u64,
    handle: OwnedFd,
}

impl Process {
    /// The process that an event tells of.
    fn of(event: &Value) -> Self {
        let pid = event["pid"].as_u64().unwrap();
        let raw = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        Self { pid, handle: pidfd_open(raw, PidfdFlags::empty()).unwrap() }
    }

    /// Kills it. It may have died with its parent already.
    fn kill(&self) {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => panic!("kill {}: {error}", self.pid),
        }
    }

    fn wait(&self) {
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        rustix::event::poll(&mut ended, None).unwrap();
    }
}

fn read_events(process: &mut Child) -> Receiver<Value> {
    let output = BufReader::new(process.stdout.take().unwrap());
    let (sender, events) = channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    events
}

/// The next event, which must be `name`.
fn next_event(events: &Receiver<Value>, name: &str, deadline: Instant) -> Value {
    loop {
        let event = events.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let event: Value = event.unwrap_or_else(|error| panic!("no event {name}: {error}"));
        if event["event"] == "stopping" {
            continue;
        }
        assert_eq!(event["event"], name, "{event}");
        return event;
    }
}
