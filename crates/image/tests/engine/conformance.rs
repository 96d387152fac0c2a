//! The engine keeps the block contract, line by line.

use block::Disk;
use hostio::{HostFile, OpenOptions};
use image::vhdx::Access;
use testkit::{MemDev, conformance};

use crate::cases::{CASES, HOST};

/// The suite reads whole disks again and again; larger ones are for the model.
const LARGE: u64 = 1 << 30;

#[test]
fn dynamic_disks_conform() {
    for case in CASES.into_iter().filter(|case| !case.child && case.virtual_size < LARGE) {
        let fixture = case.make();
        testkit::block_on(conformance::check(async || {
            fixture.open(Disk::new(MemDev::from_image(fixture.file.clone(), HOST))).await
        }));
    }
}

#[test]
fn children_of_an_empty_parent_conform() {
    for case in CASES.into_iter().filter(|case| case.child && case.virtual_size < LARGE) {
        let fixture = case.make().over_empty_parent();
        testkit::block_on(conformance::check(async || {
            fixture.open(Disk::new(MemDev::from_image(fixture.file.clone(), HOST))).await
        }));
    }
}

#[test]
fn read_only_disks_conform() {
    for case in CASES {
        let fixture = case.make();
        testkit::block_on(conformance::check_read_only(async || {
            let file = Disk::new(MemDev::from_image(fixture.file.clone(), HOST));
            Disk::new(fixture.open_dev(file, Access::ReadOnly).await)
        }));
    }
}

#[test]
fn threads_share_a_disk_on_a_host_file() {
    let directory = tempfile::tempdir().unwrap();
    for case in CASES.into_iter().filter(|case| case.virtual_size < LARGE) {
        let fixture = case.make().over_empty_parent();
        let path = directory.path().join(case.name);
        let disk = hostio::block_on(async {
            let file = HostFile::create(&path, fixture.file.size(), &OpenOptions::read_write()).unwrap();
            let file = Disk::new(file);
            for range in fixture.file.stored(fixture.file.range()) {
                let mut bytes = vec![0; range.len() as usize];
                fixture.file.read(range.start(), &mut bytes);
                file.write_all(range.start(), &bytes).await.unwrap();
            }
            fixture.open(file).await
        });
        conformance::check_threads(&disk, hostio::block_on);
        hostio::block_on(disk.close()).unwrap();
    }
}
