//! The one place where guest data moves, for every image format.

use block::{
    BlockDev, BlockError, ByteRange, DevInfo, Disk, ErrorKind, Extent, ExtentState, Result, ResultExt,
    SgList, WriteFlags, ZeroFlags, push_extent,
};
use futures_util::future::join_all;

use crate::format::{ImageFormat, Mapping, Mappings, Place};

/// What one status request looks at: with blocks of 1 MiB some 65,000 table entries.
const STATUS_BYTES_MAX: u64 = 64 << 30;
/// The same where each sector may be here or in the parent: some 500,000 bits.
const STATUS_BYTES_MAX_WITH_PARENT: u64 = 256 << 20;

/// What is zeroed or discarded at once; a longer range is changed piece by piece. A multiple of every block size. Its
/// table entries are needed in memory together: with blocks of 1 MiB they fill 9 pages.
const CHANGE_BYTES_MAX: u64 = 4 << 30;

/// Extents after which an answer ends.
const STATUS_EXTENTS_MAX: usize = 1024;

/// A disk image as a block device: a format that maps, over a host file, with the parent's disk under it if the
/// image depends on one.
pub struct ImageDev<F> {
    format: F,
    backing: Option<Disk>,
}

impl<F> ImageDev<F> {
    /// A device for `format`; `backing` is the parent's disk, opened read-only.
    pub fn new(format: F, backing: Option<Disk>) -> Self {
        Self { format, backing }
    }

    /// The format, to ask it what the block contract does not cover.
    pub fn format(&self) -> &F {
        &self.format
    }
}

impl<F: ImageFormat> BlockDev for ImageDev<F> {
    fn info(&self) -> DevInfo {
        self.format.info()
    }

    fn size(&self) -> u64 {
        self.format.virtual_size()
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        let range = self.checked(offset, into.len())?;
        let mut mappings = Mappings::new();
        let hold = self.format.map(range, &mut mappings).await?;
        let done =
            self.each_mapping(range, &mappings, &into, |mapping, part| self.read_part(mapping, part)).await;
        drop(hold);
        done
    }

    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        debug_assert!(!flags.fua, "no image format has FUA of its own, so Disk flushes");
        let range = self.checked(offset, from.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let mut mappings = Mappings::new();
        let mut prepared = self.format.prepare_write(range, &mut mappings).await?;
        let done =
            self.each_mapping(range, &mappings, &from, |mapping, part| self.write_part(mapping, part)).await;
        self.format.note_landed(&mut prepared);
        done?;
        self.format.commit(prepared).await
    }

    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let range = self.checked(range.start(), range.len())?;
        for piece in range.split_by(CHANGE_BYTES_MAX) {
            self.zero_piece(piece, flags).await?;
        }
        Ok(())
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        let range = self.checked(range.start(), range.len())?;
        if self.info().discard == block::Discard::Ignored {
            return Ok(());
        }
        for piece in range.split_by(CHANGE_BYTES_MAX) {
            self.discard_piece(piece).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.format.flush().await
    }

    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        let range = self.checked(range.start(), range.len())?;
        let len_max = if self.backing.is_some() { STATUS_BYTES_MAX_WITH_PARENT } else { STATUS_BYTES_MAX };
        let range =
            ByteRange::new(range.start(), range.len().min(len_max)).expect("a part of a range is a range");
        let mut mappings = Mappings::new();
        drop(self.format.map(range, &mut mappings).await?);
        let before = out.len();
        for mapping in mappings {
            match mapping.place {
                // Each question to the host may take a system call, so a long answer ends early.
                _ if out.len() - before >= STATUS_EXTENTS_MAX => break,
                Place::Host(_) => self.host_status(&mapping, out).await?,
                Place::Zeroes => push_extent(out, Extent::hole(mapping.guest.len(), mapping.state)),
                Place::Backing => self.backing_status(mapping.guest, out).await?,
            }
        }
        Ok(())
    }

    async fn resize(&self, _size: u64) -> Result<()> {
        Err(BlockError::new(
            ErrorKind::Unsupported,
            "the size of this image cannot change while it is in use",
        ))
    }

    async fn close(&self) -> Result<()> {
        let closed = self.format.close().await;
        let backing_closed = match &self.backing {
            Some(backing) => backing.close().await,
            None => Ok(()),
        };
        closed.and(backing_closed)
    }
}

#[expect(private_bounds, reason = "formats are this crate's own; the device is public, its seam is not")]
impl<F: ImageFormat> ImageDev<F> {
    fn checked(&self, offset: u64, len: u64) -> Result<ByteRange> {
        let size = self.format.virtual_size();
        match ByteRange::new(offset, len) {
            Some(range) if range.end() <= size => Ok(range),
            _ => {
                let message = format!("{len:#x} bytes at {offset:#x} end beyond the disk's {size:#x} bytes");
                Err(BlockError::new(ErrorKind::OutOfRange, message))
            }
        }
    }

    async fn zero_piece(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let mut mappings = Mappings::new();
        let mut prepared = self.format.prepare_zeroes(range, flags, &mut mappings).await?;
        let parts =
            mappings.iter().filter_map(host_range).map(|part| self.format.file().write_zeroes(part, flags));
        let done = first_error(join_all(parts).await);
        self.format.note_landed(&mut prepared);
        done?;
        self.format.commit(prepared).await
    }

    async fn discard_piece(&self, range: ByteRange) -> Result<()> {
        let mut mappings = Mappings::new();
        let mut prepared = self.format.prepare_discard(range, &mut mappings).await?;
        let parts = mappings.iter().filter_map(host_range).map(|part| self.format.file().discard(part));
        let done = first_error(join_all(parts).await);
        self.format.note_landed(&mut prepared);
        done?;
        self.format.commit(prepared).await
    }

    /// Runs `each` on every mapping with its part of `memory`, all at once, and waits for all of them.
    async fn each_mapping<'m, Fut: Future<Output = Result<()>>>(
        &self,
        range: ByteRange,
        mappings: &'m Mappings,
        memory: &SgList,
        each: impl Fn(&'m Mapping, SgList) -> Fut,
    ) -> Result<()> {
        if let [only] = mappings.as_slice() {
            return each(only, memory.clone()).await;
        }
        let parts = mappings.iter().map(|mapping| {
            each(mapping, memory.slice(mapping.guest.start() - range.start(), mapping.guest.len()))
        });
        first_error(join_all(parts).await)
    }

    async fn read_part(&self, mapping: &Mapping, into: SgList) -> Result<()> {
        match mapping.place {
            Place::Host(offset) => self.format.file().read(offset, into).await,
            Place::Zeroes => {
                into.fill(0, into.len(), 0);
                Ok(())
            }
            Place::Backing => self.read_backing(mapping.guest, into).await,
        }
    }

    async fn write_part(&self, mapping: &Mapping, from: SgList) -> Result<()> {
        let Place::Host(offset) = mapping.place else {
            unreachable!("a write is prepared with places in the host file only");
        };
        self.format.file().write(offset, from, WriteFlags::default()).await
    }

    /// Reads from the parent; what lies beyond its end reads as zeroes, because a child may be larger.
    async fn read_backing(&self, guest: ByteRange, into: SgList) -> Result<()> {
        let (inside, _) = self.split_at_backing_end(guest);
        into.fill(inside.len(), guest.len() - inside.len(), 0);
        match &self.backing {
            Some(backing) if !inside.is_empty() => backing
                .read(inside.start(), into.slice(0, inside.len()))
                .await
                .context(|| "read the parent".to_owned()),
            _ => Ok(()),
        }
    }

    /// Appends the extents of a mapping to the host file; what lies in a hole there is known to be zeroes.
    async fn host_status(&self, mapping: &Mapping, out: &mut Vec<Extent>) -> Result<()> {
        let mut rest = host_range(mapping).expect("the mapping is to the host file");
        while !rest.is_empty() {
            let mut extents = Vec::new();
            self.format.file().block_status(rest, &mut extents).await?;
            if extents.is_empty() {
                return Err(BlockError::new(
                    ErrorKind::Io,
                    "the host file gave no extent for a range inside it",
                ));
            }
            for extent in extents {
                let len = extent.len.min(rest.len());
                let here = Extent::present(len, Some(rest.start()));
                push_extent(out, Extent { state: mapping.state, zeroes: extent.zeroes, ..here });
                rest = ByteRange::between(rest.start() + len, rest.end()).expect("it shrinks from its start");
            }
        }
        Ok(())
    }

    async fn backing_status(&self, guest: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        let (inside, beyond) = self.split_at_backing_end(guest);
        if let Some(backing) = &self.backing {
            let mut at = inside;
            while !at.is_empty() {
                at = one_backing_status(backing, at, out).await?;
            }
        }
        push_extent(out, Extent::hole(beyond.len(), ExtentState::NotPresent));
        Ok(())
    }

    fn split_at_backing_end(&self, guest: ByteRange) -> (ByteRange, ByteRange) {
        let end = self.backing.as_ref().map_or(0, Disk::size).clamp(guest.start(), guest.end());
        let part = |start, end| ByteRange::between(start, end).expect("parts of a range are ranges");
        (part(guest.start(), end), part(end, guest.end()))
    }
}

/// Appends one answer of the parent for the start of `range`, one layer deeper, and returns what is left to ask.
async fn one_backing_status(backing: &Disk, range: ByteRange, out: &mut Vec<Extent>) -> Result<ByteRange> {
    let mut extents = Vec::new();
    backing.block_status(range, &mut extents).await?;
    let mut start = range.start();
    for extent in extents {
        let len = extent.len.min(range.end() - start);
        push_extent(out, Extent { len, depth: extent.depth + 1, ..extent });
        start += len;
    }
    if start == range.start() {
        return Err(BlockError::new(ErrorKind::Io, "the parent gave no extent for a range inside it"));
    }
    Ok(ByteRange::between(start, range.end()).expect("the start does not pass the end"))
}

fn host_range(mapping: &Mapping) -> Option<ByteRange> {
    match mapping.place {
        Place::Host(offset) => ByteRange::new(offset, mapping.guest.len()),
        Place::Zeroes | Place::Backing => None,
    }
}

fn first_error(results: Vec<Result<()>>) -> Result<()> {
    results.into_iter().collect()
}
