//! Requests that land late, close beside requests, and requests that are given up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block::{ByteRange, Disk, Result, SgList, WriteFlags};
use futures_util::FutureExt as _;
use image::vhdx::{self, Access};
use testkit::{HeldDev, HoldAt, LocalTasks, MemDev, RequestKind, block_on, yield_now};

use crate::cases::{CASES, Case, Fixture, HOST};

const MIB: u64 = 1 << 20;
/// Where `create` puts the log, and behind which the blocks are.
const LOG: ByteRange = ByteRange::new(MIB, MIB).unwrap();
const HEADERS: ByteRange = ByteRange::new(64 << 10, 128 << 10).unwrap();
const BLOCKS: ByteRange = ByteRange::new(4 * MIB, 1 << 40).unwrap();

struct Bench {
    fixture: Fixture,
    host: Arc<MemDev>,
    held: Arc<HeldDev>,
    disk: Disk,
}

impl Bench {
    async fn new(case: Case) -> Self {
        let fixture = case.make();
        let host = Arc::new(MemDev::from_image(fixture.file.clone(), HOST));
        let held = Arc::new(HeldDev::new(Disk::from_arc(Arc::clone(&host))));
        let disk = fixture.open(Disk::from_arc(Arc::clone(&held))).await;
        Self { fixture, host, held, disk }
    }

    fn hold(&self, at: HoldAt, kind: RequestKind, range: ByteRange) {
        self.held.hold(at, move |request| request.kind == kind && request.range.overlaps(range));
    }

    fn block(&self, index: u64) -> ByteRange {
        let block = u64::from(self.fixture.case.block_bytes);
        ByteRange::new(index * block, block).unwrap()
    }

    /// Fills block `index` with `value`.
    async fn fill(&self, index: u64, value: u8) -> Result<()> {
        let range = self.block(index);
        self.disk.write_all(range.start(), &vec![value; range.len() as usize]).await
    }

    async fn content(&self, disk: &Disk, index: u64) -> Vec<u8> {
        disk.read_vec(self.block(index).start(), self.block(index).len() as usize).await.unwrap()
    }

    /// Trims block 0 and does all that could bring its space to other blocks, which get the value 3.
    async fn reuse_space_of_block_0(&self) {
        self.disk.discard(self.block(0)).await.unwrap();
        for index in 1..8 {
            self.disk.flush().await.unwrap();
            self.fill(index, 3).await.unwrap();
        }
        self.disk.flush().await.unwrap();
    }

    async fn assert_others_are_whole(&self, disk: &Disk) {
        for index in 1..8 {
            let content = self.content(disk, index).await;
            assert!(content.iter().all(|&byte| byte == 3), "{} block {index}", self.fixture.case.name);
        }
    }

    async fn reopened(&self) -> Disk {
        self.fixture.open(Disk::new(MemDev::from_image(self.host.image(), HOST))).await
    }
}

/// Runs tasks that wait for each other alone, and panics where they would wait for ever.
fn finish<T>(mut tasks: LocalTasks<'_, T>) -> Vec<T> {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..100_000 {
        if let Poll::Ready(outputs) = Pin::new(&mut tasks).poll(&mut context) {
            return outputs;
        }
    }
    panic!("the tasks wait for ever");
}

#[test]
fn a_late_read_returns_what_its_block_held_and_never_another_blocks_data() {
    for (case, at) in [(CASES[0], HoldAt::Start), (CASES[3], HoldAt::Start), (CASES[0], HoldAt::Completion)] {
        let bench = block_on(Bench::new(case));
        block_on(bench.fill(0, 1)).unwrap();
        block_on(bench.disk.flush()).unwrap();
        bench.hold(at, RequestKind::Read, BLOCKS);
        let mut tasks = LocalTasks::new(0);
        tasks.spawn(async {
            let content = bench.content(&bench.disk, 0).await;
            assert!(content.iter().all(|&byte| byte <= 1), "{}: another block's data", case.name);
        });
        tasks.spawn(async {
            bench.held.wait_for(1).await;
            bench.held.hold_no_more();
            bench.reuse_space_of_block_0().await;
            bench.held.release_all();
        });
        finish(tasks);
        block_on(bench.assert_others_are_whole(&bench.disk));
    }
}

#[test]
fn a_late_write_never_lands_in_another_block() {
    for case in [CASES[0], CASES[3]] {
        let bench = block_on(Bench::new(case));
        block_on(bench.fill(0, 1)).unwrap();
        block_on(bench.disk.flush()).unwrap();
        bench.hold(HoldAt::Start, RequestKind::Write, BLOCKS);
        let mut tasks = LocalTasks::new(0);
        tasks.spawn(async { bench.fill(0, 2).await.unwrap() });
        tasks.spawn(async {
            bench.held.wait_for(1).await;
            bench.held.hold_no_more();
            bench.reuse_space_of_block_0().await;
            bench.held.release_all();
        });
        finish(tasks);
        block_on(async {
            bench.assert_others_are_whole(&bench.disk).await;
            let first = bench.content(&bench.disk, 0).await;
            assert!(first.iter().all(|byte| [0, 2].contains(byte)));
            bench.disk.close().await.unwrap();
            bench.assert_others_are_whole(&bench.reopened().await).await;
        });
    }
}

#[test]
fn a_write_that_was_given_up_never_lands_in_another_block() {
    for case in [CASES[0], CASES[3]] {
        block_on(async {
            let bench = Bench::new(case).await;
            bench.fill(0, 1).await.unwrap();
            bench.disk.flush().await.unwrap();
            bench.hold(HoldAt::Start, RequestKind::Write, BLOCKS);
            let memory = SgList::copy_of(&vec![2; bench.block(0).len() as usize]);
            let mut write = Box::pin(bench.disk.write(0, memory, WriteFlags::default()));
            assert!((&mut write).now_or_never().is_none());
            let place = bench.held.held()[0].request.range;
            bench.held.hold_no_more();
            drop(write);
            bench.reuse_space_of_block_0().await;
            // The kernel does not stop because nobody waits: this is when it carries the write out.
            let host = Disk::from_arc(Arc::clone(&bench.host));
            host.write_all(place.start(), &vec![2; place.len() as usize]).await.unwrap();
            bench.assert_others_are_whole(&bench.disk).await;
            bench.disk.close().await.unwrap();
            bench.assert_others_are_whole(&bench.reopened().await).await;
        });
    }
}

#[test]
fn a_flush_after_one_that_was_given_up_fails_or_makes_everything_durable() {
    block_on(async {
        let bench = Bench::new(CASES[0]).await;
        bench.fill(0, 1).await.unwrap();
        bench.disk.flush().await.unwrap();
        bench.fill(1, 3).await.unwrap();
        bench.held.hold(HoldAt::Start, |request| request.kind == RequestKind::Flush);
        let mut flush = Box::pin(bench.disk.flush());
        assert!((&mut flush).now_or_never().is_none(), "the flush waits for the host");
        drop(flush);
        bench.held.hold_no_more();
        if bench.disk.flush().await.is_ok() {
            let content = bench.content(&bench.reopened().await, 1).await;
            assert!(content.iter().all(|&byte| byte == 3), "a flush told of data that a crash loses");
        }
        assert!(bench.content(&bench.disk, 1).await.iter().all(|&byte| byte == 3), "reads go on");
        assert!(bench.content(&bench.reopened().await, 0).await.iter().all(|&byte| byte == 1));
    });
}

#[test]
fn a_page_that_is_read_slowly_does_not_undo_what_was_changed_meanwhile() {
    // One block in each page of the table, more pages than stay in memory.
    let case = Case {
        name: "wide",
        virtual_size: 9000 << 29,
        block_bytes: 1 << 20,
        sector_bytes: 512,
        child: false,
    };
    let bench = block_on(Bench::new(case));
    let sector = SgList::copy_of(&[7; 512]);
    let table = block_on(async {
        let file = Disk::new(MemDev::from_image(bench.host.image(), HOST));
        vhdx::open(file, Access::ReadOnly).await.unwrap().regions.bat.range()
    });
    bench.hold(HoldAt::Completion, RequestKind::Read, ByteRange::new(table.start(), 4096).unwrap());
    let mut tasks = LocalTasks::new(0);
    tasks.spawn(async { drop(bench.disk.read_vec(0, 512).await.unwrap()) });
    tasks.spawn(async {
        bench.held.wait_for(1).await;
        bench.held.hold_no_more();
        for start in [MIB, 700 * MIB] {
            bench.disk.write(start, sector.clone(), WriteFlags::default()).await.unwrap();
            bench.disk.flush().await.unwrap();
        }
        for page in 1..9000 {
            bench.disk.read_vec(page << 29, 512).await.unwrap();
        }
        bench.held.release_all();
    });
    finish(tasks);
    assert_eq!(block_on(bench.disk.read_vec(MIB, 512)).unwrap(), [7; 512]);
}

#[test]
fn two_closes_beside_a_request_both_end() {
    let bench = block_on(Bench::new(CASES[0]));
    bench.hold(HoldAt::Start, RequestKind::Write, BLOCKS);
    let mut tasks = LocalTasks::new(0);
    tasks.spawn(async { bench.fill(0, 3).await });
    for _ in 0..2 {
        tasks.spawn(async {
            bench.held.wait_for(1).await;
            bench.disk.close().await
        });
    }
    tasks.spawn(async {
        bench.held.wait_for(1).await;
        for _ in 0..20 {
            yield_now().await;
        }
        bench.held.hold_no_more();
        bench.held.release_all();
        Ok(())
    });
    let results = finish(tasks);
    results[0].as_ref().expect("the write was there before the closes");
    assert!(results[1].is_ok() || results[2].is_ok());
    let content = block_on(async { bench.content(&bench.reopened().await, 0).await });
    assert!(content.iter().all(|&byte| byte == 3));
}

#[test]
fn close_waits_for_a_write_that_begins_the_session() {
    let bench = block_on(Bench::new(CASES[0]));
    bench.hold(HoldAt::Start, RequestKind::Write, LOG);
    let mut tasks = LocalTasks::new(0);
    tasks.spawn(async { bench.fill(0, 3).await });
    tasks.spawn(async {
        bench.held.wait_for(1).await;
        bench.disk.close().await
    });
    tasks.spawn(async {
        bench.held.wait_for(1).await;
        for _ in 0..20 {
            yield_now().await;
        }
        bench.held.hold_no_more();
        bench.held.release_all();
        Ok(())
    });
    for result in finish(tasks) {
        result.unwrap();
    }
    block_on(async {
        assert!(bench.content(&bench.reopened().await, 0).await.iter().all(|&byte| byte == 3));
        let file = Disk::new(MemDev::from_image(bench.host.image(), HOST));
        assert!(!vhdx::open(file, Access::ReadOnly).await.unwrap().was_dirty);
    });
}

#[test]
fn what_succeeds_beside_a_close_is_in_the_closed_file() {
    let bench = block_on(Bench::new(CASES[0]));
    block_on(bench.fill(0, 1)).unwrap();
    bench.hold(HoldAt::Start, RequestKind::Write, HEADERS);
    let mut tasks = LocalTasks::new(0);
    tasks.spawn(async { bench.disk.close().await });
    tasks.spawn(async {
        bench.held.wait_for(1).await;
        let written = bench.fill(1, 3).await;
        bench.held.hold_no_more();
        bench.held.release_all();
        written
    });
    let results = finish(tasks);
    results[0].as_ref().unwrap();
    let content = block_on(async { bench.content(&bench.reopened().await, 1).await });
    let expected = if results[1].is_ok() { 3 } else { 0 };
    assert!(content.iter().all(|&byte| byte == expected), "a write succeeded and is lost");
}
