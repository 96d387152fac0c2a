//! What is done with a file: opened, looked at, written, left or closed, and opened again.

use std::sync::Arc;

use block::{BlockDev, ByteRange, DevInfo, Disk, ExtentState};
use image::ImageDev;
use image::vhdx::check::{CheckOptions, Severity, check};
use image::vhdx::{Access, CreateOptions, Kind, OpenError, ParentLocator, Vhdx, create, open};
use testkit::{MemDev, SparseBytes, block_on};
use uuid::Uuid;

use super::folded::{self, HEAD_BYTES};
use crate::Seed;

/// How much of a disk is asked for its map: a large one would answer for minutes.
const MAPPED_BYTES_MAX: u64 = 8 << 30;
/// How much of a disk is read.
const READ_BYTES_MAX: u64 = 1 << 20;
/// What one read takes of an extent.
const READ_BYTES: u64 = 8192;
/// What one write takes.
const WRITE_BYTES: u64 = 4096;
/// The byte that the parent of a differencing disk holds everywhere it is looked at.
const PARENT_BYTE: u8 = 0x70;

pub(crate) fn run_as_is(input: &[u8]) {
    run(input, folded::unfold(input));
}

pub(crate) fn run_sealed(input: &[u8]) {
    let mut file = folded::unfold(input);
    folded::seal_all(&mut file);
    run(input, file);
}

fn run(input: &[u8], file: SparseBytes) {
    let Some(choices) = input.get(2..HEAD_BYTES) else { return };
    block_on(async {
        let worst = check_worst(&file).await;
        match look(file.clone(), choices).await {
            Err(error) => {
                assert_eq!(worst, Some(Severity::Corrupt), "a check finds why a file is refused: {error}");
            }
            Ok(before) if choices[0] & 1 != 0 => change(file, choices, &before).await,
            Ok(_) => {}
        }
    });
}

/// The worst that a check finds.
async fn check_worst(file: &SparseBytes) -> Option<Severity> {
    let host = MemDev::from_image(file.clone(), DevInfo { read_only: true, block_bytes: 1, ..MemDev::INFO });
    let report = check(&Disk::new(host), &CheckOptions::default()).await;
    report.expect("the host fails no request").worst()
}

/// What was seen of a disk.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    size: u64,
    /// The bytes at each place that [`places_of`] names.
    sectors: Vec<Vec<u8>>,
}

/// Opens the file read-only, reads what is mapped, and looks at some places.
async fn look(file: SparseBytes, choices: &[u8]) -> Result<Seen, OpenError> {
    let host = MemDev::from_image(file.clone(), DevInfo { read_only: true, block_bytes: 1, ..MemDev::INFO });
    let disk = disk_of(open(Disk::new(host), Access::ReadOnly).await?);
    walk(&disk).await;
    let mut sectors = Vec::new();
    for at in places_of(&disk, choices) {
        let read = disk.read_vec(at, WRITE_BYTES as usize).await;
        sectors.push(read.expect("a file that opens can be read"));
    }
    Ok(Seen { size: disk.size(), sectors })
}

/// Goes through the disk's map from the start and reads the beginning of what holds data.
async fn walk(disk: &Disk) {
    let end = disk.size().min(MAPPED_BYTES_MAX);
    let (mut at, mut budget) = (0, READ_BYTES_MAX);
    while at < end {
        let mut extents = Vec::new();
        let question = ByteRange::new(at, end - at).expect("it lies on the disk");
        disk.block_status(question, &mut extents).await.expect("a file that opens can be mapped");
        assert!(!extents.is_empty(), "a device tells at least one extent");
        for extent in extents {
            assert!(extent.len > 0, "an extent has bytes");
            let len = extent.len.min(READ_BYTES).min(end.saturating_sub(at)).min(budget) / 4096 * 4096;
            if extent.state.is_data() && len > 0 {
                disk.read_vec(at, len as usize).await.expect("a file that opens can be read");
                budget -= len;
            }
            if extent.state == ExtentState::NotPresent {
                assert_eq!(extent.host_offset, None, "what is not there has no place");
            }
            at += extent.len;
        }
    }
}

/// Writes to some places, and checks what is read there and elsewhere, before and after the file is opened again.
async fn change(file: SparseBytes, choices: &[u8], before: &Seen) {
    let host = Arc::new(MemDev::from_image(file, DevInfo { block_bytes: 1, ..MemDev::INFO }));
    // A file that may be read may still be refused for writing: it has no log, or no room for sequence numbers.
    let Ok(opened) = open(Disk::from_arc(host.clone()), Access::ReadWrite).await else { return };
    let disk = disk_of(opened);
    assert_eq!(disk.size(), before.size, "both ways of opening see the same disk");
    let mut expected = Seen { size: before.size, sectors: before.sectors.clone() };
    let places = places_of(&disk, choices);
    for (index, &at) in places.iter().enumerate() {
        let fill = (index as u8 + 1) * 16;
        let range = ByteRange::new(at, WRITE_BYTES).expect("it lies on the disk");
        let sector = match choices[1] >> (2 * index) & 3 {
            0 => continue,
            1 => {
                disk.write_all(at, &[fill; WRITE_BYTES as usize]).await.expect("the host has room");
                vec![fill; WRITE_BYTES as usize]
            }
            2 => {
                let zeroed =
                    disk.write_zeroes(range, block::ZeroFlags { may_unmap: true, ..Default::default() });
                zeroed.await.expect("the host has room");
                vec![0; WRITE_BYTES as usize]
            }
            _ => {
                disk.discard(range).await.expect("a discard is advice");
                // Each byte is what it was or zero from now on.
                disk.read_vec(at, WRITE_BYTES as usize).await.expect("a file that opens can be read")
            }
        };
        expected.sectors[index] = sector;
        set_overlapping(&places, &mut expected, index);
    }
    disk.flush().await.expect("the host takes everything");
    let left = look(host.image(), choices).await.expect("a file that is left after a flush opens");
    assert_eq!(left, expected, "what was flushed is there without a close");
    disk.close().await.expect("the host takes everything");
    let closed = look(host.image(), choices).await.expect("a file that was closed opens");
    assert_eq!(closed, expected, "what was flushed is there after a close");
}

/// Places are multiples of their length, so two of them are the same or apart.
fn set_overlapping(places: &[u64], expected: &mut Seen, index: usize) {
    for other in 0..places.len() {
        if places[other] == places[index] {
            expected.sectors[other] = expected.sectors[index].clone();
        }
    }
}

/// Up to four places on the disk, from its start to its end.
fn places_of(disk: &Disk, choices: &[u8]) -> Vec<u64> {
    let slots = disk.size() / WRITE_BYTES;
    if slots == 0 {
        return Vec::new();
    }
    let place = |choice: &u8| match choice {
        255 => slots - 1,
        low if *low < 128 => u64::from(*low) * 64 % slots,
        high => slots / 128 * u64::from(*high - 128),
    };
    choices[2..6].iter().map(|choice| place(choice) * WRITE_BYTES).collect()
}

fn disk_of(opened: image::vhdx::Opened) -> Disk {
    let parent = opened.parameters.has_parent.then(|| Disk::new(parent(opened.geometry.virtual_size)));
    Disk::new(ImageDev::new(Vhdx::new(opened), parent))
}

/// A parent of which the first page and the last hold something.
fn parent(size: u64) -> impl BlockDev {
    let mut content = SparseBytes::new(size);
    let page = [PARENT_BYTE; WRITE_BYTES as usize];
    let len = size.min(WRITE_BYTES) as usize;
    content.write(0, &page[..len]);
    content.write(size - len as u64, &page[..len]);
    MemDev::from_image(content, DevInfo { read_only: true, ..MemDev::INFO })
}

/// Files of every kind that we make, closed and left with a log in use.
pub(super) fn seeds() -> Vec<Seed> {
    let dynamic = CreateOptions { block_bytes: 1 << 20, ..CreateOptions::new(64 << 20, Kind::Dynamic) };
    let large = CreateOptions::new(1 << 40, Kind::Dynamic);
    let sectors = CreateOptions { logical_sector_bytes: 4096, ..dynamic.clone() };
    let fixed = CreateOptions::new(4 << 20, Kind::Fixed { preallocate: false });
    let locator = ParentLocator::for_parent(Uuid::from_u128(5), "/d".as_ref(), "/d/base.vhdx".as_ref());
    let kind = Kind::Differencing { locator: locator.expect("the paths are text") };
    let child = CreateOptions { block_bytes: 1 << 20, ..CreateOptions::new(64 << 20, kind) };
    let mut seeds = vec![("empty", folded::fold(&made(&dynamic), CHOICES))];
    for (closed, dirty, options) in [
        ("dynamic", "dynamic-log", &dynamic),
        ("large", "large-log", &large),
        ("sectors-4096", "sectors-4096-log", &sectors),
        ("fixed", "fixed-log", &fixed),
        ("child", "child-log", &child),
    ] {
        let (left, whole) = used(made(options));
        seeds.push((closed, folded::fold(&whole, CHOICES)));
        seeds.push((dirty, folded::fold(&left, CHOICES)));
    }
    seeds
}

/// A writable session that writes, zeroes and trims, at the start, in the middle and at the end.
const CHOICES: [u8; HEAD_BYTES - 2] = [1, 0b01_11_10_01, 0, 1, 160, 255];

fn made(options: &CreateOptions) -> SparseBytes {
    let host = Arc::new(MemDev::with_info(0, DevInfo { block_bytes: 1, ..MemDev::INFO }));
    block_on(create(&Disk::from_arc(host.clone()), options)).expect("the options are sound");
    host.image()
}

/// The file after some writes and a flush, and after it was closed.
fn used(file: SparseBytes) -> (SparseBytes, SparseBytes) {
    let host = Arc::new(MemDev::from_image(file, DevInfo { block_bytes: 1, ..MemDev::INFO }));
    block_on(async {
        let opened = open(Disk::from_arc(host.clone()), Access::ReadWrite).await.expect("it was just made");
        let disk = disk_of(opened);
        disk.write_all(8192, &[1; 4096]).await.expect("the host has room");
        disk.write_all(2 << 20, &[2; 4096]).await.expect("the host has room");
        disk.flush().await.expect("the host takes everything");
        let left = host.image();
        disk.close().await.expect("the host takes everything");
        (left, host.image())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_opens_for_writing() {
        for (name, seed) in seeds() {
            let host = MemDev::from_image(folded::unfold(&seed), DevInfo { block_bytes: 1, ..MemDev::INFO });
            let opened = block_on(open(Disk::new(host), Access::ReadWrite));
            let opened = opened.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(opened.was_dirty, name.ends_with("-log"), "{name}");
        }
    }
}
