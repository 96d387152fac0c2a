//! Zeroes, holes and allocation.

use std::io;

use block::{ByteRange, SgList};
use rustix::fs::FallocateFlags;

use super::HostFile;
use crate::engine::submit;
use crate::op::{Op, OpenFile, Request};

/// Bytes that are written at a time where zeroes must be written out.
const ZEROES_BYTES: u64 = 1 << 20;

impl HostFile {
    /// Makes `range`, which is not empty, read as zeroes, by the cheapest way that keeps the promises.
    ///
    /// Where space may be given back it is; where not, it stays or becomes allocated. A file system may refuse for
    /// one file what it does for another (ext4 without extents), so every refusal only leads to the next way.
    pub(super) async fn zero(
        &self,
        file: &OpenFile,
        range: ByteRange,
        may_unmap: bool,
        fast_only: bool,
    ) -> io::Result<()> {
        let geometry = &self.geometry;
        if may_unmap && geometry.gives_space_back && punch(file, range).await? {
            return Ok(());
        }
        if geometry.can_zero_range
            && is_supported(
                change(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, range).await,
            )?
        {
            return Ok(());
        }
        // A hole that is filled again is as good as zeroes. On a block device a hole may cost the reservation.
        if geometry.can_punch
            && !geometry.is_block_device
            && punch(file, range).await?
            && is_supported(allocate(file, range).await)?
        {
            return Ok(());
        }
        if fast_only {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "zeroes would have to be written out"));
        }
        self.write_out_zeroes(file, range).await
    }

    async fn write_out_zeroes(&self, file: &OpenFile, range: ByteRange) -> io::Result<()> {
        let zeroes = SgList::unspecified(ZEROES_BYTES.min(range.len()) as usize);
        zeroes.fill(0, zeroes.len(), 0);
        for piece in range.split_by(ZEROES_BYTES) {
            self.data.write(file, piece.start(), zeroes.slice(0, piece.len()), false).await?;
        }
        Ok(())
    }
}

/// Allocates space for `range`, which is not empty and lies inside the file; content is kept.
pub(super) async fn allocate(file: &OpenFile, range: ByteRange) -> io::Result<()> {
    change(file, FallocateFlags::KEEP_SIZE, range).await
}

/// Makes `range` a hole; false where the file system cannot.
async fn punch(file: &OpenFile, range: ByteRange) -> io::Result<bool> {
    is_supported(change(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range).await)
}

async fn change(file: &OpenFile, mode: FallocateFlags, range: ByteRange) -> io::Result<()> {
    let request = Request::Allocate { mode, offset: range.start(), len: range.len() };
    submit(Op { file: file.hold(), request }).await.0.map(drop)
}

fn is_supported(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(false),
        Err(error) => Err(error),
    }
}
