//! Looking up where the guest's bytes are.

use block::{ByteRange, ExtentState};

use super::bits::{self, PAGE_BITS};
use super::inflight::Epoch;
use super::pages::{PAGE_BYTES, PageNumber};
use super::state::{State, Stop};
use crate::format::{Mapping, Mappings, Place, push_mapping};
use crate::vhdx::layout::{PayloadState, SECTORS_PER_BITMAP};

/// A part of a sector bitmap that lies in one page: which page, the first bit in it, how many bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BitmapPart {
    pub(super) page: PageNumber,
    pub(super) first_bit: u64,
    pub(super) bits: u64,
}

impl State {
    /// Appends where the bytes of `range` are and counts the request in; the caller counts it out.
    pub(super) fn map(&mut self, range: ByteRange, out: &mut Mappings) -> Result<Epoch, Stop> {
        self.check_open().map_err(Stop::Failed)?;
        for piece in range.split_by(u64::from(self.geometry.block_bytes)) {
            self.map_piece(piece, out)?;
        }
        Ok(self.begin_request())
    }

    /// Maps a piece of one block. MS-VHDX 2.5.1.1.
    fn map_piece(&self, piece: ByteRange, out: &mut Mappings) -> Result<(), Stop> {
        let block = self.geometry.block_of(piece.start());
        let (state, entry) = self.payload(block)?;
        let in_host = entry.offset_bytes() + (piece.start() - self.geometry.block_start(block));
        let (place, extent_state) = match state {
            PayloadState::FullyPresent => (Place::Host(in_host), ExtentState::Present),
            PayloadState::PartiallyPresent => return self.map_sectors(block, piece, in_host, out),
            PayloadState::NotPresent if self.geometry.has_parent => (Place::Backing, ExtentState::NotPresent),
            PayloadState::NotPresent => (Place::Zeroes, ExtentState::NotPresent),
            PayloadState::Undefined => (Place::Zeroes, ExtentState::Undefined),
            PayloadState::Zero => (Place::Zeroes, ExtentState::Zero),
            PayloadState::Unmapped => (Place::Zeroes, ExtentState::Unmapped),
        };
        push_mapping(out, Mapping { guest: piece, place, state: extent_state });
        Ok(())
    }

    /// Maps a piece of a partially present block by the sector bitmap. MS-VHDX 2.5.2.
    fn map_sectors(
        &self,
        block: u64,
        piece: ByteRange,
        in_host: u64,
        out: &mut Mappings,
    ) -> Result<(), Stop> {
        let sector = u64::from(self.geometry.logical_sector_bytes);
        let mut at = piece.start();
        for part in self.bitmap_parts(block, piece)? {
            let page = self.page(part.page)?;
            let (mut bit, end) = (part.first_bit, part.first_bit + part.bits);
            while bit < end {
                let (here, run) = bits::run(page, bit, end - bit);
                let guest = ByteRange::new(at, run * sector).expect("a part of a range is a range");
                let mapping = if here {
                    let place = Place::Host(in_host + (at - piece.start()));
                    Mapping { guest, place, state: ExtentState::PartiallyPresent }
                } else {
                    Mapping { guest, place: Place::Backing, state: ExtentState::NotPresent }
                };
                push_mapping(out, mapping);
                at += run * sector;
                bit += run;
            }
        }
        Ok(())
    }

    /// The parts of the bitmap that describe `piece`, which lies in `block`, whose chunk has a bitmap.
    pub(super) fn bitmap_parts(&self, block: u64, piece: ByteRange) -> Result<Vec<BitmapPart>, Stop> {
        let bitmap = self.bitmap_offset(self.geometry.chunk_of(block))?.ok_or_else(|| {
            let message = format!("block {block} is partially present but its chunk has no sector bitmap");
            Stop::Failed(block::BlockError::new(block::ErrorKind::Corrupt, message))
        })?;
        let sector = u64::from(self.geometry.logical_sector_bytes);
        let first = piece.start() / sector % SECTORS_PER_BITMAP;
        let bits = ByteRange::new(first, piece.len() / sector).expect("a bitmap has few bits");
        let parts = bits.split_by(PAGE_BITS).map(|part| BitmapPart {
            page: bitmap / PAGE_BYTES as u64 + part.start() / PAGE_BITS,
            first_bit: part.start() % PAGE_BITS,
            bits: part.len(),
        });
        Ok(parts.collect())
    }
}
