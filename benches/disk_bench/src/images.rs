//! The disks that are served: random content all over, and the same in every format.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::contender::{Cache, Contender, Format, Program, Serving, Transport};
use crate::server::Server;
use crate::settings::Settings;

/// Makes a raw and a VHDX image in `folder`, full and equal, and returns their paths. The VHDX is Godwit's, dynamic,
/// with its default block size; QEMU gets a copy of the same file.
pub(crate) fn make_full(settings: &Settings, folder: &Path) -> Result<[PathBuf; 2]> {
    let (raw, vhdx) = (folder.join("full.raw"), folder.join("full.vhdx"));
    write_random(&raw, settings.size).with_context(|| format!("fill {}", raw.display()))?;
    create_vhdx(settings, &vhdx, settings.size, None)?;
    let socket = folder.join("fill.sock");
    let contender = Contender::new(Program::Godwit, Format::Vhdx);
    let (transport, cache) = (Transport::Nbd, Cache::Buffered);
    let serving = Serving { contender, transport, cache, image: &vhdx, socket: &socket };
    let server = Server::start(serving, serving.command(&settings.godwit, ""))?;
    run(Command::new("nbdcopy").arg("--flush").arg(&raw).arg(&server.nbd_uri))?;
    server.stop()?;
    run(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "vhdx"]).arg(&raw).arg(&vhdx))?;
    Ok([raw, vhdx])
}

/// Makes an empty VHDX with Godwit; `block_size` as its command line takes it.
pub(crate) fn create_vhdx(
    settings: &Settings,
    path: &Path,
    size: u64,
    block_size: Option<&str>,
) -> Result<()> {
    let mut command = Command::new(&settings.godwit);
    command
        .args(["disk", "create", "--type", "dynamic"])
        .args(block_size.map(|size| format!("--block-size={size}")));
    run(command.arg(path).arg(size.to_string()))
}

/// Makes an empty image with QEMU; `options` as `qemu-img create -o` takes them.
pub(crate) fn create_with_qemu(path: &Path, format: Format, size: u64, options: Option<&str>) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", format.name()]).args(options.map(|options| format!("-o{options}")));
    run(command.arg(path).arg(size.to_string()))
}

fn write_random(path: &Path, size: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut random = Random::default();
    for _ in 0..size / 8 {
        file.write_all(&random.next().to_le_bytes())?;
    }
    Ok(file.into_inner()?.sync_all()?)
}

/// Runs a command to its end, and hands its words on where it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, words.trim());
    Ok(())
}

/// A copy of `image` for one contender alone.
pub(crate) fn copy_for(contender: Contender, image: &Path) -> Result<PathBuf> {
    let copy =
        image.with_file_name(format!("{}.{}", contender.name().replace(' ', "-"), contender.format.name()));
    fs::copy(image, &copy).with_context(|| format!("copy {} to {}", image.display(), copy.display()))?;
    File::open(&copy)?.sync_all()?;
    Ok(copy)
}

/// Numbers without a visible order, the same in every run (xorshift64).
pub(crate) struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
