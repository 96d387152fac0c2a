//! Random requests agree with the reference model, one at a time and several at once, across reopens.

use block::Disk;
use image::vhdx::Access;
use testkit::{MemDev, Model, Runner, Shape, block_on};

use crate::cases::{CASES, Case, HOST};

const OPS: usize = 400;

fn shape(disk: &Disk, case: Case) -> Shape {
    let block = u64::from(case.block_bytes);
    let chunk = (1 << 23) * u64::from(case.sector_bytes);
    Shape { borders: vec![4096, 65536, block, chunk], len_max: 2 * block.min(4 << 20), ..Shape::of(disk) }
}

fn check(case: Case, seed: u64, depth: usize) {
    block_on(async {
        let fixture = case.make();
        let file = Disk::new(MemDev::from_image(fixture.file.clone(), HOST));
        let disk = fixture.open(file.clone()).await;
        let mut model = Model::of(fixture.content(), disk.info());
        let ops = shape(&disk, case).ops(seed, OPS);
        let done = Runner::new(&disk, &mut model).depth(depth, seed).run(&ops).await;
        done.unwrap_or_else(|mismatch| panic!("{} seed {seed} depth {depth}: {mismatch}", case.name));
        model.check_disk(&disk).await.unwrap();
        disk.flush().await.unwrap();
        // Open what lies on the host now, as after a kill, in memory and on disk, and after a clean close.
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let again = Disk::new(fixture.open_dev(file.clone(), access).await);
            model
                .check_disk(&again)
                .await
                .unwrap_or_else(|mismatch| panic!("{} {access:?}: {mismatch}", case.name));
        }
    });
}

#[test]
fn requests_one_after_the_other_agree_with_the_model() {
    for case in CASES {
        for seed in 0..4 {
            check(case, seed, 1);
        }
    }
}

#[test]
fn requests_in_flight_together_agree_with_the_model() {
    for case in CASES {
        for seed in 100..104 {
            check(case, seed, 8);
        }
    }
}

#[test]
fn a_closed_file_is_clean_and_holds_what_was_written() {
    for case in CASES {
        block_on(async {
            let fixture = case.make();
            let host = std::sync::Arc::new(MemDev::from_image(fixture.file.clone(), HOST));
            let disk = fixture.open(Disk::from_arc(std::sync::Arc::clone(&host))).await;
            let mut model = Model::of(fixture.content(), disk.info());
            testkit::run_ops(&disk, &mut model, &shape(&disk, case).ops(7, OPS)).await.unwrap();
            disk.close().await.unwrap();
            let file = Disk::new(MemDev::from_image(host.image(), HOST));
            let opened = image::vhdx::open(file.clone(), Access::ReadOnly).await.unwrap();
            assert!(!opened.was_dirty, "{}: a closed file has no log to replay", case.name);
            assert_eq!(
                opened.space.end(),
                file.size(),
                "{}: a closed file is as long as it needs",
                case.name
            );
            model.check_disk(&fixture.open(file).await).await.unwrap();
        });
    }
}
