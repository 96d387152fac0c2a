//! Which contents each byte may have.

use std::collections::BTreeSet;
use std::sync::Arc;

use block::ByteRange;

use super::{Mismatch, Model};

/// A change that is not part of the base yet.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) id: u64,
    pub(super) range: ByteRange,
    pub(super) effect: Effect,
    pub(super) started: u64,
    /// `None` while in flight.
    pub(super) finished: Option<u64>,
    /// Whether, once finished, it replaced what was there for sure.
    pub(super) certain: bool,
    /// Whether a crash cannot undo it. Only what is certain is.
    pub(super) durable: bool,
}

#[derive(Clone)]
pub(super) enum Effect {
    /// `data` begins at the disk offset `start`.
    Bytes {
        data: Arc<[u8]>,
        start: u64,
    },
    Zeroes,
    /// Each byte becomes zero or stays.
    MaybeZeroes,
}

impl Record {
    fn is_before(&self, other: &Self) -> bool {
        self.finished.is_some_and(|end| end < other.started)
    }

    fn copy_to(&self, piece: ByteRange, into: &mut [u8]) {
        match &self.effect {
            Effect::Bytes { data, start } => {
                let at = (piece.start() - start) as usize;
                into.copy_from_slice(&data[at..at + into.len()]);
            }
            Effect::Zeroes | Effect::MaybeZeroes => into.fill(0),
        }
    }

    fn describe(&self) -> String {
        let what = match &self.effect {
            Effect::Bytes { .. } => "write",
            Effect::Zeroes => "zeroes",
            Effect::MaybeZeroes => "discard",
        };
        let state = match (self.finished, self.certain, self.durable) {
            (None, ..) => "in flight",
            (_, false, _) => "may have happened",
            (_, _, true) => "durable",
            _ => "completed",
        };
        format!("{what} {} ({state})", self.range)
    }
}

/// The contents that a piece of the disk may have: every covering change covers all of the piece.
struct Allowed<'a> {
    piece: ByteRange,
    base: bool,
    records: Vec<&'a Record>,
}

impl Model {
    /// Checks a read that was in flight from `started` to `now`, and learns from it.
    pub(super) fn check_read(
        &mut self,
        offset: u64,
        bytes: &[u8],
        started: u64,
        now: u64,
    ) -> Result<(), Mismatch> {
        self.check_content(offset, bytes, started, now)?;
        self.learn(offset, bytes, started, now);
        Ok(())
    }

    /// Checks that `bytes` may have been at `offset` at some time between `started` and `now`.
    pub(super) fn check_content(
        &self,
        offset: u64,
        bytes: &[u8],
        started: u64,
        now: u64,
    ) -> Result<(), Mismatch> {
        let settled = |record: &Record| record.certain && record.finished.is_some_and(|end| end < started);
        let visible = |record: &Record| record.started < now;
        self.check_allowed(offset, bytes, &visible, &settled)
    }

    /// Checks that a crash now may leave `bytes` at `offset`.
    pub(super) fn check_crashed(&self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        self.check_allowed(offset, bytes, &|_| true, &|record| record.durable)
    }

    fn check_allowed(
        &self,
        offset: u64,
        bytes: &[u8],
        visible: &dyn Fn(&Record) -> bool,
        settled: &dyn Fn(&Record) -> bool,
    ) -> Result<(), Mismatch> {
        let range = ByteRange::new(offset, bytes.len() as u64).expect("a read lies on the disk");
        for allowed in self.allowed(range, visible, settled) {
            let at = (allowed.piece.start() - offset) as usize;
            allowed.check(self, &bytes[at..at + allowed.piece.len() as usize])?;
        }
        Ok(())
    }

    /// Splits `range` so that every change covers all of a piece or none, with what each piece may hold: nothing that
    /// something settled came after.
    fn allowed(
        &self,
        range: ByteRange,
        visible: &dyn Fn(&Record) -> bool,
        settled: &dyn Fn(&Record) -> bool,
    ) -> Vec<Allowed<'_>> {
        let overlapping: Vec<&Record> =
            self.records.iter().filter(|record| record.range.overlaps(range) && visible(record)).collect();
        let mut borders = BTreeSet::from([range.start(), range.end()]);
        for record in &overlapping {
            borders.extend([record.range.start().max(range.start()), record.range.end().min(range.end())]);
        }
        let borders: Vec<u64> = borders.into_iter().collect();
        let piece = |border: &[u64]| {
            let piece = ByteRange::between(border[0], border[1]).expect("borders ascend");
            let covering: Vec<&Record> =
                overlapping.iter().copied().filter(|record| record.range.contains(piece)).collect();
            let winners: Vec<&Record> = covering.iter().copied().filter(|record| settled(record)).collect();
            let possible = |record: &&Record| !winners.iter().any(|winner| record.is_before(winner));
            let records = covering.iter().copied().filter(possible).collect();
            Allowed { piece, base: winners.is_empty(), records }
        };
        borders.windows(2).map(piece).collect()
    }

    /// What an uncertain piece held when nothing was going on there, it will go on holding.
    fn learn(&mut self, offset: u64, bytes: &[u8], started: u64, now: u64) {
        let range = ByteRange::new(offset, bytes.len() as u64).expect("a read lies on the disk");
        let settled = |record: &Record| record.certain && record.finished.is_some_and(|end| end < started);
        let uncertain: Vec<ByteRange> = self
            .allowed(range, &|record| record.started < now, &settled)
            .into_iter()
            .filter(|allowed| allowed.records.len() + usize::from(allowed.base) > 1)
            .filter(|allowed| {
                allowed.records.iter().all(|record| record.finished.is_some_and(|end| end < started))
            })
            .map(|allowed| allowed.piece)
            .collect();
        for range in uncertain {
            let at = (range.start() - offset) as usize;
            let data = Arc::from(&bytes[at..at + range.len() as usize]);
            let effect = Effect::Bytes { data, start: range.start() };
            let id = self.next_id;
            self.next_id += 1;
            let finished = Some(now);
            self.records.push(Record { id, range, effect, started, finished, certain: true, durable: false });
        }
    }

    /// Moves what nothing can change any more into the base, once nothing is in flight.
    pub(super) fn settle(&mut self) {
        if self.in_flight > 0 || !self.records.iter().any(|record| record.durable) {
            return;
        }
        let mut index = 0;
        while index < self.records.len() {
            if !self.can_settle(index) {
                index += 1;
                continue;
            }
            let record = self.records.remove(index);
            let mut bytes = vec![0; record.range.len().min(1 << 20) as usize];
            for piece in record.range.split_by(1 << 20) {
                match record.effect {
                    Effect::Bytes { .. } => {
                        let bytes = &mut bytes[..piece.len() as usize];
                        record.copy_to(piece, bytes);
                        self.base.write(piece.start(), bytes);
                    }
                    Effect::Zeroes | Effect::MaybeZeroes => self.base.punch(piece),
                }
            }
            self.cut_out(&record);
            // What was cut may have been what kept an earlier one from settling.
            index = 0;
        }
    }

    /// Whether the change is durable and nothing that overlaps it ran at the same time.
    fn can_settle(&self, index: usize) -> bool {
        let record = &self.records[index];
        record.durable
            && self.records.iter().enumerate().all(|(other_index, other)| {
                other_index == index
                    || !other.range.overlaps(record.range)
                    || other.is_before(record)
                    || record.is_before(other)
            })
    }

    /// Takes the range of `settled` out of what came before it.
    fn cut_out(&mut self, settled: &Record) {
        let mut kept = Vec::with_capacity(self.records.len());
        for record in self.records.drain(..) {
            if !record.is_before(settled) || !record.range.overlaps(settled.range) {
                kept.push(record);
                continue;
            }
            let head = ByteRange::between(record.range.start(), settled.range.start());
            let tail = ByteRange::between(settled.range.end(), record.range.end());
            for range in [head, tail].into_iter().flatten().filter(|range| !range.is_empty()) {
                kept.push(Record { range, ..record.clone() });
            }
        }
        self.records = kept;
    }
}

impl Allowed<'_> {
    fn check(&self, model: &Model, found: &[u8]) -> Result<(), Mismatch> {
        let sources = self.sources(model);
        if sources.iter().any(|source| source == found) {
            return Ok(());
        }
        let bytewise = self.records.iter().any(|record| matches!(record.effect, Effect::MaybeZeroes));
        let unit = if bytewise { 1 } else { model.block_bytes };
        for block in self.piece.split_by(unit) {
            let at = (block.start() - self.piece.start()) as usize;
            let within = at..at + block.len() as usize;
            if !sources.iter().any(|source| source[within.clone()] == found[within.clone()]) {
                let sources = sources.iter().map(|source| &source[within.clone()]);
                return Err(self.mismatch(block, &found[within.clone()], sources));
            }
        }
        Ok(())
    }

    /// The possible contents of the piece: the base's first if it is possible, then those of the records.
    fn sources(&self, model: &Model) -> Vec<Vec<u8>> {
        let base = self.base.then(|| model.base.to_vec(self.piece));
        let of_record = |record: &&Record| {
            let mut bytes = vec![0; self.piece.len() as usize];
            record.copy_to(self.piece, &mut bytes);
            bytes
        };
        base.into_iter().chain(self.records.iter().map(of_record)).collect()
    }

    fn mismatch<'b>(
        &self,
        block: ByteRange,
        found: &[u8],
        sources: impl Iterator<Item = &'b [u8]>,
    ) -> Mismatch {
        let base = self.base.then(|| "base".to_owned());
        let names = base.into_iter().chain(self.records.iter().map(|record| record.describe()));
        let allowed: Vec<String> =
            names.zip(sources).map(|(name, bytes)| format!("{name}: {}", excerpt(bytes, found))).collect();
        Mismatch::new(format!("{block} holds {}; allowed: {}", excerpt(found, found), allowed.join(", ")))
    }
}

/// The first bytes, and whether all are zero.
fn excerpt(bytes: &[u8], found: &[u8]) -> String {
    const SHOWN_BYTES: usize = 16;
    if bytes.iter().all(|&byte| byte == 0) {
        return "only zeroes".to_owned();
    }
    let hex: String = bytes.iter().take(SHOWN_BYTES).map(|byte| format!("{byte:02x}")).collect();
    match bytes.iter().zip(found).position(|(a, b)| a != b) {
        Some(at) => format!("{hex}... (differs from byte {at})"),
        None => format!("{hex}..."),
    }
}
