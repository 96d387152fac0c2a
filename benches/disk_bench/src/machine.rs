//! What the figures depend on: the machine, and the versions of everything that was measured.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::settings::Settings;

/// The machine and the programs.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cpus: usize,
    kernel: String,
    godwit: String,
    nbdkit: String,
    qemu: String,
    fio: String,
    /// QEMU's word for how it does its I/O here.
    qemu_aio: &'static str,
    memory_folder: String,
    disk_folder: String,
    /// Processes that wanted to run, over the last minute before the run.
    load_before: f64,
}

impl Machine {
    pub(crate) fn look(settings: &Settings) -> Result<Self> {
        let [memory, disk, _] = &settings.places;
        Ok(Self {
            cpu: cpu_model(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: first_line("uname", "-r")?,
            godwit: first_line(settings.godwit.as_os_str(), "--version")?,
            nbdkit: first_line("nbdkit", "--version")?,
            qemu: first_line("qemu-storage-daemon", "--version")?,
            fio: first_line("fio", "--version")?,
            qemu_aio: qemu_aio(),
            memory_folder: describe_folder(&memory.folder)?,
            disk_folder: describe_folder(&disk.folder)?,
            load_before: load_average()?,
        })
    }

    pub(crate) fn qemu_aio(&self) -> &'static str {
        self.qemu_aio
    }

    pub(crate) fn print(&self) {
        println!(
            "machine     {} CPUs, {}, Linux {}, load {}",
            self.cpus, self.cpu, self.kernel, self.load_before
        );
        println!("measured    {}", self.godwit);
        println!("peers       {}; {}, aio={}; client {}", self.nbdkit, self.qemu, self.qemu_aio, self.fio);
        println!("memory      {}", self.memory_folder);
        println!("disk        {}", self.disk_folder);
    }
}

fn first_line(program: impl AsRef<std::ffi::OsStr>, argument: &str) -> Result<String> {
    let program = program.as_ref();
    let output = Command::new(program).arg(argument).output().with_context(|| format!("run {program:?}"))?;
    ensure!(output.status.success(), "{program:?} {argument}: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|line| line.starts_with("model name"));
    model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned()
}

/// io_uring, unless the kernel or QEMU's build does without it.
fn qemu_aio() -> &'static str {
    let probe = Command::new("qemu-io")
        .args(["--read-only", "-f", "raw", "-i", "io_uring", "-c", "read 0 512", "/proc/self/exe"])
        .output();
    if probe.is_ok_and(|output| output.status.success()) { "io_uring" } else { "threads" }
}

fn describe_folder(folder: &Path) -> Result<String> {
    let output = Command::new("findmnt")
        .args(["--noheadings", "--output", "FSTYPE,SOURCE", "--target"])
        .arg(folder)
        .output()
        .context("run findmnt")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<&str> = text.split_whitespace().collect();
    Ok(format!("{} ({})", folder.display(), words.join(" on ")))
}

fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    text.split(' ').next().unwrap_or_default().parse().context("parse /proc/loadavg")
}
