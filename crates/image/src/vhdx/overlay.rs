//! A host file as it would be after its log's replay, without a change to the file.
//!
//! A read-only open of a file with a dirty log reads through this. It also gives a file that ends inside its last
//! block the zeroes that belong there.

use std::collections::BTreeMap;

use block::{
    BlockDev, BlockError, ByteRange, DevInfo, Disk, ErrorKind, Extent, ExtentState, Result, SgList,
    WriteFlags, ZeroFlags, push_extent,
};

use super::layout::LOG_SECTOR_BYTES;

/// What a range of the file is replaced with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeroes, of any length.
    Zeroes,
    /// One page of [`LOG_SECTOR_BYTES`].
    Page(Box<[u8; LOG_SECTOR_BYTES]>),
}

/// Changes of a file that do not overlap: of two that would, the later replaces what it covers of the earlier.
///
/// All ranges are multiples of [`LOG_SECTOR_BYTES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Patches(BTreeMap<u64, (u64, Content)>);

impl Patches {
    /// Replaces `range` with `content`.
    pub(super) fn set(&mut self, range: ByteRange, content: Content) {
        self.clear(range);
        if !range.is_empty() {
            self.0.insert(range.start(), (range.end(), content));
        }
    }

    /// The changes, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ByteRange, &Content)> {
        self.0.iter().map(|(start, (end, content))| (range(*start, *end), content))
    }

    /// The parts of `range`, gapless and ascending, each with the change that covers it, if one does. `Content`
    /// starts at the given offset of the file.
    fn parts(&self, wanted: ByteRange) -> impl Iterator<Item = (ByteRange, Option<(u64, &Content)>)> {
        let mut at = wanted.start();
        std::iter::from_fn(move || {
            if at >= wanted.end() {
                return None;
            }
            let covering = self.0.range(..=at).next_back().filter(|(_, (end, _))| *end > at);
            let (stop, change) = match covering {
                Some((start, (end, content))) => (*end, Some((*start, content))),
                None => (self.0.range(at..).next().map_or(wanted.end(), |(start, _)| *start), None),
            };
            let part = range(at, stop.min(wanted.end()));
            at = part.end();
            Some((part, change))
        })
    }

    /// Removes what is in `hole`, cutting ranges of zeroes that reach out of it.
    fn clear(&mut self, hole: ByteRange) {
        if let Some((&start, (end, _))) = self.0.range(..hole.start()).next_back()
            && *end > hole.start()
        {
            self.cut(start, hole);
        }
        while let Some((&start, _)) = self.0.range(hole.start()..hole.end()).next() {
            self.cut(start, hole);
        }
    }

    fn cut(&mut self, start: u64, hole: ByteRange) {
        let (end, content) = self.0.remove(&start).expect("the caller has just found it");
        // A page never reaches out of a hole, because both are made of whole pages; only zeroes leave a rest.
        if start < hole.start() {
            self.0.insert(start, (hole.start(), content.clone()));
        }
        if end > hole.end() {
            self.0.insert(hole.end(), (end, content));
        }
    }
}

/// A file with changes laid over it, and maybe longer than it is; read-only.
pub(super) struct Overlay {
    file: Disk,
    patches: Patches,
    size: u64,
}

impl Overlay {
    /// `file` with `patches`, `size` bytes long; what lies beyond the file's own end reads as zeroes.
    pub(super) fn new(file: Disk, patches: Patches, size: u64) -> Self {
        Self { file, patches, size }
    }

    fn checked(&self, offset: u64, len: u64) -> Result<ByteRange> {
        match ByteRange::new(offset, len) {
            Some(range) if range.end() <= self.size => Ok(range),
            _ => {
                let message = format!("{len:#x} bytes at {offset:#x} end beyond the file's {:#x}", self.size);
                Err(BlockError::new(ErrorKind::OutOfRange, message))
            }
        }
    }

    /// Splits `part` at the end of the file below.
    fn split_at_end(&self, part: ByteRange) -> (ByteRange, ByteRange) {
        let end = self.file.size().clamp(part.start(), part.end());
        (range(part.start(), end), range(end, part.end()))
    }

    async fn read_below(&self, part: ByteRange, into: SgList) -> Result<()> {
        let (inside, beyond) = self.split_at_end(part);
        into.fill(inside.len(), beyond.len(), 0);
        if inside.is_empty() {
            return Ok(());
        }
        self.file.read(inside.start(), into.slice(0, inside.len())).await
    }

    async fn status_below(&self, part: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        let (inside, beyond) = self.split_at_end(part);
        let mut at = inside;
        while !at.is_empty() {
            let mut found = Vec::new();
            self.file.block_status(at, &mut found).await?;
            let len = found.iter().map(|extent| extent.len).sum::<u64>().min(at.len());
            if len == 0 {
                return Err(BlockError::new(ErrorKind::Io, format!("the host file has no status for {at}")));
            }
            push_within(out, found, len);
            at = range(at.start() + len, at.end());
        }
        push_extent(out, Extent::hole(beyond.len(), ExtentState::Zero));
        Ok(())
    }
}

/// Appends the first `len` bytes of `found`.
fn push_within(out: &mut Vec<Extent>, found: Vec<Extent>, len: u64) {
    let mut rest = len;
    for extent in found {
        let len = extent.len.min(rest);
        push_extent(out, Extent { len, ..extent });
        rest -= len;
    }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(start, end).expect("changes lie inside a file and have a direction")
}

impl BlockDev for Overlay {
    fn info(&self) -> DevInfo {
        DevInfo { read_only: true, native_fua: false, ..*self.file.info() }
    }

    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        let wanted = self.checked(offset, into.len())?;
        for (part, change) in self.patches.parts(wanted) {
            let memory = into.slice(part.start() - offset, part.len());
            match change {
                None => self.read_below(part, memory).await?,
                Some((_, Content::Zeroes)) => memory.fill(0, part.len(), 0),
                Some((start, Content::Page(page))) => {
                    let from = usize::try_from(part.start() - start).expect("a page fits memory");
                    let len = usize::try_from(part.len()).expect("a page fits memory");
                    memory.copy_from_slice(0, &page[from..from + len]);
                }
            }
        }
        Ok(())
    }

    async fn write(&self, _offset: u64, _from: SgList, _flags: WriteFlags) -> Result<()> {
        Err(read_only())
    }

    async fn write_zeroes(&self, _range: ByteRange, _flags: ZeroFlags) -> Result<()> {
        Err(read_only())
    }

    async fn discard(&self, _range: ByteRange) -> Result<()> {
        Err(read_only())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, wanted: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        let wanted = self.checked(wanted.start(), wanted.len())?;
        for (part, change) in self.patches.parts(wanted) {
            match change {
                None => self.status_below(part, out).await?,
                Some((_, Content::Zeroes)) => push_extent(out, Extent::hole(part.len(), ExtentState::Zero)),
                Some((_, Content::Page(_))) => push_extent(out, Extent::present(part.len(), None)),
            }
        }
        Ok(())
    }

    async fn resize(&self, _size: u64) -> Result<()> {
        Err(read_only())
    }

    async fn close(&self) -> Result<()> {
        self.file.close().await
    }
}

fn read_only() -> BlockError {
    BlockError::new(ErrorKind::ReadOnly, "the file is open read-only, with its log replayed in memory")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use testkit::{MemDev, block_on};

    use super::*;

    const PAGE: u64 = LOG_SECTOR_BYTES as u64;

    fn pages(start: u64, count: u64) -> ByteRange {
        ByteRange::new(start * PAGE, count * PAGE).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_overlay_reads_as_the_file_would_after_the_changes(
            changes in prop::collection::vec((0u64..24, 1u64..9, 0u8..4), 0..20),
            file_pages in 1u64..24, offset in 0u64..300, len in 1u64..200,
        ) {
            let size = 32 * PAGE;
            let mut model = vec![9u8; (file_pages * PAGE) as usize];
            let file = Disk::new(MemDev::from_bytes(&model));
            model.resize(size as usize, 0);
            let mut patches = Patches::default();
            for (start, count, value) in changes {
                let count = if value == 0 { count } else { 1 };
                let content = if value == 0 { Content::Zeroes } else { Content::Page(Box::new([value; 4096])) };
                patches.set(pages(start, count), content);
                model[(start * PAGE) as usize..((start + count) * PAGE) as usize].fill(value);
            }
            let disk = Disk::new(Overlay::new(file, patches, size));
            let offset = offset * 321;
            let len = (len * 456).min(size - offset);
            block_on(async {
                let read = disk.read_vec(offset, len as usize).await.unwrap();
                assert!(read == model[offset as usize..(offset + len) as usize]);
                let mut extents = Vec::new();
                disk.block_status(disk.range(), &mut extents).await.unwrap();
                assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), size);
                let mut at = 0;
                for extent in extents {
                    let end = at + extent.len as usize;
                    assert!(extent.state.is_data() || model[at..end].iter().all(|byte| *byte == 0));
                    at = end;
                }
                assert!(disk.read_vec(size - 1, 2).await.is_err());
            });
        }
    }
}
