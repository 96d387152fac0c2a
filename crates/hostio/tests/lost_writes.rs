//! Writes that the host loses after it has taken them: a disk that runs full under the page cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use block::{Disk, ErrorKind, SgList, WriteFlags};
use hostio::{HostFile, Inline, OpenOptions, block_on};

/// A block device that promises 16 MiB and has room for two: a loop device over a sparse file in a small tmpfs.
struct FullDisk {
    device: PathBuf,
    mount: tempfile::TempDir,
}

impl FullDisk {
    /// None, with a word why, where the host does not let us mount.
    fn new() -> Option<Self> {
        let mount = tempfile::tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=2m", "none"], mount.path())?;
        let file = mount.path().join("disk");
        std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        let device = run("losetup", &["--find", "--show"], &file);
        let Some(device) = device else {
            run("umount", &[], mount.path());
            return None;
        };
        Some(Self { device: device.trim().into(), mount })
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        run("losetup", &["--detach"], &self.device);
        run("umount", &["--lazy"], self.mount.path());
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> Option<String> {
    let output = Command::new(program).args(arguments).arg(path).output();
    match output {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap()),
        Ok(output) => {
            eprintln!("skipped: {program}: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            eprintln!("skipped: {program}: {error}");
            None
        }
    }
}

/// Fills the page cache with more than the disk has room for.
async fn overfill(disk: &Disk) {
    let memory = SgList::unspecified(1 << 20);
    memory.fill(0, 1 << 20, 0xAB);
    for piece in disk.range().split_by(1 << 20) {
        // The kernel may write back on its own and then refuse; the flush must tell all the same.
        let _ = disk.write(piece.start(), memory.clone(), WriteFlags::default()).await;
    }
}

async fn check_poisoned(disk: &Disk) {
    for _ in 0..2 {
        assert_eq!(disk.flush().await.unwrap_err().kind(), ErrorKind::Poisoned);
        let written = disk.write_all(0, &[1; 4096]).await;
        assert_eq!(written.unwrap_err().kind(), ErrorKind::Poisoned);
    }
    disk.read_vec(0, 4096).await.expect("reads go on");
    assert_eq!(disk.close().await.unwrap_err().kind(), ErrorKind::Poisoned);
}

/// Proves that a flush that succeeds after one that failed is never told: the kernel would report success, because it
/// tells of lost writes once.
#[test]
fn a_failed_flush_poisons_the_file() {
    for inline in [Inline::Auto, Inline::Never] {
        let Some(full) = FullDisk::new() else { return };
        let options = OpenOptions { inline, ..OpenOptions::read_write() };
        block_on(async {
            let disk = Disk::new(HostFile::open(&full.device, &options).unwrap());
            overfill(&disk).await;
            let failed = disk.flush().await.expect_err("more was written than there is room for");
            assert_eq!(failed.kind(), ErrorKind::Io, "{failed:?}");
            check_poisoned(&disk).await;
        });
    }
}

/// Proves the same for a write that was to be durable, whose failure takes the report with it.
#[test]
fn a_failed_durable_write_poisons_the_file() {
    let Some(full) = FullDisk::new() else { return };
    block_on(async {
        let disk = Disk::new(HostFile::open(&full.device, &OpenOptions::read_write()).unwrap());
        assert!(disk.info().native_fua);
        let memory = SgList::unspecified(8 << 20);
        memory.fill(0, memory.len(), 0xCD);
        disk.write(0, memory, WriteFlags { fua: true }).await.expect_err("there is no room for it");
        check_poisoned(&disk).await;
    });
}
