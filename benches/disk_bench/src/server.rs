//! A disk server under test: started, reached, and stopped.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use vhost_user_client::{Client, Shape};

use crate::contender::{Contender, Serving, Transport};
use crate::process;

/// A server that does not listen, or end, within this time has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A peer that does not end within this time when it is asked to is killed: qemu-storage-daemon 7.2 hangs now and then
/// when its last client leaves at the same moment. Its figures are in by then.
const PEER_END: Duration = Duration::from_secs(5);
/// How often a server's socket is tried. Peers have no common way to say that they are ready.
const TRY_AGAIN: Duration = Duration::from_micros(200);

/// A running server. Dropped, it is killed.
pub(crate) struct Server {
    pub(crate) contender: Contender,
    pub(crate) socket: PathBuf,
    pub(crate) nbd_uri: String,
    /// From the start of the process until its socket took a connection.
    pub(crate) ready_after: Duration,
    child: Child,
}

impl Server {
    /// Runs the server's command and waits until clients can connect.
    pub(crate) fn start(serving: Serving<'_>, mut command: Command) -> Result<Self> {
        let _ = fs::remove_file(serving.socket);
        process::end_with_us(&mut command);
        let begun = Instant::now();
        let log = serving.socket.with_extension("log");
        let stderr = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn();
        let mut server = Self {
            contender: serving.contender,
            socket: serving.socket.to_owned(),
            nbd_uri: serving.nbd_uri(),
            ready_after: Duration::ZERO,
            child: child.with_context(|| format!("run {:?}", command.get_program()))?,
        };
        server.wait_for_socket(serving.transport, begun).with_context(|| {
            let words = fs::read_to_string(&log).unwrap_or_default();
            format!("start {command:?}: {}", words.trim())
        })?;
        server.ready_after = begun.elapsed();
        Ok(server)
    }

    fn wait_for_socket(&mut self, transport: Transport, begun: Instant) -> Result<()> {
        loop {
            let ready = match transport {
                Transport::Nbd => UnixStream::connect(&self.socket).is_ok(),
                // A connection that says nothing could be taken for the guest's.
                Transport::VhostUser => self.socket.exists(),
            };
            if ready {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended before it listened: {status}");
            }
            ensure!(begun.elapsed() < PATIENCE, "it does not listen after {} s", PATIENCE.as_secs());
            std::thread::sleep(TRY_AGAIN);
        }
    }

    /// Connects a client that drives the virtqueues.
    pub(crate) fn connect(&self, shape: Shape) -> Result<Client> {
        let begun = Instant::now();
        loop {
            // The socket's name appears a moment before the server listens on it.
            match Client::connect(&self.socket, shape) {
                Ok(client) => return Ok(client),
                Err(error) if begun.elapsed() > Duration::from_secs(2) => {
                    return Err(error).with_context(|| format!("connect to {}", self.contender.name()));
                }
                Err(_) => std::thread::sleep(TRY_AGAIN),
            }
        }
    }

    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        process::cpu_ns(self.child.id())
            .with_context(|| format!("read the CPU time of {}", self.contender.name()))
    }

    /// Resident memory in KiB: now, and the most that it ever was.
    pub(crate) fn resident_kib(&self) -> Result<(u64, u64)> {
        process::resident_kib(self.child.id())
    }

    /// Asks the server to end, and waits for it, so that what it holds back is written and its turn is over.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            if !self.contender.is_ours() && asked.elapsed() > PEER_END {
                break;
            }
            ensure!(asked.elapsed() < PATIENCE, "{} does not end", self.contender.name());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
