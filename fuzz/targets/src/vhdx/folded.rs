//! A VHDX file as a short input: the pages where its structures are, one after the other.
//!
//! A file is megabytes of holes; a fuzzer wants kilobytes of meaning. The input is a head of [`HEAD_BYTES`] bytes,
//! then 4 KiB for each place in [`PLACES`]. Everything else of the file is zero.

use block::ByteRange;
use image::vhdx::layout::{
    self, HEADER_BYTES, HEADER_OFFSETS, MIB, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS,
};
use testkit::SparseBytes;

const PAGE: usize = 4096;
/// Length of the file in MiB, then choices of the session.
pub(super) const HEAD_BYTES: usize = 8;
/// Pages of the log that are in the input.
const LOG_PAGES: u64 = 6;
/// Where the log is in files that we make.
const LOG_START: u64 = MIB;
/// The longest file that an input can ask for: enough for a block beyond the largest block.
const FILE_MIB_MAX: u64 = 1 << 14;

/// Offsets of the pages that an input holds: those that a file has that `create` made.
fn places() -> impl Iterator<Item = u64> {
    let front = [0, HEADER_OFFSETS[0], HEADER_OFFSETS[1], REGION_TABLE_OFFSETS[0], REGION_TABLE_OFFSETS[1]];
    let log = (0..LOG_PAGES).map(|page| LOG_START + page * PAGE as u64);
    // Metadata table and items; the table's first entries and, of blocks of 1 MiB, the first bitmap's; the first block
    // or bitmap, and the second.
    let behind = [2 * MIB, 2 * MIB + (64 << 10), 3 * MIB, 3 * MIB + (32 << 10), 4 * MIB, 5 * MIB];
    front.into_iter().chain(log).chain(behind)
}

/// The file that an input stands for.
pub(super) fn unfold(input: &[u8]) -> SparseBytes {
    let mib = input.get(..2).map_or(0, |bytes| u64::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    let mut file = SparseBytes::new(mib.min(FILE_MIB_MAX) * MIB);
    let pages = input.get(HEAD_BYTES..).unwrap_or(&[]).chunks(PAGE);
    for (offset, page) in places().zip(pages) {
        let room = file.size().saturating_sub(offset).min(page.len() as u64);
        if room > 0 {
            file.write(offset, &page[..room as usize]);
        }
    }
    file
}

/// The input that stands for `file`, as far as one can.
pub(super) fn fold(file: &SparseBytes, choices: [u8; HEAD_BYTES - 2]) -> Vec<u8> {
    let mib = u16::try_from(file.size().div_ceil(MIB)).expect("the seeds are short files");
    let mut input = [&mib.to_le_bytes()[..], &choices].concat();
    for offset in places() {
        let mut page = [0; PAGE];
        if offset + PAGE as u64 <= file.size() {
            file.read(offset, &mut page);
        }
        input.extend(page);
    }
    input
}

/// Makes every checksum of `file` right, and every log entry one of the log that the headers name.
pub(super) fn seal_all(file: &mut SparseBytes) {
    let mut log_guid = [0; 16];
    for offset in HEADER_OFFSETS {
        seal_at(file, offset, HEADER_BYTES, |header| log_guid.copy_from_slice(&header[48..64]));
    }
    for offset in REGION_TABLE_OFFSETS {
        seal_at(file, offset, REGION_TABLE_BYTES, |_| {});
    }
    for page in 0..LOG_PAGES {
        let offset = LOG_START + page * PAGE as u64;
        let Some(mut head) = read(file, offset, PAGE) else { return };
        if head[..4] != layout::LOG_ENTRY_SIGNATURE {
            continue;
        }
        head[32..48].copy_from_slice(&log_guid);
        file.write(offset, &head);
        let len = u32::from_le_bytes(head[8..12].try_into().expect("4 bytes")) as usize;
        if len.is_multiple_of(PAGE) && len <= LOG_PAGES as usize * PAGE && len > 0 {
            seal_at(file, offset, len, |_| {});
        }
    }
}

fn seal_at(file: &mut SparseBytes, offset: u64, len: usize, see: impl FnOnce(&[u8])) {
    if let Some(mut bytes) = read(file, offset, len) {
        see(&bytes);
        layout::seal(&mut bytes);
        file.write(offset, &bytes);
    }
}

fn read(file: &SparseBytes, offset: u64, len: usize) -> Option<Vec<u8>> {
    let range = ByteRange::new(offset, len as u64).filter(|range| range.end() <= file.size())?;
    Some(file.to_vec(range))
}
