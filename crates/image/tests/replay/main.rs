//! Logs of every shape that the format allows, and some that it does not: what they replay to in memory and on disk,
//! and that a replay that is cut off by a crash is made good by the next.
//!
//! The entries are built here from the format's description and not by the engine, so that both must agree with the
//! format rather than with each other.

mod ring;

use block::{DevInfo, Disk};
use image::vhdx::layout::{HEADER_BYTES, HEADER_OFFSETS, MIB};
use image::vhdx::{Access, OpenError, check, open};
use proptest::prelude::*;
use testkit::{CrashDev, MemDev, SparseBytes, Survival, block_on};

use self::ring::{PAGE, RING_PAGES, Ring, SCRATCH_PAGES, Update};

/// Opens `file` both ways and expects the scratch pages to read as `expected`; a file of its own for each open.
#[track_caller]
fn replays_to(ring: &Ring, expected: &[u8]) {
    let image = ring.file();
    block_on(async {
        let file = device(&image);
        let read = open(file.clone(), Access::ReadOnly).await.unwrap();
        assert!(read.was_dirty);
        assert_eq!(ring.scratch(&read.file).await, expected);
        assert!(
            is_same(&file.read_vec(0, image.size() as usize).await.unwrap(), &image),
            "nothing is written"
        );

        let written = open(file.clone(), Access::ReadWrite).await.unwrap();
        assert_eq!(ring.scratch(&written.file).await, expected);
        assert!(written.was_dirty && written.header().log_guid.is_nil());
        assert_eq!(written.header().data_write_guid, read.header().data_write_guid);
        assert_ne!(written.header().file_write_guid, read.header().file_write_guid);
        let header = |slot: usize| file.read_vec(HEADER_OFFSETS[slot] + 16, HEADER_BYTES - 16);
        assert_eq!(header(0).await.unwrap(), header(1).await.unwrap(), "both headers say the same");

        let again = open(file, Access::ReadWrite).await.unwrap();
        assert!(!again.was_dirty);
        assert_eq!(again.header(), written.header());
    });
}

/// Expects both kinds of open to refuse the file with an error that `is_it` knows, and the file to stay as it is.
#[track_caller]
fn refused(ring: &Ring, is_it: impl Fn(&OpenError) -> bool) {
    let image = ring.file();
    block_on(async {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let file = device(&image);
            let error = open(file.clone(), access).await.map(|_| ()).expect_err("the log cannot be replayed");
            assert!(is_it(&error), "{error}");
            assert!(is_same(&file.read_vec(0, image.size() as usize).await.unwrap(), &image));
            let report = check(&file, &image::vhdx::CheckOptions::default()).await.unwrap();
            assert!(report.has(error.rule()), "{:?}", report.findings);
        }
    });
}

fn no_sequence(error: &OpenError) -> bool {
    matches!(error, OpenError::LogEmpty { .. })
}

fn device(image: &SparseBytes) -> Disk {
    Disk::new(MemDev::from_image(image.clone(), DevInfo { block_bytes: 1, ..MemDev::INFO }))
}

fn is_same(bytes: &[u8], image: &SparseBytes) -> bool {
    let mut expected = vec![0; bytes.len()];
    image.read(0, &mut expected);
    bytes == expected
}

fn scratch(pages: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = vec![0xee; SCRATCH_PAGES];
    for (page, value) in pages {
        bytes[*page] = *value;
    }
    bytes
}

#[test]
fn pages_and_zeroes_are_replayed_in_order() {
    let mut ring = Ring::new();
    ring.append(&[Update::Page(3, 1), Update::Page(4, 1), Update::Zeroes(10..20)]);
    ring.append(&[Update::Page(4, 2), Update::Page(15, 2)]);
    ring.append(&[Update::Zeroes(3..4)]);
    let mut expected = scratch(&[(3, 0), (4, 2)]);
    expected[10..20].fill(0);
    expected[15] = 2;
    replays_to(&ring, &expected);
}

#[test]
fn entries_before_the_tail_are_not_replayed() {
    let mut ring = Ring::new();
    ring.append(&[Update::Page(0, 1)]);
    ring.append(&[Update::Page(1, 1)]);
    let tail = ring.next();
    ring.append(&[Update::Page(2, 1)]);
    ring.tail = Some(tail);
    ring.append(&[Update::Page(3, 1)]);
    replays_to(&ring, &scratch(&[(2, 1), (3, 1)]));
}

#[test]
fn entries_go_on_at_the_start_of_the_ring() {
    // Every place in which the end of the ring can cut an entry of five sectors, between entries too.
    for lead in 1..7 {
        let mut ring = Ring::new();
        ring.start_at(RING_PAGES - lead);
        let updates = [0, 1, 2, 3].map(|page| Update::Page(page, 5));
        ring.append(&updates);
        ring.append(&[Update::Page(7, 6)]);
        replays_to(&ring, &scratch(&[(0, 5), (1, 5), (2, 5), (3, 5), (7, 6)]));
    }
}

#[test]
fn an_entry_may_have_several_sectors_of_descriptors() {
    for count in [126, 127, 254, 255] {
        let mut ring = Ring::new();
        // Every second one is of zeroes, so that the entry fits the ring.
        let value = |page: usize| if page.is_multiple_of(2) { 3 } else { 0 };
        let updates: Vec<_> = (0..count)
            .map(|page| match value(page) {
                0 => Update::Zeroes(page..page + 1),
                value => Update::Page(page, value),
            })
            .collect();
        ring.append(&updates);
        let expected: Vec<_> = (0..count).map(|page| (page, value(page))).collect();
        replays_to(&ring, &scratch(&expected));
    }
}

#[test]
fn a_torn_last_entry_does_not_count() {
    for torn_sector in 0..3 {
        let mut ring = Ring::new();
        ring.append(&[Update::Page(0, 1)]);
        let last = ring.append(&[Update::Page(0, 2), Update::Page(1, 2)]);
        ring.bytes_at(last + torn_sector)[100] ^= 1;
        replays_to(&ring, &scratch(&[(0, 1)]));
    }
}

#[test]
fn entries_of_another_session_do_not_count() {
    let mut ring = Ring::new();
    let first = ring.append(&[Update::Page(0, 1)]);
    let stale = ring.append(&[Update::Page(1, 1)]);
    ring.edit(stale, |entry| entry.log_guid = uuid::Uuid::from_u128(99).into());
    replays_to(&ring, &scratch(&[(0, 1)]));
    ring.edit(first, |entry| entry.log_guid = uuid::Uuid::from_u128(99).into());
    refused(&ring, no_sequence);
}

#[test]
fn of_several_sequences_the_one_with_the_newest_head_counts() {
    let mut ring = Ring::new();
    ring.sequence = 100;
    ring.append(&[Update::Page(0, 1)]);
    ring.append(&[Update::Page(1, 1)]);
    ring.start_at(100);
    ring.sequence = 7;
    ring.append(&[Update::Page(2, 1)]);
    ring.append(&[Update::Page(3, 1)]);
    ring.append(&[Update::Page(4, 1)]);
    replays_to(&ring, &scratch(&[(0, 1), (1, 1)]));
}

#[test]
fn a_gap_in_the_numbers_ends_a_sequence() {
    let mut ring = Ring::new();
    ring.append(&[Update::Page(0, 1)]);
    ring.sequence += 1;
    ring.start_at(ring.next());
    ring.append(&[Update::Page(1, 1)]);
    // The second entry is a sequence of its own, with the larger number.
    replays_to(&ring, &scratch(&[(1, 1)]));
}

#[test]
fn a_head_whose_tail_is_not_in_its_sequence_is_refused() {
    let mut ring = Ring::new();
    ring.append(&[Update::Page(0, 1)]);
    ring.tail = Some(200);
    ring.append(&[Update::Page(1, 1)]);
    refused(&ring, no_sequence);
}

#[test]
fn numbers_may_start_and_end_anywhere() {
    let mut ring = Ring::new();
    ring.sequence = u64::MAX - 1;
    ring.append(&[Update::Page(0, 1)]);
    ring.append(&[Update::Page(1, 1)]);
    replays_to(&ring, &scratch(&[(0, 1), (1, 1)]));
    let mut ring = Ring::new();
    ring.sequence = 0;
    ring.append(&[Update::Page(0, 1)]);
    refused(&ring, no_sequence);
}

#[test]
fn a_file_that_was_cut_is_refused_by_what_the_newest_entry_says() {
    let mut ring = Ring::new();
    let size = ring.file().size();
    ring.flushed = size + MIB;
    ring.append(&[Update::Page(0, 1)]);
    refused(
        &ring,
        |error| matches!(error, OpenError::LogFileCut { flushed_bytes, .. } if *flushed_bytes == size + MIB),
    );
    // The file was made shorter on purpose since, as the newest entry says.
    ring.flushed = size;
    ring.append(&[Update::Page(1, 1)]);
    replays_to(&ring, &scratch(&[(0, 1), (1, 1)]));
}

#[test]
fn the_file_grows_to_the_last_offset_of_the_newest_entry() {
    let mut ring = Ring::new();
    let size = ring.file().size();
    ring.last = size + 9 * MIB;
    ring.append(&[Update::Page(0, 1)]);
    ring.last = size + 3 * MIB;
    ring.append(&[Update::Page(1, 1)]);
    replays_to(&ring, &scratch(&[(0, 1), (1, 1)]));
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let opened = block_on(open(device(&ring.file()), access)).unwrap();
        assert_eq!(opened.file.size(), size + 3 * MIB);
    }
    ring.last = 1 << 60;
    ring.append(&[Update::Page(2, 1)]);
    refused(&ring, |error| matches!(error, OpenError::LogBeyondLimit { .. }));
}

#[test]
fn entries_that_break_a_rule_do_not_count() {
    let check = |change: &dyn Fn(&mut Ring, usize)| {
        let mut ring = Ring::new();
        let at = ring.append(&[Update::Page(0, 1), Update::Zeroes(5..6), Update::Page(1, 1)]);
        change(&mut ring, at);
        ring.seal(at);
        refused(&ring, no_sequence);
    };
    // Where a change may go: not before the region tables, not into the log, not to parts of pages.
    for offset in
        [0, 64 << 10, 128 << 10, (192 << 10) - 4096, MIB, 2 * MIB - 4096, 5 * MIB + 512, u64::MAX - 4095]
    {
        for descriptor in 0..3 {
            check(&|ring, at| ring.edit_descriptor(at, descriptor, |d| d.file_offset = offset.into()));
        }
    }
    let zero_length = |len: u64| {
        move |ring: &mut Ring, at| {
            ring.edit_descriptor(at, 1, |descriptor| descriptor.leading_bytes = len.to_le_bytes());
        }
    };
    check(&zero_length(512));
    check(&zero_length(!4095));
    check(&|ring, at| ring.edit_descriptor(at, 0, |d| d.signature = *b"data"));
    check(&|ring, at| ring.edit_descriptor(at, 2, |d| d.sequence_number = 9.into()));
    check(&|ring, at| ring.edit(at, |entry| entry.entry_length = (3 * PAGE as u32 + 512).into()));
    check(&|ring, at| ring.edit(at, |entry| entry.entry_length = (4 * PAGE as u32).into()));
    check(&|ring, at| ring.edit(at, |entry| entry.entry_length = (2 * PAGE as u32).into()));
    check(&|ring, at| ring.edit(at, |entry| entry.entry_length = 0.into()));
    check(&|ring, at| ring.edit(at, |entry| entry.entry_length = (!4095u32).into()));
    check(&|ring, at| ring.edit(at, |entry| entry.descriptor_count = 2.into()));
    check(&|ring, at| ring.edit(at, |entry| entry.descriptor_count = u32::MAX.into()));
    check(&|ring, at| ring.edit(at, |entry| entry.tail = 512.into()));
    check(&|ring, at| {
        ring.edit(at, |entry| entry.tail = ((RING_PAGES * PAGE) as u32).into());
    });
    // Data sectors carry signature and number.
    check(&|ring, at| ring.bytes_at(at + 1)[0] ^= 1);
    check(&|ring, at| ring.bytes_at(at + 1)[4] ^= 1);
    check(&|ring, at| ring.bytes_at(at + 2)[4095] ^= 1);
}

#[test]
fn the_log_comes_before_everything_that_it_may_change() {
    let mut ring = Ring::new();
    let region_table = ring.file_page(192 << 10);
    let metadata = ring.file_page(2 * MIB);
    ring.append_raw(&[(192 << 10, region_table), (256 << 10, region_table), (2 * MIB, metadata)]);
    ring.damage_file(192 << 10);
    ring.damage_file(256 << 10);
    ring.damage_file(2 * MIB);
    replays_to(&ring, &scratch(&[]));
}

#[test]
fn a_replay_that_is_cut_off_is_made_good_by_the_next() {
    let mut ring = Ring::new();
    ring.last = ring.file().size() + MIB;
    ring.append(&[Update::Page(0, 1), Update::Zeroes(8..200), Update::Page(1, 1)]);
    ring.append(&[Update::Page(0, 2), Update::Page(9, 2)]);
    let mut expected = scratch(&[(0, 2), (1, 1)]);
    expected[8..200].fill(0);
    expected[9] = 2;

    block_on(async {
        let device = std::sync::Arc::new(CrashDev::from_image(ring.file(), MemDev::INFO));
        let before = open(Disk::from_arc(device.clone()), Access::ReadOnly).await.unwrap();
        open(Disk::from_arc(device.clone()), Access::ReadWrite).await.unwrap();
        let history = device.history();
        let torn = |seed| Survival::Torn { seed, unit_bytes: 512 };
        let survivals = [Survival::Nothing, Survival::All].into_iter().chain((0..6).map(torn));
        for cut in history.cuts() {
            for survival in survivals.clone() {
                let file = Disk::new(history.crash_at(cut, survival));
                for access in [Access::ReadOnly, Access::ReadWrite] {
                    let opened = open(file.clone(), access).await;
                    let opened = opened.unwrap_or_else(|error| panic!("cut {cut}, {survival:?}: {error}"));
                    assert_eq!(ring.scratch(&opened.file).await, expected, "cut {cut}, {survival:?}");
                    assert_eq!(opened.header().data_write_guid, before.header().data_write_guid);
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_run_of_entries_replays_from_its_tail_to_its_last_whole_entry(
        start in 0usize..RING_PAGES,
        sequence in 1u64..u64::MAX - 100,
        entries in prop::collection::vec(prop::collection::vec((0usize..SCRATCH_PAGES, 1u8..200), 1..6), 1..12),
        tail in any::<prop::sample::Index>(),
        torn in 0usize..3,
    ) {
        let mut ring = Ring::new();
        ring.start_at(start);
        ring.sequence = sequence;
        // The tail moves on with the last entries, so that it holds for what is left of them, too.
        let whole = entries.len().saturating_sub(torn).max(1);
        let tail = tail.index(whole);
        let mut places = Vec::new();
        for (index, updates) in entries.iter().enumerate() {
            if index >= tail {
                ring.tail = Some(*places.get(tail).unwrap_or(&ring.next()));
            }
            let updates: Vec<_> = updates
                .iter()
                .map(|(page, value)| if value % 5 == 0 { Update::Zeroes(*page..page + 1) } else { Update::Page(*page, *value) })
                .collect();
            places.push(ring.append(&updates));
        }
        for place in &places[whole..] {
            ring.bytes_at(*place)[70] ^= 0x55;
        }
        let mut expected = scratch(&[]);
        for updates in &entries[tail..whole] {
            // Zeroes first: an entry's descriptors of both kinds never mean the same page, so the order inside one
            // is the reader's; ours applies pages as their data comes.
            for (page, _) in updates.iter().filter(|(_, value)| value % 5 == 0) {
                expected[*page] = 0;
            }
            for (page, value) in updates.iter().filter(|(_, value)| value % 5 != 0) {
                expected[*page] = *value;
            }
        }
        replays_to(&ring, &expected);
    }
}
