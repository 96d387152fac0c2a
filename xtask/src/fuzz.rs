//! `cargo xtask fuzz`: libFuzzer on stable Rust, without cargo-fuzz.
//!
//! libFuzzer needs code that counts its edges and tells its comparisons. LLVM's pass for that is in every rustc; only
//! the flag that turns it on by its proper name is unstable, so the pass is named to LLVM directly. There is no
//! AddressSanitizer without a nightly compiler: the targets bound their memory by an allocator of their own, and
//! `unsafe` code is small and has tests of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

/// What tells LLVM to instrument the code for libFuzzer.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                         -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                         -Cllvm-args=-sanitizer-coverage-pc-table \
                         -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// A target of its own keeps the flags away from build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// How long each target runs unless somebody says otherwise.
const SECONDS_DEFAULT: u64 = 20;
/// An input that takes longer than this is a finding.
const INPUT_SECONDS_MAX: u32 = 10;
/// The whole process, with libFuzzer's own tables; the targets' own bound is tighter.
const RSS_MIB_MAX: u32 = 1024;
/// What is shown of the fuzzer's words when it found something.
const LOG_LINES_SHOWN: usize = 60;
/// Inputs are not made longer than this.
const INPUT_BYTES_MAX: u32 = 256 << 10;

/// What to fuzz and for how long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    targets: Vec<String>,
    seconds: u64,
}

impl Plan {
    /// Understands `[target]... [--seconds N]`. The environment's `GODWIT_FUZZ_SECONDS` stands in for the option.
    pub(crate) fn parse(args: &[&str]) -> Result<Self> {
        let mut plan = Self { targets: Vec::new(), seconds: seconds_of_environment()? };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--seconds" => {
                    let seconds = args.next().context("--seconds needs a number")?;
                    plan.seconds =
                        u64::from_str(seconds).with_context(|| format!("--seconds {seconds:?}"))?;
                }
                option if option.starts_with('-') => bail!("fuzz has no option {option}; it has --seconds N"),
                target => plan.targets.push(target.to_owned()),
            }
        }
        Ok(plan)
    }
}

fn seconds_of_environment() -> Result<u64> {
    match std::env::var("GODWIT_FUZZ_SECONDS") {
        Ok(seconds) => u64::from_str(&seconds).with_context(|| format!("GODWIT_FUZZ_SECONDS={seconds:?}")),
        Err(_) => Ok(SECONDS_DEFAULT),
    }
}

/// Builds the fuzzer and runs it as planned; whether no target found anything.
pub(crate) fn run(root: &Path, plan: &Plan) -> Result<bool> {
    let known = targets(root)?;
    for target in &plan.targets {
        ensure!(known.contains(target), "there is no target {target:?}; there are {}", known.join(", "));
    }
    let chosen = if plan.targets.is_empty() { &known } else { &plan.targets };
    if plan.seconds == 0 {
        println!("fuzz: the budget is 0 seconds; nothing is run");
        return Ok(true);
    }
    let binary = build(root)?;
    let mut sound = true;
    for target in chosen {
        sound &= fuzz(root, &binary, target, plan.seconds)?;
    }
    Ok(sound)
}

/// The names in the table of targets, read from its source so that xtask need not link what it fuzzes.
fn targets(root: &Path) -> Result<Vec<String>> {
    let path = root.join("fuzz/targets/src/lib.rs");
    let source = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let names: Vec<String> = source
        .split("Target { name: \"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next().map(str::to_owned))
        .collect();
    ensure!(!names.is_empty(), "{} lists no targets", path.display());
    Ok(names)
}

fn build(root: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target_folder = root.join("target/fuzz");
    let built = Command::new(cargo)
        .args(["build", "--release", "--target", TRIPLE, "--target-dir"])
        .arg(&target_folder)
        .env("RUSTFLAGS", RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(root.join("fuzz"))
        .status()
        .context("run cargo build")?;
    ensure!(built.success(), "the fuzzer does not build");
    Ok(target_folder.join(TRIPLE).join("release/godwit-fuzz"))
}

/// Fuzzes one target; whether nothing was found.
fn fuzz(root: &Path, binary: &Path, target: &str, seconds: u64) -> Result<bool> {
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = root.join("target/fuzz").join(name).join(target);
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(folder)
    };
    let (grown, seeds) = (folder("grown")?, folder("seeds")?);
    let findings = root.join("fuzz/artifacts").join(target);
    std::fs::create_dir_all(&findings).with_context(|| format!("make {}", findings.display()))?;
    let kept = root.join("fuzz/corpus").join(target);
    println!("fuzz: {target} for {seconds} s");
    let mut command = Command::new(binary);
    // The first folder takes what the fuzzer learns; the others are only read.
    command.arg(grown).arg(&seeds).args(kept.is_dir().then_some(&kept));
    let log_path = root.join("target/fuzz").join(format!("{target}.log"));
    let log = File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
    let status = command
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={RSS_MIB_MAX}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg("-print_final_stats=1")
        .stderr(log)
        .env("GODWIT_FUZZ_TARGET", target)
        .env("GODWIT_FUZZ_SEEDS", &seeds)
        .status()
        .with_context(|| format!("run {}", binary.display()))?;
    let said = std::fs::read_to_string(&log_path).unwrap_or_default();
    if status.success() {
        println!("fuzz: {target}: {}", summary(&said));
        return Ok(true);
    }
    eprintln!("{}", last_lines(&said, LOG_LINES_SHOWN));
    eprintln!(
        "fuzz: {target}: an input breaks a promise. It is in {}, and all that was said in {}. Mend the code, then \
         keep the input as {}/<what it shows>, where the tests replay it.",
        findings.display(),
        log_path.display(),
        kept.display()
    );
    Ok(false)
}

/// libFuzzer's own figures, in a line.
fn summary(said: &str) -> String {
    let figures =
        ["number_of_executed_units", "average_exec_per_sec", "slowest_unit_time_sec", "peak_rss_mb"];
    let figure = |name: &&str| {
        let value = said.lines().find_map(|line| line.strip_prefix(&format!("stat::{name}:")))?;
        Some(format!("{name} {}", value.trim()))
    };
    figures.iter().filter_map(figure).collect::<Vec<_>>().join(", ")
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_targets_and_seconds() {
        let plan = Plan::parse(&["nbd", "--seconds", "5", "virtio"]).unwrap();
        assert_eq!(plan, Plan { targets: vec!["nbd".to_owned(), "virtio".to_owned()], seconds: 5 });
        for wrong in [&["--seconds"][..], &["--seconds", "x"], &["--runs", "3"]] {
            assert!(Plan::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_targets_are_those_of_the_table() {
        assert!(targets(&crate::root()).unwrap().contains(&"nbd".to_owned()));
    }
}
