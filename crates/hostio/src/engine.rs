//! The thread's way to the kernel: its ring, or the pool where the host has no ring for us.
//!
//! Operations are futures. The first poll queues an operation; [`turn`] tells the kernel of everything queued with one
//! call and wakes the tasks whose operations are complete. Whoever runs the thread's tasks calls it:
//! [`crate::block_on`] does, and a reactor does with [`set_turn_hook`] and [`completion_event`].

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use crate::op::Op;
use crate::pool::{self, PoolCall};
use crate::ring::{Reaped, Ring, SlotIndex};

/// Names the engine to use: `threads`, or anything else for the best that the host has.
const ENGINE_VARIABLE: &str = "GODWIT_IO";
/// How often an operation is made again that a signal or a shortage in the kernel cut off.
const RETRIES_MAX: u32 = 100;

thread_local! {
    static THREAD: RefCell<ThreadState> = const { RefCell::new(ThreadState::new()) };
}

struct ThreadState {
    engine: Option<Engine>,
    hook: Option<Rc<dyn Fn()>>,
    /// Set from the first operation queued until the turn that submits it.
    turn_is_due: bool,
    /// Kept between turns for its capacity.
    reaped: Reaped,
}

enum Engine {
    Ring(Box<Ring>),
    Threads,
}

impl Engine {
    fn choose() -> Self {
        static THREADS_ARE_WANTED: OnceLock<bool> = OnceLock::new();
        let wanted = || std::env::var(ENGINE_VARIABLE).is_ok_and(|name| name == "threads");
        if *THREADS_ARE_WANTED.get_or_init(wanted) {
            return Self::Threads;
        }
        match Ring::new() {
            Ok(ring) => Self::Ring(Box::new(ring)),
            Err(error) => {
                tracing::info!(%error, "no io_uring on this host, threads do the input and output");
                Self::Threads
            }
        }
    }
}

impl ThreadState {
    const fn new() -> Self {
        Self { engine: None, hook: None, turn_is_due: false, reaped: Reaped::new() }
    }

    fn engine(&mut self) -> &mut Engine {
        self.engine.get_or_insert_with(Engine::choose)
    }

    fn ring(&mut self) -> Option<&mut Ring> {
        match &mut self.engine {
            Some(Engine::Ring(ring)) => Some(ring),
            Some(Engine::Threads) | None => None,
        }
    }

    /// Notes that a turn is due; returns the hook that is to be called if it was not due before.
    fn ask_for_turn(&mut self) -> Option<Rc<dyn Fn()>> {
        if std::mem::replace(&mut self.turn_is_due, true) { None } else { self.hook.clone() }
    }
}

/// Submits what this thread's tasks have queued and wakes those whose operations are complete; never blocks for them.
///
/// # Errors
/// What `io_uring_enter` says, which is a passing shortage of memory in the kernel; what was queued stays queued, and
/// the turn hook has been called for the next attempt.
pub fn turn() -> io::Result<()> {
    let (result, mut reaped, hook) = THREAD.with_borrow_mut(|thread| {
        let mut reaped = std::mem::take(&mut thread.reaped);
        thread.turn_is_due = false;
        let Some(ring) = thread.ring() else { return (Ok(()), reaped, None) };
        let result = ring.turn(&mut reaped);
        let hook = if ring.has_queued() { thread.ask_for_turn() } else { None };
        (result, reaped, hook)
    });
    reaped.settle();
    THREAD.with_borrow_mut(|thread| thread.reaped = reaped);
    if let Some(hook) = hook {
        hook();
    }
    result
}

/// Waits, blocking the thread, until nothing that its tasks began is under way.
pub(crate) fn finish() {
    let mut reaped = Reaped::new();
    let finished = THREAD.with_borrow_mut(|thread| match thread.ring() {
        Some(ring) => ring.finish(&mut reaped),
        None => Ok(()),
    });
    reaped.settle();
    if let Err(error) = finished {
        tracing::error!(%error, "operations under way cannot be waited for");
    }
}

/// Whether this thread has operations that the kernel has not been told of.
pub fn needs_turn() -> bool {
    THREAD.with_borrow(|thread| thread.turn_is_due)
}

/// Registers what is called when a first operation is queued after a turn: it must see to it that this thread calls
/// [`turn`] once its runnable tasks have run. `None` takes it away.
///
/// The hook must not poll futures of this crate itself.
pub fn set_turn_hook(hook: Option<Rc<dyn Fn()>>) {
    let old = THREAD.with_borrow_mut(|thread| std::mem::replace(&mut thread.hook, hook));
    drop(old);
}

/// The event descriptor that becomes readable when [`turn`] would find completions; `None` where the pool does the
/// work, which wakes tasks by itself.
///
/// Edge-triggered waiting needs nothing more; where waiting is level-triggered the eight bytes of the event are to be
/// read before the turn. Completions that the turn itself brought about show too.
///
/// # Errors
/// If the host has no descriptor left.
pub fn completion_event() -> io::Result<Option<OwnedFd>> {
    THREAD.with_borrow_mut(|thread| {
        thread.engine();
        thread.ring().map(|ring| ring.event().try_clone_to_owned()).transpose()
    })
}

/// Calls `wait` with the ring's descriptor, if the thread has a ring.
pub(crate) fn with_completion_event(wait: impl FnOnce(Option<BorrowedFd<'_>>)) {
    THREAD.with_borrow_mut(|thread| wait(thread.ring().map(|ring| ring.event())));
}

/// Sends this thread's operations to the pool from now on, as on a host without rings. For tests.
#[cfg(test)]
pub(crate) fn use_threads() {
    THREAD.with_borrow_mut(|thread| thread.engine = Some(Engine::Threads));
}

/// Does `op`; returns how many bytes it moved, and the operation for its memory.
pub(crate) fn submit(op: Op) -> Submission {
    Submission { stage: Stage::New(op), retries: 0, _of_this_thread: PhantomData }
}

/// The future of an operation; see [`submit`]. It belongs to the thread that polls it first.
pub(crate) struct Submission {
    stage: Stage,
    retries: u32,
    _of_this_thread: PhantomData<*const ()>,
}

enum Stage {
    New(Op),
    InRing(SlotIndex),
    InPool(PoolCall<(io::Result<u64>, Op)>),
    Over,
}

impl Future for Submission {
    type Output = (io::Result<u64>, Op);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let (result, op) = match &mut self.stage {
                Stage::New(_) => {
                    if let Some(ended) = self.start(context) {
                        return Poll::Ready(ended);
                    }
                    if matches!(self.stage, Stage::InPool(_)) {
                        continue;
                    }
                    return Poll::Pending;
                }
                Stage::InRing(index) => {
                    let index = *index;
                    let done = THREAD.with_borrow_mut(|thread| {
                        let ring = thread.ring().expect("the operation is in the ring");
                        ring.take_done(index, context.waker())
                    });
                    match done {
                        Ok(done) => done,
                        Err(_replaced) => return Poll::Pending,
                    }
                }
                Stage::InPool(call) => match Pin::new(call).poll(context) {
                    Poll::Ready(done) => done,
                    Poll::Pending => return Poll::Pending,
                },
                Stage::Over => panic!("a future is not polled again after its end"),
            };
            if self.is_worth_a_retry(&result) {
                self.stage = Stage::New(op);
                continue;
            }
            self.stage = Stage::Over;
            return Poll::Ready((result, op));
        }
    }
}

impl Submission {
    /// Queues the operation; returns it with an error where it cannot be. It stays `New` where no slot is free.
    fn start(&mut self, context: &Context<'_>) -> Option<(io::Result<u64>, Op)> {
        let Stage::New(op) = std::mem::replace(&mut self.stage, Stage::Over) else {
            unreachable!("only what is new is started");
        };
        let (stage, hook) = THREAD.with_borrow_mut(|thread| match thread.engine() {
            Engine::Threads => (Ok(Stage::InPool(pool::run(move || (op.perform(), op)))), None),
            Engine::Ring(ring) => match ring.queue(op, context.waker()) {
                Ok(index) => (Ok(Stage::InRing(index)), thread.ask_for_turn()),
                Err((op, None)) => (Ok(Stage::New(op)), None),
                Err((op, Some(error))) => (Err((Err(error), op)), None),
            },
        });
        if let Some(hook) = hook {
            hook();
        }
        match stage {
            Ok(stage) => {
                self.stage = stage;
                None
            }
            Err(ended) => Some(ended),
        }
    }

    fn is_worth_a_retry(&mut self, result: &io::Result<u64>) -> bool {
        let Err(error) = result else { return false };
        let passing = matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
        self.retries += u32::from(passing);
        passing && self.retries <= RETRIES_MAX
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if let Stage::InRing(index) = self.stage {
            // Where the thread's state is gone already, the ring has waited for everything when it went.
            let left = THREAD.try_with(|thread| {
                let mut thread = thread.borrow_mut();
                thread.ring().map(|ring| ring.abandon(index))
            });
            drop(left);
        }
    }
}

#[cfg(test)]
mod tests;
