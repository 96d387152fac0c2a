//! What a cut may leave, by enumeration where the cases are few.

use std::collections::BTreeSet;
use std::sync::Arc;

use block::{BlockDev as _, ByteRange, DevInfo, Disk, SgList, WriteFlags, ZeroFlags};

use super::*;
use crate::{block_on, run_tasks};

const SECTOR: u64 = 512;

fn disk(size: u64) -> (Arc<CrashDev>, Disk) {
    let crash = Arc::new(CrashDev::new(size));
    (crash.clone(), Disk::from_arc(crash))
}

/// The first byte of each sector, so that sectors that tests fill with one value read as a string of values.
fn sectors(dev: &MemDev) -> Vec<u8> {
    let image = dev.image();
    let bytes = image.to_vec(image.range());
    for sector in bytes.chunks(SECTOR as usize) {
        assert!(sector.iter().all(|byte| byte == &sector[0]), "no tear is smaller than a sector");
    }
    bytes.chunks(SECTOR as usize).map(|sector| sector[0]).collect()
}

async fn fill(disk: &Disk, sector: u64, count: u64, value: u8) {
    disk.write_all(sector * SECTOR, &vec![value; (count * SECTOR) as usize]).await.unwrap();
}

fn subsets(crash: &CrashDev) -> BTreeSet<Vec<u8>> {
    (0..2000).map(|seed| sectors(&crash.crash(Survival::Subset { seed }))).collect()
}

fn tears(crash: &CrashDev) -> BTreeSet<Vec<u8>> {
    (0..2000).map(|seed| sectors(&crash.crash(Survival::Torn { seed, unit_bytes: SECTOR }))).collect()
}

#[test]
fn what_was_flushed_is_always_found_and_the_rest_in_every_combination() {
    block_on(async {
        let (crash, disk) = disk(3 * SECTOR);
        fill(&disk, 0, 3, 1).await;
        disk.flush().await.unwrap();
        fill(&disk, 0, 1, 2).await;
        fill(&disk, 2, 1, 3).await;
        assert_eq!(sectors(&crash.crash(Survival::Nothing)), [1, 1, 1]);
        assert_eq!(sectors(&crash.crash(Survival::All)), [2, 1, 3]);
        assert_eq!(sectors(&crash.crash(Survival::Prefix(1))), [2, 1, 1]);
        assert_eq!(sectors(&crash.crash(Survival::Mask(0b10))), [1, 1, 3]);
        let all = [[1, 1, 1], [1, 1, 3], [2, 1, 1], [2, 1, 3]].map(|disk| disk.to_vec());
        assert_eq!(subsets(&crash), BTreeSet::from(all));
    });
}

#[test]
fn overlapping_pending_writes_are_found_in_either_order_and_torn_in_every_way() {
    block_on(async {
        let (crash, disk) = disk(2 * SECTOR);
        fill(&disk, 0, 2, 1).await;
        fill(&disk, 0, 2, 2).await;
        assert_eq!(subsets(&crash), BTreeSet::from([[0, 0], [1, 1], [2, 2]].map(|disk| disk.to_vec())));
        let torn = tears(&crash);
        assert_eq!(torn.len(), 9, "each sector holds nothing, the first or the second write: {torn:?}");
    });
}

#[test]
fn one_run_gives_every_cut_and_going_back_gives_the_same_disk() {
    block_on(async {
        let (crash, disk) = disk(8 * SECTOR);
        for round in 1..=200u8 {
            fill(&disk, u64::from(round % 8), 1, round).await;
            if round % 5 == 0 {
                disk.flush().await.unwrap();
                crash.note(u64::from(round));
            }
        }
        let history = crash.history();
        assert!(history.len() > CUTS_PAST_A_CHECKPOINT);
        let survivals = [Survival::Nothing, Survival::All, Survival::Torn { seed: 3, unit_bytes: SECTOR }];
        let disks = |cut| survivals.map(|survival| sectors(&history.crash_at(cut, survival)));
        let forward: Vec<_> = history.cuts().into_iter().map(|cut| (cut, disks(cut))).collect();
        for (cut, expected) in forward.iter().rev() {
            assert_eq!(&disks(*cut), expected, "{}", history.describe(*cut));
        }
        for &(cut, _) in &forward {
            let flushed = history.last_note(cut).unwrap_or(0) as u8;
            let oldest = sectors(&history.crash_at(cut, Survival::Nothing)).into_iter().max().unwrap();
            assert!(oldest >= flushed, "an acknowledged flush holds");
            assert!(oldest <= flushed + 5, "nothing is durable that no flush covered");
        }
    });
}

const CUTS_PAST_A_CHECKPOINT: usize = 300;

#[test]
fn a_flush_does_not_cover_what_completes_after_it_was_asked_for() {
    block_on(async {
        let (crash, disk) = disk(SECTOR);
        {
            let mut state = crash.lock();
            state.events.push(Event::FlushStarted);
        }
        fill(&disk, 0, 1, 1).await;
        crash.lock().events.push(Event::FlushDone { covers: 1 });
        assert_eq!(sectors(&crash.crash(Survival::Nothing)), [0]);
        disk.flush().await.unwrap();
        assert_eq!(sectors(&crash.crash(Survival::Nothing)), [1]);
    });
}

#[test]
fn in_flight_changes_of_a_slow_disk_may_be_found_before_they_complete() {
    let info = MemDev::INFO;
    let crash = Arc::new(CrashDev::slow(SparseBytes::new(4 * SECTOR), info, 5));
    let disk = Disk::from_arc(crash.clone());
    let write = |sector| {
        let disk = disk.clone();
        async move { fill(&disk, sector, 1, 1 + sector as u8).await }
    };
    run_tasks(9, (0..4).map(write));
    let history = crash.history();
    let most_in_flight = history.cuts().into_iter().map(|cut| history.pending_at(cut)).max().unwrap();
    assert_eq!(most_in_flight, 4);
    let first_start = 1;
    assert!(matches!(history.events()[0], Event::Started { .. }));
    let found: BTreeSet<_> =
        (0..100).map(|seed| sectors(&history.crash_at(first_start, Survival::Killed { seed }))).collect();
    assert_eq!(found.len(), 2, "a killed program's request in flight is there or not: {found:?}");
    let landed = sectors(&history.crash_at(history.len(), Survival::Killed { seed: 0 }));
    assert_eq!(landed, [1, 2, 3, 4], "what landed outlives the program");
}

#[test]
fn resizes_survive_in_order_and_what_was_cut_off_stays_gone() {
    block_on(async {
        let (crash, disk) = disk(4 * SECTOR);
        fill(&disk, 0, 4, 1).await;
        disk.flush().await.unwrap();
        fill(&disk, 3, 1, 2).await;
        disk.resize(2 * SECTOR).await.unwrap();
        disk.resize(6 * SECTOR).await.unwrap();
        fill(&disk, 5, 1, 3).await;
        let sizes: BTreeSet<usize> = subsets(&crash).iter().map(Vec::len).collect();
        assert_eq!(sizes, BTreeSet::from([2, 4, 6]));
        for found in subsets(&crash).union(&tears(&crash)) {
            match found.len() {
                4 => assert!(matches!(found[..], [1, 1, 1, 1 | 2]), "{found:?}"),
                6 => assert!(matches!(found[..], [1, 1, 0, 0, 0, 0 | 3]), "{found:?}"),
                _ => assert_eq!(found[..], [1, 1]),
            }
        }
    });
}

#[test]
fn a_completed_fua_write_is_found_and_nothing_older_on_top_of_it() {
    block_on(async {
        let info = DevInfo { native_fua: true, ..MemDev::INFO };
        let crash = Arc::new(CrashDev::from_image(SparseBytes::new(2 * SECTOR), info));
        let disk = Disk::from_arc(crash.clone());
        fill(&disk, 0, 2, 1).await;
        let fua = SgList::copy_of(&[2; SECTOR as usize]);
        disk.write(0, fua, WriteFlags { fua: true }).await.unwrap();
        let found = tears(&crash);
        assert_eq!(found, BTreeSet::from([vec![2, 0], vec![2, 1]]));
        disk.flush().await.unwrap();
        assert_eq!(tears(&crash), BTreeSet::from([vec![2, 1]]));
    });
}

#[test]
fn zeroes_and_discards_are_pending_like_writes() {
    block_on(async {
        let (crash, disk) = disk(2 * SECTOR);
        fill(&disk, 0, 2, 1).await;
        disk.flush().await.unwrap();
        disk.write_zeroes(ByteRange::new(0, SECTOR).unwrap(), ZeroFlags::default()).await.unwrap();
        disk.discard(ByteRange::new(SECTOR, SECTOR).unwrap()).await.unwrap();
        let all = [[0, 0], [0, 1], [1, 0], [1, 1]].map(|disk| disk.to_vec());
        assert_eq!(subsets(&crash), BTreeSet::from(all));
        disk.close().await.unwrap();
        assert_eq!(subsets(&crash), BTreeSet::from([vec![0, 0]]));
    });
}

#[test]
fn a_change_that_is_out_of_range_when_it_lands_leaves_nothing() {
    // The resize lands between the check of the write and its landing, for some seed.
    let mut refused = 0;
    for seed in 0..50 {
        let crash = Arc::new(CrashDev::slow(SparseBytes::new(2 * SECTOR), MemDev::INFO, seed));
        let (one, two) = (crash.clone(), crash.clone());
        let write = async move {
            let bytes = SgList::copy_of(&[1; SECTOR as usize]);
            one.write(SECTOR, bytes, WriteFlags::default()).await.is_err()
        };
        let shrink = async move { two.resize(SECTOR).await.is_err() };
        let mut tasks = crate::LocalTasks::new(seed);
        tasks.spawn(write);
        tasks.spawn(shrink);
        refused += usize::from(block_on(tasks)[0]);
        assert_eq!(sectors(&crash.crash(Survival::All)), [0]);
    }
    assert!(refused > 0);
}

#[test]
fn thousands_of_cuts_of_a_large_disk_are_affordable() {
    block_on(async {
        let (crash, disk) = disk(64 << 20);
        let mut rng = Rng::new(1);
        for _ in 0..2000 {
            let sector = rng.below((64 << 20) / SECTOR - 16);
            fill(&disk, sector, 1 + rng.below(16), 1 + rng.below(255) as u8).await;
            if rng.one_in(16) {
                disk.flush().await.unwrap();
            }
        }
        let history = crash.history();
        let mut cuts = 0;
        for cut in history.cuts() {
            let found = history.crash_at(cut, Survival::Torn { seed: cut as u64, unit_bytes: SECTOR });
            assert_eq!(found.size(), 64 << 20);
            cuts += 1;
        }
        assert!(cuts > 2000);
    });
}

#[test]
fn a_close_waits_for_what_is_in_flight_and_makes_it_durable() {
    for seed in 0..20 {
        let crash = Arc::new(CrashDev::slow(SparseBytes::new(4 * SECTOR), MemDev::INFO, seed));
        let disk = Disk::from_arc(crash.clone());
        let request = |sector: u64| {
            let disk = disk.clone();
            async move {
                if sector == 4 {
                    return disk.close().await.is_ok();
                }
                let bytes = SgList::copy_of(&[1; SECTOR as usize]);
                disk.write(sector * SECTOR, bytes, WriteFlags::default()).await.is_ok()
            }
        };
        let done = run_tasks(seed, (0..5).map(request));
        assert!(done[4]);
        let kept: Vec<bool> =
            sectors(&crash.crash(Survival::Nothing)).iter().map(|&byte| byte == 1).collect();
        assert_eq!(kept, done[..4], "a write is there if it was acknowledged, and refused if not");
    }
}
