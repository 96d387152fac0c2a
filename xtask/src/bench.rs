//! `cargo xtask bench`: builds the servers and the bench for release, and runs the bench with the rest of the line.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Builds and runs; `Ok(false)` where either fails, which it has then said itself.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<bool> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(&cargo)
        .args(["build", "--release", "--package", "godwit", "--package", "disk_bench"])
        .current_dir(root)
        .status()
        .context("run cargo build")?;
    if !built.success() {
        return Ok(false);
    }
    let ran = Command::new(&cargo)
        .args(["run", "--quiet", "--release", "--package", "disk_bench", "--"])
        .args(args)
        .current_dir(root)
        .status()
        .context("run the bench")?;
    Ok(ran.success())
}
