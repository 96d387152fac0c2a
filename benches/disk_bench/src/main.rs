//! Measures Godwit's disk servers and their peers side by side, in one run: what it prints are ratios, which hold on
//! another machine sooner than times do.
//!
//! Within a row the contenders take turns, `--repeat` times over and in another order each time, so that whatever else
//! the machine does hits all of them alike. A figure is the median of its repetitions; the smallest and the largest
//! stand beside it. Nothing here fails because something was slow. `docs/benchmarks.md` says what each row is.

mod contender;
mod fio;
mod first_touch;
mod images;
mod machine;
mod open;
mod process;
mod report;
mod server;
mod settings;
mod steady;
mod virtqueue;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use machine::Machine;
use report::Report;
use settings::{Arguments, Settings};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("disk_bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let settings = Settings::from_arguments(&arguments)?;
    let mut report = Report::new(Machine::look(&settings)?);
    report.print_machine();
    steady::run(&settings, &mut report)?;
    first_touch::run(&settings, &mut report)?;
    open::run(&settings, &mut report)?;
    report.print_summary();
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report).context("write the report as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
