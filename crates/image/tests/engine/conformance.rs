//! The engine keeps the block contract, line by line.

use block::Disk;
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
