//! The model against itself, against sound devices, and against broken ones.

use std::sync::Arc;

use block::{
    BlockDev, ByteRange, DevInfo, Discard, Disk, ErrorKind, Extent, Result, SgList, WriteFlags, ZeroFlags,
};
use proptest::prelude::*;

use super::*;
use crate::{
    CrashDev, CrashRun, Fault, FaultDev, MemDev, RequestKind, Runner, Shape, Survival, block_on, run_ops,
};

const SIZE: u64 = 1 << 20;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

fn info(block_bytes: u32, discard: Discard) -> DevInfo {
    DevInfo { block_bytes, discard, ..MemDev::INFO }
}

fn shape(size: u64, info: &DevInfo) -> Shape {
    Shape { len_max: 40000, ..Shape::new(size, info) }
}

#[test]
fn a_read_of_what_nobody_wrote_is_a_mismatch() {
    let mut model = Model::new(SIZE, &MemDev::INFO);
    model.check(0, &[0; 1024]).unwrap();
    model.write(512, &[1; 512]);
    model.check(512, &[1; 512]).unwrap();
    for stale in [[0; 512], [2; 512]] {
        let mismatch = model.check(512, &stale).unwrap_err().to_string();
        assert!(mismatch.contains("write 0x200..0x400 (completed)"), "{mismatch}");
    }
    model.zeroes(range(512, 512));
    assert!(model.check(512, &[1; 512]).is_err());
}

#[test]
fn overlapping_writes_in_flight_end_as_one_or_the_other_per_block() {
    let mut model = Model::new(SIZE, &MemDev::INFO);
    let one = model.start_write(0, &[1; 1024]);
    let two = model.start_write(512, &[2; 1024]);
    model.check(0, &[0; 1536]).unwrap();
    model.end_change(two, Ended::Done, false);
    assert!(model.check(1024, &[0; 512]).is_err(), "this block was overlapped by no other write");
    assert!(model.check(512, &[0; 512]).is_err(), "the second write has replaced what was there");
    model.end_change(one, Ended::Done, false);
    assert!(model.clone().check(512, &[1; 512]).is_ok());
    model.check(0, &[[1; 512], [2; 512], [2; 512]].concat()).unwrap();
    assert!(model.check(512, &[1; 512]).is_err(), "once seen, a block does not change by itself");
    let mixed = [[1; 256], [2; 256]].concat();
    assert!(model.check(512, &mixed).is_err(), "a block is one or the other");
}

#[test]
fn a_failed_write_leaves_each_block_old_or_new_until_it_is_seen_or_written() {
    let mut model = Model::new(SIZE, &MemDev::INFO);
    model.write(0, &[1; 1024]);
    let failed = model.start_write(0, &[2; 1024]);
    model.end_change(failed, Ended::Failed, false);
    model.check(0, &[[2; 512], [1; 512]].concat()).unwrap();
    assert!(model.check(0, &[1; 512]).is_err());
    let refused = model.start_write(0, &[3; 512]);
    model.end_change(refused, Ended::Refused, false);
    assert!(model.check(0, &[3; 512]).is_err());
}

#[test]
fn a_discard_follows_the_devices_promise() {
    let old_or = |discard| {
        let mut model = Model::new(SIZE, &info(512, discard));
        model.write(0, &[7; 512]);
        model.discard(range(0, 512));
        [[7; 512].to_vec(), vec![0; 512], [[7; 100].to_vec(), vec![0; 412]].concat(), vec![9; 512]]
            .map(|bytes| model.clone().check(0, &bytes).is_ok())
    };
    assert_eq!(old_or(Discard::Ignored), [true, false, false, false]);
    assert_eq!(old_or(Discard::Zeroes), [false, true, false, false]);
    assert_eq!(old_or(Discard::Unspecified), [true, true, true, false]);
    let mut model = Model::new(SIZE, &info(512, Discard::Unspecified));
    model.write(0, &[7; 512]);
    model.discard(range(0, 512));
    model.check(0, &[0; 512]).unwrap();
    assert!(model.check(0, &[7; 512]).is_err(), "what a discard left stays");
}

#[test]
fn a_crash_may_leave_what_was_flushed_or_anything_since() {
    let after = |model: &Model, value: u8| model.check_crashed(0, &[value; 512]).is_ok();
    let mut model = Model::new(SIZE, &MemDev::INFO);
    model.write(0, &[1; 512]);
    assert!(after(&model, 0) && after(&model, 1));
    model.flush();
    assert!(!after(&model, 0) && after(&model, 1), "what was flushed is there");
    model.write(0, &[2; 512]);
    let flush = model.start_flush();
    model.write(0, &[3; 512]);
    let in_flight = model.start_write(0, &[4; 512]);
    assert_eq!([1, 2, 3, 4, 5].map(|value| after(&model, value)), [true, true, true, true, false]);
    model.end_flush(flush, true);
    assert_eq!([1, 2, 3, 4, 5].map(|value| after(&model, value)), [false, true, true, true, false]);
    model.end_change(in_flight, Ended::Done, true);
    assert_eq!([1, 2, 3, 4, 5].map(|value| after(&model, value)), [false, false, false, true, false]);
}

#[test]
fn a_failed_flush_promises_nothing() {
    let mut model = Model::new(SIZE, &MemDev::INFO);
    model.write(0, &[1; 512]);
    let flush = model.start_flush();
    model.end_flush(flush, false);
    model.check_crashed(0, &[0; 512]).unwrap();
}

#[test]
fn status_may_call_a_hole_only_what_reads_as_zeroes() {
    let mut model = Model::new(SIZE, &MemDev::INFO);
    model.write(512, &[1; 512]);
    let look = model.start_read();
    model.end_status(look, &[range(0, 512), range(1024, SIZE - 1024)]).unwrap();
    let look = model.start_read();
    assert!(model.end_status(look, &[range(0, 1024)]).is_err());
}

#[test]
fn what_is_durable_and_settled_takes_no_records() {
    let info = info(512, Discard::Unspecified);
    block_on(async {
        let disk = Disk::new(MemDev::with_info(SIZE, info));
        let mut model = Model::new(SIZE, &info);
        for seed in 0..20 {
            run_ops(&disk, &mut model, &shape(SIZE, &info).ops(seed, 200)).await.unwrap();
            model.check_disk(&disk).await.unwrap();
            model.flush();
            let left = model.records.iter().filter(|record| record.certain).count();
            assert_eq!(left, 0);
        }
    });
}

#[test]
fn a_resized_disk_is_found_in_any_size_since_the_last_flush() {
    block_on(async {
        let crash = Arc::new(CrashDev::new(8192));
        let disk = Disk::from_arc(crash.clone());
        let mut model = Model::new(8192, &MemDev::INFO);
        for size in [8192, 4096, 12288] {
            disk.resize(size).await.unwrap();
            model.resize(size);
            disk.write_all(size - 512, &[size as u8 | 1; 512]).await.unwrap();
            model.write(size - 512, &[size as u8 | 1; 512]);
            model.check_disk(&disk).await.unwrap();
        }
        for seed in 0..200 {
            let found = Disk::new(crash.crash(Survival::Torn { seed, unit_bytes: 512 }));
            model.check_after_crash(&found).await.unwrap();
        }
        model.flush();
        let found = Disk::new(crash.crash(Survival::Nothing));
        assert!(model.check_after_crash(&found).await.is_err());
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_ram_disk_agrees_with_the_model(
        ops in shape(SIZE, &MemDev::INFO).strategy(1..200),
        discard in prop_oneof![Just(Discard::Ignored), Just(Discard::Unspecified), Just(Discard::Zeroes)],
    ) {
        let info = info(512, discard);
        let disk = Disk::new(MemDev::with_info(SIZE, info));
        let mut model = Model::new(SIZE, &info);
        block_on(async {
            run_ops(&disk, &mut model, &ops).await?;
            model.check_disk(&disk).await
        }).map_err(|mismatch| TestCaseError::fail(mismatch.to_string()))?;
    }
}

/// Runs requests several at a time on what `disk_of` puts on a slow disk, then looks at every cut, and returns the
/// first mismatch.
fn crash_matrix(
    info: DevInfo,
    seed: u64,
    disk_of: impl Fn(Arc<CrashDev>) -> Disk,
) -> std::result::Result<usize, String> {
    let size = 256 << 10;
    let crash = Arc::new(CrashDev::slow(SparseBytes::new(size), info, seed));
    let disk = disk_of(crash.clone());
    let ops = Shape { hot_places: 3, len_max: 20000, ..Shape::new(size, &info) }.ops(seed, 60);
    block_on(async {
        let run = CrashRun::record(&crash, &disk, Model::new(size, &info), &ops, 6, seed).await;
        run.map_err(|mismatch| mismatch.to_string())?.check_every_cut(async |disk| Ok(disk)).await
    })
}

#[test]
fn every_cut_of_concurrent_requests_leaves_what_the_model_allows() {
    for seed in 0..4 {
        for discard in [Discard::Ignored, Discard::Unspecified, Discard::Zeroes] {
            for native_fua in [false, true] {
                let info = DevInfo { native_fua, ..info(if seed % 2 == 0 { 512 } else { 1 }, discard) };
                let looked_at = crash_matrix(info, seed, Disk::from_arc)
                    .unwrap_or_else(|mismatch| panic!("seed {seed}: {mismatch}"));
                assert!(looked_at > 500);
            }
        }
    }
}

/// A layer with one fault of the kinds that the model is there to find.
struct Broken {
    inner: Disk,
    bug: Bug,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// A flush is acknowledged and not done.
    LosesFlush,
    /// Writes that cross 64 KiB lose what lies beyond.
    TruncatesAtBorder,
    /// A write of part of a 4 KiB page puts back the rest of the page as it was before: not atomic.
    RacesReadModifyWrite,
}

impl BlockDev for Broken {
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
        let whole = range(offset, from.len());
        match self.bug {
            Bug::LosesFlush => self.inner.write(offset, from, flags).await,
            Bug::TruncatesAtBorder => {
                let first = whole.split_by(65536).next().map_or(0, ByteRange::len);
                self.inner.write(offset, from.slice(0, first), flags).await
            }
            Bug::RacesReadModifyWrite => {
                let start = offset / 4096 * 4096;
                let end = whole.end().next_multiple_of(4096).min(self.size());
                let page = SgList::unspecified((end - start) as usize);
                self.inner.read(start, page.clone()).await?;
                crate::yield_now().await;
                page.copy_from_slice(offset - start, &from.to_vec());
                self.inner.write(start, page, flags).await
            }
        }
    }
    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        self.inner.write_zeroes(range, flags).await
    }
    async fn discard(&self, range: ByteRange) -> Result<()> {
        self.inner.discard(range).await
    }
    async fn flush(&self) -> Result<()> {
        if self.bug == Bug::LosesFlush { Ok(()) } else { self.inner.flush().await }
    }
    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        self.inner.block_status(range, out).await
    }
    async fn resize(&self, size: u64) -> Result<()> {
        self.inner.resize(size).await
    }
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[test]
fn broken_layers_are_caught() {
    for bug in [Bug::LosesFlush, Bug::TruncatesAtBorder, Bug::RacesReadModifyWrite] {
        let disk_of = |crash| Disk::new(Broken { inner: Disk::from_arc(crash), bug });
        let caught = (0..8).filter(|&seed| crash_matrix(MemDev::INFO, seed, disk_of).is_err()).count();
        assert!(caught >= 2, "{bug:?} was caught in {caught} of 8 runs");
    }
}

#[test]
fn requests_that_fail_leave_old_or_new_and_nothing_else() {
    block_on(async {
        for seed in 0..20 {
            let fault = Arc::new(FaultDev::new(Disk::new(MemDev::new(SIZE))));
            for kind in
                [RequestKind::Write, RequestKind::WriteZeroes, RequestKind::Discard, RequestKind::Flush]
            {
                for nth in [2, 9, 20] {
                    let leaves =
                        [crate::Leaves::Nothing, crate::Leaves::Half, crate::Leaves::All][nth as usize % 3];
                    fault.add(Fault::on(kind).nth(nth).error(ErrorKind::Io).leaves(leaves));
                }
            }
            let disk = Disk::from_arc(fault.clone());
            let mut model = Model::new(SIZE, &MemDev::INFO);
            let ops = shape(SIZE, &MemDev::INFO).ops(seed, 200);
            Runner::new(&disk, &mut model).allow_errors().run(&ops).await.unwrap();
            model.check_disk(&disk).await.unwrap();
            assert!(fault.failures() > 5);
        }
    });
}
