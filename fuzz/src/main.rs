//! libFuzzer around one of the functions of `fuzz_targets`; `cargo xtask fuzz` builds and runs it.
//!
//! The environment says which: `GODWIT_FUZZ_TARGET` is the target's name. Into the folder `GODWIT_FUZZ_SEEDS` the
//! target's seeds are written before the fuzzer reads its corpus.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use fuzz_targets::{BoundedAllocator, MEMORY_BYTES_MAX, Target};

#[global_allocator]
static ALLOCATOR: BoundedAllocator = BoundedAllocator::new(MEMORY_BYTES_MAX);

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("GODWIT_FUZZ_TARGET").expect("GODWIT_FUZZ_TARGET names a target");
        let target = fuzz_targets::find(&name).unwrap_or_else(|| panic!("there is no target {name:?}"));
        if let Some(folder) = std::env::var_os("GODWIT_FUZZ_SEEDS") {
            for (name, input) in (target.seeds)() {
                std::fs::write(Path::new(&folder).join(name), input).expect("the folder of seeds can be written to");
            }
        }
        TARGET.get_or_init(|| target);
    },
    |data: &[u8]| {
        (TARGET.get().expect("it was set at the start").run)(data);
    }
);
