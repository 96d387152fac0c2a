//! New files on a real file system: that qemu takes them for what they are, that a creation that was cut off leaves
//! nothing that opens, and what an open of the largest disk costs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use block::{BlockDev, ByteRange, DevInfo, Disk, Extent, Result, SgList, WriteFlags, ZeroFlags};
use hostio::{HostFile, OpenOptions, block_on};
use image::vhdx::layout::MIB;
use image::vhdx::{Access, CheckOptions, CreateOptions, Kind, OpenError, check, create, open};
use testkit::{CrashDev, MemDev, SparseBytes, Survival};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn create_at(path: &Path, options: &CreateOptions) {
    block_on(async {
        let file = Disk::new(HostFile::create(path, 0, &OpenOptions::default()).unwrap());
        create(&file, options).await.unwrap();
        file.close().await.unwrap();
    });
}

/// The output of `qemu-img` with `arguments` and the path; `None`, with a message, where it is not here.
fn qemu_img(arguments: &[&str], path: &Path) -> Option<String> {
    let output = Command::new("qemu-img").args(arguments).arg(path).stderr(Stdio::inherit()).output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no qemu-img here");
        return None;
    };
    assert!(output.status.success(), "qemu-img {arguments:?} {}", path.display());
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn qemu_takes_new_files_for_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let kinds = [
        ("dynamic", CreateOptions::new(3 * GIB + 512, Kind::Dynamic)),
        (
            "small blocks",
            CreateOptions { block_bytes: 1 << 20, ..CreateOptions::new(5 * GIB, Kind::Dynamic) },
        ),
        ("large blocks", CreateOptions { block_bytes: 256 << 20, ..CreateOptions::new(GIB, Kind::Dynamic) }),
        ("long log", CreateOptions { log_bytes: 8 << 20, ..CreateOptions::new(GIB, Kind::Dynamic) }),
        ("fixed", CreateOptions::new(100 * MIB, Kind::Fixed { preallocate: false })),
        ("given space", CreateOptions::new(9 * MIB, Kind::Fixed { preallocate: true })),
        ("largest", CreateOptions { block_bytes: 1 << 20, ..CreateOptions::new(64 * TIB, Kind::Dynamic) }),
    ];
    for (name, options) in kinds {
        let path = dir.path().join(format!("{name}.vhdx"));
        create_at(&path, &options);
        let Some(info) = qemu_img(&["info", "--output=json"], &path) else { return };
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["format"], "vhdx");
        assert_eq!(info["virtual-size"], options.virtual_size, "{name}");
        assert_eq!(info["cluster-size"], options.block_bytes, "{name}");
        assert!(qemu_img(&["check"], &path).unwrap().contains("No errors were found"), "{name}");
        let file = Disk::new(HostFile::open(&path, &OpenOptions::default()).unwrap());
        let report = block_on(check(&file, &CheckOptions::default())).unwrap();
        assert!(report.findings.is_empty(), "{name}: {:?}", report.findings);
    }
}

#[test]
fn what_qemu_writes_into_a_new_file_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.vhdx");
    create_at(&path, &CreateOptions { block_bytes: 1 << 20, ..CreateOptions::new(8 * GIB, Kind::Dynamic) });
    let commands = ["write -P 1 0 64k", "write -P 2 4095M 2M", "write -P 3 8191M 1M"];
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "vhdx"]).args(commands.iter().flat_map(|command| ["-c", command])).arg(&path);
    if qemu_io.stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no qemu-io here");
        return;
    }
    block_on(async {
        let file = Disk::new(HostFile::open(&path, &OpenOptions::default()).unwrap());
        let report = check(&file, &CheckOptions::default()).await.unwrap();
        assert_eq!(report.counts.blocks.fully_present, 4, "{:?}", report.findings);
        let opened = open(file, Access::ReadOnly).await.unwrap();
        let disk = Disk::new(image::ImageDev::new(image::vhdx::Vhdx::new(opened), None));
        for (offset, value) in [(0, 1), (4095 * MIB, 2), (4096 * MIB + 4096, 2), (8192 * MIB - 4096, 3)] {
            assert_eq!(disk.read_vec(offset, 4096).await.unwrap(), [value; 4096]);
        }
    });
}

#[test]
fn space_that_is_asked_for_is_given() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let stored = |name: &str, preallocate| {
        let path = dir.path().join(name);
        create_at(&path, &CreateOptions::new(64 * MIB, Kind::Fixed { preallocate }));
        std::fs::metadata(path).unwrap().blocks() * 512
    };
    assert!(stored("given.vhdx", true) >= 64 * MIB);
    assert!(stored("sparse.vhdx", false) < 4 * MIB);
}

#[test]
fn a_creation_that_was_cut_off_is_refused_or_whole() {
    let old = |size: u64| {
        let device = Arc::new(MemDev::new(0));
        block_on(create(&Disk::from_arc(device.clone()), &CreateOptions::new(size, Kind::Dynamic))).unwrap();
        device.image()
    };
    // Into a new file, and over an older disk of another shape.
    for image in [SparseBytes::new(0), old(40 * GIB)] {
        let device = Arc::new(CrashDev::from_image(image.clone(), MemDev::INFO));
        let options = CreateOptions::new(9 * MIB, Kind::Fixed { preallocate: true });
        block_on(create(&Disk::from_arc(device.clone()), &options)).unwrap();
        let history = device.history();
        let torn = |seed| Survival::Torn { seed, unit_bytes: 512 };
        for cut in history.cuts() {
            for survival in [Survival::Nothing, Survival::All].into_iter().chain((0..8).map(torn)) {
                let found = block_on(open(Disk::new(history.crash_at(cut, survival)), Access::ReadWrite));
                let is_refused = matches!(found, Err(OpenError::NotVhdx | OpenError::TooShort { .. }));
                let size = found.map(|opened| opened.geometry.virtual_size).unwrap_or_default();
                let is_whole = size == options.virtual_size;
                let is_old = size == 40 * GIB && image.size() > 0;
                assert!(is_refused || is_whole || is_old, "cut {cut} of {}, {survival:?}", history.len());
            }
        }
        let last = history.crash_at(history.len(), Survival::Nothing);
        assert!(block_on(open(Disk::new(last), Access::ReadOnly)).is_ok(), "on return all is durable");
    }
}

/// Counts what is read through it.
struct Counting {
    inner: MemDev,
    bytes_read: Arc<std::sync::atomic::AtomicU64>,
}

impl BlockDev for Counting {
    fn info(&self) -> DevInfo {
        self.inner.info()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        self.bytes_read.fetch_add(into.len(), std::sync::atomic::Ordering::Relaxed);
        self.inner.read(offset, into).await
    }

    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        self.inner.write(offset, from, flags).await
    }

    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        self.inner.write_zeroes(range, flags).await
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        self.inner.discard(range).await
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        self.inner.block_status(range, out).await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.inner.resize(size).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[test]
fn an_open_of_the_largest_disk_reads_little() {
    let bytes_read = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let file = Disk::new(Counting { inner: MemDev::new(0), bytes_read: bytes_read.clone() });
    block_on(async {
        let options = CreateOptions { block_bytes: 1 << 20, ..CreateOptions::new(64 * TIB, Kind::Dynamic) };
        create(&file, &options).await.unwrap();
        let opened = open(file, Access::ReadWrite).await.unwrap();
        assert_eq!(opened.geometry.payload_blocks, 1 << 26);
        assert!(opened.regions.bat.len > 512 * MIB);
    });
    let bytes_read = bytes_read.load(std::sync::atomic::Ordering::Relaxed);
    assert!(bytes_read < MIB, "{bytes_read} bytes");
}
