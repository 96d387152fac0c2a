//! Chains that Windows made, whose locators name their parents as Windows does.
//!
//! It proves something only where the corpus is there (`GODWIT_CORPUS`, or `../shared/corpus` beside the workspace)
//! with `gzip`; elsewhere it says that it skips.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use graph::{ChainError, ChainOptions, open_chain};
use hostio::block_on;

/// Unpacks a folder of the corpus; `None`, with a message, where it is not there.
fn unpacked(folder: &str) -> Option<tempfile::TempDir> {
    let corpus = match std::env::var_os("GODWIT_CORPUS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"),
    };
    let Ok(entries) = std::fs::read_dir(corpus.join(folder)) else {
        eprintln!("skipped: there is no corpus in {}", corpus.display());
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    for packed in entries.map(|entry| entry.unwrap().path()) {
        let name = packed.file_stem().unwrap();
        if name.to_str().unwrap().ends_with("vhdx") {
            let out = File::create(dir.path().join(name)).unwrap();
            assert!(Command::new("gzip").arg("-dc").arg(&packed).stdout(out).status().unwrap().success());
        }
    }
    Some(dir)
}

#[test]
fn a_windows_child_finds_the_parent_beside_it() {
    let Some(dir) = unpacked("fat-chain-vhdx") else { return };
    for options in [ChainOptions::default(), ChainOptions::read_write()] {
        let chain = block_on(open_chain(dir.path().join("fat-differential.vhdx"), &options)).unwrap();
        let names: Vec<_> = chain.layers.iter().map(|layer| layer.path.file_name().unwrap()).collect();
        assert_eq!(names, ["fat-differential.vhdx", "fat-parent.vhdx"]);
        let [child, parent] = [0, 1].map(|index| chain.layers[index].vhdx.as_ref().unwrap());
        assert_eq!(child.linkage, Some(parent.data_write_guid));
        block_on(chain.disk.close()).unwrap();
    }
}

#[test]
fn a_checkpoint_without_its_parent_says_where_it_was_looked_for() {
    let Some(dir) = unpacked("hyperv") else { return };
    let error =
        block_on(open_chain(dir.path().join("differencing.avhdx"), &ChainOptions::default())).unwrap_err();
    assert!(matches!(error, ChainError::ParentMissing { .. }));
    let parent = dir.path().join("Generation 1_49C4BAF3-4B25-4406-8C4B-D39E65C32385.avhdx");
    assert!(error.to_string().contains(&format!("looked for {}", parent.display())), "{error}");
}
