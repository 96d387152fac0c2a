//! Space of trimmed blocks goes back to the host, and to new blocks before the file grows.

use std::sync::Arc;

use block::{ByteRange, Disk, ExtentState, ZeroFlags};
use testkit::{MemDev, block_on};

use crate::cases::{CASES, Case, HOST};

const MIB: u64 = 1 << 20;

async fn filled(case: Case, blocks: u64) -> (Arc<MemDev>, Disk) {
    let fixture = case.make();
    let host = Arc::new(MemDev::from_image(fixture.file.clone(), HOST));
    let disk = fixture.open(Disk::from_arc(Arc::clone(&host))).await;
    write_blocks(&disk, case, 0..blocks).await;
    (host, disk)
}

async fn write_blocks(disk: &Disk, case: Case, blocks: std::ops::Range<u64>) {
    let block = u64::from(case.block_bytes);
    for index in blocks {
        disk.write_all(index * block, &vec![0xa5; case.block_bytes as usize]).await.unwrap();
    }
    disk.flush().await.unwrap();
}

#[test]
fn a_file_whose_blocks_are_trimmed_and_written_anew_does_not_grow() {
    for case in [CASES[0], CASES[3]] {
        for flush_after_trim in [true, false] {
            block_on(async {
                let (host, disk) = filled(case, 8).await;
                let size = host.image().size();
                let all = ByteRange::new(0, 8 * u64::from(case.block_bytes)).unwrap();
                for _ in 0..5 {
                    disk.discard(all).await.unwrap();
                    if flush_after_trim {
                        disk.flush().await.unwrap();
                    }
                    write_blocks(&disk, case, 0..8).await;
                }
                assert_eq!(host.image().size(), size, "{}", case.name);
            });
        }
    }
}

#[test]
fn the_host_gets_the_space_of_a_trimmed_block_with_the_next_flush() {
    block_on(async {
        let case = CASES[0];
        let (host, disk) = filled(case, 8).await;
        let stored = |host: &MemDev| -> u64 {
            let image = host.image();
            let range = ByteRange::new(4 * MIB, image.size() - 4 * MIB).unwrap();
            image.stored(range).iter().map(|range| range.len()).sum()
        };
        assert!(stored(&host) >= 8 * MIB);
        disk.discard(ByteRange::new(0, 7 * MIB).unwrap()).await.unwrap();
        disk.flush().await.unwrap();
        assert!(stored(&host) <= 2 * MIB, "{} bytes are still stored", stored(&host));
    });
}

#[test]
fn part_of_a_block_is_trimmed_in_the_host_file() {
    block_on(async {
        let case = CASES[0];
        let (host, disk) = filled(case, 1).await;
        let before = host.image().stored(ByteRange::new(0, host.image().size()).unwrap());
        disk.discard(ByteRange::new(256 << 10, 512 << 10).unwrap()).await.unwrap();
        let after = host.image().stored(ByteRange::new(0, host.image().size()).unwrap());
        let total = |ranges: &[ByteRange]| ranges.iter().map(|range| range.len()).sum::<u64>();
        assert_eq!(total(&before) - total(&after), 512 << 10);
        assert_eq!(disk.read_vec(256 << 10, 512 << 10).await.unwrap(), vec![0; 512 << 10]);
    });
}

#[test]
fn the_file_ends_with_its_last_block_after_close() {
    block_on(async {
        let case = CASES[0];
        let (host, disk) = filled(case, 8).await;
        disk.discard(ByteRange::new(2 * MIB, 6 * MIB).unwrap()).await.unwrap();
        disk.close().await.unwrap();
        // Header, log, metadata, table, two blocks.
        assert_eq!(host.image().size(), 6 * MIB);
    });
}

#[test]
fn states_follow_trim_and_zeroes_as_the_format_says() {
    for (case, untouched) in [(CASES[0], ExtentState::NotPresent), (CASES[3], ExtentState::NotPresent)] {
        block_on(async {
            let (_host, disk) = filled(case, 4).await;
            let block = u64::from(case.block_bytes);
            let range = |index: u64| ByteRange::new(index * block, block).unwrap();
            disk.discard(range(0)).await.unwrap();
            disk.write_zeroes(range(1), ZeroFlags { may_unmap: true, ..ZeroFlags::default() }).await.unwrap();
            disk.write_zeroes(range(2), ZeroFlags::default()).await.unwrap();
            let mut states = Vec::new();
            for index in 0..5 {
                let mut extents = Vec::new();
                disk.block_status(range(index), &mut extents).await.unwrap();
                states.push(extents.iter().map(|extent| extent.state).max().unwrap());
            }
            use ExtentState::{Present, Unmapped, Zero};
            assert_eq!(states, [Unmapped, Zero, Present, Present, untouched], "{}", case.name);
        });
    }
}

#[test]
fn bits_that_another_program_left_for_an_absent_block_do_not_hide_the_parent() {
    block_on(async {
        let case = CASES[3];
        let fixture = case.make();
        let host = Arc::new(MemDev::from_image(fixture.file.clone(), HOST));
        let disk = fixture.open(Disk::from_arc(Arc::clone(&host))).await;
        // The chunk gets a bitmap with the first bits of block 3.
        disk.write_all(3 * MIB, &[1; 512]).await.unwrap();
        disk.close().await.unwrap();
        let mut image = host.image();
        let opened = image::vhdx::open(
            Disk::new(MemDev::from_image(image.clone(), HOST)),
            image::vhdx::Access::ReadOnly,
        )
        .await
        .unwrap();
        let index = opened.geometry.bitmap_entry_index(0);
        let mut entry = [0; 8];
        image.read(opened.regions.bat.offset + index * 8, &mut entry);
        let bitmap = u64::from_le_bytes(entry) & !(MIB - 1);
        // All bits of block 12, where the parent has data in the middle of the disk.
        image.write(bitmap + opened.geometry.bitmap_offset_of(12), &[0xff; 256]);
        let disk = fixture.open(Disk::new(MemDev::from_image(image, HOST))).await;
        let before = disk.read_vec(12 * MIB, 1 << 20).await.unwrap();
        assert!(before.iter().any(|&byte| byte != 0), "the parent has data there");
        disk.write_all(12 * MIB, &[2; 512]).await.unwrap();
        let after = disk.read_vec(12 * MIB, 1 << 20).await.unwrap();
        assert_eq!((&after[..512], &after[512..]), (&[2; 512][..], &before[512..]));
    });
}

#[test]
fn a_discard_of_more_than_the_table_pages_in_memory_ends() {
    let case = Case {
        name: "wide",
        virtual_size: 9000 << 29,
        block_bytes: 1 << 20,
        sector_bytes: 512,
        child: false,
    };
    block_on(async {
        let (_host, disk) = filled(case, 2).await;
        disk.discard(disk.range()).await.unwrap();
        assert_eq!(disk.read_vec(MIB, 512).await.unwrap(), [0; 512]);
    });
}
