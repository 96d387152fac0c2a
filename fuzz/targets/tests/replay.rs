//! Replays what the fuzzer has found, and the seeds, without the fuzzer.

use std::panic::catch_unwind;
use std::path::Path;

use fuzz_targets::{BoundedAllocator, MEMORY_BYTES_MAX, TARGETS, Target};

#[global_allocator]
static ALLOCATOR: BoundedAllocator = BoundedAllocator::new(MEMORY_BYTES_MAX);

#[test]
fn every_input_that_was_found_and_every_seed_keeps_the_promises() {
    let mut failed = Vec::new();
    for target in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{} has nothing to replay", target.name);
        println!("{}: {} inputs", target.name, inputs.len());
        for (name, input) in inputs {
            if catch_unwind(|| (target.run)(&input)).is_err() {
                failed.push(format!("{}/{name}", target.name));
            }
        }
    }
    assert!(failed.is_empty(), "inputs that break a promise: {}", failed.join(", "));
}

/// The target's seeds, and the files in its folder of the corpus.
fn inputs(target: &Target) -> Vec<(String, Vec<u8>)> {
    let seeds = (target.seeds)().into_iter().map(|(name, input)| (format!("seed {name}"), input));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target.name);
    let found = std::fs::read_dir(folder).into_iter().flatten().map(|entry| {
        let path = entry.expect("the corpus can be listed").path();
        let input = std::fs::read(&path).expect("the corpus can be read");
        (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), input)
    });
    seeds.chain(found).collect()
}
