//! Power cuts and kills: at every write, flush and torn sector of random workloads, the file opens again and holds everything
//! that was flushed, or answered where only the process died; nothing that was never there; and identifiers that kept
//! their rules.
//!
//! `GODWIT_CRASH_SECONDS` is the time that the search may take, 10 unless it is set; the first workloads run in any
//! case.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{ByteRange, DevInfo, Disk};
use image::vhdx::{self, Access};
use testkit::{CrashDev, Event, History, MemDev, Model, Op, RequestKind, Runner, Shape, Survival, block_on};
use uuid::Uuid;

use crate::cases::{CASES, Case, Fixture, HOST};

/// Where `create` puts the log.
const LOG_PLACE: ByteRange = ByteRange::new(1 << 20, 1 << 20).unwrap();

/// What each workload asks.
const OPS: usize = 60;

pub(crate) struct Run {
    fixture: Fixture,
    pub(crate) history: History,
    /// The model after each step, by the number that was noted.
    models: Vec<Model>,
    label: String,
    guid_before: Uuid,
}

/// Runs random requests that meet at block borders, so that space is trimmed and reused.
pub(crate) fn run(case: Case, seed: u64, depth: usize, count: usize) -> Run {
    let block = u64::from(case.block_bytes);
    let info = DevInfo { block_bytes: case.sector_bytes, ..HOST };
    let shape = Shape {
        borders: vec![4096, block],
        len_max: (2 * block).min(1 << 20),
        hot_places: 4,
        ..Shape::new(case.virtual_size, &info)
    };
    run_ops(case, seed, depth, &shape.ops(seed, count))
}

/// Runs `ops` on a new file, on a host whose requests take a while.
fn run_ops(case: Case, seed: u64, depth: usize, ops: &[Op]) -> Run {
    let fixture = case.make();
    let host = Arc::new(CrashDev::slow(fixture.file.clone(), HOST, seed));
    let label = format!("{} seed {seed} depth {depth}", case.name);
    let models = RefCell::new(Vec::new());
    let guid_before = block_on(async {
        let file = Disk::new(MemDev::from_image(fixture.file.clone(), HOST));
        vhdx::open(file, Access::ReadOnly).await.unwrap().header().data_write_guid
    });
    block_on(async {
        let disk = fixture.open(Disk::from_arc(Arc::clone(&host))).await;
        let mut model = Model::of(fixture.content(), disk.info());
        models.borrow_mut().push(model.clone());
        host.note(0);
        let note = |model: &Model| {
            host.note(models.borrow().len() as u64);
            models.borrow_mut().push(model.clone());
        };
        let runner = Runner::new(&disk, &mut model).depth(depth, seed).on_step(note);
        runner.run(ops).await.unwrap_or_else(|mismatch| panic!("{label}: {mismatch}"));
        drop(runner);
        disk.close().await.unwrap();
    });
    Run { fixture, history: host.history(), models: models.into_inner(), label, guid_before }
}

impl Run {
    /// Checks the file that a cut leaves.
    fn check(&self, cut: usize, survival: Survival) {
        let host = self.history.crash_at(cut, survival);
        let Some(note) = self.history.last_note(cut) else { return };
        let mut model = self.models[note as usize].clone();
        if matches!(survival, Survival::Killed { .. }) {
            // The host lives on: nothing that was answered may be lost, flushed or not.
            let flush = model.start_flush();
            model.end_flush(flush, true);
        }
        let model = &model;
        let image = host.image();
        block_on(async {
            let checked = async {
                // In memory first: it must not change the file and must see the same.
                let file = Disk::new(MemDev::from_image(image.clone(), HOST));
                let found = self.open_and_check(file, Access::ReadOnly, model).await?;
                let file = Disk::new(MemDev::from_image(image.clone(), HOST));
                let again = self.open_and_check(file.clone(), Access::ReadWrite, model).await?;
                if found != again {
                    return Err(format!("replay changed the data identifier from {found} to {again}"));
                }
                let report = vhdx::check(&file, &vhdx::CheckOptions::default())
                    .await
                    .map_err(|error| error.to_string())?;
                match report
                    .findings
                    .iter()
                    .find(|finding| finding.severity == vhdx::check::Severity::Corrupt)
                {
                    Some(finding) => Err(format!("check finds {}: {}", finding.rule, finding.message)),
                    None => Ok(()),
                }
            };
            if let Err(why) = checked.await {
                let events = self.history.describe(cut);
                panic!("{} cut {cut} {survival:?}: {why}\n{events}", self.label);
            }
        });
    }

    /// Opens `file`, compares it with what the model allows, and returns its data identifier.
    async fn open_and_check(&self, file: Disk, access: Access, model: &Model) -> Result<Uuid, String> {
        let opened =
            vhdx::open(file.clone(), access).await.map_err(|error| format!("{access:?}: {error}"))?;
        let guid = opened.header().data_write_guid;
        drop(opened);
        let disk = Disk::new(self.fixture.open_dev(file, access).await);
        model.check_after_crash(&disk).await.map_err(|error| format!("{access:?}: {error}"))?;
        if guid == self.guid_before {
            let same = self.models[0].clone().check_disk(&disk).await;
            same.map_err(|error| {
                format!("{access:?}: the data changed under the identifier {guid}: {error}")
            })?;
        }
        Ok(guid)
    }

    /// Checks cuts spread over the run, from `offset`, until `until`; gives how many.
    fn check_some(&self, offset: usize, until: Instant) -> usize {
        self.check_these(&self.history.cuts(), offset, until)
    }

    fn check_these(&self, cuts: &[usize], offset: usize, until: Instant) -> usize {
        let stride = cuts.len().div_ceil(CUTS_PER_RUN).max(1);
        let mut checked = 0;
        for &cut in cuts.iter().skip(offset % stride).step_by(stride) {
            let seed = (cut as u64) << 16;
            // A guest sector is atomic only on a medium that writes as much at once.
            let sector = u64::from(self.fixture.case.sector_bytes);
            for survival in [
                Survival::Nothing,
                Survival::All,
                Survival::Killed { seed },
                Survival::Subset { seed },
                Survival::Torn { seed, unit_bytes: sector },
                Survival::Torn { seed: seed + 1, unit_bytes: 4096 },
            ] {
                self.check(cut, survival);
            }
            checked += 1;
            if Instant::now() > until {
                break;
            }
        }
        checked
    }
}

/// Cuts of one run; other seeds bring other cuts.
const CUTS_PER_RUN: usize = 40;

fn budget() -> Duration {
    let seconds = std::env::var("GODWIT_CRASH_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

fn search(cases: &[Case], depth: usize) {
    let until = Instant::now() + budget();
    let (mut runs, mut cuts) = (0, 0);
    for seed in 0.. {
        for &case in cases {
            // The first round reaches every case, whatever the budget.
            if seed > 0 && Instant::now() > until {
                println!("checked {cuts} cuts of {runs} runs");
                return;
            }
            let share = Instant::now() + budget() / cases.len() as u32;
            cuts +=
                run(case, seed, depth, OPS).check_some(seed as usize, share.min(until.max(Instant::now())));
            runs += 1;
        }
    }
}

#[test]
fn a_power_cut_in_a_dynamic_disk_loses_nothing_that_was_flushed() {
    search(&CASES[..3], 1);
}

#[test]
fn a_power_cut_in_a_child_loses_nothing_that_was_flushed() {
    search(&CASES[3..], 1);
}

#[test]
fn a_power_cut_among_requests_in_flight_loses_nothing_that_was_flushed() {
    search(&CASES, 6);
}

/// A write of one sector to block `index`, which allocates it.
fn touch(case: Case, index: u64, stamp: u64) -> Op {
    let start = index * u64::from(case.block_bytes);
    Op::Write { range: ByteRange::new(start, case.sector_bytes.into()).unwrap(), stamp, fua: false }
}

#[test]
fn a_power_cut_after_the_log_has_wrapped_loses_nothing_that_was_flushed() {
    for case in [CASES[0], CASES[3]] {
        let block = u64::from(case.block_bytes);
        let blocks = case.virtual_size / block;
        // Each flush logs a page or two, and the log holds some hundred such entries.
        let turns = (0..220).flat_map(|turn| {
            let index = turn % blocks;
            let trim = Op::Discard(ByteRange::new(index * block, block).unwrap());
            [touch(case, index, turn + 1), Op::Flush, trim, Op::Flush]
        });
        let run = run_ops(case, 1, 1, &turns.collect::<Vec<_>>());
        let cuts = run.history.cuts();
        let late = &cuts[cuts.len() / 2..];
        run.check_these(late, 3, Instant::now() + budget());
    }
}

#[test]
fn a_power_cut_while_a_batch_larger_than_the_log_is_made_durable_loses_nothing() {
    // Blocks of 1 MiB that are 512 apart have their entries in pages of their own, and in a child their bits too: more
    // than the log can hold. A cut between the turns must not leave a block without its bitmap.
    for child in [false, true] {
        let virtual_size = 300 << 29;
        let case = Case { name: "wide", virtual_size, block_bytes: 1 << 20, sector_bytes: 512, child };
        let spread = |stamp| (0..300).map(move |index| touch(case, index * 512, stamp + index));
        let ops: Vec<_> = spread(1).chain([Op::Flush]).chain(spread(1000)).chain([Op::Flush]).collect();
        let run = run_ops(case, 1, 4, &ops);
        let cuts = run.history.cuts();
        run.check_these(&cuts[cuts.len() / 3..], 1, Instant::now() + budget());
    }
}

#[test]
fn a_power_cut_while_large_batches_go_round_the_log_leaves_a_log_that_replays() {
    // Each batch takes some 100 of the log's 256 sectors, so the third is written where the first one was.
    let case = Case {
        name: "rounds",
        virtual_size: 60 << 30,
        block_bytes: 1 << 20,
        sector_bytes: 512,
        child: false,
    };
    let round = |round: u64| (0..100).map(move |page| touch(case, page * 512 + round, 1000 * round + page));
    let ops: Vec<_> = (1..5).flat_map(|number| round(number).chain([Op::Flush])).collect();
    check_log_writes(&run_ops(case, 1, 4, &ops));
}

#[test]
fn a_power_cut_while_a_batch_goes_twice_round_the_log_leaves_a_log_that_replays() {
    let case = Case {
        name: "twice",
        virtual_size: 520 << 29,
        block_bytes: 1 << 20,
        sector_bytes: 512,
        child: false,
    };
    let ops: Vec<_> = (0..520).map(|index| touch(case, index * 512, index + 1)).chain([Op::Flush]).collect();
    check_log_writes(&run_ops(case, 1, 4, &ops));
}

/// Checks the last cuts right after something was written to the log.
fn check_log_writes(run: &Run) {
    let to_log = |cut: usize| match run.history.events()[cut - 1] {
        Event::Started { request, .. } => {
            request.kind == RequestKind::Write && request.range.overlaps(LOG_PLACE)
        }
        _ => false,
    };
    let cuts: Vec<_> = (1..=run.history.len()).filter(|&cut| to_log(cut)).collect();
    assert!(cuts.len() > 6, "only {} writes to the log", cuts.len());
    for &cut in cuts.iter().rev().take(8) {
        for survival in [Survival::Nothing, Survival::Torn { seed: cut as u64, unit_bytes: 4096 }] {
            run.check(cut, survival);
        }
    }
}
