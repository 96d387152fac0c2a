//! A disk on the bench beside its model, and the ranges that break things.

use block::{ByteRange, Disk, SgList, WriteFlags, ZeroFlags};

use super::{Doing as _, Finding};
use crate::model::Ended;
use crate::{Model, pattern};

/// A disk and the model that it is compared with, changed together.
pub(super) struct Bench<'a> {
    pub(super) disk: &'a Disk,
    pub(super) model: Model,
    stamp: u64,
}

/// How much beside a changed range is looked at too.
const MARGIN_BYTES: u64 = 4096;

impl<'a> Bench<'a> {
    /// `disk` is fresh: it reads as zeroes.
    pub(super) fn new(disk: &'a Disk) -> Self {
        Self { disk, model: Model::new(disk.size(), disk.info()), stamp: 0 }
    }

    /// Writes a new pattern to `range`.
    pub(super) async fn write(&mut self, range: ByteRange) -> Result<(), Finding> {
        self.stamp += 1;
        let bytes = pattern(self.stamp, range);
        let write = self.disk.write(range.start(), SgList::copy_of(&bytes), WriteFlags::default()).await;
        write.doing(|| format!("write {range}"))?;
        self.model.write(range.start(), &bytes);
        // No check here looks at crashes, and a model with nothing pending is a fast one.
        self.model.flush();
        Ok(())
    }

    pub(super) async fn zeroes(&mut self, range: ByteRange, flags: ZeroFlags) -> Result<(), Finding> {
        self.disk
            .write_zeroes(range, flags)
            .await
            .doing(|| format!("write_zeroes {range} with {flags:?}"))?;
        self.model.zeroes(range);
        self.model.flush();
        Ok(())
    }

    pub(super) async fn discard(&mut self, range: ByteRange) -> Result<(), Finding> {
        self.disk.discard(range).await.doing(|| format!("discard {range}"))?;
        self.model.discard(range);
        self.model.flush();
        Ok(())
    }

    /// Notes that a write may be in flight for ever.
    pub(super) fn abandon_write(&mut self, range: ByteRange) -> Vec<u8> {
        self.stamp += 1;
        let bytes = pattern(self.stamp, range);
        let ticket = self.model.start_write(range.start(), &bytes);
        self.model.end_change(ticket, Ended::Failed, false);
        bytes
    }

    /// Compares `range` with the model.
    pub(super) async fn check(&mut self, range: ByteRange) -> Result<(), Finding> {
        let read = self.disk.read_vec(range.start(), range.len() as usize).await;
        let bytes = read.doing(|| format!("read {range}"))?;
        Ok(self.model.check(range.start(), &bytes)?)
    }

    /// Compares `range` and what lies beside it with the model.
    pub(super) async fn check_around(&mut self, range: ByteRange) -> Result<(), Finding> {
        let unit = u64::from(self.disk.info().block_bytes);
        let start = range.start().saturating_sub(MARGIN_BYTES) / unit * unit;
        let end = (range.end() + MARGIN_BYTES).next_multiple_of(unit).min(self.disk.size());
        self.check(ByteRange::between(start, end).expect("a margin widens a range")).await
    }

    /// Compares everything with the model.
    pub(super) async fn check_all(&mut self) -> Result<(), Finding> {
        Ok(self.model.check_disk(self.disk).await?)
    }
}

/// The borders at which devices and formats change their ways, ascending.
pub(super) fn borders(disk: &Disk) -> Vec<u64> {
    let info = disk.info();
    let own = [
        info.block_bytes,
        info.physical_block_bytes,
        info.optimal_bytes,
        info.discard_bytes,
        info.memory_align,
    ];
    let mut borders: Vec<u64> =
        own.into_iter().map(u64::from).chain([512, 4096, 65536, 1 << 20, 2 << 20]).collect();
    borders.retain(|border| border.is_multiple_of(u64::from(info.block_bytes)) && *border < disk.size());
    borders.sort_unstable();
    borders.dedup();
    borders
}

/// The longest of the nasty ranges, to keep the suite quick: larger borders are crossed, not spanned.
const NASTY_BYTES_MAX: u64 = 136 << 10;

/// Ranges that start, end at, touch and cross the borders, at both ends of the disk; none is empty, all are aligned.
pub(super) fn nasty_ranges(disk: &Disk) -> Vec<ByteRange> {
    let (unit, size) = (u64::from(disk.info().block_bytes), disk.size());
    let mut ranges = Vec::new();
    for border in borders(disk) {
        let last = size - size % border;
        let starts =
            [0, border.saturating_sub(unit), border, border + unit, last.saturating_sub(unit), size - unit];
        let lens = [unit, border.saturating_sub(unit), border, border + unit, 2 * border];
        for start in starts {
            let within = lens.map(|len| {
                ByteRange::new(start, len.min(NASTY_BYTES_MAX / unit * unit))
                    .filter(|range| range.end() <= size)
            });
            ranges.extend(within.into_iter().flatten().filter(|range| !range.is_empty()));
        }
    }
    ranges.sort_unstable_by_key(|range| (range.start(), range.len()));
    ranges.dedup();
    ranges
}
