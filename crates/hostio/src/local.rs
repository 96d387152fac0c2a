//! Running futures on a thread that has no reactor: the command line's and tests'.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::engine;

/// Tasks that are polled between two turns of the ring, at most, so that completions are seen under any load.
const POLLS_PER_TURN_MAX: usize = 256;
/// The main future's name among the tasks.
const MAIN: u64 = 0;

thread_local! {
    static EXECUTOR: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// The tasks of the [`block_on`] that runs on this thread.
struct Executor {
    ready: Arc<Ready>,
    spawned: RefCell<Spawned>,
}

#[derive(Default)]
struct Spawned {
    tasks: HashMap<u64, LocalTask>,
    last: u64,
}

struct LocalTask {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Arc<TaskWaker>,
}

/// Which tasks can go on; shared with wakers, which any thread may use.
struct Ready {
    queue: Mutex<Queue>,
    /// Written to when the thread sleeps and a task becomes ready.
    event: OwnedFd,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Arc<TaskWaker>>,
    sleeps: bool,
}

struct TaskWaker {
    task: u64,
    /// Set while the task is in the queue.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

/// Runs `future` to its end on this thread, together with what it [`spawn`]s, and drives the thread's host I/O.
///
/// Tasks that have not ended by then are dropped; what they asked of the kernel is waited for.
///
/// # Panics
/// If it is called inside itself, or the host has no event descriptor left.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let entered = Entered::new();
    let executor = &entered.0;
    let mut main = pin!(future);
    let waker = executor.waker(MAIN);
    waker.wake_by_ref();
    let waker = Waker::from(waker);
    loop {
        for _ in 0..POLLS_PER_TURN_MAX {
            match executor.ready.take() {
                Some(MAIN) => {
                    if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return output;
                    }
                }
                Some(task) => executor.poll_task(task),
                None => break,
            }
        }
        if let Err(error) = engine::turn() {
            tracing::warn!(%error, "the ring could not be entered and is tried again");
        }
        executor.ready.wait();
    }
}

/// Starts `future` beside the main one of the [`block_on`] that runs on this thread.
///
/// It goes on whether or not the returned task is awaited.
///
/// # Panics
/// Outside [`block_on`].
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    let executor = EXECUTOR.with_borrow(Clone::clone).expect("tasks are spawned inside hostio::block_on");
    let reply = Rc::new(RefCell::new(Reply { output: None, waker: None }));
    let to = reply.clone();
    executor.start(Box::pin(async move {
        let output = future.await;
        let mut reply = to.borrow_mut();
        reply.output = Some(output);
        if let Some(waker) = reply.waker.take() {
            waker.wake();
        }
    }));
    Task(reply)
}

/// Waits for a future that was [`spawn`]ed, and gives its output.
pub struct Task<T>(Rc<RefCell<Reply<T>>>);

struct Reply<T> {
    output: Option<T>,
    waker: Option<Waker>,
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut reply = self.0.borrow_mut();
        if let Some(output) = reply.output.take() {
            return Poll::Ready(output);
        }
        reply.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The executor's presence on its thread.
struct Entered(Rc<Executor>);

impl Entered {
    fn new() -> Self {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .expect("the host gives a descriptor for waking a thread");
        let ready = Arc::new(Ready { queue: Mutex::default(), event });
        let executor = Rc::new(Executor { ready, spawned: RefCell::default() });
        EXECUTOR.with_borrow_mut(|here| {
            assert!(here.is_none(), "hostio::block_on does not run inside itself");
            *here = Some(executor.clone());
        });
        Self(executor)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        EXECUTOR.with_borrow_mut(Option::take);
        // Dropping a task may wake others, so the map is not borrowed meanwhile.
        let left = std::mem::take(&mut self.0.spawned.borrow_mut().tasks);
        drop(left);
        // Nobody else enters this thread's ring, and others may wait for what it holds.
        engine::finish();
    }
}

impl Executor {
    fn waker(&self, task: u64) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { task, queued: AtomicBool::new(false), ready: self.ready.clone() })
    }

    fn start(&self, future: Pin<Box<dyn Future<Output = ()>>>) {
        let mut spawned = self.spawned.borrow_mut();
        spawned.last += 1;
        let name = spawned.last;
        let waker = self.waker(name);
        waker.wake_by_ref();
        spawned.tasks.insert(name, LocalTask { future, waker });
    }

    fn poll_task(&self, name: u64) {
        // It is taken out while it is polled, because it may spawn.
        let Some(mut task) = self.spawned.borrow_mut().tasks.remove(&name) else { return };
        let waker = Waker::from(task.waker.clone());
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.spawned.borrow_mut().tasks.insert(name, task);
        }
    }
}

impl Ready {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<u64> {
        let waker = self.queue().tasks.pop_front()?;
        // Acquires what was written before a wake-up that found the task still queued.
        waker.queued.swap(false, Ordering::AcqRel);
        Some(waker.task)
    }

    /// Sleeps until a task can go on or the ring has completions.
    fn wait(&self) {
        {
            let mut queue = self.queue();
            if !queue.tasks.is_empty() || engine::needs_turn() {
                return;
            }
            queue.sleeps = true;
        }
        engine::with_completion_event(|ring| {
            wait_for_events(self.event.as_fd(), ring.unwrap_or(self.event.as_fd()));
        });
        self.queue().sleeps = false;
    }
}

/// Sleeps until one of the events has come, and takes it.
fn wait_for_events(woken: BorrowedFd<'_>, completed: BorrowedFd<'_>) {
    let mut fds =
        [PollFd::from_borrowed_fd(woken, PollFlags::IN), PollFd::from_borrowed_fd(completed, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => panic!("a thread cannot wait for its descriptors: {error}"),
    }
    for fd in fds.iter().filter(|fd| fd.revents().contains(PollFlags::IN)) {
        // It fails where both are the same, which has been read then.
        let _ = rustix::io::read(fd, &mut [0; 8]);
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut queue = self.ready.queue();
        queue.tasks.push_back(self.clone());
        if std::mem::take(&mut queue.sleeps) {
            // It fails only when the counter is full, and then the thread wakes all the same.
            let _ = rustix::io::write(&self.ready.event, &1u64.to_ne_bytes());
        }
    }
}
