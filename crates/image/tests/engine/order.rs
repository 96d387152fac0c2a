//! The order of log and places: nothing goes to its place before the log entry that holds it is durable.

use std::sync::Arc;

use block::{ByteRange, Disk};
use testkit::{CrashDev, Event, RequestKind, block_on};

use crate::cases::{Case, HOST};

const MIB: u64 = 1 << 20;
/// Where `create` puts the log, and metadata and table.
const LOG: ByteRange = ByteRange::new(MIB, MIB).unwrap();
const TABLE: ByteRange = ByteRange::new(2 * MIB, 2 * MIB).unwrap();

/// What the host is asked while `trims` blocks are trimmed one by one, each with an entry of its own, and then flushed.
/// All entries of the table are in one page.
fn trim(trims: u64) -> Vec<Event> {
    let case = Case {
        name: "one page",
        virtual_size: 300 * MIB,
        block_bytes: 1 << 20,
        sector_bytes: 512,
        child: false,
    };
    let fixture = case.make();
    let host = Arc::new(CrashDev::from_image(fixture.file.clone(), HOST));
    block_on(async {
        let disk = fixture.open(Disk::from_arc(Arc::clone(&host))).await;
        for index in 0..200 {
            disk.write_all(index * MIB, &[1; 512]).await.unwrap();
        }
        for _ in 0..2 {
            disk.flush().await.unwrap();
        }
        for index in 0..trims {
            disk.discard(ByteRange::new(index * MIB, MIB).unwrap()).await.unwrap();
        }
        disk.flush().await.unwrap();
    });
    host.history().events().to_vec()
}

#[test]
fn no_page_goes_to_its_place_before_the_log_entry_that_holds_it_is_durable() {
    // Entries that no flush makes durable fill the log after some 125 of them.
    for trims in 100..140 {
        let mut log_is_durable = true;
        for event in trim(trims) {
            match event {
                Event::FlushDone { .. } => log_is_durable = true,
                Event::Started { request, .. } if request.kind == RequestKind::Write => {
                    assert!(
                        log_is_durable || !request.range.overlaps(TABLE),
                        "{trims} trims: {request:?} is asked while the entry with the page may be lost"
                    );
                    log_is_durable &= !request.range.overlaps(LOG);
                }
                _ => {}
            }
        }
    }
}
