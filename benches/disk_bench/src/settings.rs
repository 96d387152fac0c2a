//! What a run is to measure, and where.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::contender::Cache;

/// Measures Godwit and the peers side by side: disk servers over NBD and vhost-user-blk, first-touch writes, and the
/// opening of huge disks.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// Seconds that one contender is measured for in one repetition of a row.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,

    /// Repetitions of each row; the median counts.
    #[arg(long, default_value_t = 5)]
    repeat: usize,

    /// Only rows whose name contains this text, such as `nbd/memory/`. Can be given several times.
    #[arg(long, value_name = "TEXT")]
    rows: Vec<String>,

    /// Folder on the disk to measure; files of several GiB are made in it and removed.
    #[arg(long, default_value = "target")]
    dir: PathBuf,

    /// Folder in memory for the rows that leave the disk out.
    #[arg(long, default_value = "/dev/shm")]
    memory_dir: PathBuf,

    /// Size of the disks that are served, in MiB.
    #[arg(long, default_value_t = 512)]
    size_mib: u64,

    /// First-touch writes in one repetition.
    #[arg(long, default_value_t = 1024)]
    touches: u64,

    /// The program to measure [default: the `godwit` beside this program].
    #[arg(long)]
    godwit: Option<PathBuf>,

    /// Write the whole report to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// The arguments, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) cell_time: Duration,
    pub(crate) repeat: usize,
    rows: Vec<String>,
    pub(crate) places: [Place; 3],
    pub(crate) size: u64,
    pub(crate) touches: u64,
    pub(crate) godwit: PathBuf,
}

/// Where the images of a row are, and how the servers read and write them.
#[derive(Debug)]
pub(crate) struct Place {
    /// Part of the names of the rows.
    pub(crate) name: &'static str,
    pub(crate) folder: PathBuf,
    pub(crate) cache: Cache,
}

impl Settings {
    pub(crate) fn from_arguments(arguments: &Arguments) -> Result<Self> {
        ensure!(
            arguments.seconds > 0.0 && arguments.seconds <= 3600.0,
            "--seconds is above 0 and at most 3600"
        );
        ensure!(arguments.repeat >= 1, "--repeat is at least 1");
        ensure!(arguments.touches >= 32, "--touches is at least 32");
        ensure!((64..=65_536).contains(&arguments.size_mib), "--size-mib is between 64 and 65536");
        let place = |name, folder: &Path, cache| Place { name, folder: folder.to_owned(), cache };
        Ok(Self {
            cell_time: Duration::from_secs_f64(arguments.seconds),
            repeat: arguments.repeat,
            rows: arguments.rows.clone(),
            places: [
                place("memory", &arguments.memory_dir, Cache::Buffered),
                place("disk-cached", &arguments.dir, Cache::Buffered),
                place("disk", &arguments.dir, Cache::Direct),
            ],
            size: arguments.size_mib << 20,
            touches: arguments.touches,
            godwit: arguments.godwit.clone().map_or_else(godwit_beside_us, Ok)?,
        })
    }

    /// Whether the row of this name was asked for.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|text| row.contains(text))
    }
}

fn godwit_beside_us() -> Result<PathBuf> {
    let ours = std::env::current_exe().context("find this program's folder")?;
    let godwit = ours.with_file_name("godwit");
    ensure!(
        godwit.exists(),
        "there is no {}: build it with `cargo build --release -p godwit`, or name another with --godwit",
        godwit.display()
    );
    Ok(godwit)
}
