//! The disk and mobility layer for virtual machines on stock QEMU: the command line.

mod cli;
mod disk;
#[cfg(test)]
mod documents;
mod exit;
mod report;
mod serve;
mod tour;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
