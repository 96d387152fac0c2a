//! One machine in the foreground: its disk servers, QEMU, and what happens to them.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use qemu::{Accel, Boot, Console, Disk, Machine, Memory, Vm};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout};

use super::args::{AccelArg, ConsoleArg, RunArgs};
use super::disk_server::{DiskServer, Notice};
use super::event::Event;
use super::runtime_dir::{RuntimeDir, check_socket_path};
use super::terminal::TerminalSettings;
use crate::exit::Exit;
use crate::report::Form;

/// How long a disk server may take to open its disk when the machine starts.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long QEMU may take to quit before it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Request queues of a disk beyond this bring nothing.
const QUEUES_MAX: u16 = 8;

pub(super) fn run(args: RunArgs, form: Form) -> anyhow::Result<Exit> {
    // One thread for everything: the kernel ties the children's lives to the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_machine(args, form))
}

async fn run_machine(args: RunArgs, form: Form) -> anyhow::Result<Exit> {
    let mut interrupts = Interrupts::listen()?;
    let dir = RuntimeDir::create()?;
    let qmp = dir.socket("qmp")?;
    let console = console(&args, &dir, form)?;
    let (accel, accel_reason) = accelerator(&args)?;
    let (notices, mut inbox) = unbounded_channel();
    let mut servers = tokio::select! {
        servers = start_servers(&args, &dir, form, &notices, &mut inbox) => servers?,
        why = interrupts.next() => anyhow::bail!("{why} before the machine was started"),
    };
    let machine = machine(&args, accel, &servers, console.clone(), qmp.clone());
    let _settings = (console == Console::Stdio).then(TerminalSettings::keep);
    let mut vm = Vm::start(&machine, Some(&args.qemu)).context("start the machine")?;
    let socket = match &console {
        Console::Socket { path, .. } => Some(path.as_path()),
        _ => None,
    };
    let (pid, accel, accel_reason) = (vm.child().pid(), accel.name(), accel_reason.as_deref());
    Event::Started { pid, accel, accel_reason, qmp: &qmp, console: socket }.report(form)?;
    let status = Supervision { form, servers: &mut servers, notices, inbox, vm, stop: Stop::NotAsked }
        .until_end(&mut interrupts, args.stop_timeout)
        .await;
    let closed = close_all(servers);
    let status = status?;
    Event::Stopped { status: &status.to_string(), success: status.success() }.report(form)?;
    closed?;
    Ok(if status.success() { Exit::Done } else { Exit::Failed })
}

fn console(args: &RunArgs, dir: &RuntimeDir, form: Form) -> anyhow::Result<Console> {
    let given = match (&args.console, form) {
        (Some(ConsoleArg::Stdio), Form::Json) => {
            anyhow::bail!(
                "--json and --console stdio both want standard output; give the console a socket or a file"
            );
        }
        (Some(given), _) => given.clone(),
        (None, Form::Text) => ConsoleArg::Stdio,
        (None, Form::Json) => ConsoleArg::Socket(dir.socket("console")?),
    };
    if let ConsoleArg::Socket(path) = &given {
        check_socket_path(path)?;
    }
    Ok(given.to_console(args.console_log.as_ref()))
}

fn accelerator(args: &RunArgs) -> anyhow::Result<(Accel, Option<String>)> {
    match args.accel {
        AccelArg::Auto => Ok(Accel::best(&args.qemu, args.machine.into())),
        AccelArg::Given(accel) => {
            let probed = accel.probe(&args.qemu, args.machine.into());
            probed.map_err(|why| anyhow::anyhow!("{accel} does not run guests here: {why}"))?;
            Ok((accel, None))
        }
    }
}

async fn start_servers(
    args: &RunArgs,
    dir: &RuntimeDir,
    form: Form,
    notices: &UnboundedSender<Notice>,
    inbox: &mut UnboundedReceiver<Notice>,
) -> anyhow::Result<Vec<DiskServer>> {
    let mut servers = Vec::new();
    for (index, disk) in args.disks.iter().enumerate() {
        let attach = disk.attach.unwrap_or(args.attach);
        let socket = dir.socket(&format!("disk{index}"))?;
        let mut server = DiskServer::new(index, disk.clone(), attach, socket, notices.clone());
        server.start()?;
        let notice = timeout(OPEN_TIMEOUT, inbox.recv()).await;
        let notice =
            notice.with_context(|| format!("{} is not open after {OPEN_TIMEOUT:?}", disk.path.display()))?;
        if notice != Some(Notice::Ready(index)) {
            let status = server.collect()?.map(|(_, status)| status.to_string()).unwrap_or_default();
            anyhow::bail!("the server of {} ended instead of serving it ({status})", disk.path.display());
        }
        report_served(&server, form)?;
        servers.push(server);
    }
    Ok(servers)
}

/// Closes every disk, whatever happens to the others; the first error is returned.
fn close_all(servers: Vec<DiskServer>) -> anyhow::Result<()> {
    let mut first = Ok(());
    for server in servers {
        let closed = server.close();
        if first.is_ok() {
            first = closed;
        } else if let Err(error) = closed {
            tracing::error!("{error:#}");
        }
    }
    first
}

fn report_served(server: &DiskServer, form: Form) -> anyhow::Result<()> {
    let attach = match server.attach {
        super::args::Attach::VhostUserBlk => "vhost-user-blk",
        super::args::Attach::Nbd => "nbd",
    };
    let Some(pid) = server.pid() else { return Ok(()) };
    Event::DiskServed { disk: &server.id, path: &server.disk.path, attach, socket: &server.socket, pid }
        .report(form)
}

fn machine(args: &RunArgs, accel: Accel, servers: &[DiskServer], console: Console, qmp: PathBuf) -> Machine {
    let queues = args.cpus.min(QUEUES_MAX);
    let disk = |server: &DiskServer| Disk {
        id: server.id.clone(),
        attachment: server.attachment(queues),
        read_only: server.disk.read_only,
    };
    let boot = args.kernel.as_ref().map(|kernel| Boot {
        kernel: kernel.clone(),
        initrd: args.initrd.clone(),
        append: args.append.clone(),
    });
    let name = args.disks[0].path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Machine {
        name,
        kind: args.machine.into(),
        accel,
        cpus: args.cpus.into(),
        memory: Memory::new(args.memory.bytes),
        boot,
        disks: servers.iter().map(disk).collect(),
        console,
        qmp: Some(qmp),
        extra: args.extra.clone(),
    }
}

/// How far the machine's end has been asked for.
#[derive(Debug)]
enum Stop {
    NotAsked,
    /// The guest has until then.
    PowerButton(Instant),
    /// QEMU has until then.
    Quit(Instant),
}

struct Supervision<'a> {
    form: Form,
    servers: &'a mut [DiskServer],
    notices: UnboundedSender<Notice>,
    inbox: UnboundedReceiver<Notice>,
    vm: Vm,
    stop: Stop,
}

impl Supervision<'_> {
    /// Keeps the disks served until QEMU has ended; servers are needed to the last, because a guest that powers off
    /// still writes.
    async fn until_end(
        mut self,
        interrupts: &mut Interrupts,
        patience: Duration,
    ) -> anyhow::Result<ExitStatus> {
        let ended = self.notices.clone();
        self.vm.child().notify_end(move || drop(ended.send(Notice::QemuEnded)))?;
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                Some(notice) = self.inbox.recv() => match notice {
                    Notice::QemuEnded => return Ok(self.vm.child().process().wait()?),
                    Notice::Ready(index) => self.listens(index)?,
                    Notice::Ended(index) => self.server_ended(index)?,
                },
                why = interrupts.next() => self.interrupted(why, patience)?,
                () = until(deadline) => self.deadline_passed()?,
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let stop = match self.stop {
            Stop::NotAsked => None,
            Stop::PowerButton(deadline) | Stop::Quit(deadline) => Some(deadline),
        };
        self.servers.iter().filter_map(|server| server.restart_at).chain(stop).min()
    }

    fn interrupted(&mut self, why: &str, patience: Duration) -> anyhow::Result<()> {
        match self.stop {
            Stop::NotAsked => {
                let text = format!("{why}: the guest is asked to power off; once more ends it at once");
                Event::Stopping { why: &text }.report(self.form)?;
                self.stop = Stop::PowerButton(Instant::now() + patience);
                if let Err(error) = self.vm.press_power_button() {
                    tracing::warn!(%error, "the power button cannot be pressed");
                }
                Ok(())
            }
            Stop::PowerButton(_) => self.quit(why),
            Stop::Quit(_) => Ok(()),
        }
    }

    fn quit(&mut self, why: &str) -> anyhow::Result<()> {
        Event::Stopping { why: &format!("{why}: QEMU is told to quit") }.report(self.form)?;
        self.stop = Stop::Quit(Instant::now() + QUIT_TIMEOUT);
        if let Err(error) = self.vm.ask_to_quit() {
            tracing::warn!(%error, "qemu did not accept to quit");
        }
        Ok(())
    }

    fn listens(&mut self, index: usize) -> anyhow::Result<()> {
        self.servers[index].ready();
        report_served(&self.servers[index], self.form)
    }

    fn server_ended(&mut self, index: usize) -> anyhow::Result<()> {
        let server = &mut self.servers[index];
        if let Some((pid, status)) = server.collect()? {
            let status = status.to_string();
            Event::DiskServerEnded { disk: &server.id, pid, status: &status }.report(self.form)?;
        }
        Ok(())
    }

    fn deadline_passed(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for server in self.servers.iter_mut() {
            if server.restart_at.is_some_and(|at| at <= now) {
                server.start()?;
            }
        }
        match self.stop {
            Stop::PowerButton(deadline) if deadline <= now => {
                self.quit("the guest has not powered off in time")
            }
            Stop::Quit(deadline) if deadline <= now => {
                Event::Stopping { why: "QEMU has not quit in time and is killed" }.report(self.form)?;
                Ok(self.vm.child().signal(rustix::process::Signal::KILL)?)
            }
            _ => Ok(()),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The signals that ask for an end.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "told to terminate",
            _ = self.hangup.recv() => "the terminal is gone",
        }
    }
}
