//! Sound devices pass the suite, and each planted fault is found by the checks of the line that it breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block::{
    BlockDev, ByteRange, DevInfo, Discard, Disk, ErrorKind, Extent, ExtentState, Result, SgList, WriteFlags,
    ZeroFlags,
};

use super::*;
use crate::{CrashDev, HeldDev, MemDev, SparseBytes, block_on};

const SIZE: u64 = 8 << 20;

#[test]
fn ram_disks_of_every_kind_conform() {
    for discard in [Discard::Ignored, Discard::Unspecified, Discard::Zeroes] {
        for (block_bytes, memory_align, native_fua) in
            [(1, 1, false), (512, 1, true), (512, 512, false), (4096, 4096, true)]
        {
            let info = DevInfo {
                block_bytes,
                physical_block_bytes: 4096,
                discard,
                memory_align,
                native_fua,
                fast_zeroes: native_fua,
                ..MemDev::INFO
            };
            block_on(check(async || Disk::new(MemDev::with_info(SIZE, info))));
        }
    }
}

#[test]
fn crash_disks_conform() {
    let seed = AtomicU64::new(0);
    block_on(check(async || Disk::new(CrashDev::new(SIZE))));
    block_on(check(async || {
        let seed = seed.fetch_add(1, Ordering::Relaxed);
        Disk::new(CrashDev::slow(SparseBytes::new(SIZE), MemDev::INFO, seed))
    }));
}

#[test]
fn layers_that_hold_or_fail_nothing_conform() {
    block_on(check(async || Disk::new(HeldDev::new(Disk::new(MemDev::new(SIZE))))));
    block_on(check(async || Disk::new(FaultDev::new(Disk::new(MemDev::new(SIZE))))));
}

#[test]
fn a_read_only_ram_disk_conforms() {
    block_on(check_read_only(async || {
        let mut image = SparseBytes::new(SIZE);
        image.write(1 << 20, &[7; 100_000]);
        Disk::new(MemDev::from_image(image, DevInfo { read_only: true, ..MemDev::INFO }))
    }));
}

#[test]
fn threads_share_a_ram_disk() {
    check_threads(&Disk::new(MemDev::new(SIZE)), block_on);
    check_threads(&Disk::new(CrashDev::slow(SparseBytes::new(SIZE), MemDev::INFO, 1)), block_on);
}

#[test]
fn a_read_modify_write_without_a_lock_is_found_by_threads() {
    let found = threads::violations(&Disk::new(Broken::new(Bug::RacesWithNeighbours)), block_on);
    assert!(!found.is_empty());
}

/// One fault of the kinds that the suite is there to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    DropsOneWrite,
    WritesOneBlockTooFar,
    AcceptsWhatCrossesTheEnd,
    TakesPartOfWhatCrossesTheEnd,
    RefusesNothingAtTheEnd,
    ReadsOldDataAfterWrite,
    UsesOnlyTheFirstSegments,
    FillsOnlyTheFirstSegments,
    MixesOverlappingWrites,
    RacesWithNeighbours,
    ZeroesTooLittle,
    FastZeroesWriteHalf,
    FastZeroesAreWrongError,
    DiscardLeaksOldData,
    DiscardIsNotStable,
    DiscardTakesTheNeighbour,
    StatusCallsDataAHole,
    StatusHasEmptyExtents,
    StatusIsEmpty,
    StatusForgetsThatHolesAreZeroes,
    StatusCallsStoredDataZeroes,
    StatusClearsTheList,
    ResizeShowsOldData,
    ResizeIsLate,
    WorksWhenClosed,
}

const BUGS: &[(Bug, &str)] = &[
    (Bug::DropsOneWrite, "Visibility"),
    (Bug::WritesOneBlockTooFar, "Visibility"),
    (Bug::AcceptsWhatCrossesTheEnd, "Range"),
    (Bug::TakesPartOfWhatCrossesTheEnd, "Range"),
    (Bug::RefusesNothingAtTheEnd, "Zero length"),
    (Bug::ReadsOldDataAfterWrite, "Visibility"),
    (Bug::UsesOnlyTheFirstSegments, "Visibility"),
    (Bug::FillsOnlyTheFirstSegments, "Visibility"),
    (Bug::MixesOverlappingWrites, "Order"),
    (Bug::ZeroesTooLittle, "write_zeroes"),
    (Bug::FastZeroesWriteHalf, "write_zeroes"),
    (Bug::FastZeroesAreWrongError, "write_zeroes"),
    (Bug::DiscardLeaksOldData, "discard"),
    (Bug::DiscardIsNotStable, "discard"),
    (Bug::DiscardTakesTheNeighbour, "discard"),
    (Bug::StatusCallsDataAHole, "block_status"),
    (Bug::StatusHasEmptyExtents, "block_status"),
    (Bug::StatusIsEmpty, "block_status"),
    (Bug::StatusForgetsThatHolesAreZeroes, "block_status"),
    (Bug::StatusCallsStoredDataZeroes, "block_status"),
    (Bug::StatusClearsTheList, "block_status"),
    (Bug::ResizeShowsOldData, "resize"),
    (Bug::ResizeIsLate, "resize"),
    (Bug::WorksWhenClosed, "close"),
];

#[test]
fn every_planted_fault_is_found_on_its_line() {
    for &(bug, line) in BUGS {
        let of_line: Vec<(&str, Check)> = CHECKS.iter().copied().filter(|(name, _)| *name == line).collect();
        let found = block_on(run(async || Disk::new(Broken::new(bug)), &of_line, false));
        assert!(!found.is_empty(), "{bug:?} breaks \"{line}\", and the suite did not find it");
    }
}

#[test]
fn a_layer_that_trusts_a_flush_after_a_failed_one_is_found() {
    let trusting = std::panic::catch_unwind(|| {
        block_on(check_failed_flush(async || {
            let below = Arc::new(FaultDev::new(Disk::new(MemDev::new(SIZE))));
            (Disk::from_arc(below.clone()), below)
        }));
    });
    let message = *trusting.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("\"Failure\""), "{message}");
    block_on(check_failed_flush(async || {
        let below = Arc::new(FaultDev::new(Disk::new(MemDev::new(SIZE))));
        let latch = Latching { inner: Disk::from_arc(below.clone()), poisoned: AtomicBool::new(false) };
        (Disk::new(latch), below)
    }));
}

/// A RAM disk with one of the bugs.
struct Broken {
    inner: Disk,
    bug: Bug,
    writes: AtomicU64,
    /// What discards have covered and how often reads have met it.
    discarded: std::sync::Mutex<Vec<ByteRange>>,
    reads: AtomicU64,
    size: AtomicU64,
}

impl Broken {
    fn new(bug: Bug) -> Self {
        let discard = if bug == Bug::DiscardIsNotStable { Discard::Unspecified } else { Discard::Zeroes };
        let info = DevInfo { discard, ..MemDev::INFO };
        Self {
            inner: Disk::new(MemDev::with_info(SIZE, info)),
            bug,
            writes: AtomicU64::new(0),
            discarded: std::sync::Mutex::default(),
            reads: AtomicU64::new(0),
            size: AtomicU64::new(SIZE),
        }
    }

    fn unit(&self) -> u64 {
        u64::from(self.inner.info().block_bytes)
    }

    fn was_discarded(&self, range: ByteRange) -> bool {
        self.discarded.lock().unwrap().iter().any(|discarded| discarded.overlaps(range))
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

impl BlockDev for Broken {
    fn info(&self) -> DevInfo {
        *self.inner.info()
    }

    fn size(&self) -> u64 {
        if self.bug == Bug::ResizeIsLate { self.size.load(Ordering::Relaxed) } else { self.inner.size() }
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        if self.bug == Bug::RefusesNothingAtTheEnd && offset == self.inner.size() && into.is_empty() {
            return Err(block::BlockError::new(ErrorKind::OutOfRange, "nothing is beyond the end"));
        }
        if self.bug == Bug::FillsOnlyTheFirstSegments && into.segments().len() > 1024 {
            let len = into.segments()[..1024].iter().map(|segment| segment.len() as u64).sum::<u64>();
            return self.inner.read(offset, into.slice(0, len / self.unit() * self.unit())).await;
        }
        self.inner.read(offset, into.clone()).await?;
        let here = range(offset, into.len());
        match self.bug {
            Bug::ReadsOldDataAfterWrite if read % 7 == 6 && !into.is_empty() => into.fill(0, self.unit(), 0),
            Bug::DiscardIsNotStable if self.was_discarded(here) && read.is_multiple_of(2) => {
                into.fill(0, into.len(), 0);
            }
            _ => {}
        }
        Ok(())
    }

    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        let write = self.writes.fetch_add(1, Ordering::Relaxed);
        let room = self.inner.size().saturating_sub(offset);
        match self.bug {
            Bug::DropsOneWrite if write == 40 => Ok(()),
            Bug::WritesOneBlockTooFar if write == 40 && from.len() + self.unit() <= room => {
                let mut longer = from.clone();
                longer.append(from.slice(0, self.unit()));
                self.inner.write(offset, longer, flags).await
            }
            Bug::AcceptsWhatCrossesTheEnd if from.len() > room => Ok(()),
            Bug::TakesPartOfWhatCrossesTheEnd if from.len() > room && room > 0 => {
                self.inner.write(offset, from.slice(0, room), flags).await?;
                self.inner.write(offset, from, flags).await
            }
            Bug::UsesOnlyTheFirstSegments if from.segments().len() > 1024 => {
                let len = from.segments()[..1024].iter().map(|segment| segment.len() as u64).sum::<u64>();
                self.inner.write(offset, from.slice(0, len / self.unit() * self.unit()), flags).await
            }
            Bug::MixesOverlappingWrites => {
                // Half blocks land one by one, with other tasks in between.
                let half = self.unit() / 2;
                for at in (0..from.len()).step_by(half as usize) {
                    let start = (offset + at) / self.unit() * self.unit();
                    let block = SgList::unspecified(self.unit() as usize);
                    self.inner.read(start, block.clone()).await?;
                    block.copy_from_slice(offset + at - start, &from.slice(at, half).to_vec());
                    self.inner.write(start, block, flags).await?;
                    crate::yield_now().await;
                }
                Ok(())
            }
            Bug::RacesWithNeighbours => {
                let start = offset / 4096 * 4096;
                let page = SgList::unspecified((from.len() + offset - start).next_multiple_of(4096) as usize);
                self.inner.read(start, page.clone()).await?;
                // Gives another thread the time to do the same.
                (0..4).for_each(|_| std::thread::yield_now());
                page.copy_from_slice(offset - start, &from.to_vec());
                self.inner.write(start, page, flags).await
            }
            _ => self.inner.write(offset, from, flags).await,
        }
    }

    async fn write_zeroes(&self, area: ByteRange, flags: ZeroFlags) -> Result<()> {
        match self.bug {
            Bug::ZeroesTooLittle => self.inner.write_zeroes(area.whole_units(4096), flags).await,
            Bug::FastZeroesWriteHalf if flags.fast_only => {
                let half = range(area.start(), area.len() / 2 / self.unit() * self.unit());
                self.inner.write_zeroes(half, flags).await?;
                Err(block::BlockError::new(ErrorKind::Unsupported, "too slow"))
            }
            Bug::FastZeroesAreWrongError if flags.fast_only => {
                Err(block::BlockError::new(ErrorKind::Io, "too slow"))
            }
            _ => self.inner.write_zeroes(area, flags).await,
        }
    }

    async fn discard(&self, area: ByteRange) -> Result<()> {
        self.discarded.lock().unwrap().push(area);
        match self.bug {
            Bug::DiscardLeaksOldData => self.inner.discard(area.whole_units(4096)).await,
            Bug::DiscardIsNotStable => Ok(()),
            Bug::DiscardTakesTheNeighbour => {
                let end = area.end().next_multiple_of(4096).min(self.inner.size());
                self.inner.discard(ByteRange::between(area.start(), end).unwrap()).await
            }
            _ => self.inner.discard(area).await,
        }
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    async fn block_status(&self, area: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        match self.bug {
            Bug::StatusCallsDataAHole => {
                self.inner.block_status(area, &mut Vec::new()).await?;
                block::push_extent(out, Extent::hole(area.len(), ExtentState::NotPresent));
                Ok(())
            }
            Bug::StatusHasEmptyExtents => {
                out.push(Extent::hole(0, ExtentState::Zero));
                self.inner.block_status(area, out).await
            }
            Bug::StatusIsEmpty => self.inner.block_status(area, &mut Vec::new()).await,
            Bug::StatusForgetsThatHolesAreZeroes | Bug::StatusCallsStoredDataZeroes => {
                let zeroes = self.bug == Bug::StatusCallsStoredDataZeroes;
                let mut extents = Vec::new();
                self.inner.block_status(area, &mut extents).await?;
                out.extend(extents.into_iter().map(|extent| Extent { zeroes, ..extent }));
                Ok(())
            }
            Bug::StatusClearsTheList => {
                out.clear();
                self.inner.block_status(area, out).await
            }
            _ => self.inner.block_status(area, out).await,
        }
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let old = self.inner.size();
        if self.bug == Bug::ResizeShowsOldData && size > old {
            self.inner.resize(size).await?;
            let junk = SgList::copy_of(&vec![9; self.unit() as usize]);
            return self.inner.write(old, junk, WriteFlags::default()).await;
        }
        self.inner.resize(size).await
    }

    async fn close(&self) -> Result<()> {
        if self.bug == Bug::WorksWhenClosed { Ok(()) } else { self.inner.close().await }
    }
}

/// What the contract asks of a layer whose flush has failed.
struct Latching {
    inner: Disk,
    poisoned: AtomicBool,
}

impl Latching {
    fn check(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(block::BlockError::new(ErrorKind::Poisoned, "a flush failed before"));
        }
        Ok(())
    }
}

impl BlockDev for Latching {
    fn info(&self) -> DevInfo {
        *self.inner.info()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        self.inner.read(offset, into).await
    }
    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        self.check()?;
        self.inner.write(offset, from, flags).await
    }
    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        self.check()?;
        self.inner.write_zeroes(range, flags).await
    }
    async fn discard(&self, range: ByteRange) -> Result<()> {
        self.check()?;
        self.inner.discard(range).await
    }
    async fn flush(&self) -> Result<()> {
        self.check()?;
        self.inner.flush().await.inspect_err(|_| self.poisoned.store(true, Ordering::Relaxed))
    }
    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        self.inner.block_status(range, out).await
    }
    async fn resize(&self, size: u64) -> Result<()> {
        self.check()?;
        self.inner.resize(size).await
    }
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
