//! When the identifiers of a file change, and when they do not.

use std::sync::Arc;

use block::{ByteRange, Disk, ZeroFlags};
use image::vhdx::header::Header;
use image::vhdx::layout::{HEADER_BYTES, HEADER_OFFSETS};
use image::vhdx::{self, Access};
use testkit::{CrashDev, Event, MemDev, RequestKind, block_on};

use crate::cases::{CASES, HOST};

fn headers(file: &MemDev) -> [Header; 2] {
    let image = file.image();
    HEADER_OFFSETS.map(|offset| {
        let mut bytes = vec![0; HEADER_BYTES];
        image.read(offset, &mut bytes);
        Header::decode(&bytes).unwrap()
    })
}

#[test]
fn reads_trims_of_nothing_and_flushes_keep_every_byte() {
    for case in CASES {
        block_on(async {
            let fixture = case.make();
            let host = Arc::new(MemDev::from_image(fixture.file.clone(), HOST));
            let disk = fixture.open(Disk::from_arc(Arc::clone(&host))).await;
            disk.read_vec(0, case.sector_bytes as usize).await.unwrap();
            disk.discard(disk.range()).await.unwrap();
            disk.flush().await.unwrap();
            disk.close().await.unwrap();
            assert_eq!(host.image().first_difference(&fixture.file), None, "{}", case.name);
        });
    }
}

#[test]
fn both_identifiers_are_durable_before_the_first_change_lands() {
    for case in CASES {
        block_on(async {
            let fixture = case.make();
            let before =
                vhdx::open(Disk::new(MemDev::from_image(fixture.file.clone(), HOST)), Access::ReadOnly)
                    .await
                    .unwrap()
                    .headers
                    .current;
            let host = Arc::new(CrashDev::from_image(fixture.file.clone(), HOST));
            let disk = fixture.open(Disk::from_arc(Arc::clone(&host))).await;
            disk.write_all(0, &vec![9; case.sector_bytes as usize]).await.unwrap();
            let history = host.history();
            // The guest's bytes are the last write of the run.
            let first_data = history
                .events()
                .iter()
                .rposition(|event| matches!(event, Event::Started { request, .. } if request.kind == RequestKind::Write))
                .unwrap();
            let [a, b] = headers(&history.crash_at(first_data, testkit::Survival::Nothing));
            for header in [a, b] {
                assert_ne!(header.file_write_guid, before.file_write_guid, "{}", case.name);
                assert_ne!(header.data_write_guid, before.data_write_guid, "{}", case.name);
                assert!(!header.log_guid.is_nil(), "{}", case.name);
            }
        });
    }
}

#[test]
fn the_identifiers_change_once_in_a_session_and_again_in_the_next() {
    let case = CASES[0];
    block_on(async {
        let fixture = case.make();
        let mut image = fixture.file.clone();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let host = Arc::new(MemDev::from_image(image, HOST));
            seen.push(headers(&host)[0].data_write_guid);
            let disk = fixture.open(Disk::from_arc(Arc::clone(&host))).await;
            let zeroes = ByteRange::new(0, u64::from(case.block_bytes)).unwrap();
            disk.write_all(4096, &[1; 512]).await.unwrap();
            let during = headers(&host)[0].data_write_guid;
            disk.write_zeroes(zeroes, ZeroFlags::default()).await.unwrap();
            disk.flush().await.unwrap();
            disk.close().await.unwrap();
            let after = headers(&host);
            assert!(after.iter().all(|header| header.data_write_guid == during && header.log_guid.is_nil()));
            assert!(!seen.contains(&during));
            image = host.image();
        }
    });
}
