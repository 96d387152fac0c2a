//! `godwit serve`.

use crate::exit::Exit;
use crate::report::Form;

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {}

pub(crate) fn run(_args: ServeArgs, _form: Form) -> anyhow::Result<Exit> {
    anyhow::bail!("not built yet")
}
