//! `godwit tour`: the main job, played on this machine with a real guest, and every step explained.
//!
//! The tour runs the same commands that people type, and judges what they and other programs say. It stops at the
//! first thing that is not as it should be.

mod guest;
mod machine;
mod narrator;
mod shell;
mod story;

use std::path::PathBuf;

use anyhow::Context as _;

use crate::exit::Exit;
use crate::report::Form;

#[derive(Debug, clap::Args)]
pub(crate) struct TourArgs {
    /// Where the tour's files go; a new or empty directory [default: a new one in the temporary directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// The guest, as `guest/build` makes it.
    #[arg(long, value_name = "DIR", env = "GODWIT_GUEST", default_value = "target/guest")]
    guest: PathBuf,

    /// Also keep the raw copy of the disk's content that the checks make.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: TourArgs, form: Form) -> anyhow::Result<Exit> {
    let guest = guest::Guest::find(&args.guest)?;
    let dir = place(args.dir)?;
    let mut narrator = narrator::Narrator::new(form);
    let told = story::tell(&mut shell::Shell::new(&mut narrator, &dir)?, &guest, args.keep);
    narrator.end(&dir, told.is_ok())?;
    told.with_context(|| format!("the tour ends here; what it made is in {}", dir.display()))?;
    Ok(Exit::Done)
}

fn place(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let Some(dir) = given else {
        let dir = tempfile::Builder::new().prefix("godwit-tour-").tempdir().context("make a directory")?;
        return Ok(dir.keep());
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let empty = std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?.next().is_none();
    anyhow::ensure!(empty, "{} is not empty; the tour writes into a new or empty directory", dir.display());
    std::path::absolute(&dir).with_context(|| format!("the absolute path of {}", dir.display()))
}
