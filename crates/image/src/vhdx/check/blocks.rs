//! Checking the block allocation table, the sector bitmaps, and what of the file belongs to nothing.

use std::collections::BTreeMap;

use block::{ByteRange, Disk, ErrorKind, Result};

use super::super::bat_scan::{self, Stop, owned_space};
use super::super::error::EntryFault;
use super::super::geometry::{Geometry, Slot};
use super::super::layout::{BAT_ENTRY_BYTES, BatEntry, MIB, PayloadState};
use super::super::space::{Owner, Taken};
use super::super::{OpenError, SpaceMap, disk_io};
use super::structure::Structure;
use super::{BlockCounts, CheckReport, record};

/// Collisions whose other side is looked up by name.
const COLLISIONS_MAX: usize = 100;
/// Ranges of leaked space that are listed one by one.
const LEAKS_LISTED_MAX: usize = 10;

/// Checks the blocks of a file whose other structures could be read.
pub(super) async fn check(structure: Structure, report: &mut CheckReport) -> Result<()> {
    let Structure { file, bat, geometry, is_fixed, mut space, .. } = structure;
    record(report, bat_scan::check_length(bat, &geometry))?;
    let table = bat_scan::table_of(bat, &geometry);

    let mut tally = Tally::new(&file, geometry, &mut space, report);
    let scanned = bat_scan::scan(&file, table, |index, entry| {
        tally.take(index, entry);
        Ok(())
    });
    host_error(scanned.await)?;
    tally.finish_chunk();
    let Tally { collisions, chunks, blocks, bitmaps, .. } = tally;
    let described =
        blocks.undefined + blocks.zero + blocks.unmapped + blocks.fully_present + blocks.partially_present;
    let not_present = geometry.payload_blocks.saturating_sub(described);
    report.counts.blocks = BlockCounts { not_present, ..blocks };
    report.counts.bitmaps = bitmaps;

    name_collisions(&file, table, &geometry, &collisions, report).await?;
    for chunk in chunks {
        check_bitmap(&file, table, &geometry, chunk, report).await?;
    }
    if is_fixed {
        check_fixed(&geometry, &space, report);
    }
    if file.size() < space.end() {
        let (file_bytes, end) = (file.size(), space.end());
        report.note(
            "file-ends-in-block",
            format!("the file ends at {file_bytes:#x}, its last block at {end:#x}"),
        );
    }
    report.counts.used_bytes = space.used_bytes();
    check_leaks(&file, &space, report).await
}

fn host_error(scanned: std::result::Result<(), Stop>) -> Result<()> {
    match scanned {
        Err(Stop::Open(OpenError::Host { doing, source })) => Err(source.context(doing)),
        _ => Ok(()),
    }
}

/// A chunk with a sector bitmap in the file.
struct BitmapAt {
    chunk: u64,
    offset: u64,
}

/// What a pass over the table adds up.
struct Tally<'a> {
    file_bytes: u64,
    geometry: Geometry,
    space: &'a mut SpaceMap,
    report: &'a mut CheckReport,
    blocks: BlockCounts,
    bitmaps: u64,
    chunk: u64,
    partials: Vec<(u64, BatEntry)>,
    bitmap: Option<u64>,
    chunks: Vec<BitmapAt>,
    /// Entries that share their space with another block.
    collisions: BTreeMap<u64, BatEntry>,
}

impl<'a> Tally<'a> {
    fn new(file: &Disk, geometry: Geometry, space: &'a mut SpaceMap, report: &'a mut CheckReport) -> Self {
        Self {
            file_bytes: file.size(),
            geometry,
            space,
            report,
            blocks: BlockCounts::default(),
            bitmaps: 0,
            chunk: 0,
            partials: Vec::new(),
            bitmap: None,
            chunks: Vec::new(),
            collisions: BTreeMap::new(),
        }
    }

    fn take(&mut self, index: u64, entry: BatEntry) {
        let chunk = index / (self.geometry.chunk_ratio + 1);
        if chunk != self.chunk {
            self.finish_chunk();
            self.chunk = chunk;
        }
        let slot = self.geometry.slot(index);
        match owned_space(slot, entry, &self.geometry, self.file_bytes) {
            Err(fault) => self.fault(index, entry, fault),
            Ok(Some(range)) => self.claim(index, entry, slot, range),
            Ok(None) if entry.offset_bytes() != 0 => self.report.note(
                "bat-offset-reserved",
                format!(
                    "the entry {index} of the block allocation table, {:#018x}, has a reserved offset",
                    entry.0
                ),
            ),
            Ok(None) => {}
        }
        match slot {
            Slot::Payload(block) => self.count(index, entry, block),
            Slot::Bitmap(_) => self.bitmaps += u64::from(self.bitmap.is_some()),
        }
    }

    fn claim(&mut self, index: u64, entry: BatEntry, slot: Slot, range: ByteRange) {
        match self.space.claim(range) {
            Ok(()) => {}
            Err(Taken { owner: Owner::Block, .. }) if self.collisions.len() < COLLISIONS_MAX => {
                self.collisions.insert(index, entry);
            }
            Err(Taken { owner, .. }) => self.fault(index, entry, EntryFault::Taken { owner }),
        }
        if matches!(slot, Slot::Bitmap(_)) {
            self.bitmap = Some(range.start());
        }
    }

    fn count(&mut self, index: u64, entry: BatEntry, block: u64) {
        if block >= self.geometry.payload_blocks {
            self.report.leak(
                "bat-beyond-disk",
                format!(
                    "the entry {index} of the block allocation table describes a block beyond the disk's end"
                ),
            );
            return;
        }
        match entry.state() {
            Some(PayloadState::Undefined) => self.blocks.undefined += 1,
            Some(PayloadState::Zero) => self.blocks.zero += 1,
            Some(PayloadState::Unmapped) => self.blocks.unmapped += 1,
            Some(PayloadState::FullyPresent) => self.blocks.fully_present += 1,
            Some(PayloadState::PartiallyPresent) => {
                self.blocks.partially_present += 1;
                self.partials.push((index, entry));
            }
            Some(PayloadState::NotPresent) | None => {}
        }
    }

    fn finish_chunk(&mut self) {
        let (partials, bitmap) = (std::mem::take(&mut self.partials), self.bitmap.take());
        match bitmap {
            Some(offset) if partials.is_empty() => self.report.note(
                "bitmap-unused",
                format!(
                    "the sector bitmap at {offset:#x} belongs to a chunk without partially present blocks"
                ),
            ),
            Some(offset) => self.chunks.push(BitmapAt { chunk: self.chunk, offset }),
            None if self.geometry.has_parent => {
                let bitmap_index = self.geometry.bitmap_entry_index(self.chunk);
                for (index, entry) in partials {
                    self.fault(index, entry, EntryFault::PartialWithoutBitmap { bitmap_index });
                }
            }
            // A partial block without a parent was a finding of its own.
            None => {}
        }
    }

    fn fault(&mut self, index: u64, entry: BatEntry, fault: EntryFault) {
        let error = OpenError::BatEntry { index, entry: entry.0, fault };
        self.report.corrupt(error.rule(), error.to_string());
    }
}

/// Reports the entries in `collisions`, each with the first other entry that has some of its space.
async fn name_collisions(
    file: &Disk,
    table: ByteRange,
    geometry: &Geometry,
    collisions: &BTreeMap<u64, BatEntry>,
    report: &mut CheckReport,
) -> Result<()> {
    if collisions.is_empty() {
        return Ok(());
    }
    let space_of =
        |index, entry| owned_space(geometry.slot(index), entry, geometry, file.size()).ok().flatten();
    let wanted: Vec<_> = collisions
        .iter()
        .filter_map(|(index, entry)| space_of(*index, *entry).map(|space| (*index, *entry, space)))
        .collect();
    let mut others: BTreeMap<u64, u64> = BTreeMap::new();
    let scanned = bat_scan::scan(file, table, |at, entry| {
        let Some(space) = space_of(at, entry) else { return Ok(()) };
        for (index, ..) in wanted.iter().filter(|(index, _, other)| *index != at && other.overlaps(space)) {
            others.entry(*index).or_insert(at);
        }
        Ok(())
    });
    host_error(scanned.await)?;
    for (index, entry, _) in wanted {
        let fault = match others.get(&index) {
            Some(other) => EntryFault::SharedWith { index: *other },
            None => EntryFault::Taken { owner: Owner::Block },
        };
        let error = OpenError::BatEntry { index, entry: entry.0, fault };
        report.corrupt(error.rule(), error.to_string());
    }
    Ok(())
}

/// Looks at the bits of the partially present blocks of a chunk.
async fn check_bitmap(
    file: &Disk,
    table: ByteRange,
    geometry: &Geometry,
    at: BitmapAt,
    report: &mut CheckReport,
) -> Result<()> {
    let first = at.chunk * geometry.chunk_ratio;
    let blocks = geometry.chunk_ratio.min(geometry.payload_blocks.saturating_sub(first));
    let entries_at = table.start() + geometry.payload_entry_index(first) * BAT_ENTRY_BYTES;
    let entries = disk_io::read(file, entries_at, to_len(blocks * BAT_ENTRY_BYTES)?).await?;
    for (block, bytes) in (first..).zip(entries.chunks_exact(BAT_ENTRY_BYTES as usize)) {
        let entry = BatEntry(u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
        if entry.state() != Some(PayloadState::PartiallyPresent) {
            continue;
        }
        let bits_at = at.offset + geometry.bitmap_offset_of(block);
        // A block that ends with the disk has bits for the sectors of the disk only.
        let sectors = geometry.block_len(block) / u64::from(geometry.logical_sector_bytes);
        let bits = read_bits(file, bits_at, sectors).await?;
        let present = count_bits(&bits, sectors);
        if present == sectors {
            report
                .note("partial-full", format!("the block {block} is partially present with all its sectors"));
        } else if present == 0 {
            report.note("partial-empty", format!("the block {block} is partially present without a sector"));
        }
    }
    Ok(())
}

async fn read_bits(file: &Disk, offset: u64, sectors: u64) -> Result<Vec<u8>> {
    let len = sectors.div_ceil(8);
    let inside = len.min(file.size().saturating_sub(offset));
    let mut bits = disk_io::read(file, offset, to_len(inside)?).await?;
    bits.resize(to_len(len)?, 0);
    Ok(bits)
}

fn count_bits(bits: &[u8], sectors: u64) -> u64 {
    let whole: u64 = bits[..(sectors / 8) as usize].iter().map(|byte| u64::from(byte.count_ones())).sum();
    let rest = bits.get((sectors / 8) as usize).map_or(0, |byte| byte & ((1 << (sectors % 8)) - 1));
    whole + u64::from(rest.count_ones())
}

fn to_len(bytes: u64) -> Result<usize> {
    usize::try_from(bytes)
        .map_err(|_| block::BlockError::new(ErrorKind::Unsupported, "the table does not fit memory"))
}

fn check_fixed(geometry: &Geometry, space: &SpaceMap, report: &mut CheckReport) {
    let counts = report.counts;
    let missing = geometry.payload_blocks - counts.blocks.fully_present.min(geometry.payload_blocks);
    if missing > 0 {
        report.note("fixed-not-allocated", format!("{missing} blocks of the fixed disk are not in the file"));
    }
    let structures: u64 = space.structures().iter().map(|(range, _)| range.len()).sum();
    let needed = structures + geometry.payload_blocks * u64::from(geometry.block_bytes);
    if counts.file_bytes < needed {
        let message =
            format!("the fixed disk needs a file of {needed} bytes, and the file has {}", counts.file_bytes);
        report.corrupt("fixed-file-short", message);
    }
}

/// Finds where the host stores data for space that nothing owns: inside the file and behind its last structure.
async fn check_leaks(file: &Disk, space: &SpaceMap, report: &mut CheckReport) -> Result<()> {
    let end = space.end().min(file.size() / MIB * MIB);
    let tail = ByteRange::between(end, file.size()).expect("the end was cut to the file's");
    let free = space.free_ranges().filter_map(|range| range.intersection(file.range()));
    let mut listed = 0;
    for range in free.chain(std::iter::once(tail)).filter(|range| !range.is_empty()) {
        let stored = stored_bytes(file, range).await?;
        report.counts.leaked_bytes += stored;
        if stored > 0 && listed < LEAKS_LISTED_MAX {
            listed += 1;
            report.leak(
                "leaked-space",
                format!("{stored} bytes are stored at {range}, which belongs to nothing"),
            );
        }
    }
    Ok(())
}

/// How many bytes of `range` the host stores.
async fn stored_bytes(file: &Disk, range: ByteRange) -> Result<u64> {
    let unit = u64::from(file.info().block_bytes);
    let end = range.end() / unit * unit;
    let (mut at, mut stored) = (range.start(), 0);
    while at < end {
        let mut extents = Vec::new();
        file.block_status(ByteRange::between(at, end).expect("the loop's condition"), &mut extents).await?;
        let before = at;
        for extent in extents {
            let len = extent.len.min(end - at);
            stored += if extent.state.is_data() { len } else { 0 };
            at += len;
        }
        if at == before {
            break;
        }
    }
    Ok(stored)
}
