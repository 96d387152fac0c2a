//! Disks for guests, and what other programs say of them.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::assets::{Assets, run, run_for_code};
use crate::console::Acknowledged;

pub(crate) fn godwit() -> Command {
    Command::new(env!("CARGO_BIN_EXE_godwit"))
}

/// A new VHDX file that holds the guest's root file system, put there through our NBD server.
pub(crate) fn new_root_disk(assets: &Assets, dir: &Path) -> PathBuf {
    let disk = dir.join("root.vhdx");
    run(godwit().args(["disk", "create"]).arg(&disk).args(["1G", "--block-size", "1M"]));
    let server = Server::start(&disk, dir, false);
    run(Command::new("qemu-img")
        .args(["convert", "-n", "-f", "raw", "-O", "raw", "-S", "4k"])
        .arg(assets.root())
        .arg(&server.uri));
    server.stop();
    disk
}

/// The space that the file takes in its file system.
pub(crate) fn host_bytes(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

/// Asks everybody whether the file is sound and its content the same for all; then the file system in it. Returns the
/// content as Godwit reads it, a raw file.
pub(crate) fn prove_sound(disk: &Path) -> PathBuf {
    let (code, said) = run_for_code(godwit().args(["disk", "check"]).arg(disk));
    assert_eq!(code, Some(0), "godwit disk check: {said}");
    let (code, said) = run_for_code(Command::new("qemu-img").args(["check", "-f", "vhdx"]).arg(disk));
    assert_eq!(code, Some(0), "qemu-img check: {said}");
    let content = content(disk);
    run(Command::new("qemu-img").args(["compare", "-f", "vhdx", "-F", "raw"]).arg(disk).arg(&content));
    check_file_system(&content);
    content
}

/// What a client of our NBD server reads from the disk, as a raw file beside it.
pub(crate) fn content(disk: &Path) -> PathBuf {
    let dir = disk.parent().unwrap();
    let content = dir.join("content.raw");
    let _ = std::fs::remove_file(&content);
    let server = Server::start(disk, dir, true);
    run(Command::new("nbdcopy").arg(&server.uri).arg(&content));
    server.stop();
    content
}

pub(crate) fn check_file_system(content: &Path) {
    let (code, said) = run_for_code(Command::new("e2fsck").args(["-f", "-n"]).arg(content));
    assert_eq!(code, Some(0), "e2fsck: {said}");
}

/// Replays the file system's journal in a raw file, as the next mount would.
pub(crate) fn replay_journal(content: &Path) {
    let command = &mut Command::new("e2fsck");
    let (code, said) = run_for_code(command.args(["-f", "-y", "-E", "journal_only"]).arg(content));
    // 1: something was changed, which is what a replay does.
    assert!(matches!(code, Some(0 | 1)), "e2fsck -E journal_only: {said}");
}

/// Copies a directory out of the file system in `content`, without mounting it.
pub(crate) fn extract(content: &Path, directory: &str, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    let request = format!("rdump {directory} {}", to.display());
    run(Command::new("debugfs").args(["-R", &request]).arg(content));
    let extracted = to.join(Path::new(directory).file_name().unwrap());
    assert!(extracted.is_dir(), "debugfs copied no {directory}");
    extracted
}

/// Lets the guest's own program verify, here, that all that was acknowledged is in `directory`.
pub(crate) fn verify(assets: &Assets, directory: &Path, acknowledged: &Acknowledged) {
    let said = run(Command::new(assets.worker()).arg("verify").arg(directory).args(in_words(acknowledged)));
    assert!(said.contains("verify: all"), "{said}");
}

/// What was acknowledged, as the guest's program reads it.
pub(crate) fn in_words(acknowledged: &Acknowledged) -> Vec<String> {
    acknowledged.iter().map(|(writer, (floor, end))| format!("{writer}:{floor}:{end}")).collect()
}

/// `godwit serve` for clients other than a guest.
pub(crate) struct Server {
    process: Child,
    pub(crate) uri: String,
}

impl Server {
    pub(crate) fn start(disk: &Path, dir: &Path, read_only: bool) -> Self {
        let uri = format!("nbd+unix:///?socket={}", dir.join("nbd.sock").display());
        let mut command = godwit();
        command.arg("serve").arg(disk).args(["--nbd", &uri, "--json"]);
        if read_only {
            command.arg("--read-only");
        }
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the server of {} ended: {:?}", disk.display(), process.wait());
        Self { process, uri }
    }

    /// Ends it in order: the disk is closed and durable afterwards.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}
