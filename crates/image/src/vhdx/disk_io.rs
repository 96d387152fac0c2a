//! Reads of metadata that need not be aligned to the host file's block.

use block::{Disk, Result};

/// Reads `len` bytes from `offset`, wherever that lies; the request is widened to whole blocks of the host file.
pub(super) async fn read(file: &Disk, offset: u64, len: usize) -> Result<Vec<u8>> {
    let unit = u64::from(file.info().block_bytes);
    let start = offset / unit * unit;
    let lead = usize::try_from(offset - start).expect("a block fits memory");
    let unit = file.info().block_bytes as usize;
    let mut bytes = file.read_vec(start, (lead + len).next_multiple_of(unit)).await?;
    bytes.truncate(lead + len);
    bytes.drain(..lead);
    Ok(bytes)
}
