//! What a disk may contain, by the contract alone: the reference that devices are compared with.

mod content;
mod mismatch;
mod whole;

use std::sync::Arc;

use block::{ByteRange, DevInfo, Discard};

use crate::SparseBytes;
use content::{Effect, Record};

pub use mismatch::Mismatch;

/// The reference model of a disk.
///
/// It keeps what is certain (the *base*) and, since then, every change with the times of its start and its end. From
/// those it knows for each byte which contents a read may return, which is more than one while changes overlap in
/// time, after a change that failed, and after an unspecified discard; and which contents a power cut may leave:
/// what was last made durable, and everything that came after.
///
/// Overlapping changes in flight are compared by blocks of `block_bytes`, each of which must be one or the other.
/// Once a read has shown what an uncertain block holds, later reads must show the same.
///
/// A clone is cheap, so a crash test can keep one for every [`crate::CrashDev::note`].
#[derive(Clone)]
pub struct Model {
    block_bytes: u64,
    discard: Discard,
    size: u64,
    /// The sizes that a crash may leave; the last is the current one.
    sizes: Vec<u64>,
    base: SparseBytes,
    /// In the order of their start.
    records: Vec<Record>,
    clock: u64,
    in_flight: usize,
    next_id: u64,
}

/// A request that the model has seen start and not end.
#[derive(Debug)]
#[must_use = "a request that never ends stays in flight for ever"]
pub struct Ticket {
    record: Option<u64>,
    started: u64,
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It succeeded.
    Done,
    /// It failed, and may be there in part.
    Failed,
    /// It was refused and left nothing.
    Refused,
}

impl Model {
    /// The model of a disk of `size` zero bytes, all durable.
    pub fn new(size: u64, info: &DevInfo) -> Self {
        Self::of(SparseBytes::new(size), info)
    }

    /// The model of a disk on which `image` is durable.
    pub fn of(image: SparseBytes, info: &DevInfo) -> Self {
        Self {
            block_bytes: u64::from(info.block_bytes),
            discard: info.discard,
            size: image.size(),
            sizes: vec![image.size()],
            base: image,
            records: Vec::new(),
            clock: 0,
            in_flight: 0,
            next_id: 0,
        }
    }

    /// Size in bytes, now.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The unit in bytes in which overlapping changes are told apart.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Notes a write that has completed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let ticket = self.start_write(offset, bytes);
        self.end_change(ticket, Ended::Done, false);
    }

    /// Notes that zeroes were written to `range`.
    pub fn zeroes(&mut self, range: ByteRange) {
        let ticket = self.start_zeroes(range);
        self.end_change(ticket, Ended::Done, false);
    }

    /// Notes that `range` was discarded.
    pub fn discard(&mut self, range: ByteRange) {
        let ticket = self.start_discard(range);
        self.end_change(ticket, Ended::Done, false);
    }

    /// Notes that a flush was asked for and has completed.
    pub fn flush(&mut self) {
        let ticket = self.start_flush();
        self.end_flush(ticket, true);
    }

    /// Notes a resize that has completed. Nothing else may be in flight.
    pub fn resize(&mut self, size: u64) {
        if let Some(cut) = ByteRange::between(size, self.size) {
            self.zeroes(cut);
        }
        if size > self.base.size() {
            self.base.resize(size);
        }
        self.size = size;
        self.sizes.push(size);
    }

    /// Checks that a read that nothing ran beside may have returned `bytes` from `offset`.
    ///
    /// # Errors
    /// The first block that holds what no change has put there.
    pub fn check(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let ticket = self.start_read();
        self.end_read(ticket, offset, bytes)
    }

    /// Notes that a write was asked for.
    pub fn start_write(&mut self, offset: u64, bytes: &[u8]) -> Ticket {
        let range = ByteRange::new(offset, bytes.len() as u64).expect("a write lies on the disk");
        self.start_change(range, Some(Effect::Bytes { data: Arc::from(bytes), start: offset }))
    }

    /// Notes that `write_zeroes` was asked for.
    pub fn start_zeroes(&mut self, range: ByteRange) -> Ticket {
        self.start_change(range, Some(Effect::Zeroes))
    }

    /// Notes that a discard was asked for.
    pub fn start_discard(&mut self, range: ByteRange) -> Ticket {
        let effect = match self.discard {
            Discard::Ignored => None,
            Discard::Zeroes => Some(Effect::Zeroes),
            Discard::Unspecified => Some(Effect::MaybeZeroes),
        };
        self.start_change(range, effect)
    }

    /// Notes that a flush was asked for.
    pub fn start_flush(&mut self) -> Ticket {
        self.start(None)
    }

    /// Notes that a read, or a look at the status, was asked for.
    pub fn start_read(&mut self) -> Ticket {
        self.start(None)
    }

    /// Notes how a change ended; `fua` makes one that succeeded durable.
    pub fn end_change(&mut self, ticket: Ticket, ended: Ended, fua: bool) {
        let now = self.end();
        if let Some(id) = ticket.record {
            let index = self.records.iter().position(|record| record.id == id).expect("a change ends once");
            let record = &mut self.records[index];
            record.finished = Some(now);
            record.certain = ended == Ended::Done && !matches!(record.effect, Effect::MaybeZeroes);
            record.durable = record.certain && fua;
            if ended == Ended::Refused {
                self.records.remove(index);
            }
        }
        self.settle();
    }

    /// Notes how a flush ended. A flush that failed promises nothing.
    pub fn end_flush(&mut self, ticket: Ticket, done: bool) {
        self.end();
        if done {
            for record in &mut self.records {
                record.durable |= record.certain && record.finished.is_some_and(|end| end < ticket.started);
            }
            self.sizes = vec![self.size];
        }
        self.settle();
    }

    /// Notes that a read ended, and checks that it may have returned `bytes` from `offset`.
    ///
    /// # Errors
    /// The first block that holds what no change has put there.
    pub fn end_read(&mut self, ticket: Ticket, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let now = self.end();
        let result = self.check_read(offset, bytes, ticket.started, now);
        self.settle();
        result
    }

    /// Notes that a read failed, so that nothing is known of it.
    pub fn end_failed_read(&mut self, ticket: Ticket) {
        let Ticket { .. } = ticket;
        self.end();
        self.settle();
    }

    /// Notes that a look at the status ended, and checks that each of `holes`, which the device said read as zeroes,
    /// may have done so at some time since the look began.
    ///
    /// # Errors
    /// The first block that cannot have held zeroes.
    pub fn end_status(&mut self, ticket: Ticket, holes: &[ByteRange]) -> Result<(), Mismatch> {
        let now = self.end();
        let zeroes = vec![0; 1 << 20];
        let pieces = holes.iter().flat_map(|hole| hole.split_by(1 << 20));
        let result = pieces.into_iter().try_for_each(|piece| {
            self.check_content(piece.start(), &zeroes[..piece.len() as usize], ticket.started, now)
        });
        self.settle();
        result.map_err(Mismatch::of_status)
    }

    fn start(&mut self, record: Option<u64>) -> Ticket {
        self.in_flight += 1;
        Ticket { record, started: self.tick() }
    }

    fn start_change(&mut self, range: ByteRange, effect: Option<Effect>) -> Ticket {
        assert!(range.end() <= self.size, "a change lies on the disk: {range} of {:#x} bytes", self.size);
        let Some(effect) = effect.filter(|_| !range.is_empty()) else { return self.start(None) };
        let id = self.next_id;
        self.next_id += 1;
        let ticket = self.start(Some(id));
        let started = ticket.started;
        let record = Record { id, range, effect, started, finished: None, certain: false, durable: false };
        self.records.push(record);
        ticket
    }

    fn end(&mut self) -> u64 {
        self.in_flight -= 1;
        self.tick()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests;
