//! Reading the whole block allocation table once, in bounded memory, to check it and to learn what space is taken.
//!
//! The table of a 64 TiB disk has up to 513 MiB, most of it a hole in the host file while the disk is empty. A hole
//! says NOT_PRESENT for every block, so it is skipped without a read.

use block::{ByteRange, Disk};

use super::error::EntryFault;
use super::geometry::{Geometry, Slot};
use super::layout::{BAT_ENTRY_BYTES, BITMAP_BLOCK_BYTES, BatEntry, BitmapState, PayloadState};
use super::regions::{Region, Regions};
use super::space::{Owner, Taken};
use super::{OpenError, SpaceMap, disk_io};

/// Bytes of the table that are in memory at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes that one question about holes covers.
const STATUS_BYTES: u64 = 64 << 20;

/// Checks that the table fits its region, and every entry; takes the space of all blocks in `space`.
pub(super) async fn claim_blocks(
    file: &Disk,
    regions: &Regions,
    geometry: &Geometry,
    space: &mut SpaceMap,
) -> Result<(), OpenError> {
    let mut claims = Claims { file_bytes: file.size(), geometry, space, chunk: ChunkState::default() };
    check_length(regions.bat, geometry)?;
    let table = table_of(regions.bat, geometry);
    let result = scan(file, table, |index, entry| claims.take(index, entry)).await;
    let result = result.and_then(|()| claims.finish_chunk());
    match result {
        Err(Stop::Entry { index, entry, fault }) => {
            let fault = name_other_block(file, table, geometry, index, entry, fault).await?;
            Err(OpenError::BatEntry { index, entry: entry.0, fault })
        }
        Err(Stop::Open(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

/// Checks that the table that the geometry asks for fits its region.
pub(super) fn check_length(bat: Region, geometry: &Geometry) -> Result<(), OpenError> {
    let entries = bat.len / BAT_ENTRY_BYTES;
    if entries < geometry.bat_entries {
        return Err(OpenError::BatTooShort { entries, needed: geometry.bat_entries });
    }
    Ok(())
}

/// Why a scan ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// An entry breaks a rule.
    Entry { index: u64, entry: BatEntry, fault: EntryFault },
    /// Anything else.
    Open(OpenError),
}

/// Where the table of a disk lies, as far as its region reaches.
pub(super) fn table_of(bat: Region, geometry: &Geometry) -> ByteRange {
    let len = geometry.bat_bytes().min(bat.len / BAT_ENTRY_BYTES * BAT_ENTRY_BYTES);
    ByteRange::new(bat.offset, len).expect("the table lies in its region")
}

/// Calls `each(index, entry)` for every entry of `table` that is not zero, ascending.
pub(super) async fn scan(
    file: &Disk,
    table: ByteRange,
    mut each: impl FnMut(u64, BatEntry) -> Result<(), Stop>,
) -> Result<(), Stop> {
    for window in table.split_by(STATUS_BYTES) {
        for piece in data_pieces(file, window).await.map_err(Stop::Open)? {
            for part in piece.split_by(PIECE_BYTES) {
                let len = usize::try_from(part.len()).expect("a piece fits memory");
                let bytes = disk_io::read(file, part.start(), len).await;
                let bytes =
                    bytes.map_err(OpenError::host("read the block allocation table")).map_err(Stop::Open)?;
                let first = (part.start() - table.start()) / BAT_ENTRY_BYTES;
                for (index, bytes) in (first..).zip(bytes.chunks_exact(BAT_ENTRY_BYTES as usize)) {
                    let entry = BatEntry(u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
                    if entry.0 != 0 {
                        each(index, entry)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// The parts of `window` that the host file has data for, widened to whole entries.
async fn data_pieces(file: &Disk, window: ByteRange) -> Result<Vec<ByteRange>, OpenError> {
    let unit = u64::from(file.info().block_bytes);
    let asked = ByteRange::between(window.start() / unit * unit, window.end().next_multiple_of(unit))
        .expect("a window inside a file is a range");
    let mut pieces: Vec<ByteRange> = Vec::new();
    let mut at = asked.start();
    while at < asked.end() {
        let mut extents = Vec::new();
        let rest = ByteRange::between(at, asked.end()).expect("the loop's condition");
        file.block_status(rest, &mut extents)
            .await
            .map_err(OpenError::host("ask for the holes of the block allocation table"))?;
        let before = at;
        for extent in extents {
            let end = at.saturating_add(extent.len).min(asked.end());
            if extent.state.is_data() {
                let start = at.max(window.start()) / BAT_ENTRY_BYTES * BAT_ENTRY_BYTES;
                let end = end.min(window.end()).next_multiple_of(BAT_ENTRY_BYTES);
                push_piece(&mut pieces, start, end);
            }
            at = end;
        }
        if at == before {
            // A device that does not say is taken to have data.
            push_piece(&mut pieces, at.max(window.start()), window.end());
            break;
        }
    }
    Ok(pieces)
}

/// Appends `start..end`, without what is in the list already.
fn push_piece(pieces: &mut Vec<ByteRange>, start: u64, end: u64) {
    let start = pieces.last().map_or(start, |last| start.max(last.end()));
    if let Some(piece) = ByteRange::between(start, end).filter(|piece| !piece.is_empty()) {
        match pieces.last_mut().filter(|last| last.end() == piece.start()) {
            Some(last) => *last = ByteRange::between(last.start(), piece.end()).expect("both are ranges"),
            None => pieces.push(piece),
        }
    }
}

struct Claims<'a> {
    file_bytes: u64,
    geometry: &'a Geometry,
    space: &'a mut SpaceMap,
    chunk: ChunkState,
}

/// What has been seen of the chunk that the scan is in.
#[derive(Default)]
struct ChunkState {
    chunk: u64,
    first_partial: Option<(u64, BatEntry)>,
    has_bitmap: bool,
}

impl Claims<'_> {
    fn take(&mut self, index: u64, entry: BatEntry) -> Result<(), Stop> {
        let slot = self.geometry.slot(index);
        let chunk = index / (self.geometry.chunk_ratio + 1);
        if chunk != self.chunk.chunk {
            self.finish_chunk()?;
            self.chunk = ChunkState { chunk, ..ChunkState::default() };
        }
        let stop = |fault| Stop::Entry { index, entry, fault };
        let owned = owned_space(slot, entry, self.geometry, self.file_bytes).map_err(stop)?;
        if slot_is_partial(slot, entry) {
            self.chunk.first_partial.get_or_insert((index, entry));
        }
        self.chunk.has_bitmap |= matches!(slot, Slot::Bitmap(_)) && owned.is_some();
        let Some(range) = owned else { return Ok(()) };
        self.space.claim(range).map_err(|Taken { owner, .. }| stop(EntryFault::Taken { owner }))
    }

    /// Checks at the end of a chunk that its partial blocks have a bitmap.
    fn finish_chunk(&mut self) -> Result<(), Stop> {
        match self.chunk.first_partial {
            Some((index, entry)) if !self.chunk.has_bitmap => {
                let bitmap_index = self.geometry.bitmap_entry_index(self.chunk.chunk);
                Err(Stop::Entry { index, entry, fault: EntryFault::PartialWithoutBitmap { bitmap_index } })
            }
            _ => Ok(()),
        }
    }
}

fn slot_is_partial(slot: Slot, entry: BatEntry) -> bool {
    matches!(slot, Slot::Payload(_)) && entry.state() == Some(PayloadState::PartiallyPresent)
}

/// Checks an entry by itself and gives the space that it owns, if it owns any.
///
/// The host file has `file_bytes`. A block that starts inside the file may end beyond it, because old QEMU leaves
/// files like that; what is missing reads as zeroes.
pub(super) fn owned_space(
    slot: Slot,
    entry: BatEntry,
    geometry: &Geometry,
    file_bytes: u64,
) -> Result<Option<ByteRange>, EntryFault> {
    if entry.has_reserved_bits() {
        return Err(EntryFault::Reserved);
    }
    let bad_state = EntryFault::State { state: entry.state_bits() };
    let (allocated, owns, len) = match slot {
        Slot::Payload(_) => {
            let state = entry.state().ok_or(bad_state)?;
            if state == PayloadState::PartiallyPresent && !geometry.has_parent {
                return Err(EntryFault::PartialWithoutParent);
            }
            let owns = state.is_data() || (state.owns_offset() && entry.offset_bytes() != 0);
            (state.is_data(), owns, u64::from(geometry.block_bytes))
        }
        Slot::Bitmap(_) => {
            let present = entry.bitmap_state().ok_or(bad_state)? == BitmapState::Present;
            if present && !geometry.has_parent {
                return Err(EntryFault::BitmapWithoutParent);
            }
            (present, present, BITMAP_BLOCK_BYTES)
        }
    };
    if !owns {
        return Ok(None);
    }
    let offset = entry.offset_bytes();
    if offset == 0 && allocated {
        return Err(EntryFault::NoOffset);
    }
    if offset >= file_bytes {
        return Err(EntryFault::BeyondEnd { file_bytes });
    }
    Ok(ByteRange::new(offset, len))
}

/// Finds which other block has the space of the entry at `index`, for the error.
async fn name_other_block(
    file: &Disk,
    table: ByteRange,
    geometry: &Geometry,
    index: u64,
    entry: BatEntry,
    fault: EntryFault,
) -> Result<EntryFault, OpenError> {
    let EntryFault::Taken { owner: Owner::Block } = fault else { return Ok(fault) };
    let space_of =
        |index, entry| owned_space(geometry.slot(index), entry, geometry, file.size()).ok().flatten();
    let Some(wanted) = space_of(index, entry) else { return Ok(fault) };
    let mut other = None;
    let found = scan(file, table, |at, entry| {
        if at != index && space_of(at, entry).is_some_and(|space| space.overlaps(wanted)) {
            other = Some(at);
            return Err(Stop::Entry { index: at, entry, fault });
        }
        Ok(())
    });
    match (found.await, other) {
        (_, Some(index)) => Ok(EntryFault::SharedWith { index }),
        (Err(Stop::Open(error)), None) => Err(error),
        (_, None) => Ok(fault),
    }
}
