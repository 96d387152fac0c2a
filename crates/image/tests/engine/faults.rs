//! A host that fails: what was flushed stays, what failed is told, and nothing that is uncertain is called done.

use std::sync::Arc;

use block::{ByteRange, Disk, ErrorKind};
use testkit::{Fault, FaultDev, Leaves, MemDev, RequestKind, SparseBytes, block_on, conformance, pattern};

use crate::cases::{CASES, Case, Fixture, HOST};

const MIB: u64 = 1 << 20;
/// Where `create` puts things: headers and region tables, log, metadata and table, and behind them the blocks.
const HEADERS: ByteRange = ByteRange::new(64 << 10, 128 << 10).unwrap();
const LOG: ByteRange = ByteRange::new(MIB, MIB).unwrap();
const TABLE: ByteRange = ByteRange::new(2 * MIB, 2 * MIB).unwrap();
const BLOCKS: ByteRange = ByteRange::new(4 * MIB, 1 << 40).unwrap();

/// Cases whose table is at [`TABLE`].
const SMALL: [Case; 2] = [CASES[0], CASES[3]];

struct Bench {
    fixture: Fixture,
    host: Arc<MemDev>,
    faults: Arc<FaultDev>,
    disk: Disk,
}

impl Bench {
    async fn new(case: Case) -> Self {
        let fixture = case.make();
        let host = Arc::new(MemDev::from_image(fixture.file.clone(), HOST));
        let faults = Arc::new(FaultDev::new(Disk::from_arc(Arc::clone(&host))));
        let disk = fixture.open(Disk::from_arc(Arc::clone(&faults))).await;
        Self { fixture, host, faults, disk }
    }

    /// A few sectors in block `index`.
    fn range(&self, index: u64) -> ByteRange {
        ByteRange::new(index * u64::from(self.fixture.case.block_bytes) + 4096, 4096).unwrap()
    }

    async fn write(&self, index: u64, stamp: u64) -> block::Result<()> {
        let range = self.range(index);
        self.disk.write_all(range.start(), &pattern(stamp, range)).await
    }

    async fn write_and_flush(&self, index: u64, stamp: u64) {
        self.write(index, stamp).await.unwrap();
        self.disk.flush().await.unwrap();
    }

    /// Whether `disk` has in block `index` what was written with `stamp`, and around it what was there before.
    async fn holds(&self, disk: &Disk, index: u64, stamp: u64) -> bool {
        let block = u64::from(self.fixture.case.block_bytes);
        let mut expected = vec![0; block as usize];
        self.fixture.content().read(index * block, &mut expected);
        expected[4096..8192].copy_from_slice(&pattern(stamp, self.range(index)));
        disk.read_vec(index * block, block as usize).await.unwrap() == expected
    }

    /// Changes are refused and reads go on.
    async fn assert_poisoned(&self) {
        let kinds =
            [self.write(0, 9).await, self.disk.flush().await].map(|result| result.unwrap_err().kind());
        assert_eq!(kinds, [ErrorKind::Poisoned; 2]);
        self.disk.read_vec(0, 4 << 20).await.unwrap();
    }

    /// What the host has, opened again as after a crash of the process.
    async fn reopened(&self) -> Disk {
        self.fixture.open(Disk::new(MemDev::from_image(self.image(), HOST))).await
    }

    fn image(&self) -> SparseBytes {
        self.host.image()
    }
}

#[test]
fn a_flush_that_failed_is_never_followed_by_one_that_succeeds() {
    for case in CASES.into_iter().filter(|case| case.virtual_size < 1 << 30) {
        block_on(conformance::check_failed_flush(async || {
            let fixture = case.make().over_empty_parent();
            let file = Disk::new(MemDev::from_image(fixture.file.clone(), HOST));
            let faults = Arc::new(FaultDev::new(file));
            (fixture.open(Disk::from_arc(Arc::clone(&faults))).await, faults)
        }));
    }
}

#[test]
fn metadata_that_cannot_be_written_ends_all_changes_and_loses_nothing_that_was_flushed() {
    for (case, place) in SMALL.into_iter().flat_map(|case| [(case, LOG), (case, TABLE)]) {
        for leaves in [Leaves::Nothing, Leaves::Half, Leaves::All] {
            block_on(async {
                let bench = Bench::new(case).await;
                bench.write_and_flush(1, 1).await;
                let fault = Fault::on(RequestKind::Write).overlapping(place);
                bench.faults.add(fault.error(ErrorKind::Io).leaves(leaves));
                // The log is written before the request is answered, the table with the flush after the next.
                let mut failed = bench.write(2, 2).await;
                for _ in 0..2 {
                    failed = failed.and(bench.disk.flush().await);
                }
                assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io, "{place}");
                bench.assert_poisoned().await;
                assert!(bench.holds(&bench.disk, 2, 2).await, "reads go on");
                let disk = bench.reopened().await;
                assert!(bench.holds(&disk, 1, 1).await, "{} {place} {leaves:?}", case.name);
                let _ = bench.disk.close().await;
                assert!(bench.holds(&bench.reopened().await, 1, 1).await, "a close does no harm either");
            });
        }
    }
}

#[test]
fn a_session_that_cannot_begin_leaves_the_file_as_it_was() {
    // The empty entry and the two headers are each written and flushed.
    for case in SMALL {
        for (kind, nth) in (1..=3).flat_map(|nth| [(RequestKind::Write, nth), (RequestKind::Flush, nth)]) {
            block_on(async {
                let bench = Bench::new(case).await;
                bench.faults.add(Fault::on(kind).nth(nth).error(ErrorKind::Io).leaves(Leaves::Half));
                bench.write(1, 1).await.unwrap_err();
                bench.assert_poisoned().await;
                let mut expected = vec![0; 8 << 20];
                bench.fixture.content().read(0, &mut expected);
                let disk = bench.reopened().await;
                assert_eq!(disk.read_vec(0, 8 << 20).await.unwrap(), expected, "{kind:?} {nth}");
            });
        }
    }
}

#[test]
fn a_header_that_cannot_be_written_at_close_leaves_a_file_that_replays() {
    for nth in 1..=2 {
        block_on(async {
            let bench = Bench::new(CASES[3]).await;
            bench.write_and_flush(1, 1).await;
            let fault = Fault::on(RequestKind::Write).overlapping(HEADERS).nth(nth).leaves(Leaves::Half);
            bench.faults.add(fault.error(ErrorKind::Io));
            bench.disk.close().await.unwrap_err();
            assert!(bench.holds(&bench.reopened().await, 1, 1).await);
        });
    }
}

#[test]
fn a_host_without_room_fails_the_write_and_takes_it_once_there_is_room() {
    for case in SMALL {
        block_on(async {
            let bench = Bench::new(case).await;
            bench.faults.limit_growth(4 * u64::from(case.block_bytes));
            bench.write_and_flush(1, 1).await;
            let mut refused = None;
            for index in 2..20 {
                if let Err(error) = bench.write(index, index).await {
                    refused = Some((index, error.kind()));
                    break;
                }
            }
            let (index, kind) = refused.expect("the file cannot take all blocks");
            assert_eq!(kind, ErrorKind::NoSpace);
            // The disk goes on with what it has.
            bench.write_and_flush(1, 100).await;
            let all = ByteRange::new(0, u64::from(case.block_bytes)).unwrap();
            bench.disk.discard(all).await.unwrap();
            bench.disk.flush().await.unwrap();
            assert!(bench.holds(&bench.reopened().await, 1, 100).await);
            bench.faults.clear();
            bench.write_and_flush(index, 101).await;
            let disk = bench.reopened().await;
            for (index, stamp) in [(1, 100), (index, 101)] {
                assert!(bench.holds(&disk, index, stamp).await, "{} block {index}", case.name);
            }
            bench.disk.close().await.unwrap();
            assert!(bench.holds(&bench.reopened().await, index, 101).await);
        });
    }
}

#[test]
fn a_write_that_fails_is_that_requests_error_alone() {
    for case in SMALL {
        for leaves in [Leaves::Nothing, Leaves::Half, Leaves::All] {
            block_on(async {
                let bench = Bench::new(case).await;
                bench.write_and_flush(1, 1).await;
                let fault = Fault::on(RequestKind::Write).overlapping(BLOCKS).error(ErrorKind::Io);
                bench.faults.add(fault.leaves(leaves));
                bench.write(2, 2).await.unwrap_err();
                bench.write_and_flush(3, 3).await;
                // The block that was allocated for it, or its space, must not show what the failed write left.
                let elsewhere = bench.range(2).end();
                let rest = bench.disk.read_vec(elsewhere, 4096).await.unwrap();
                let mut before = vec![0; 4096];
                bench.fixture.content().read(elsewhere, &mut before);
                assert_eq!(rest, before);
                for index in 4..8 {
                    bench.write_and_flush(index, index).await;
                    assert!(bench.holds(&bench.disk, index, index).await, "{} {leaves:?}", case.name);
                }
                bench.write_and_flush(2, 20).await;
                let disk = bench.reopened().await;
                for (index, stamp) in [(1, 1), (2, 20), (3, 3), (7, 7)] {
                    assert!(bench.holds(&disk, index, stamp).await, "{} {leaves:?} {index}", case.name);
                }
            });
        }
    }
}
