//! A disk whose requests wait until the test lets them go, so that the test decides which lands when.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard};
use std::task::{Poll, Waker};

use block::{BlockDev, ByteRange, DevInfo, Disk, Extent, Result, SgList, WriteFlags, ZeroFlags};

use crate::{Request, RequestKind};

/// Where a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldAt {
    /// Before the disk below sees it.
    Start,
    /// After the disk below has done it, before who asked hears of it.
    Completion,
}

/// A request that waits; [`HeldDev::release`] lets it go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    id: u64,
    /// What is asked.
    pub request: Request,
    /// Where it waits.
    pub at: HoldAt,
}

/// A layer that passes everything on, but holds the requests that match a rule until it is told to release them.
///
/// A close that no rule holds is passed on at once, beside what waits: whether a layer above waits for its requests
/// before it closes is what tests look for.
pub struct HeldDev {
    inner: Disk,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// By id, which is the order of arrival.
    waiting: BTreeMap<u64, (Held, Option<Waker>)>,
    next_id: u64,
    watchers: Vec<Waker>,
}

struct Rule {
    at: HoldAt,
    matches: Box<dyn Fn(&Request) -> bool + Send>,
}

/// Takes a request whose future is dropped off the list.
struct Waiting<'a> {
    dev: &'a HeldDev,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.dev.lock().waiting.remove(&self.id);
    }
}

impl HeldDev {
    /// A layer over `inner` that holds nothing yet.
    pub fn new(inner: Disk) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// Holds, from now on, every request that `matches`; for example
    /// `held.hold(HoldAt::Start, |request| request.kind == RequestKind::Flush)`.
    pub fn hold(&self, at: HoldAt, matches: impl Fn(&Request) -> bool + Send + 'static) {
        self.lock().rules.push(Rule { at, matches: Box::new(matches) });
    }

    /// Holds no request that comes from now on. Those that wait go on waiting.
    pub fn hold_no_more(&self) {
        self.lock().rules.clear();
    }

    /// What waits now, in the order of arrival.
    pub fn held(&self) -> Vec<Held> {
        self.lock().waiting.values().map(|(held, _)| *held).collect()
    }

    /// Waits until at least `count` requests wait, and returns them in the order of arrival.
    pub async fn wait_for(&self, count: usize) -> Vec<Held> {
        poll_fn(|context| {
            let mut state = self.lock();
            if state.waiting.len() >= count {
                return Poll::Ready(state.waiting.values().map(|(held, _)| *held).collect());
            }
            state.watchers.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Lets `held` go on. One that went on already stays gone.
    pub fn release(&self, held: Held) {
        let released = self.lock().waiting.remove(&held.id);
        if let Some((_, Some(waker))) = released {
            waker.wake();
        }
    }

    /// Lets everything go on that waits now.
    pub fn release_all(&self) {
        self.held().into_iter().for_each(|held| self.release(held));
    }

    async fn gate(&self, request: Request, at: HoldAt) {
        let Some(id) = self.enter(request, at) else { return };
        let _waiting = Waiting { dev: self, id };
        poll_fn(|context| {
            let mut state = self.lock();
            let Some((_, waker)) = state.waiting.get_mut(&id) else { return Poll::Ready(()) };
            *waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The id under which the request waits from now on, if a rule holds it.
    fn enter(&self, request: Request, at: HoldAt) -> Option<u64> {
        let mut state = self.lock();
        if !state.rules.iter().any(|rule| rule.at == at && (rule.matches)(&request)) {
            return None;
        }
        let id = state.next_id;
        state.next_id += 1;
        state.waiting.insert(id, (Held { id, request, at }, None));
        let watchers = std::mem::take(&mut state.watchers);
        drop(state);
        watchers.into_iter().for_each(Waker::wake);
        Some(id)
    }

    async fn pass<T>(&self, request: Request, inner: impl Future<Output = T>) -> T {
        self.gate(request, HoldAt::Start).await;
        let output = inner.await;
        self.gate(request, HoldAt::Completion).await;
        output
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a rule panicked before")
    }
}

impl BlockDev for HeldDev {
    fn info(&self) -> DevInfo {
        *self.inner.info()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        let request = Request::new(RequestKind::Read, offset, into.len());
        self.pass(request, self.inner.read(offset, into)).await
    }

    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        let request = Request::new(RequestKind::Write, offset, from.len());
        self.pass(request, self.inner.write(offset, from, flags)).await
    }

    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let request = Request { kind: RequestKind::WriteZeroes, range };
        self.pass(request, self.inner.write_zeroes(range, flags)).await
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        let request = Request { kind: RequestKind::Discard, range };
        self.pass(request, self.inner.discard(range)).await
    }

    async fn flush(&self) -> Result<()> {
        self.pass(Request::without_range(RequestKind::Flush), self.inner.flush()).await
    }

    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        let request = Request { kind: RequestKind::BlockStatus, range };
        self.pass(request, self.inner.block_status(range, out)).await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.pass(Request::new(RequestKind::Resize, size, 0), self.inner.resize(size)).await
    }

    async fn close(&self) -> Result<()> {
        self.pass(Request::without_range(RequestKind::Close), self.inner.close()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{LocalTasks, MemDev, block_on};

    /// Two writes of the same sector, released in the order that `order` gives by the writes' numbers.
    fn last_writer(at: HoldAt, order: [usize; 2]) -> u8 {
        let held = Arc::new(HeldDev::new(Disk::new(MemDev::new(4096))));
        held.hold(at, |request| request.kind == RequestKind::Write);
        let disk = Disk::from_arc(held.clone());
        let mut tasks = LocalTasks::new(0);
        tasks.spawn(async {
            // The second write is not asked for before the first one waits.
            let first = disk.write_all(0, &[1; 512]);
            let second = async {
                held.wait_for(1).await;
                disk.write_all(0, &[2; 512]).await
            };
            let (first, second) = futures_util::future::join(first, second).await;
            first.and(second).unwrap();
        });
        tasks.spawn(async {
            let waiting = held.wait_for(2).await;
            order.into_iter().for_each(|index| held.release(waiting[index]));
            held.hold_no_more();
        });
        block_on(tasks);
        block_on(disk.read_vec(0, 512)).unwrap()[0]
    }

    #[test]
    fn the_test_decides_which_write_lands_last() {
        assert_eq!(last_writer(HoldAt::Completion, [1, 0]), 2, "both have landed before they wait");
        assert_eq!(last_writer(HoldAt::Start, [0, 1]), 2);
    }

    #[test]
    fn a_held_read_sees_what_was_written_while_it_waited() {
        let held = Arc::new(HeldDev::new(Disk::new(MemDev::new(4096))));
        let border = ByteRange::new(512, 512).unwrap();
        held.hold(HoldAt::Start, move |request| {
            request.kind == RequestKind::Read && request.range.overlaps(border)
        });
        let disk = Disk::from_arc(held.clone());
        block_on(async {
            let read = disk.read_vec(0, 1024);
            let write = async {
                held.wait_for(1).await;
                assert_eq!(disk.read_vec(0, 512).await.unwrap()[0], 0, "what does not match passes");
                disk.write_all(0, &[7; 1024]).await.unwrap();
                held.release_all();
            };
            let (read, ()) = futures_util::future::join(read, write).await;
            assert_eq!(read.unwrap(), [7; 1024]);
            assert!(held.held().is_empty());
        });
    }

    #[test]
    fn a_request_whose_future_is_dropped_waits_no_more() {
        let held = Arc::new(HeldDev::new(Disk::new(MemDev::new(4096))));
        held.hold(HoldAt::Start, |_| true);
        let disk = Disk::from_arc(held.clone());
        let mut read = Box::pin(disk.read_vec(0, 512));
        assert!(futures_util::FutureExt::now_or_never(&mut read).is_none());
        assert_eq!(held.held().len(), 1);
        drop(read);
        assert!(held.held().is_empty());
    }
}
