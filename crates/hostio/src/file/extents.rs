//! Which parts of a file hold data.

use std::io;
use std::os::fd::AsFd;

use block::{ByteRange, Extent, ExtentState};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::geometry::Geometry;
use crate::op::OpenFile;

/// Extents that one call looks up at most; the caller asks again for what follows.
const EXTENTS_MAX: usize = 1024;

/// The extents from the start of `range`, which is not empty: to its end, or until there are [`EXTENTS_MAX`].
///
/// A hole reads as zeroes. Everything else counts as data, and so does a whole file whose system cannot tell.
pub(super) async fn of(file: &OpenFile, geometry: &Geometry, range: ByteRange) -> io::Result<Vec<Extent>> {
    if geometry.is_block_device {
        return Ok(vec![Extent::present(range.len(), Some(range.start()))]);
    }
    if geometry.is_memory {
        return look_up(file, range);
    }
    // The lookup may wait for the file system's metadata, and a ring has no operation for it.
    let file = file.hold();
    crate::pool::run(move || look_up(&file, range)).await
}

fn look_up(file: impl AsFd + Copy, range: ByteRange) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = range.start();
    while at < range.end() && extents.len() < EXTENTS_MAX {
        let (state, end) = match next_data(file, at)? {
            Some(data) if data > at => (ExtentState::Zero, data),
            Some(_) => (ExtentState::Present, next_hole(file, at)?),
            None => (ExtentState::Zero, range.end()),
        };
        // A file that changes meanwhile must not make an empty extent.
        let len = end.clamp(at + 1, range.end()) - at;
        let host_offset = Some(at);
        extents.push(Extent { len, state, depth: 0, host_offset, zeroes: state == ExtentState::Zero });
        at += len;
    }
    Ok(extents)
}

/// Where the first data at or after `at` begins; none if only a hole follows.
fn next_data(file: impl AsFd, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

/// Where the data at `at` ends.
fn next_hole(file: impl AsFd, at: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Hole(at)) {
        Ok(hole) => Ok(hole),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(u64::MAX),
        // The data was cut off after it was found.
        Err(Errno::NXIO) => Ok(at),
        Err(error) => Err(error.into()),
    }
}
