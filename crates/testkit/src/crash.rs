//! A disk that remembers what it was told and when, so that every power cut of a run can be looked at afterwards.

mod history;
mod survival;

use std::sync::{Arc, Mutex};

use block::{
    BlockDev, BlockError, ByteRange, DevInfo, Discard, ErrorKind, Extent, Result, SgList, WriteFlags,
    ZeroFlags,
};

use crate::mem::{check_fast, check_fua, check_memory, check_request, check_size, status};
use crate::{MemDev, Request, RequestKind, Rng, SparseBytes, yield_now};

pub use history::{Event, History};
pub use survival::Survival;

/// A disk with a volatile and a durable image.
///
/// Reads see the volatile image, as a running program does. A change (write, write_zeroes, discard, resize) is
/// *pending* from its start until a flush that was asked for after the change had completed has itself completed.
/// [`Self::history`] gives the log of a run; [`History::crash_at`] gives the disk that is found after a power cut at
/// any point of it, with the pending changes lost, kept, reordered or torn as a [`Survival`] says.
///
/// The rules of a cut, as disks and journaling file systems keep them:
/// * Pending changes survive or not one by one, in any order, whole or in part.
/// * Pending resizes survive in the order in which they were made: a later one never without the earlier. What a
///   resize cut off does not come back when a later one makes the disk longer again.
/// * A change that was made with FUA is there once it has completed, and so are the resizes before it; nothing that
///   completed earlier can be found on top of it.
pub struct CrashDev {
    info: DevInfo,
    latency: Latency,
    state: Mutex<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Latency {
    None,
    Random,
}

/// Most yields that a change of a slow disk takes between its start and its landing, and then until it completes.
const YIELDS_MAX: u64 = 4;

struct State {
    volatile: SparseBytes,
    closed: bool,
    /// Changes whose futures are alive.
    in_flight: usize,
    rng: Rng,
    initial: SparseBytes,
    changes: Vec<Arc<Change>>,
    events: Vec<Event>,
}

/// A change whose future is alive; one that is dropped may be found after a cut, but nobody waits for it.
struct InFlight<'a>(&'a CrashDev);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
    }
}

/// A request that changes the disk.
struct Change {
    request: Request,
    effect: Effect,
    fua: bool,
}

enum Effect {
    Write(Arc<[u8]>),
    /// Makes a range, which may be smaller than the request's, zeroes.
    Zero {
        range: ByteRange,
        may_unmap: bool,
    },
    Resize,
    Nothing,
}

impl CrashDev {
    /// A disk of `size` zero bytes, all durable, that [`MemDev::INFO`] describes. Requests complete at once.
    pub fn new(size: u64) -> Self {
        Self::from_image(SparseBytes::new(size), MemDev::INFO)
    }

    /// A disk on which `image` is durable.
    pub fn from_image(image: SparseBytes, info: DevInfo) -> Self {
        Self::build(image, info, Latency::None, 0)
    }

    /// As [`Self::from_image`], but changes and flushes take a few turns of the executor, as `seed` decides, so that
    /// several can be in flight at a cut and those that do not overlap land in another order than they were asked.
    pub fn slow(image: SparseBytes, info: DevInfo, seed: u64) -> Self {
        Self::build(image, info, Latency::Random, seed)
    }

    fn build(image: SparseBytes, info: DevInfo, latency: Latency, seed: u64) -> Self {
        let state = State {
            volatile: image.clone(),
            closed: false,
            in_flight: 0,
            rng: Rng::new(seed),
            initial: image,
            changes: Vec::new(),
            events: Vec::new(),
        };
        Self { info, latency, state: Mutex::new(state) }
    }

    /// Puts a mark into the log, between the requests: what a test wants to know at a cut, for example "the guest's
    /// third flush was acknowledged", as a number that it chooses.
    pub fn note(&self, note: u64) {
        self.lock().events.push(Event::Note(note));
    }

    /// The log up to now.
    pub fn history(&self) -> History {
        let state = self.lock();
        History::new(self.info, state.initial.clone(), state.changes.clone(), state.events.clone())
    }

    /// The disk that is found after a power cut now.
    pub fn crash(&self, survival: Survival) -> MemDev {
        let history = self.history();
        history.crash_at(history.len(), survival)
    }

    /// What reads see, now.
    pub fn image(&self) -> SparseBytes {
        self.lock().volatile.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("a request panicked before")
    }

    fn open(&self) -> Result<std::sync::MutexGuard<'_, State>> {
        let state = self.lock();
        if state.closed {
            return Err(BlockError::new(ErrorKind::Io, "the crash disk is closed"));
        }
        Ok(state)
    }

    fn open_for_change(&self) -> Result<std::sync::MutexGuard<'_, State>> {
        if self.info.read_only {
            return Err(BlockError::new(ErrorKind::ReadOnly, "the crash disk is read-only"));
        }
        self.open()
    }

    async fn wait(&self) {
        if self.latency == Latency::None {
            return;
        }
        let yields = self.lock().rng.below(YIELDS_MAX + 1);
        for _ in 0..yields {
            yield_now().await;
        }
    }

    /// Logs and does a change. `check` runs again when the change lands, because a resize may have come between.
    async fn change(&self, change: Change, check: impl Fn(u64) -> Result<()>) -> Result<()> {
        let change = Arc::new(change);
        let index = {
            let mut state = self.open_for_change()?;
            check(state.volatile.size())?;
            let index = state.changes.len();
            state.changes.push(change.clone());
            state.events.push(Event::Started { index, request: change.request });
            state.in_flight += 1;
            index
        };
        let _in_flight = InFlight(self);
        self.wait().await;
        {
            let mut state = self.lock();
            let checked = check(state.volatile.size());
            state.events.push(Event::Landed { index, request: change.request, done: checked.is_ok() });
            checked?;
            change.apply(&mut state.volatile, change.range());
        }
        self.wait().await;
        Ok(())
    }

    async fn flush_landed(&self) -> Result<()> {
        let asked_at = {
            let mut state = self.lock();
            state.events.push(Event::FlushStarted);
            state.events.len()
        };
        self.wait().await;
        self.lock().events.push(Event::FlushDone { covers: asked_at });
        Ok(())
    }
}

impl Change {
    /// The bytes that the change concerns; empty for a resize.
    fn range(&self) -> ByteRange {
        match &self.effect {
            Effect::Zero { range, .. } => *range,
            Effect::Write(_) | Effect::Resize | Effect::Nothing => self.request.range,
        }
    }

    /// Makes the change to the bytes in `part`, as far as `image` has them.
    fn apply(&self, image: &mut SparseBytes, part: ByteRange) {
        if let Effect::Resize = self.effect {
            return image.resize(self.request.range.start());
        }
        let Some(part) = part.intersection(self.range()).and_then(|part| part.intersection(image.range()))
        else {
            return;
        };
        match &self.effect {
            Effect::Write(data) => {
                let at = (part.start() - self.request.range.start()) as usize;
                image.write(part.start(), &data[at..at + part.len() as usize]);
            }
            Effect::Zero { may_unmap: true, .. } => image.punch(part),
            Effect::Zero { may_unmap: false, .. } => image.fill_zeroes(part),
            Effect::Resize | Effect::Nothing => {}
        }
    }
}

impl BlockDev for CrashDev {
    fn info(&self) -> DevInfo {
        self.info
    }

    fn size(&self) -> u64 {
        self.lock().volatile.size()
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        let state = self.open()?;
        check_request(&self.info, state.volatile.size(), offset, into.len())?;
        check_memory(&self.info, &into)?;
        state.volatile.read_sg(offset, &into);
        Ok(())
    }

    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        check_fua(&self.info, flags.fua);
        let request = Request::new(RequestKind::Write, offset, from.len());
        let check = |size| {
            check_request(&self.info, size, offset, from.len())?;
            check_memory(&self.info, &from)
        };
        check(self.size())?;
        let effect = Effect::Write(from.to_vec().into());
        self.change(Change { request, effect, fua: flags.fua }, check).await
    }

    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        check_fua(&self.info, flags.fua);
        let request = Request::new(RequestKind::WriteZeroes, range.start(), range.len());
        let effect = Effect::Zero { range, may_unmap: flags.may_unmap };
        let check = |size| {
            check_request(&self.info, size, range.start(), range.len())?;
            check_fast(&self.info, flags)
        };
        self.change(Change { request, effect, fua: flags.fua }, check).await
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        let request = Request::new(RequestKind::Discard, range.start(), range.len());
        let freed = match self.info.discard {
            Discard::Ignored => None,
            Discard::Zeroes => Some(range),
            Discard::Unspecified => Some(range.whole_units(u64::from(self.info.discard_bytes.max(1)))),
        };
        let effect = freed.map_or(Effect::Nothing, |range| Effect::Zero { range, may_unmap: true });
        let check = |size| check_request(&self.info, size, range.start(), range.len());
        self.change(Change { request, effect, fua: false }, check).await
    }

    async fn flush(&self) -> Result<()> {
        self.open().map(drop)?;
        self.flush_landed().await
    }

    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        let state = self.open()?;
        check_request(&self.info, state.volatile.size(), range.start(), range.len())?;
        status(&state.volatile, range, out);
        Ok(())
    }

    async fn resize(&self, size: u64) -> Result<()> {
        check_size(size)?;
        let request = Request::new(RequestKind::Resize, size, 0);
        self.change(Change { request, effect: Effect::Resize, fua: false }, |_| Ok(())).await
    }

    async fn close(&self) -> Result<()> {
        if std::mem::replace(&mut self.lock().closed, true) {
            return Ok(());
        }
        // What is in flight goes on by itself: it only ever waits for its turn.
        while self.lock().in_flight > 0 {
            yield_now().await;
        }
        self.flush_landed().await
    }
}

#[cfg(test)]
mod tests;
