//! `godwit disk`.

use crate::exit::Exit;
use crate::report::Form;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DiskCommand {}

pub(crate) fn run(command: DiskCommand, _form: Form) -> anyhow::Result<Exit> {
    match command {}
}
