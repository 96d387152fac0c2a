//! Comparing a whole disk with the model, as it is or after a crash.

use block::{ByteRange, Disk, Extent};

use super::{Mismatch, Model};
use crate::SparseBytes;
use crate::status::check_extents;

/// How much is read at a time.
const PIECE_BYTES: u64 = 1 << 20;

impl Model {
    /// Checks the size and all content of `disk`, while nothing is in flight. Ranges that are holes for the model and
    /// that the disk says are holes are not read, so that terabytes take no longer than what is in use.
    ///
    /// # Errors
    /// The first block that holds what no change has put there; a read that fails.
    pub async fn check_disk(&mut self, disk: &Disk) -> Result<(), Mismatch> {
        if disk.size() != self.size {
            return Err(Mismatch::new(format!("the size is {:#x}, not {:#x}", disk.size(), self.size)));
        }
        for piece in self.worth_reading(disk).await? {
            let bytes = read(disk, piece).await?;
            self.check(piece.start(), &bytes)?;
        }
        Ok(())
    }

    /// Checks that a crash at this point may have left `disk`, and returns the model of what was found: all of it
    /// certain and durable.
    ///
    /// # Errors
    /// The first block that holds what no change has put there, or has lost what was durable; a read that fails.
    pub async fn check_after_crash(&self, disk: &Disk) -> Result<Self, Mismatch> {
        if !self.sizes.contains(&disk.size()) {
            let message = format!("the size is {:#x}, which is none of {:x?}", disk.size(), self.sizes);
            return Err(Mismatch::new(message).doing("after the crash"));
        }
        let mut found = SparseBytes::new(disk.size());
        for piece in self.worth_reading(disk).await? {
            let bytes = read(disk, piece).await?;
            self.check_crashed(piece.start(), &bytes)
                .map_err(|mismatch| mismatch.doing("after the crash"))?;
            if bytes.iter().any(|&byte| byte != 0) {
                found.write(piece.start(), &bytes);
            }
        }
        Ok(Self::of(found, disk.info()))
    }

    /// The ranges of `disk` that the model or the disk itself knows of, in pieces, ascending.
    async fn worth_reading(&self, disk: &Disk) -> Result<Vec<ByteRange>, Mismatch> {
        let mut known = self.base.stored(disk.range());
        known.extend(self.records.iter().filter_map(|record| record.range.intersection(disk.range())));
        known.extend(data_of(disk).await?);
        known.sort_by_key(|range| range.start());
        let unit = self.block_bytes;
        let mut pieces: Vec<ByteRange> = Vec::new();
        for range in known {
            let end = range.end().next_multiple_of(unit).min(disk.size());
            let start = (range.start() / unit * unit).max(pieces.last().map_or(0, |last| last.end()));
            if let Some(rest) = ByteRange::between(start, end) {
                pieces.extend(rest.split_by(PIECE_BYTES));
            }
        }
        Ok(pieces)
    }
}

async fn read(disk: &Disk, piece: ByteRange) -> Result<Vec<u8>, Mismatch> {
    let read = disk.read_vec(piece.start(), piece.len() as usize).await;
    read.map_err(|error| Mismatch::new(format!("read {piece}: {}", error.chain())))
}

/// The ranges that `disk` says hold data.
async fn data_of(disk: &Disk) -> Result<Vec<ByteRange>, Mismatch> {
    let (mut data, mut at) = (Vec::new(), 0);
    while let Some(rest) = ByteRange::between(at, disk.size()).filter(|rest| !rest.is_empty()) {
        let mut extents: Vec<Extent> = Vec::new();
        let status = disk.block_status(rest, &mut extents).await;
        status.map_err(|error| Mismatch::new(format!("block_status of {rest}: {}", error.chain())))?;
        check_extents(rest, &extents).map_err(Mismatch::new)?;
        for extent in extents {
            let range = ByteRange::new(at, extent.len).expect("extents were checked");
            at = range.end();
            data.extend((!extent.zeroes).then_some(range).and_then(|range| range.intersection(rest)));
        }
    }
    Ok(data)
}
