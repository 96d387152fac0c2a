//! Plants every kind of damage into files that are otherwise sound, and expects the rule that is broken: from an open,
//! which refuses, and from a check, which finds it. What only looks like damage must open.
//!
//! Each damage goes into a file of ours and, where it can, into one that qemu-img made; without qemu-img that half is
//! skipped with a message.

mod victim;

use image::vhdx::check::Severity;
use image::vhdx::layout::{
    BAT_REGION, BatEntry, FILE_PARAMETERS, INCOMPLETE_FILE, ITEM_IS_REQUIRED, ITEM_IS_USER,
    LOGICAL_SECTOR_SIZE, METADATA_REGION, MIB, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, PayloadState,
    VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
use image::vhdx::{Access, CheckOptions, CheckReport, OpenError, Opened, check, open};
use testkit::block_on;
use uuid::Uuid;

use self::victim::{Item, Region, Victim};

fn open_of(victim: &Victim, access: Access) -> Result<Opened, OpenError> {
    block_on(open(victim.disk(), access))
}

fn check_of(victim: &Victim) -> CheckReport {
    let file = victim.disk();
    block_on(check(&file, &CheckOptions::default())).unwrap()
}

/// Plants the damage into `victim` and expects both kinds of open to refuse it, and the check to find it, as `rule`.
#[track_caller]
fn refused(victim: &Victim, rule: &str, plant: impl Fn(&mut Victim)) {
    assert!(open_of(victim, Access::ReadOnly).is_ok(), "{}: sound before the damage", victim.name);
    let mut damaged = victim.clone();
    plant(&mut damaged);
    for access in [Access::ReadOnly, Access::ReadWrite] {
        match open_of(&damaged, access) {
            Err(error) => assert_eq!(error.rule(), rule, "{}: {error}", victim.name),
            Ok(_) => panic!("{}: a file that breaks \"{rule}\" was opened {access:?}", victim.name),
        }
    }
    let report = check_of(&damaged);
    assert!(report.has(rule), "{}: \"{rule}\" is not among {:?}", victim.name, report.findings);
    assert_eq!(report.worst(), Some(Severity::Corrupt));
}

/// Changes `victim` in a way that the format allows, and expects it to open and the check to find nothing worse than
/// `worst`.
#[track_caller]
fn accepted(victim: &Victim, worst: Option<Severity>, change: impl Fn(&mut Victim)) -> Opened {
    let mut changed = victim.clone();
    change(&mut changed);
    let report = check_of(&changed);
    assert!(report.worst() <= worst, "{}: {:?}", victim.name, report.findings);
    open_of(&changed, Access::ReadWrite).unwrap_or_else(|error| panic!("{}: {error}", victim.name));
    open_of(&changed, Access::ReadOnly).unwrap_or_else(|error| panic!("{}: {error}", victim.name))
}

/// Files without a parent: one of ours, and one of qemu's where that is here.
fn bases() -> Vec<Victim> {
    [Some(Victim::base()), Victim::qemu()].into_iter().flatten().collect()
}

#[test]
fn files_without_damage_have_no_findings() {
    for victim in bases().iter().chain([&Victim::child(), &Victim::fixed()]) {
        let report = check_of(victim);
        assert_eq!(report.worst().filter(|_| victim.name != "qemu"), None, "{:?}", report.findings);
        assert!(report.worst() < Some(Severity::Leak), "{}: {:?}", victim.name, report.findings);
        assert!(report.counts.blocks.fully_present > 0 && report.counts.used_bytes > 0);
    }
    let blocks = check_of(&Victim::child()).counts.blocks;
    assert_eq!((blocks.fully_present, blocks.partially_present, blocks.not_present), (1, 1, 62));
}

#[test]
fn damage_to_identifier_and_headers_is_refused() {
    for victim in bases() {
        refused(&victim, "identifier", |v| v.bytes[0] ^= 1);
        refused(&victim, "file-too-short", |v| v.bytes.truncate((MIB - 512) as usize));
        refused(&victim, "no-header", |v| {
            v.bytes[64 << 10] ^= 1;
            v.bytes[(128 << 10) + 2000] ^= 1;
        });
        refused(&victim, "headers-contradict", |v| {
            let sequence = v.header(0).sequence_number;
            v.edit_header(1, |header| header.sequence_number = sequence);
            v.edit_header(1, |header| header.data_write_guid = Uuid::new_v4().into());
        });
        refused(&victim, "version", |v| v.edit_headers(|header| header.version = 2.into()));
        refused(&victim, "log-version", |v| {
            v.edit_headers(|header| {
                header.log_version = 1.into();
                header.log_guid = Uuid::new_v4().into();
            });
        });
        refused(&victim, "log-place", |v| v.edit_headers(|header| header.log_offset = (MIB + 4096).into()));
        refused(&victim, "log-place", |v| v.edit_headers(|header| header.log_offset = 0.into()));
        refused(&victim, "log-place", |v| v.edit_headers(|header| header.log_length = 4096.into()));
        refused(&victim, "log-place", |v| v.edit_headers(|header| header.log_offset = (MIB << 20).into()));
        refused(&victim, "log-empty", |v| v.edit_headers(|header| header.log_guid = Uuid::new_v4().into()));
    }
}

#[test]
fn a_header_without_room_for_updates_and_a_file_without_a_log_open_only_for_reading() {
    for victim in bases() {
        let rule = |change: &dyn Fn(&mut Victim)| {
            let mut changed = victim.clone();
            change(&mut changed);
            assert!(open_of(&changed, Access::ReadOnly).is_ok());
            open_of(&changed, Access::ReadWrite).unwrap_err().rule()
        };
        assert_eq!(rule(&|v| v.edit_header(0, |h| h.sequence_number = u64::MAX.into())), "header-sequence");
        assert_eq!(rule(&|v| v.edit_headers(|h| h.log_length = 0.into())), "no-log");
    }
}

#[test]
fn damage_to_the_region_table_is_refused() {
    for victim in bases() {
        refused(&victim, "no-region-table", |v| {
            v.bytes[192 << 10] ^= 1;
            v.bytes[(256 << 10) + 16] ^= 1;
        });
        let unknown = Region { guid: Uuid::from_u128(7), offset: 900 * MIB, len: MIB as u32, required: 1 };
        refused(&victim, "region-place", |v| v.edit_regions(|regions| regions.push(unknown)));
        refused(&victim, "region-unknown", |v| {
            let offset = v.append(MIB);
            v.edit_regions(|regions| regions.push(Region { offset, ..unknown }));
        });
        refused(&victim, "region-duplicate", |v| v.edit_regions(|regions| regions.push(regions[0])));
        for guid in [BAT_REGION, METADATA_REGION] {
            refused(&victim, "region-missing", |v| v.edit_regions(|all| all.retain(|r| r.guid != guid)));
            refused(&victim, "region-place", |v| v.edit_region(guid, |region| region.offset += 4096));
            refused(&victim, "region-place", |v| v.edit_region(guid, |region| region.len -= 512));
            refused(&victim, "region-place", |v| v.edit_region(guid, |region| region.len = 0));
            refused(&victim, "region-place", |v| v.edit_region(guid, |region| region.offset = 0));
        }
        refused(&victim, "structure-overlap", |v| {
            let log = v.header(0).log_offset.get();
            v.edit_region(BAT_REGION, |region| region.offset = log);
        });
        refused(&victim, "structure-overlap", |v| {
            let bat = v.region(BAT_REGION).offset;
            v.edit_region(METADATA_REGION, |region| region.offset = bat);
        });
    }
}

#[test]
fn damage_to_the_metadata_table_is_refused() {
    for victim in bases() {
        refused(&victim, "metadata-table", |v| *v.metadata_byte(0) ^= 1);
        refused(&victim, "metadata-table", |v| *v.metadata_byte(11) = 0xff);
        refused(&victim, "metadata-table", |v| *v.metadata_byte(20) = 1);
        refused(&victim, "metadata-table", |v| v.edit_item(FILE_PARAMETERS, |item| item.flags |= 0x10));
        refused(&victim, "item-place", |v| v.edit_item(VIRTUAL_DISK_SIZE, |item| item.offset = 65528));
        refused(&victim, "item-place", |v| v.edit_item(VIRTUAL_DISK_SIZE, |item| item.offset = u32::MAX - 8));
        refused(&victim, "item-place", |v| v.edit_item(VIRTUAL_DISK_SIZE, |item| item.len = 0));
        refused(&victim, "item-place", |v| {
            let other = v.item(FILE_PARAMETERS).offset;
            v.edit_item(VIRTUAL_DISK_SIZE, |item| item.offset = other + 4);
        });
        refused(&victim, "item-duplicate", |v| v.add_item(Item { id: FILE_PARAMETERS, ..Item::EMPTY }));
        let required = Item { id: Uuid::from_u128(7), flags: ITEM_IS_REQUIRED, ..Item::EMPTY };
        refused(&victim, "item-unknown", |v| v.add_item(required));
        refused(&victim, "item-unknown", |v| {
            v.add_item(Item { flags: ITEM_IS_REQUIRED | ITEM_IS_USER, ..required });
        });
        refused(&victim, "incomplete", |v| v.add_item(Item { id: INCOMPLETE_FILE, ..Item::EMPTY }));
        let needed =
            [FILE_PARAMETERS, VIRTUAL_DISK_SIZE, VIRTUAL_DISK_ID, LOGICAL_SECTOR_SIZE, PHYSICAL_SECTOR_SIZE];
        for id in needed {
            let optional = |item: &mut Item| (item.id, item.flags) = (Uuid::from_u128(7), 0);
            refused(&victim, "item-missing", |v| v.edit_item(id, optional));
            refused(&victim, "item-flags", |v| v.edit_item(id, |item| item.flags ^= 2));
            refused(&victim, "item-length", |v| v.edit_item(id, |item| item.len -= 1));
        }
    }
}

#[test]
fn metadata_outside_the_format_is_refused() {
    for victim in bases() {
        for bytes in [0, MIB as u32 / 2, 3 << 20, 512 << 20] {
            refused(&victim, "block-size", |v| v.write_item(FILE_PARAMETERS, 0, &bytes.to_le_bytes()));
        }
        refused(&victim, "parameter-flags", |v| v.write_item(FILE_PARAMETERS, 4, &4u32.to_le_bytes()));
        refused(&victim, "sector-size", |v| v.write_item(LOGICAL_SECTOR_SIZE, 0, &520u32.to_le_bytes()));
        refused(&victim, "sector-size", |v| v.write_item(PHYSICAL_SECTOR_SIZE, 0, &1024u32.to_le_bytes()));
        let size =
            |bytes: u64| move |v: &mut Victim| v.write_item(VIRTUAL_DISK_SIZE, 0, &bytes.to_le_bytes());
        refused(&victim, "size-not-sectors", size((64 << 20) + 511));
        refused(&victim, "size-too-large", size((64 << 40) + 512));
        refused(&victim, "size-too-large", size(!511));
        refused(&victim, "bat-too-short", size(1 << 40));
        // A parent that the flags promise must be described.
        refused(&victim, "item-missing", |v| v.write_item(FILE_PARAMETERS, 4, &2u32.to_le_bytes()));
    }
    let child = Victim::child();
    refused(&child, "parent-locator", |v| v.write_item(PARENT_LOCATOR, 0, &[0; 16]));
    refused(&child, "parent-locator", |v| v.write_item(PARENT_LOCATOR, 18, &257u16.to_le_bytes()));
    refused(&child, "parent-locator", |v| v.edit_item(PARENT_LOCATOR, |item| item.len = 30));
}

#[test]
fn damage_to_the_block_allocation_table_is_refused() {
    use PayloadState::{FullyPresent, PartiallyPresent, Undefined, Unmapped};
    for victim in bases() {
        let (first, second) = (victim.bat(0), victim.bat(1));
        refused(&victim, "bat-state", |v| v.set_bat(0, BatEntry(first.0 & !7 | 5)));
        refused(&victim, "bat-state", |v| v.set_bat(5, BatEntry(4)));
        refused(&victim, "bat-reserved", |v| v.set_bat(0, BatEntry(first.0 | 8)));
        refused(&victim, "bat-reserved", |v| v.set_bat(9, BatEntry(1 << 19)));
        refused(&victim, "bat-no-offset", |v| v.set_bat(0, BatEntry::new(FullyPresent, 0)));
        refused(&victim, "bat-overlap", |v| v.set_bat(0, second));
        refused(&victim, "bat-overlap", |v| v.set_bat(4, BatEntry(second.0 & !7 | Unmapped as u64)));
        let log = victim.header(0).log_offset.get();
        refused(&victim, "bat-overlap", |v| v.set_bat(0, BatEntry::new(FullyPresent, log)));
        for guid in [BAT_REGION, METADATA_REGION] {
            let offset = victim.region(guid).offset;
            refused(&victim, "bat-overlap", |v| v.set_bat(3, BatEntry::new(FullyPresent, offset)));
        }
        for offset in [victim.bytes.len() as u64 / MIB * MIB + MIB, 1 << 50, !(MIB - 1)] {
            refused(&victim, "bat-beyond-end", |v| v.set_bat(0, BatEntry::new(FullyPresent, offset)));
            refused(&victim, "bat-beyond-end", |v| v.set_bat(4, BatEntry::new(Undefined, offset)));
        }
        let partial = BatEntry::new(PartiallyPresent, first.offset_bytes());
        refused(&victim, "bat-partial-without-parent", |v| v.set_bat(0, partial));
    }
}

#[test]
fn an_overlap_names_both_entries() {
    let mut victim = Victim::base();
    victim.set_bat(7, victim.bat(1));
    let error = open_of(&victim, Access::ReadOnly).unwrap_err().to_string();
    assert!(error.contains("entry 7") && error.contains("shares its space with the entry 1"), "{error}");
    let report = check_of(&victim);
    let overlaps: Vec<_> = report.findings.iter().filter(|finding| finding.rule == "bat-overlap").collect();
    assert_eq!(overlaps.len(), 1);
    assert!(overlaps[0].message.contains("shares its space with the entry 1"), "{}", overlaps[0].message);
}

#[test]
fn damage_to_sector_bitmaps_is_refused() {
    let child = Victim::child();
    let bitmap_index = 4096;
    refused(&child, "bat-partial-without-bitmap", |v| v.set_bat(bitmap_index, BatEntry(0)));
    refused(&child, "bat-state", |v| v.set_bat(bitmap_index, BatEntry(7)));
    refused(&child, "bat-state", |v| v.set_bat(bitmap_index, BatEntry(3)));
    refused(&child, "bat-no-offset", |v| v.set_bat(bitmap_index, BatEntry(6)));
    refused(&child, "bat-overlap", |v| v.set_bat(bitmap_index, BatEntry(v.bat(0).0 & !7 | 6)));
    refused(&child, "bat-reserved", |v| v.set_bat(bitmap_index, BatEntry(v.bat(bitmap_index).0 | 16)));
    // Without a parent there are no bitmaps; the slot is there all the same.
    let base = Victim::of_two_chunks();
    refused(&base, "bat-bitmap-without-parent", |v| {
        let offset = v.append(MIB);
        v.set_bat(bitmap_index, BatEntry(offset | 6));
    });
}

#[test]
fn a_check_goes_on_after_a_finding() {
    let mut victim = Victim::base();
    victim.bytes[0] ^= 1;
    victim.bytes[64 << 10] ^= 1;
    victim.bytes[192 << 10] ^= 1;
    victim.edit_item(VIRTUAL_DISK_ID, |item| item.len = 15);
    victim.set_bat(0, BatEntry(5));
    victim.set_bat(9, BatEntry(8));
    victim.set_bat(7, victim.bat(1));
    let report = check_of(&victim);
    let expected = [
        "identifier",
        "header-invalid",
        "region-table-invalid",
        "item-length",
        "bat-state",
        "bat-reserved",
        "bat-overlap",
        "leaked-space",
    ];
    for rule in expected {
        assert!(report.has(rule), "\"{rule}\" is not among {:?}", report.findings);
    }
}

#[test]
fn a_report_keeps_its_size_whatever_the_file() {
    let mut victim = Victim::base();
    for index in 0..64 {
        victim.set_bat(index, BatEntry(5 | (8 << (index % 10))));
    }
    for id in 0..1500 {
        victim.add_item(Item { id: Uuid::from_u128(id), flags: ITEM_IS_REQUIRED, ..Item::EMPTY });
    }
    let report = check_of(&victim);
    assert_eq!(report.left_out, 1400);
    assert_eq!(report.findings.len(), 164 + usize::from(report.has("leaked-space")));
}

#[test]
fn what_only_looks_like_damage_opens() {
    for victim in bases() {
        let note = Some(Severity::Note);
        // The log's version does not matter while the log is not in use.
        accepted(&victim, note, |v| v.edit_headers(|header| header.log_version = 1.into()));
        // Two headers that are the same byte for byte, as disk2vhd writes them.
        accepted(&victim, note, |v| v.bytes.copy_within(64 << 10..(64 << 10) + 4096, 128 << 10));
        let lost = accepted(&victim, note, |v| v.bytes[128 << 10] ^= 1);
        assert_eq!(lost.headers.slot, 0);
        let second = accepted(&victim, Some(Severity::Corrupt), |v| v.bytes[192 << 10] ^= 1);
        assert_eq!(second.regions.table, 1);
        let optional = Region { guid: Uuid::from_u128(7), offset: 0, len: MIB as u32, required: 0 };
        let kept = accepted(&victim, note, |v| {
            let offset = v.append(MIB);
            v.edit_regions(|regions| regions.push(Region { offset, ..optional }));
        });
        assert_eq!((kept.regions.all.len(), kept.space.end()), (3, kept.file.size()));
        let user = Item { id: Uuid::from_u128(7), flags: ITEM_IS_USER, ..Item::EMPTY };
        let kept = accepted(&victim, note, |v| v.add_item(user));
        assert!(kept.items.iter().any(|item| item.is_user));
        accepted(&victim, note, |v| v.add_item(Item { flags: 0, ..user }));
        // The creator fills its field to the end.
        let opened = accepted(&victim, note, |v| v.bytes[8..520].fill(b'x'));
        assert_eq!(opened.creator.chars().count(), 256);
    }
}

#[test]
fn entries_without_data_open_with_and_without_an_offset() {
    use PayloadState::{NotPresent, Undefined, Unmapped, Zero};
    for victim in bases() {
        let kept = victim.bat(1).offset_bytes();
        let taken = |state| {
            let opened =
                accepted(&victim, Some(Severity::Leak), |v| v.set_bat(1, BatEntry::new(state, kept)));
            opened.space.is_used(block::ByteRange::new(kept, MIB).unwrap())
        };
        // The format reserves the offset of the first two, and lets the others keep their space.
        assert_eq!([NotPresent, Zero, Undefined, Unmapped].map(taken), [false, false, true, true]);
        for state in [NotPresent, Undefined, Zero, Unmapped] {
            accepted(&victim, Some(Severity::Note), |v| v.set_bat(20, BatEntry::new(state, 0)));
        }
    }
}

#[test]
fn sectors_of_4096_bytes_and_odd_sizes_open() {
    let opened = accepted(&Victim::of_4096_byte_sectors(), None, |_| {});
    assert_eq!((opened.geometry.logical_sector_bytes, opened.geometry.chunk_ratio), (4096, 32768));
    let base = Victim::base();
    let odd = accepted(&base, Some(Severity::Note), |v| {
        v.write_item(VIRTUAL_DISK_SIZE, 0, &(63 * MIB + 512).to_le_bytes());
    });
    assert_eq!((odd.geometry.payload_blocks, odd.geometry.block_len(63)), (64, 512));
}

#[test]
fn a_file_that_ends_inside_its_last_block_reads_as_if_it_did_not() {
    for victim in bases() {
        let mut cut = victim.clone();
        let end = cut.bytes.len() as u64;
        assert_eq!(cut.bat(2).offset_bytes() + MIB, end, "the third block is the file's last");
        cut.bytes.truncate((end - 4096 - 512) as usize);
        assert!(check_of(&cut).has("file-ends-in-block"));
        let opened = open_of(&cut, Access::ReadOnly).unwrap();
        assert_eq!(opened.file.size(), end);
        block_on(async {
            let tail = opened.file.read_vec(end - 8192, 8192).await.unwrap();
            assert_eq!(tail[..3584], victim.bytes[(end - 8192) as usize..][..3584]);
            assert!(tail[3584..].iter().all(|byte| *byte == 0));
        });
        let written = open_of(&cut, Access::ReadWrite).unwrap();
        assert_eq!(written.file.size(), end);
        assert_ne!(written.header().file_write_guid, opened.header().file_write_guid);
        assert_eq!(written.header().data_write_guid, opened.header().data_write_guid);
    }
}

#[test]
fn space_that_belongs_to_nothing_is_a_leak() {
    for victim in bases() {
        let mut leaky = victim.clone();
        leaky.set_bat(1, BatEntry(0));
        let report = check_of(&leaky);
        assert!(report.has("leaked-space"));
        assert_eq!((report.worst(), report.counts.leaked_bytes), (Some(Severity::Leak), MIB));
    }
}

#[test]
fn a_childs_bitmaps_and_linkage_are_looked_at() {
    let child = Victim::child();
    let bitmap = child.bat(4096).offset_bytes() as usize;
    let rule_of = |value: u8| {
        let mut changed = child.clone();
        // The second block has the second 256 bytes of its chunk's bitmap.
        changed.bytes[bitmap + 256..bitmap + 512].fill(value);
        let report = check_of(&changed);
        (report.has("partial-full"), report.has("partial-empty"))
    };
    assert_eq!([rule_of(0), rule_of(0xff), rule_of(0x10)], [(false, true), (true, false), (false, false)]);
    let mut unused = child.clone();
    unused.set_bat(1, BatEntry::new(PayloadState::FullyPresent, child.bat(1).offset_bytes()));
    assert!(check_of(&unused).has("bitmap-unused"));

    let file = child.disk();
    let with_parent = |guid| {
        let options = CheckOptions { parent_data_write_guid: Some(guid) };
        block_on(check(&file, &options)).unwrap().has("linkage-mismatch")
    };
    assert!(!with_parent(victim::PARENT_GUID) && with_parent(Uuid::from_u128(1)));
}

#[test]
fn a_fixed_disk_must_have_room_for_all_its_blocks() {
    let fixed = Victim::fixed();
    let mut changed = fixed.clone();
    changed.set_bat(0, BatEntry::new(PayloadState::Zero, 0));
    assert!(check_of(&changed).has("fixed-not-allocated") && !check_of(&changed).has("fixed-file-short"));
    changed.bytes.truncate(changed.bytes.len() - (2 << 20));
    changed.set_bat(3, BatEntry::new(PayloadState::Zero, 0));
    assert!(check_of(&changed).has("fixed-file-short"));
}
