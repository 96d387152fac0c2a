//! Running futures without a runtime: one on this thread, or several in an order that a seed decides.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use crate::Rng;

/// Runs `future` to its end on this thread, which sleeps while the future waits.
///
/// It drives nothing but the future: one that waits for a runtime's timer or ring needs that runtime instead.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Lets the other tasks of the thread run once before it goes on.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs all `futures` at the same time on this thread and returns their outputs in the order given.
///
/// `seed` decides which of the futures that can go on is polled next; the same seed gives the same interleaving as
/// long as nothing outside the futures wakes them.
pub fn run_tasks<F: Future>(seed: u64, futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut tasks = LocalTasks::new(seed);
    for future in futures {
        tasks.spawn(future);
    }
    block_on(tasks)
}

/// Several futures as one, polled in an order that a seed decides; its output is theirs in the order of `spawn`.
///
/// It is itself a future, so it also works inside a runtime. A task is polled only after it was woken: a lost wake-up
/// shows as a hang and is not papered over.
pub struct LocalTasks<'a, T> {
    rng: Rng,
    tasks: Vec<Task<'a, T>>,
    outer: Arc<Mutex<Option<Waker>>>,
}

struct Task<'a, T> {
    state: TaskState<'a, T>,
    woken: Arc<TaskWaker>,
}

enum TaskState<'a, T> {
    Running(Pin<Box<dyn Future<Output = T> + 'a>>),
    Done(Option<T>),
}

struct TaskWaker {
    woken: AtomicBool,
    outer: Arc<Mutex<Option<Waker>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        let outer = self.outer.lock().expect("no holder of the lock panics").clone();
        if let Some(outer) = outer {
            outer.wake();
        }
    }
}

impl<'a, T> LocalTasks<'a, T> {
    /// No tasks yet.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), tasks: Vec::new(), outer: Arc::new(Mutex::new(None)) }
    }

    /// Adds a task, which is polled for the first time when the whole is.
    pub fn spawn(&mut self, future: impl Future<Output = T> + 'a) {
        let woken = Arc::new(TaskWaker { woken: AtomicBool::new(true), outer: self.outer.clone() });
        self.tasks.push(Task { state: TaskState::Running(Box::pin(future)), woken });
    }

    /// A random one of the tasks that were woken and are not done; its wake-up is taken.
    fn take_woken(&mut self) -> Option<usize> {
        let woken: Vec<usize> = self
            .tasks
            .iter()
            .enumerate()
            .filter(|(_, task)| matches!(task.state, TaskState::Running(_)))
            .filter(|(_, task)| task.woken.woken.load(Ordering::Acquire))
            .map(|(index, _)| index)
            .collect();
        if woken.is_empty() {
            return None;
        }
        let index = *self.rng.pick(&woken);
        self.tasks[index].woken.woken.store(false, Ordering::Release);
        Some(index)
    }

    fn poll_task(&mut self, index: usize) {
        let task = &mut self.tasks[index];
        let waker = Waker::from(task.woken.clone());
        let TaskState::Running(future) = &mut task.state else { return };
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            task.state = TaskState::Done(Some(output));
        }
    }

    fn take_outputs(&mut self) -> Option<Vec<T>> {
        if !self.tasks.iter().all(|task| matches!(task.state, TaskState::Done(_))) {
            return None;
        }
        let outputs = self.tasks.drain(..).map(|task| match task.state {
            TaskState::Done(output) => output.expect("an output is taken once"),
            TaskState::Running(_) => unreachable!("all tasks were just seen to be done"),
        });
        Some(outputs.collect())
    }
}

// The tasks are boxed, so moving the whole moves no pinned future; outputs are not pinned at all.
impl<T> Unpin for LocalTasks<'_, T> {}

impl<T> Future for LocalTasks<'_, T> {
    type Output = Vec<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<T>> {
        let this = self.get_mut();
        *this.outer.lock().expect("no holder of the lock panics") = Some(context.waker().clone());
        // One poll of each at most: what is outside this future, a runtime's reactor say, must get its turn.
        for _ in 0..this.tasks.len() {
            let Some(index) = this.take_woken() else { break };
            this.poll_task(index);
        }
        if let Some(outputs) = this.take_outputs() {
            return Poll::Ready(outputs);
        }
        let more = this.tasks.iter().any(|task| {
            matches!(task.state, TaskState::Running(_)) && task.woken.woken.load(Ordering::Acquire)
        });
        if more {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn interleaving(seed: u64) -> Vec<(u32, u32)> {
        let log = RefCell::new(Vec::new());
        let step = |task: u32| {
            let log = &log;
            async move {
                for step in 0..4 {
                    log.borrow_mut().push((task, step));
                    yield_now().await;
                }
                task
            }
        };
        assert_eq!(run_tasks(seed, (0..4).map(step)), [0, 1, 2, 3]);
        log.into_inner()
    }

    #[test]
    fn the_seed_decides_the_interleaving() {
        assert_eq!(interleaving(1), interleaving(1));
        assert_ne!(interleaving(1), interleaving(2));
    }

    #[test]
    fn a_wake_up_from_another_thread_is_not_lost() {
        for _ in 0..100 {
            let shared = Arc::new((AtomicBool::new(false), Mutex::new(None::<Waker>)));
            let other = shared.clone();
            let thread = std::thread::spawn(move || {
                other.0.store(true, Ordering::SeqCst);
                if let Some(waker) = other.1.lock().unwrap().take() {
                    waker.wake();
                }
            });
            let wait = poll_fn(|context| {
                *shared.1.lock().unwrap() = Some(context.waker().clone());
                if shared.0.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
            });
            run_tasks(0, [wait]);
            thread.join().unwrap();
        }
    }

    #[test]
    fn no_tasks_are_done_at_once() {
        assert!(run_tasks(0, std::iter::empty::<std::future::Ready<()>>()).is_empty());
    }
}
