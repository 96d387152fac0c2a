//! Parent locators of differencing VHDX files: text that another program wrote and that names files on this host.
//!
//! What must hold: a locator that is accepted survives being written again; the parents that it names are few, and a
//! relative one is looked for below the child's directory or above it, never by an empty path.

use std::path::Path;

use image::vhdx::ParentLocator;
use uuid::Uuid;

use crate::Seed;

/// Paths that one pair can stand for: as Windows means it, as it stands, and the name beside the child.
const CANDIDATES_PER_PAIR: usize = 3;

pub(crate) fn run(input: &[u8]) {
    let Ok(locator) = ParentLocator::decode(input) else { return };
    let again = ParentLocator::decode(&locator.encode());
    assert_eq!(again.as_ref(), Ok(&locator), "a locator survives its encoding");
    let candidates = locator.candidates(Path::new("/disks/vm"));
    assert!(candidates.len() <= locator.pairs().len() * CANDIDATES_PER_PAIR, "{candidates:?}");
    assert!(
        candidates.iter().all(|path| path.is_absolute()),
        "a path depends on the child's place: {candidates:?}"
    );
    assert!(locator.matches(locator.linkage()), "a locator matches its own linkage");
}

pub(crate) fn seeds() -> Vec<Seed> {
    let guid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    let locator = |child: &str, parent: &str| {
        ParentLocator::for_parent(guid, Path::new(child), Path::new(parent))
            .expect("the paths are text")
            .encode()
    };
    vec![
        ("beside", locator("/disks/vm", "/disks/vm/base.vhdx")),
        ("above", locator("/disks/vm", "/disks/gold/büro.vhdx")),
    ]
}
