//! A bounded pool of threads for calls that block and have no operation on a ring, and for hosts without rings.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;

/// Threads of the process's pool at most; they are started when they are first needed.
const THREADS_MAX: usize = 16;
/// Jobs that wait for a thread at most; callers beyond that wait for room first.
const JOBS_QUEUED_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// Runs `call` on a thread of the pool.
///
/// It runs to its end even if the future is dropped after its first poll. A call that panics takes nothing with it
/// but panics again where its result is awaited.
pub(crate) fn run<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> PoolCall<T> {
    let reply = Arc::new(Mutex::new(Reply { result: None, waker: None }));
    let to = reply.clone();
    let job: Job = Box::new(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        let mut reply = locked(&to);
        reply.result = Some(result);
        let waker = reply.waker.take();
        drop(reply);
        if let Some(waker) = waker {
            waker.wake();
        }
    });
    PoolCall { job: Some(job), reply }
}

/// A call on the pool; see [`run`].
pub(crate) struct PoolCall<T> {
    /// What is to be queued; none once it is.
    job: Option<Job>,
    reply: Arc<Mutex<Reply<T>>>,
}

struct Reply<T> {
    result: Option<thread::Result<T>>,
    waker: Option<Waker>,
}

impl<T> Future for PoolCall<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if let Some(job) = self.job.take() {
            // The waker is in place before the job can end.
            locked(&self.reply).waker = Some(context.waker().clone());
            self.job = Pool::of_process().enqueue(job, context.waker());
            return Poll::Pending;
        }
        let mut reply = locked(&self.reply);
        match reply.result.take() {
            Some(Ok(result)) => Poll::Ready(result),
            Some(Err(panic)) => {
                drop(reply);
                std::panic::resume_unwind(panic)
            }
            None => {
                reply.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Callers that found the queue full; all are woken when there is room, so that none is forgotten.
    waiting: Vec<Waker>,
    threads: usize,
    idle: usize,
}

impl Pool {
    fn of_process() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| Self { state: Mutex::new(State::default()), work: Condvar::new() })
    }

    /// Queues `job`, or gives it back where the queue is full; `waker` is then woken when there is room.
    fn enqueue(&'static self, job: Job, waker: &Waker) -> Option<Job> {
        let mut state = locked(&self.state);
        if state.jobs.len() >= JOBS_QUEUED_MAX {
            state.waiting.push(waker.clone());
            return Some(job);
        }
        state.jobs.push_back(job);
        if state.idle < state.jobs.len() && state.threads < THREADS_MAX && self.start_thread() {
            state.threads += 1;
        }
        assert!(state.threads > 0, "the host gives not even one thread for input and output");
        drop(state);
        self.work.notify_one();
        None
    }

    fn start_thread(&'static self) -> bool {
        thread::Builder::new().name("hostio-pool".into()).spawn(|| self.work()).is_ok()
    }

    fn work(&self) {
        let mut state = locked(&self.state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                let waiting = std::mem::take(&mut state.waiting);
                drop(state);
                waiting.into_iter().for_each(Waker::wake);
                job();
                state = locked(&self.state);
                continue;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

/// The lock's content; nothing panics while holding one of these locks, so poison cannot mean a broken state.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
