//! `godwit tour`.

use crate::exit::Exit;
use crate::report::Form;

#[derive(Debug, clap::Args)]
pub(crate) struct TourArgs {}

pub(crate) fn run(_args: TourArgs, _form: Form) -> anyhow::Result<Exit> {
    anyhow::bail!("not built yet")
}
