//! A shard: one thread that runs sessions, with a reactor and a ring of its own.
//!
//! Tasks never leave the shard they were spawned on, so nothing on the data path crosses a thread. When a task asks
//! for host I/O it only queues it; the shard's driver task is woken by the first such request of a batch, runs behind
//! the tasks that were runnable by then, and hands the whole batch to the kernel with one call:
//!
//! ```text
//!   runnable:  request 1 ─ request 2 ─ ... ─ request n ─ driver ─ requests that are complete ─ ...
//!   ring:      queue       queue             queue       submit all, reap
//! ```
//!
//! Completions that come later announce themselves at the reactor, which wakes the driver.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc::sync_channel;
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Tasks that were given to a shard and that it has not begun, at most.
const SPAWNS_QUEUED_MAX: usize = 1024;

/// A thread that runs tasks; the handle by which other threads reach it.
///
/// Dropping it lets the shard's tasks run to their ends and the thread end after them, unobserved.
#[derive(Debug)]
pub struct Shard {
    name: String,
    spawns: mpsc::Sender<Spawn>,
    thread: JoinHandle<()>,
}

/// Makes a task's future, on the shard.
type Spawn = Box<dyn FnOnce() -> LocalFuture + Send>;
type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Why a task gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpawnError {
    /// The shard has not begun what it was given before.
    #[error("the shard has {SPAWNS_QUEUED_MAX} tasks to begin already")]
    Full,
    /// The task panicked, or its shard ended before it could begin.
    #[error("the task panicked, or its shard has ended")]
    Gone,
}

impl Shard {
    /// Starts a shard whose thread has `name`, of which the host shows the first 15 bytes.
    ///
    /// # Errors
    /// What the host says where it has no thread or no descriptors left.
    pub fn start(name: impl Into<String>) -> io::Result<Self> {
        let name = name.into();
        let (spawns, queue) = mpsc::channel(SPAWNS_QUEUED_MAX);
        let (started, outcome) = sync_channel(1);
        let thread = thread::Builder::new().name(name.clone()).spawn(move || run(queue, &started))?;
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("the shard's thread ended as it began")))?;
        Ok(Self { name, spawns, thread })
    }

    /// The name it was started with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs the future that `make` makes on the shard. It goes on whether or not the result is awaited.
    ///
    /// Inside the shard, `tokio::task::spawn_local` starts further tasks, which whoever starts them has to wait for:
    /// the shard ends when what came through here has ended.
    pub fn spawn<F, T>(&self, make: impl FnOnce() -> F + Send + 'static) -> ShardTask<T>
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (reply, result) = oneshot::channel();
        let spawn: Spawn = Box::new(move || {
            let future = make();
            Box::pin(async move {
                // Nobody need be waiting for it.
                let _ = reply.send(future.await);
            })
        });
        match self.spawns.try_send(spawn) {
            Err(mpsc::error::TrySendError::Full(_)) => ShardTask(Err(SpawnError::Full)),
            // A closed shard drops the closure, and with it the sender of the result.
            Err(mpsc::error::TrySendError::Closed(_)) | Ok(()) => ShardTask(Ok(result)),
        }
    }

    /// Waits, blocking this thread, until every task has ended, and ends the shard.
    ///
    /// # Errors
    /// If the shard's thread itself panicked.
    pub fn shutdown(self) -> thread::Result<()> {
        drop(self.spawns);
        self.thread.join()
    }
}

/// The result of a task that was [`Shard::spawn`]ed; may be awaited on any thread.
#[derive(Debug)]
pub struct ShardTask<T>(Result<oneshot::Receiver<T>, SpawnError>);

impl<T> ShardTask<T> {
    /// Waits for the result, blocking this thread, which must not run a reactor.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub fn wait(self) -> Result<T, SpawnError> {
        self.0?.blocking_recv().map_err(|_| SpawnError::Gone)
    }
}

impl<T> Future for ShardTask<T> {
    type Output = Result<T, SpawnError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(result) => Pin::new(result).poll(context).map_err(|_| SpawnError::Gone),
            Err(error) => Poll::Ready(Err(*error)),
        }
    }
}

/// The thread of a shard.
fn run(queue: mpsc::Receiver<Spawn>, started: &std::sync::mpsc::SyncSender<io::Result<()>>) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    runtime.block_on(async {
        let driver = match Driver::new() {
            Ok(driver) => driver,
            Err(error) => return drop(started.send(Err(error))),
        };
        tokio::task::spawn_local(driver.drive());
        drop(started.send(Ok(())));
        run_tasks(queue).await;
        hostio::set_turn_hook(None);
    });
}

/// Begins what is spawned until nobody can spawn any more, and waits for all of it.
async fn run_tasks(mut queue: mpsc::Receiver<Spawn>) {
    let mut tasks = JoinSet::new();
    let mut is_open = true;
    while is_open || !tasks.is_empty() {
        tokio::select! {
            spawn = queue.recv(), if is_open => match spawn {
                // Made inside a task, so that a panic is that task's.
                Some(spawn) => drop(tasks.spawn_local(async { spawn().await })),
                None => is_open = false,
            },
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task of the shard panicked");
                }
            }
        }
    }
}

/// Drives the thread's ring from the thread's reactor.
struct Driver {
    /// Readable when there are completions; none where threads do the I/O, which wake tasks by themselves.
    completions: Option<AsyncFd<OwnedFd>>,
    /// Wakes the driver; the turn hook has it too.
    waker: Rc<Cell<Option<Waker>>>,
}

impl Driver {
    fn new() -> io::Result<Self> {
        let completions = hostio::completion_event()?.map(watch).transpose()?;
        let waker = Rc::new(Cell::new(None::<Waker>));
        let to_wake = waker.clone();
        let hook = move || {
            if let Some(waker) = to_wake.take() {
                waker.wake();
            }
        };
        hostio::set_turn_hook(Some(Rc::new(hook)));
        Ok(Self { completions, waker })
    }

    /// Never ends; the runtime drops it when the shard ends.
    async fn drive(self) {
        poll_fn(|context| self.poll(context)).await;
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        self.waker.set(Some(context.waker().clone()));
        if let Err(error) = self.take_event(context) {
            // Only a reactor that has shut down gives one, and it takes the shard's tasks with it.
            tracing::error!(%error, "the shard's reactor no longer tells of completions");
            return Poll::Ready(());
        }
        if let Err(error) = hostio::turn() {
            tracing::warn!(%error, "the ring could not be entered and is tried again");
        }
        Poll::Pending
    }

    /// Forgets that completions were announced and asks to be woken by the next announcement.
    ///
    /// The reactor waits for edges, so the event need not be read: each batch of completions is a new edge.
    fn take_event(&self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(completions) = &self.completions else { return Ok(()) };
        while let Poll::Ready(ready) = completions.poll_read_ready(context) {
            ready?.clear_ready();
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "the reactor takes a descriptor on the word that it stays open")]
fn watch(event: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd`, which never gives it out, so it is open for as long as that.
    let watched = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) };
    Ok(watched?)
}

#[cfg(test)]
mod tests {
    use block::{Disk, SgList};
    use hostio::{HostFile, Inline, OpenOptions};

    use super::*;

    /// A file whose every request goes through the ring, with its own index in each of its 4-byte words.
    fn words(count: u32) -> (tempfile::NamedTempFile, Disk) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..count).flat_map(u32::to_le_bytes).collect();
        std::fs::write(file.path(), bytes).unwrap();
        let options = OpenOptions { inline: Inline::Never, ..OpenOptions::read_write() };
        let disk = Disk::new(HostFile::open(file.path(), &options).unwrap());
        (file, disk)
    }

    /// Proves that host I/O of many tasks at once completes on a shard, also such that completes much later (flushes),
    /// which only arrives if the reactor hears of it.
    #[test]
    fn tasks_of_a_shard_read_write_and_flush_host_files() {
        let (_file, disk) = words(4000);
        let shard = Shard::start("test").unwrap();
        let task = shard.spawn(move || async move {
            let mut tasks = JoinSet::new();
            for index in 0..4000u32 {
                let disk = disk.clone();
                tasks.spawn_local(async move {
                    let at = 4 * u64::from(index);
                    assert_eq!(disk.read_vec(at, 4).await.unwrap(), index.to_le_bytes());
                    disk.write_all(at, &(!index).to_le_bytes()).await.unwrap();
                    if index % 100 == 0 {
                        disk.flush().await.unwrap();
                    }
                    let memory = SgList::unspecified(4);
                    disk.read(at, memory.clone()).await.unwrap();
                    assert_eq!(memory.to_vec(), (!index).to_le_bytes());
                });
            }
            tasks.join_all().await.len()
        });
        assert_eq!(task.wait(), Ok(4000));
        shard.shutdown().unwrap();
    }

    #[test]
    fn two_shards_share_a_disk() {
        let (_file, disk) = words(16);
        let shards = [Shard::start("one").unwrap(), Shard::start("two").unwrap()];
        for round in 0..50u32 {
            for (writer, reader) in [(0, 1), (1, 0)] {
                let (here, there) = (disk.clone(), disk.clone());
                let content = round.to_le_bytes();
                let written = shards[writer].spawn(move || async move { here.write_all(8, &content).await });
                written.wait().unwrap().unwrap();
                let read = shards[reader].spawn(move || async move { there.read_vec(8, 4).await });
                assert_eq!(read.wait().unwrap().unwrap(), content);
            }
        }
        shards.into_iter().for_each(|shard| shard.shutdown().unwrap());
    }

    #[test]
    fn a_panic_ends_its_task_and_no_other() {
        let shard = Shard::start("test").unwrap();
        let in_closure = shard.spawn(|| -> std::future::Ready<()> { panic!("expected by the test") });
        let in_future = shard.spawn::<_, ()>(|| async { panic!("expected by the test") });
        assert_eq!(in_closure.wait(), Err(SpawnError::Gone));
        assert_eq!(in_future.wait(), Err(SpawnError::Gone));
        assert_eq!(shard.spawn(|| async { 7 }).wait(), Ok(7));
        shard.shutdown().unwrap();
    }

    #[test]
    fn shutdown_waits_for_tasks() {
        let (_file, disk) = words(1);
        let shard = Shard::start("test").unwrap();
        let (release, released) = oneshot::channel::<()>();
        let task = shard.spawn(move || async move {
            released.await.unwrap();
            disk.read_vec(0, 4).await.unwrap()
        });
        let ended = thread::spawn(move || shard.shutdown().is_ok());
        release.send(()).unwrap();
        assert!(ended.join().unwrap());
        assert_eq!(task.wait(), Ok(vec![0; 4]));
    }

    #[test]
    fn a_shard_that_does_not_get_on_takes_no_more_than_its_limit() {
        let shard = Shard::start("test").unwrap();
        let (release, released) = sync_channel::<()>(0);
        // The closure blocks the thread, as no task should.
        let blocker = shard.spawn(move || {
            released.recv().unwrap();
            async {}
        });
        let tasks: Vec<_> = (0..2 * SPAWNS_QUEUED_MAX).map(|_| shard.spawn(|| async {})).collect();
        release.send(()).unwrap();
        assert_eq!(blocker.wait(), Ok(()));
        let full = tasks.into_iter().filter_map(|task| task.wait().err()).collect::<Vec<_>>();
        assert!(full.len() >= SPAWNS_QUEUED_MAX - 1, "{} were refused", full.len());
        assert!(full.iter().all(|error| *error == SpawnError::Full));
        shard.shutdown().unwrap();
    }
}
