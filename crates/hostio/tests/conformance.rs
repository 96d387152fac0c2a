//! The block contract's suite over every kind of host file, through the ring and through the pool.

use std::path::{Path, PathBuf};
use std::process::Command;

use block::Disk;
use hostio::{Access, Cache, HostFile, Inline, OpenOptions, block_on};
use testkit::conformance;

const SIZE_BYTES: u64 = 4 << 20;

/// All ways to open a file for writing that take different paths through the crate.
fn all_options() -> Vec<OpenOptions> {
    let mut all = Vec::new();
    for cache in [Cache::Buffered, Cache::Direct] {
        for inline in [Inline::Auto, Inline::Never] {
            for discard in [true, false] {
                all.push(OpenOptions { cache, inline, discard, ..OpenOptions::read_write() });
            }
        }
    }
    all
}

fn fresh_file(directory: &Path, options: &OpenOptions) -> Disk {
    let path = directory.join("disk");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
        _ => {}
    }
    Disk::new(HostFile::create(&path, SIZE_BYTES, options).unwrap())
}

fn check_files_in(directory: &Path) {
    for options in all_options() {
        eprintln!("{options:?}");
        block_on(conformance::check(async || fresh_file(directory, &options)));
        let options = OpenOptions { access: Access::ReadOnly, ..options };
        let path = directory.join("disk");
        let open = || Disk::new(HostFile::open(&path, &options).unwrap());
        block_on(conformance::check_read_only(async || open()));
    }
}

#[test]
fn files_on_a_disk_keep_the_contract() {
    check_files_in(tempfile::tempdir().unwrap().path());
}

#[test]
fn files_in_memory_keep_the_contract() {
    check_files_in(tempfile::tempdir_in("/dev/shm").unwrap().path());
}

/// Runs the other tests again in a process that uses the pool.
#[test]
fn the_pool_keeps_the_contract_too() {
    if std::env::var_os("GODWIT_IO").is_some() {
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap()).env("GODWIT_IO", "threads").status();
    assert!(status.unwrap().success(), "a test above failed on the pool");
}

/// A loop device over a file, detached again at the end.
struct LoopDevice(PathBuf);

impl LoopDevice {
    /// None, with a word why, where the host gives none.
    fn over(file: &Path, sector_bytes: u32) -> Option<Self> {
        let sector_bytes = sector_bytes.to_string();
        let made = Command::new("losetup").args(["--find", "--show", "-b", &sector_bytes]).arg(file).output();
        match made {
            Ok(made) if made.status.success() => {
                Some(Self(String::from_utf8(made.stdout).unwrap().trim().into()))
            }
            Ok(made) => {
                eprintln!("skipped: losetup: {}", String::from_utf8_lossy(&made.stderr));
                None
            }
            Err(error) => {
                eprintln!("skipped: losetup: {error}");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn block_devices_keep_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    for sector_bytes in [512, 4096] {
        std::fs::File::create(&file).unwrap().set_len(SIZE_BYTES).unwrap();
        let Some(device) = LoopDevice::over(&file, sector_bytes) else { return };
        for options in all_options() {
            eprintln!("{sector_bytes} {options:?}");
            let open = async || {
                let disk = Disk::new(HostFile::open(&device.0, &options).unwrap());
                assert_eq!((disk.size(), disk.info().block_bytes), (SIZE_BYTES, sector_bytes));
                let unmap = block::ZeroFlags { may_unmap: true, ..block::ZeroFlags::default() };
                disk.write_zeroes(disk.range(), unmap).await.unwrap();
                disk
            };
            let broken = block_on(conformance::violations(open));
            let broken: Vec<_> =
                broken.into_iter().filter(|broken| !is_torn_read(&options, broken)).collect();
            assert!(broken.is_empty(), "{broken:?}");
        }
    }
}

/// Whether the suite complains of a read that saw part of a write in flight. The page cache of a block device copies
/// in and out without a lock that covers the block, and the contract says of such a write only how it *ends*.
fn is_torn_read(options: &OpenOptions, broken: &conformance::Violation) -> bool {
    options.cache == Cache::Buffered && broken.line == "Order" && broken.finding.contains("Read(")
}

#[test]
fn a_block_device_is_opened_for_writing_by_one_only() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    std::fs::File::create(&file).unwrap().set_len(SIZE_BYTES).unwrap();
    let Some(device) = LoopDevice::over(&file, 512) else { return };
    let writer = HostFile::open(&device.0, &OpenOptions::read_write()).unwrap();
    for options in [OpenOptions::default(), OpenOptions::read_write()] {
        let refused = HostFile::open(&device.0, &options).unwrap_err();
        assert_eq!(refused.kind(), block::ErrorKind::Busy, "{refused:?}");
    }
    drop(writer);
    HostFile::open(&device.0, &OpenOptions::read_write()).unwrap();
}
