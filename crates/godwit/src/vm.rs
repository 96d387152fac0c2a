//! `godwit vm`.

use crate::exit::Exit;
use crate::report::Form;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum VmCommand {}

pub(crate) fn run(command: VmCommand, _form: Form) -> anyhow::Result<Exit> {
    match command {}
}
