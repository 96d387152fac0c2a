//! Reads the VHDX files that other programs made, and compares what a guest would see with the manifest's hashes.
//!
//! It proves something only where the corpus is there (`GODWIT_CORPUS`, or `../shared/corpus` beside the workspace)
//! with `gzip`, `bzip2` and `openssl` or `sha256sum`; elsewhere it says that it skips.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use block::{ByteRange, Disk, SgList};
use image::ImageDev;
use image::vhdx::{self, Access, Opened, Vhdx};
use testkit::{MemDev, block_on};

/// What is read at once when a whole disk is hashed.
const PIECE_BYTES: u64 = 4 << 20;

#[derive(Clone, Debug)]
struct Row {
    path: PathBuf,
    state: String,
    size_bytes: u64,
    sha256: String,
}

/// The corpus' directory; `None`, with a message, where it is not.
fn corpus() -> Option<PathBuf> {
    let dir = match std::env::var_os("GODWIT_CORPUS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"),
    };
    let found = dir.join("MANIFEST.tsv").is_file();
    if !found {
        eprintln!("skipped: there is no corpus in {}", dir.display());
    }
    found.then_some(dir)
}

fn vhdx_rows(corpus: &Path) -> Vec<Row> {
    let manifest = std::fs::read_to_string(corpus.join("MANIFEST.tsv")).unwrap();
    let rows = manifest.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    rows.filter(|fields| fields[1] == "vhdx")
        .map(|fields| Row {
            path: fields[0].into(),
            state: fields[2].to_owned(),
            size_bytes: fields[3].parse().unwrap_or(0),
            sha256: fields[4].to_owned(),
        })
        .collect()
}

/// Unpacks the folder of the corpus that `row` is in, because chains name the file beside them.
fn unpack(corpus: &Path, row: &Row, into: &Path) -> PathBuf {
    let folder = corpus.join(row.path.parent().unwrap());
    for entry in std::fs::read_dir(folder).unwrap() {
        let packed = entry.unwrap().path();
        let name = packed.file_stem().unwrap().to_str().unwrap();
        let tool = match packed.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => "gzip",
            Some("bz2") => "bzip2",
            _ => continue,
        };
        if !name.ends_with("vhdx") {
            continue;
        }
        let out = File::create(into.join(name)).unwrap();
        let status = Command::new(tool).arg("-dc").arg(&packed).stdout(out).status().unwrap();
        assert!(status.success(), "{tool} unpacks {}", packed.display());
    }
    into.join(row.path.file_stem().unwrap())
}

fn load(path: &Path) -> Disk {
    Disk::new(MemDev::from_bytes(&std::fs::read(path).unwrap()))
}

/// Opens the file at `path` and its parents by their locators.
fn open_chain(path: &Path) -> Result<Disk, String> {
    let opened = block_on(vhdx::open(load(path), Access::ReadOnly)).map_err(|error| error.to_string())?;
    let backing = parent_of(&opened, path.parent().unwrap())?;
    Ok(Disk::new(ImageDev::new(Vhdx::new(opened), backing)))
}

fn parent_of(opened: &Opened, dir: &Path) -> Result<Option<Disk>, String> {
    let Some(locator) = &opened.locator else { return Ok(None) };
    let candidates = locator.candidates(dir);
    let found = candidates.iter().find(|path| path.is_file());
    let path = found.ok_or(format!("no parent among {candidates:?}"))?;
    let parent = block_on(vhdx::open(load(path), Access::ReadOnly)).map_err(|error| error.to_string())?;
    assert!(locator.matches(parent.header().data_write_guid), "the parent is the one that was meant");
    open_chain(path).map(Some)
}

/// Whether no layer has data for `range`; most of these disks are holes, and reading those in a debug build is slow.
fn is_hole(disk: &Disk, range: ByteRange) -> bool {
    let mut extents = Vec::new();
    block_on(disk.block_status(range, &mut extents)).unwrap();
    let covered: u64 = extents.iter().map(|extent| extent.len).sum();
    covered >= range.len() && extents.iter().all(|extent| !extent.state.is_data())
}

/// Whether two disks hold the same bytes, by what either has data for.
fn is_same(a: &Disk, b: &Disk) -> bool {
    let read =
        |disk: &Disk, piece: ByteRange| block_on(disk.read_vec(piece.start(), piece.len() as usize)).unwrap();
    let mut pieces = a.range().split_by(PIECE_BYTES);
    a.size() == b.size()
        && pieces.all(|piece| (is_hole(a, piece) && is_hole(b, piece)) || read(a, piece) == read(b, piece))
}

/// OpenSSL where it is there, because it uses the processor's instructions and some disks here have 10 GiB.
fn sha256_tool() -> Command {
    let openssl = Command::new("openssl").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if openssl.is_ok_and(|status| status.success()) {
        let mut tool = Command::new("openssl");
        tool.args(["dgst", "-sha256", "-r"]);
        return tool;
    }
    Command::new("sha256sum")
}

fn sha256_of(disk: &Disk) -> String {
    let mut child = sha256_tool().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut bytes = vec![0; PIECE_BYTES as usize];
    let zeroes = vec![0; PIECE_BYTES as usize];
    for piece in disk.range().split_by(PIECE_BYTES) {
        let len = piece.len() as usize;
        if is_hole(disk, piece) {
            stdin.write_all(&zeroes[..len]).unwrap();
            continue;
        }
        let memory = SgList::unspecified(len);
        block_on(disk.read(piece.start(), memory.clone())).unwrap();
        memory.copy_to_slice(0, &mut bytes[..len]);
        stdin.write_all(&bytes[..len]).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn readable_files_of_other_programs_have_the_content_of_the_manifest() {
    let Some(corpus) = corpus() else { return };
    let rows = vhdx_rows(&corpus);
    assert!(rows.len() >= 8, "the manifest lists the files that this test was written for");
    for row in rows.iter().filter(|row| row.state == "readable") {
        let dir = tempfile::tempdir().unwrap();
        let path = unpack(&corpus, row, dir.path());
        let disk = open_chain(&path).unwrap_or_else(|error| panic!("{}: {error}", row.path.display()));
        assert_eq!(disk.size(), row.size_bytes, "{}", row.path.display());
        assert_eq!(sha256_of(&disk), row.sha256, "{}", row.path.display());
    }
}

#[test]
fn a_child_without_its_parent_is_refused_with_the_places_that_were_tried() {
    let Some(corpus) = corpus() else { return };
    let rows = vhdx_rows(&corpus);
    for row in rows.iter().filter(|row| row.state == "refused") {
        let dir = tempfile::tempdir().unwrap();
        let path = unpack(&corpus, row, dir.path());
        let error = open_chain(&path).expect_err("the manifest says that it is refused");
        assert!(error.starts_with("no parent among"), "{}: {error}", row.path.display());
    }
}

#[test]
fn a_dirty_log_replays_on_disk_to_what_it_replays_to_in_memory() {
    let Some(corpus) = corpus() else { return };
    let rows = vhdx_rows(&corpus);
    let dirty = rows.iter().find(|row| row.path.to_str().unwrap().contains("dirtylog")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = unpack(&corpus, dirty, dir.path());
    let (file, untouched) = (load(&path), load(&path));
    let replayed = block_on(async {
        let before = vhdx::open(untouched.clone(), Access::ReadOnly).await.unwrap();
        assert!(before.was_dirty);
        let written = vhdx::open(file.clone(), Access::ReadWrite).await.unwrap();
        assert!(written.was_dirty && written.header().log_guid.is_nil());
        assert_eq!(written.header().data_write_guid, before.header().data_write_guid);
        assert_ne!(written.header().file_write_guid, before.header().file_write_guid);
        let after = vhdx::open(file, Access::ReadOnly).await.unwrap();
        assert!(!after.was_dirty);
        assert_eq!(after.header(), written.header());
        assert_eq!(after.space.used_bytes(), before.space.used_bytes());
        [before, after].map(|opened| Disk::new(ImageDev::new(Vhdx::new(opened), None)))
    });
    assert!(is_same(&replayed[0], &replayed[1]));
}
