//! When the server ends: at a signal, or when a front end does.

use std::io;

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Serving, sd_notify};

/// Waits for the reason to stop, on this thread.
pub(super) struct Stop {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
    stopping: watch::Sender<bool>,
}

/// Tells a front end when to stop; may be sent to its thread.
pub(super) struct StopHandle(watch::Receiver<bool>);

/// Why the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It was told to, by the signal of this name.
    Signal(&'static str),
    /// A front end ended by itself.
    FrontEnd,
}

impl Stop {
    /// Takes SIGINT and SIGTERM from now on.
    pub(super) fn on_signals() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the thread's reactor")?;
        let guard = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).context("take SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("take SIGTERM")?;
        drop(guard);
        Ok(Self { runtime, interrupt, terminate, stopping: watch::channel(false).0 })
    }

    pub(super) fn handle(&self) -> StopHandle {
        StopHandle(self.stopping.subscribe())
    }

    /// Waits for the first reason to stop, stops all front ends, and waits for their ends. A further signal then ends
    /// the process at once.
    pub(super) fn wait(self, serving: Vec<Serving>) -> (Stopped, io::Result<()>) {
        let Self { runtime, mut interrupt, mut terminate, stopping } = self;
        runtime.block_on(async {
            let mut front_ends = JoinSet::new();
            for task in serving {
                front_ends.spawn(async { task.await.map_err(io::Error::other).flatten() });
            }
            let mut result = Ok(());
            let stopped = tokio::select! {
                name = next(&mut interrupt, &mut terminate) => Stopped::Signal(name),
                ended = front_ends.join_next() => {
                    result = result.and(flatten(ended));
                    Stopped::FrontEnd
                }
            };
            sd_notify::tell("STOPPING=1");
            // Front ends that have ended already need not hear of it.
            let _ = stopping.send(true);
            while !front_ends.is_empty() {
                tokio::select! {
                    ended = front_ends.join_next() => result = result.and(flatten(ended)),
                    name = next(&mut interrupt, &mut terminate) => {
                        eprintln!("godwit: {name} again: ended without closing the disk");
                        std::process::exit(i32::from(crate::exit::Exit::Failed as u8));
                    }
                }
            }
            (stopped, result)
        })
    }
}

async fn next(interrupt: &mut Signal, terminate: &mut Signal) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

fn flatten(ended: Option<Result<io::Result<()>, tokio::task::JoinError>>) -> io::Result<()> {
    match ended {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(io::Error::other(error)),
    }
}

impl StopHandle {
    /// Resolves when the server is to stop.
    pub(super) async fn stopped(mut self) {
        // If the other end is gone, so is the one who would have waited for us.
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }
}
