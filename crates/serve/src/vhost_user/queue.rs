//! The task of a running queue: takes what the driver makes available, has it done, and answers it.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, interval_at};
use vhost_user::{Events, Operation, Queue, QueueError, ReplyTo, StartedQueue, Status, Target};

use super::slots::{ReadySet, Slots};
use super::watch::Watched;

/// What a queue's task takes before it lets other tasks of the thread run: this many small requests, or one for each
/// [`COST_BYTES`] that requests move.
const COST_MAX: u64 = 256;
const COST_BYTES: u64 = 16 << 10;
/// How many bytes are moved before the driver is told of answers, though there is more to take. Small requests are
/// cheap to wait for and answered together; the driver has work to do while a large one is copied.
const UNTOLD_BYTES_MAX: u64 = 256 << 10;
/// How often the log says that a queue still waits for the disk before it can stop.
const DRAIN_REPORT: Duration = Duration::from_secs(5);

/// A queue whose task runs on this thread.
pub(super) struct RunningQueue {
    index: usize,
    shared: Rc<Shared>,
    wake: Arc<ReadySet>,
    task: JoinHandle<Watched>,
}

/// What the session and the queue's task share. Neither holds a borrow over an `await`.
struct Shared {
    queue: RefCell<Queue>,
    events: RefCell<Events>,
    mode: Cell<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Requests are taken and answered.
    Run,
    /// No more requests are taken; those in flight are answered.
    Drain,
    /// No more requests are taken, and those in flight end without an answer: the front end is gone and may give the
    /// guest's memory another use. With an in-flight region the next process does them again; without one the
    /// front end counts only what is in the used ring.
    Abandon,
}

impl RunningQueue {
    /// Starts the task of `started`, which is queue `index`, and which has `target` do its requests.
    ///
    /// # Errors
    /// If the kick descriptor cannot be waited for.
    pub(super) fn start(
        index: usize,
        started: StartedQueue,
        events: Events,
        target: Target,
    ) -> std::io::Result<Self> {
        let kick = Watched::event(started.kick)?;
        let shared = Rc::new(Shared {
            queue: RefCell::new(started.queue),
            events: RefCell::new(events),
            mode: Cell::new(Mode::Run),
        });
        let target = Rc::new(target);
        let execute = move |operation| {
            let target = target.clone();
            async move { target.execute(operation).await }
        };
        let mut worker = Worker {
            index,
            shared: shared.clone(),
            kick,
            execute,
            slots: Slots::new(),
            kicks_are_wanted: true,
            broken: false,
            cost_left: 0,
        };
        let wake = worker.slots.ready_set().clone();
        let task = tokio::task::spawn_local(async move {
            poll_fn(|context| worker.poll(context)).await;
            worker.kick
        });
        Ok(Self { index, shared, wake, task })
    }

    /// Lets `change` change the queue between two rounds of its task, and gives it other descriptors to signal.
    pub(super) fn update(&self, events: Events, change: impl FnOnce(&mut Queue)) {
        *self.shared.events.borrow_mut() = events;
        change(&mut self.shared.queue.borrow_mut());
    }

    /// Takes no more requests, waits until those in flight are answered, and gives the queue to `stopped`.
    pub(super) async fn drain(self, stopped: impl FnOnce(&Queue, File)) {
        self.stop(Mode::Drain, stopped).await;
    }

    /// Takes no more requests and waits until those in flight have ended; they are not answered.
    pub(super) async fn abandon(self) {
        self.stop(Mode::Abandon, |_, _| {}).await;
    }

    async fn stop(self, mode: Mode, stopped: impl FnOnce(&Queue, File)) {
        self.shared.mode.set(mode);
        self.wake.wake_task();
        let mut task = self.task;
        let mut report = interval_at(Instant::now() + DRAIN_REPORT, DRAIN_REPORT);
        let kick = loop {
            tokio::select! {
                biased;
                ended = &mut task => break ended,
                _ = report.tick() => {
                    let in_flight = self.shared.queue.borrow().in_flight_count();
                    tracing::warn!(queue = self.index, in_flight, "waiting for the disk before the queue can stop");
                }
            }
        };
        match kick {
            Ok(kick) => {
                let kick = kick.into_file();
                forget_kicks(&kick);
                stopped(&self.shared.queue.borrow(), kick);
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

struct Worker<F, E> {
    index: usize,
    shared: Rc<Shared>,
    kick: Watched,
    execute: E,
    slots: Slots<F, ReplyTo>,
    kicks_are_wanted: bool,
    broken: bool,
    /// What may still be taken before other tasks run.
    cost_left: u64,
}

impl<F, E> Worker<F, E>
where
    F: Future<Output = Status>,
    E: Fn(Operation) -> F,
{
    /// Works until there is nothing to do; ready when the queue is to stop and nothing is in flight.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.cost_left = COST_MAX;
        let shared = self.shared.clone();
        while self.cost_left > 0 {
            let mut queue = shared.queue.borrow_mut();
            let worked = self.round(&mut queue);
            let worked = self.unless_broken(worked);
            if shared.mode.get() != Mode::Run && self.slots.is_empty() {
                return Poll::Ready(());
            }
            if worked {
                continue;
            }
            let more = self.before_sleep(&mut queue);
            if self.unless_broken(more) {
                continue;
            }
            drop(queue);
            if self.must_sleep(context) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes all that is available, lets the thread's ring do what it can at once, and answers what has ended.
    /// Returns whether anything was taken or answered.
    fn round(&mut self, queue: &mut Queue) -> Result<bool, QueueError> {
        let took = self.take_available(queue)?;
        if !self.slots.is_empty()
            && let Err(error) = hostio::turn()
        {
            tracing::warn!(%error, "the ring could not be entered and is tried again");
        }
        let answered = self.answer_ended(queue)?;
        self.notify_driver(queue)?;
        Ok(took || answered)
    }

    fn take_available(&mut self, queue: &mut Queue) -> Result<bool, QueueError> {
        let mut took = false;
        let mut untold_bytes = 0;
        while self.shared.mode.get() == Mode::Run && !self.broken && self.cost_left > 0 {
            let Some(request) = queue.take()? else { break };
            if !took && std::mem::take(&mut self.kicks_are_wanted) {
                queue.disable_kicks()?;
            }
            took = true;
            let data_bytes = request.operation.as_ref().map_or(0, Operation::data_bytes);
            self.cost_left = self.cost_left.saturating_sub(1 + data_bytes / COST_BYTES);
            let ended = match request.operation {
                Ok(operation) => self.slots.start((self.execute)(operation), request.reply_to),
                Err(status) => Some((status, request.reply_to)),
            };
            if let Some((status, reply_to)) = ended {
                queue.answer(&reply_to, status)?;
                untold_bytes += data_bytes;
            }
            if untold_bytes >= UNTOLD_BYTES_MAX {
                self.notify_driver(queue)?;
                untold_bytes = 0;
            }
        }
        Ok(took)
    }

    fn answer_ended(&mut self, queue: &mut Queue) -> Result<bool, QueueError> {
        let abandon = self.shared.mode.get() == Mode::Abandon;
        let mut result = Ok(false);
        self.slots.poll_ready(|status, reply_to| {
            if abandon || result.is_err() {
                return;
            }
            result = queue.answer(&reply_to, status).map(|()| true);
        });
        result
    }

    fn notify_driver(&self, queue: &mut Queue) -> Result<(), QueueError> {
        if !queue.wants_notification()? {
            return Ok(());
        }
        signal(self.shared.events.borrow().call.as_deref());
        Ok(())
    }

    /// Asks for kicks; `true` if there is a request already.
    fn before_sleep(&mut self, queue: &mut Queue) -> Result<bool, QueueError> {
        if self.broken || self.shared.mode.get() != Mode::Run {
            return Ok(false);
        }
        self.kicks_are_wanted = true;
        queue.enable_kicks()
    }

    /// Registers for all that can wake the task; `false` if there is something to do already.
    fn must_sleep(&mut self, context: &mut Context<'_>) -> bool {
        if !self.slots.ready_set().register(context.waker()) {
            return false;
        }
        // Each write to an eventfd gives an edge, so the counter need not be read; that saves a call per wake-up.
        self.kick.poll_edge(context).is_pending()
    }

    /// Takes the queue out of service where `result` is an error: requests in flight end, no more are taken. The task
    /// then goes round once more, as it does where there was work.
    fn unless_broken(&mut self, result: Result<bool, QueueError>) -> bool {
        result.unwrap_or_else(|error| {
            self.broken = true;
            let error = super::chain(&error);
            tracing::error!(queue = self.index, %error, "the queue is out of service until it is set up again");
            signal(self.shared.events.borrow().error.as_deref());
            true
        })
    }
}

/// Writes an eventfd, if there is one.
pub(super) fn signal(event: Option<&File>) {
    if let Some(mut event) = event {
        // It only fails when the counter is full, and then whoever reads it was told often enough.
        let _ = event.write(&1u64.to_ne_bytes());
    }
}

/// Resets the counter of `kick`: its kicks have been seen, and whoever uses it next need not see them again.
fn forget_kicks(kick: &File) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(kick, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::read(kick, &mut [0; 8]);
    }
}
