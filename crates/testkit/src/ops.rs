//! Random requests, biased towards where software breaks, and running them against the model.

use std::cell::{Cell, RefCell};

use block::{BlockError, ByteRange, DevInfo, Disk, ErrorKind, SgList, WriteFlags, ZeroFlags};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};

use crate::model::Ended;
use crate::status::{check_extents, holes};
use crate::{LocalTasks, Mismatch, Model, Rng};

/// A request with all that it needs, so that a list of them is a reproducible test case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A read, whose result is compared with the model.
    Read(ByteRange),
    /// A write of [`pattern`].
    Write {
        /// Where.
        range: ByteRange,
        /// What; 0 gives zeroes.
        stamp: u64,
        /// Durable at completion.
        fua: bool,
    },
    /// `write_zeroes`
    WriteZeroes {
        /// Where.
        range: ByteRange,
        /// How.
        flags: ZeroFlags,
    },
    /// `discard`
    Discard(ByteRange),
    /// `flush`
    Flush,
    /// `block_status`, whose result is compared with the model.
    Status(ByteRange),
}

/// The bytes that a write with `stamp` puts at `range`: each eight of them say which write they are of and where they
/// belong, so that stale and misplaced data are told apart from good.
pub fn pattern(stamp: u64, range: ByteRange) -> Vec<u8> {
    let len = range.len() as usize;
    if stamp == 0 {
        return vec![0; len];
    }
    // Whole words around the range, cut to it at the end.
    let skip = (range.start() % WORD_BYTES) as usize;
    let mut bytes = vec![0; (skip + len).next_multiple_of(WORD_BYTES as usize)];
    let mut word =
        Rng::new(stamp).next_u64().wrapping_add((range.start() / WORD_BYTES).wrapping_mul(WORD_STEP));
    for place in bytes.chunks_exact_mut(WORD_BYTES as usize) {
        place.copy_from_slice(&(word | 1).to_le_bytes());
        word = word.wrapping_add(WORD_STEP);
    }
    bytes.truncate(skip + len);
    bytes.drain(..skip);
    bytes
}

const WORD_BYTES: u64 = 8;
/// What two words beside each other differ by; odd, so that no two words of a disk are the same by it alone.
const WORD_STEP: u64 = 0x2545_f491_4f6c_dd1d;

/// What random requests look like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Unit of all offsets and lengths.
    pub block_bytes: u64,
    /// Distances in bytes whose multiples are worth hitting and crossing: sectors, clusters, chunks.
    pub borders: Vec<u64>,
    /// Longest request in bytes.
    pub len_max: u64,
    /// Of how many places requests choose half of the time, so that they meet; the rest goes anywhere.
    pub hot_places: u64,
}

impl Shape {
    /// The shape for `disk`, with borders at 4 KiB and 64 KiB and requests of up to 256 KiB; change the fields as needed.
    pub fn of(disk: &Disk) -> Self {
        Self::new(disk.size(), disk.info())
    }

    /// The shape for a disk of `size` bytes that `info` describes.
    pub fn new(size: u64, info: &DevInfo) -> Self {
        let block_bytes = u64::from(info.block_bytes);
        Self { size, block_bytes, borders: vec![4096, 65536], len_max: 256 << 10, hot_places: 8 }
    }

    /// `count` requests that `seed` decides.
    pub fn ops(&self, seed: u64, count: usize) -> Vec<Op> {
        let mut rng = Rng::new(seed);
        (0..count).map(|_| self.op(rng.next_u64())).collect()
    }

    /// A strategy for lists of requests; they shrink by leaving requests out.
    pub fn strategy(&self, count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Op>> + use<> {
        let shape = self.clone();
        vec(any::<u64>(), count).prop_map(move |seeds| seeds.into_iter().map(|seed| shape.op(seed)).collect())
    }

    /// The request that `seed` decides.
    pub fn op(&self, seed: u64) -> Op {
        let mut rng = Rng::new(seed);
        let range = self.pick_range(&mut rng);
        match rng.below(100) {
            0..30 => Op::Read(range),
            30..62 => {
                let stamp = if rng.one_in(16) { 0 } else { rng.next_u64() };
                Op::Write { range, stamp, fua: rng.one_in(16) }
            }
            62..74 => {
                let flags =
                    ZeroFlags { fua: rng.one_in(16), may_unmap: !rng.one_in(3), fast_only: rng.one_in(4) };
                Op::WriteZeroes { range, flags }
            }
            74..84 => Op::Discard(range),
            84..92 => Op::Flush,
            _ => Op::Status(range),
        }
    }

    fn pick_range(&self, rng: &mut Rng) -> ByteRange {
        let start = self.pick_offset(rng);
        let len_max = self.len_max.min(self.size - start);
        let border = *rng.pick(&self.borders);
        let len = match rng.below(16) {
            0 => 0,
            1..5 => self.block_bytes,
            5..9 => (rng.below(8) + 1) * self.block_bytes,
            9..12 => border,
            12..14 => border + (rng.below(5) * self.block_bytes),
            _ => rng.below(len_max + 1),
        };
        let len = len.min(len_max) / self.block_bytes * self.block_bytes;
        ByteRange::new(start, len).expect("what is picked lies on the disk")
    }

    /// An offset at or near the start, the end, or a border.
    fn pick_offset(&self, rng: &mut Rng) -> u64 {
        let last = self.size.saturating_sub(self.block_bytes);
        let border = *rng.pick(&self.borders);
        let near = match rng.below(16) {
            0 => 0,
            1 => last,
            2..10 => {
                // Hot places spread over the disk, the same for every request.
                let place = rng.below(self.hot_places.max(1));
                (self.size / self.hot_places.max(1) * place) / border * border
            }
            10..14 => rng.below(self.size / border + 1) * border,
            _ => rng.below(self.size + 1),
        };
        let shift = rng.below(3) * self.block_bytes;
        let offset = if rng.one_in(2) { near.saturating_sub(shift) } else { near.saturating_add(shift) };
        offset.min(last) / self.block_bytes * self.block_bytes
    }
}

/// Runs requests on a disk and holds every answer against the model.
pub struct Runner<'a> {
    disk: &'a Disk,
    model: RefCell<&'a mut Model>,
    depth: usize,
    seed: u64,
    errors_allowed: bool,
    on_step: Box<dyn Fn(&Model) + 'a>,
}

/// Runs `ops` one after the other.
///
/// # Errors
/// The first answer that the contract does not allow, or a request that fails.
pub async fn run_ops(disk: &Disk, model: &mut Model, ops: &[Op]) -> Result<(), Mismatch> {
    Runner::new(disk, model).run(ops).await
}

impl<'a> Runner<'a> {
    /// Runs one request after the other and allows no errors.
    pub fn new(disk: &'a Disk, model: &'a mut Model) -> Self {
        let on_step = Box::new(|_: &Model| {});
        Self { disk, model: RefCell::new(model), depth: 1, seed: 0, errors_allowed: false, on_step }
    }

    /// Keeps up to `depth` requests in flight, polled in the order that `seed` decides.
    #[must_use]
    pub fn depth(self, depth: usize, seed: u64) -> Self {
        Self { depth, seed, ..self }
    }

    /// Lets requests fail, as under a [`crate::FaultDev`]; what they leave is then one or the other per block.
    #[must_use]
    pub fn allow_errors(self) -> Self {
        Self { errors_allowed: true, ..self }
    }

    /// Calls `on_step` with the model after each start and end of a request: where a crash test clones the model and
    /// notes its number in the log of a [`crate::CrashDev`].
    #[must_use]
    pub fn on_step(self, on_step: impl Fn(&Model) + 'a) -> Self {
        Self { on_step: Box::new(on_step), ..self }
    }

    /// Runs `ops`.
    ///
    /// # Errors
    /// The first answer that the contract does not allow, or a request that fails where that is not allowed.
    pub async fn run(&self, ops: &[Op]) -> Result<(), Mismatch> {
        let next = Cell::new(0);
        let mut tasks = LocalTasks::new(self.seed);
        for _ in 0..self.depth {
            tasks.spawn(async {
                while let Some(op) = ops.get(next.get()) {
                    let index = next.replace(next.get() + 1);
                    let done = self.run_one(op).await;
                    done.map_err(|mismatch| mismatch.doing(format!("request {index}, {op:x?}")))?;
                }
                Ok(())
            });
        }
        tasks.await.into_iter().collect()
    }

    async fn run_one(&self, op: &Op) -> Result<(), Mismatch> {
        match *op {
            Op::Read(range) => self.read(range).await,
            Op::Write { range, stamp, fua } => {
                let bytes = pattern(stamp, range);
                let ticket = self.step(|model| model.start_write(range.start(), &bytes));
                let done = self.disk.write(range.start(), SgList::copy_of(&bytes), WriteFlags { fua }).await;
                self.step(|model| model.end_change(ticket, ended(&done), fua));
                self.judge(done)
            }
            Op::WriteZeroes { range, flags } => {
                let ticket = self.step(|model| model.start_zeroes(range));
                let done = self.disk.write_zeroes(range, flags).await;
                let refused =
                    flags.fast_only && matches!(&done, Err(error) if error.kind() == ErrorKind::Unsupported);
                let ended = if refused { Ended::Refused } else { ended(&done) };
                self.step(|model| model.end_change(ticket, ended, flags.fua));
                if refused { Ok(()) } else { self.judge(done) }
            }
            Op::Discard(range) => {
                let ticket = self.step(|model| model.start_discard(range));
                let done = self.disk.discard(range).await;
                self.step(|model| model.end_change(ticket, ended(&done), false));
                self.judge(done)
            }
            Op::Flush => {
                let ticket = self.step(Model::start_flush);
                let done = self.disk.flush().await;
                self.step(|model| model.end_flush(ticket, done.is_ok()));
                self.judge(done)
            }
            Op::Status(range) => self.status(range).await,
        }
    }

    async fn read(&self, range: ByteRange) -> Result<(), Mismatch> {
        let ticket = self.step(Model::start_read);
        match self.disk.read_vec(range.start(), range.len() as usize).await {
            Ok(bytes) => self.step(|model| model.end_read(ticket, range.start(), &bytes)),
            Err(error) => {
                self.step(|model| model.end_failed_read(ticket));
                self.judge(Err(error))
            }
        }
    }

    async fn status(&self, range: ByteRange) -> Result<(), Mismatch> {
        let ticket = self.step(Model::start_read);
        let mut extents = Vec::new();
        if let Err(error) = self.disk.block_status(range, &mut extents).await {
            self.step(|model| model.end_failed_read(ticket));
            return self.judge(Err(error));
        }
        let checked = check_extents(range, &extents).map_err(Mismatch::new);
        self.step(|model| model.end_status(ticket, &holes(range, &extents))).and(checked)
    }

    fn step<T>(&self, with: impl FnOnce(&mut Model) -> T) -> T {
        let mut model = self.model.borrow_mut();
        let output = with(&mut model);
        (self.on_step)(&model);
        output
    }

    fn judge(&self, done: Result<(), BlockError>) -> Result<(), Mismatch> {
        match done {
            Err(error) if !self.errors_allowed => Err(Mismatch::new(error.chain())),
            _ => Ok(()),
        }
    }
}

fn ended(done: &Result<(), BlockError>) -> Ended {
    if done.is_ok() { Ended::Done } else { Ended::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_depends_on_the_place_and_not_on_how_it_is_cut() {
        let range = |start, len| ByteRange::new(start, len).unwrap();
        let whole = pattern(3, range(0, 100));
        for (start, len) in [(0, 8), (3, 4), (7, 50), (8, 1), (99, 1), (50, 0)] {
            assert_eq!(pattern(3, range(start, len)), whole[start as usize..(start + len) as usize]);
        }
        assert_ne!(pattern(4, range(0, 100)), whole);
        assert_ne!(whole[..48], whole[48..96]);
    }

    #[test]
    fn random_requests_are_aligned_lie_on_the_disk_and_meet_the_borders() {
        let info = DevInfo { block_bytes: 512, ..crate::MemDev::INFO };
        let shape = Shape { borders: vec![1 << 20], ..Shape::new(10 << 20, &info) };
        let (mut at_end, mut crossing, mut empty) = (0, 0, 0);
        for op in shape.ops(1, 2000) {
            let (Op::Read(range) | Op::Discard(range) | Op::Status(range)) = op else { continue };
            assert!(range.end() <= shape.size && (range.start() | range.len()).is_multiple_of(512));
            at_end += usize::from(range.end() == shape.size);
            empty += usize::from(range.is_empty());
            crossing += usize::from(range.split_by(1 << 20).count() > 1);
        }
        assert!(at_end > 20 && crossing > 20 && empty > 20, "{at_end} {crossing} {empty}");
    }
}
