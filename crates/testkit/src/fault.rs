//! A disk that fails as a test tells it to, to reach every error path of what stands on it.

use std::sync::{Mutex, MutexGuard};

use block::{
    BlockDev, BlockError, ByteRange, DevInfo, Disk, ErrorKind, Extent, Result, SgList, WriteFlags, ZeroFlags,
};

use crate::{Request, RequestKind};

/// What a request that fails has done all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// The disk below never saw it.
    Nothing,
    /// The first half of the blocks was changed; a request without a range did nothing.
    Half,
    /// It was done, and only the answer is an error.
    All,
}

/// A rule of a [`FaultDev`]: which requests fail, and how.
///
/// ```
/// use block::ErrorKind;
/// use testkit::{Fault, RequestKind};
///
/// // The third flush fails once, and from then on every write does.
/// let flush = Fault::on(RequestKind::Flush).nth(3).error(ErrorKind::Io).then_state(1);
/// let writes = Fault::on(RequestKind::Write).in_state(1).error(ErrorKind::NoSpace).always();
/// ```
#[derive(Clone, Debug)]
pub struct Fault {
    kind: Option<RequestKind>,
    range: Option<ByteRange>,
    in_state: Option<u32>,
    then_state: Option<u32>,
    /// Matches that pass before the first that fails.
    passes_left: u64,
    /// Matches that fail after that; `None` is without end.
    failures_left: Option<u64>,
    /// `None` where the rule only watches, to change the state.
    error: Option<ErrorKind>,
    leaves: Leaves,
}

impl Fault {
    /// A rule for requests of `kind` that fires once, at the first, and only watches until [`Self::error`] is set.
    pub fn on(kind: RequestKind) -> Self {
        Self { kind: Some(kind), ..Self::on_any() }
    }

    /// A rule for requests of every kind.
    pub fn on_any() -> Self {
        Self {
            kind: None,
            range: None,
            in_state: None,
            then_state: None,
            passes_left: 0,
            failures_left: Some(1),
            error: None,
            leaves: Leaves::Nothing,
        }
    }

    /// Only requests that have a byte in common with `range`.
    #[must_use]
    pub fn overlapping(self, range: ByteRange) -> Self {
        Self { range: Some(range), ..self }
    }

    /// Only the `n`th match, counted from 1, and those after it that [`Self::times`] adds.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        Self { passes_left: n.saturating_sub(1), ..self }
    }

    /// Fires this many times in a row.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { failures_left: Some(count), ..self }
    }

    /// Fires at every match, without end.
    #[must_use]
    pub fn always(self) -> Self {
        Self { failures_left: None, ..self }
    }

    /// The request fails with this kind of error.
    #[must_use]
    pub fn error(self, kind: ErrorKind) -> Self {
        Self { error: Some(kind), ..self }
    }

    /// What the failing request has done; nothing if this is not called.
    #[must_use]
    pub fn leaves(self, leaves: Leaves) -> Self {
        Self { leaves, ..self }
    }

    /// Only while the device is in this state, which is 0 at first.
    #[must_use]
    pub fn in_state(self, state: u32) -> Self {
        Self { in_state: Some(state), ..self }
    }

    /// Puts the device into this state when the rule fires.
    #[must_use]
    pub fn then_state(self, state: u32) -> Self {
        Self { then_state: Some(state), ..self }
    }

    fn matches(&self, request: &Request, state: u32) -> bool {
        self.kind.is_none_or(|kind| kind == request.kind)
            && self.range.is_none_or(|range| range.overlaps(request.range))
            && self.in_state.is_none_or(|wanted| wanted == state)
    }

    /// Counts a match; `true` if the rule fires.
    fn fire(&mut self) -> bool {
        if self.passes_left > 0 {
            self.passes_left -= 1;
            return false;
        }
        match &mut self.failures_left {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// A layer that passes everything on, except for what its rules make fail.
///
/// It does not latch after a failed flush as the contract asks of a device: what stands on it must not trust a flush
/// that succeeds after one that failed, and this is how tests find out.
pub struct FaultDev {
    inner: Disk,
    state: Mutex<State>,
}

struct State {
    rules: Vec<Fault>,
    current: u32,
    failures: u64,
    size_max: u64,
}

impl FaultDev {
    /// A layer over `inner` without rules.
    pub fn new(inner: Disk) -> Self {
        let state = State { rules: Vec::new(), current: 0, failures: 0, size_max: u64::MAX };
        Self { inner, state: Mutex::new(state) }
    }

    /// Adds a rule. Where several fire at a request, the error of the one that was added first is given.
    pub fn add(&self, fault: Fault) {
        self.lock().rules.push(fault);
    }

    /// Drops all rules and the limit of growth; the state and the count stay.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.size_max = u64::MAX;
    }

    /// Fails with `NoSpace` what would make the disk more than `bytes` longer than it is now.
    pub fn limit_growth(&self, bytes: u64) {
        self.lock().size_max = self.inner.size().saturating_add(bytes);
    }

    /// How many requests have been made to fail.
    pub fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// The state that rules look at and change.
    pub fn state(&self) -> u32 {
        self.lock().current
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }

    /// What the rules have for `request`: an error and what it leaves.
    fn judge(&self, request: &Request) -> Option<(BlockError, Leaves)> {
        let mut state = self.lock();
        let before = state.current;
        let mut verdict = None;
        for index in 0..state.rules.len() {
            let rule = &mut state.rules[index];
            if !rule.matches(request, before) || !rule.fire() {
                continue;
            }
            let (error, leaves, then) = (rule.error, rule.leaves, rule.then_state);
            state.current = then.unwrap_or(state.current);
            verdict = verdict.or(error.map(|kind| (kind, leaves)));
        }
        let (kind, leaves) = verdict?;
        state.failures += 1;
        Some((BlockError::new(kind, format!("the test makes this fail: {request:?}")), leaves))
    }

    /// Asks the rules, then does `all`, `half` or nothing.
    async fn pass(
        &self,
        request: Request,
        all: impl Future<Output = Result<()>>,
        half: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let Some((error, leaves)) = self.judge(&request) else { return all.await };
        match leaves {
            Leaves::Nothing => {}
            Leaves::Half => half.await?,
            Leaves::All => all.await?,
        }
        Err(error)
    }

    fn first_half(&self, len: u64) -> u64 {
        let unit = u64::from(self.inner.info().block_bytes);
        len / 2 / unit * unit
    }

    fn first_half_of(&self, range: ByteRange) -> ByteRange {
        ByteRange::new(range.start(), self.first_half(range.len())).expect("half a range is a range")
    }
}

async fn nothing() -> Result<()> {
    Ok(())
}

impl BlockDev for FaultDev {
    fn info(&self) -> DevInfo {
        *self.inner.info()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        let request = Request::new(RequestKind::Read, offset, into.len());
        let half = self.inner.read(offset, into.slice(0, self.first_half(into.len())));
        self.pass(request, self.inner.read(offset, into.clone()), half).await
    }

    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        let request = Request::new(RequestKind::Write, offset, from.len());
        let half = self.inner.write(offset, from.slice(0, self.first_half(from.len())), flags);
        self.pass(request, self.inner.write(offset, from.clone(), flags), half).await
    }

    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let request = Request { kind: RequestKind::WriteZeroes, range };
        let half = self.inner.write_zeroes(self.first_half_of(range), flags);
        self.pass(request, self.inner.write_zeroes(range, flags), half).await
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        let request = Request { kind: RequestKind::Discard, range };
        let half = self.inner.discard(self.first_half_of(range));
        self.pass(request, self.inner.discard(range), half).await
    }

    async fn flush(&self) -> Result<()> {
        self.pass(Request::without_range(RequestKind::Flush), self.inner.flush(), nothing()).await
    }

    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        let request = Request { kind: RequestKind::BlockStatus, range };
        self.pass(request, self.inner.block_status(range, out), nothing()).await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let limit = self.lock().size_max;
        if size > limit && size > self.inner.size() {
            self.lock().failures += 1;
            let message = format!("the test leaves no room for {size:#x} bytes: {limit:#x} are the limit");
            return Err(BlockError::new(ErrorKind::NoSpace, message));
        }
        self.pass(Request::new(RequestKind::Resize, size, 0), self.inner.resize(size), nothing()).await
    }

    async fn close(&self) -> Result<()> {
        self.pass(Request::without_range(RequestKind::Close), self.inner.close(), nothing()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{MemDev, block_on};

    fn disk() -> (Arc<FaultDev>, Disk) {
        let fault = Arc::new(FaultDev::new(Disk::new(MemDev::new(8192))));
        (fault.clone(), Disk::from_arc(fault))
    }

    #[test]
    fn the_nth_overlapping_write_fails_and_the_others_pass() {
        block_on(async {
            let (fault, disk) = disk();
            let range = ByteRange::new(1024, 512).unwrap();
            let rule = Fault::on(RequestKind::Write).overlapping(range).nth(2).error(ErrorKind::NoSpace);
            fault.add(rule.leaves(Leaves::Half));
            disk.write_all(0, &[1; 2048]).await.unwrap();
            disk.write_all(0, &[2; 1024]).await.unwrap();
            let error = disk.write_all(0, &[3; 2048]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            let bytes = disk.read_vec(0, 2048).await.unwrap();
            assert_eq!((bytes[1023], bytes[1024]), (3, 1), "half of the failed write is there");
            disk.write_all(0, &[4; 2048]).await.unwrap();
            assert_eq!(fault.failures(), 1);
        });
    }

    #[test]
    fn rules_change_the_state_that_other_rules_wait_for() {
        block_on(async {
            let (fault, disk) = disk();
            fault.add(Fault::on(RequestKind::Flush).nth(2).then_state(1));
            fault.add(Fault::on_any().in_state(1).error(ErrorKind::Io).leaves(Leaves::All).always());
            for _ in 0..2 {
                disk.write_all(0, &[1; 512]).await.unwrap();
                disk.flush().await.unwrap();
            }
            assert_eq!(fault.state(), 1);
            for _ in 0..2 {
                assert_eq!(disk.write_all(0, &[2; 512]).await.unwrap_err().kind(), ErrorKind::Io);
            }
            fault.clear();
            assert_eq!(disk.read_vec(0, 512).await.unwrap()[0], 2, "the write was done all the same");
        });
    }

    #[test]
    fn growth_beyond_the_limit_finds_no_space() {
        block_on(async {
            let (fault, disk) = disk();
            fault.limit_growth(4096);
            disk.resize(12288).await.unwrap();
            assert_eq!(disk.resize(12800).await.unwrap_err().kind(), ErrorKind::NoSpace);
            disk.resize(4096).await.unwrap();
            fault.clear();
            disk.resize(1 << 30).await.unwrap();
        });
    }
}
