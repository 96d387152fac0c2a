//! Bytes of a large, mostly empty disk in memory, cheap to clone.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use block::{ByteRange, SgList};

/// What is stored or not stored as one; the granularity of holes.
const PAGE_BYTES: u64 = 4096;
const CHUNK_PAGES: usize = 256;
const CHUNK_BYTES: u64 = PAGE_BYTES * CHUNK_PAGES as u64;

type Page = [u8; PAGE_BYTES as usize];

/// One mebibyte's pages. Clones share the pages until one is written.
#[derive(Clone)]
struct Chunk([Option<Arc<Page>>; CHUNK_PAGES]);

static ZERO_PAGE: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE_BYTES as usize]));
static ZERO_CHUNK: LazyLock<Arc<Chunk>> =
    LazyLock::new(|| Arc::new(Chunk(std::array::from_fn(|_| Some(ZERO_PAGE.clone())))));

/// The content of a disk of up to `i64::MAX` bytes, of which only written pages of 4 KiB take memory.
///
/// A clone costs some 50 bytes per mebibyte in use, and shares every page until one side writes it: that is what
/// makes thousands of crash images of one workload affordable.
#[derive(Clone, Default)]
pub struct SparseBytes {
    size: u64,
    chunks: BTreeMap<u64, Arc<Chunk>>,
}

impl SparseBytes {
    /// `size` zero bytes, all of them a hole. `size` is at most [`ByteRange::END_MAX`].
    pub fn new(size: u64) -> Self {
        assert!(size <= ByteRange::END_MAX, "a disk is at most i64::MAX bytes long");
        Self { size, chunks: BTreeMap::new() }
    }

    /// A copy of `bytes`; pages of zeroes become holes.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::new(bytes.len() as u64);
        for (index, page) in bytes.chunks(PAGE_BYTES as usize).enumerate() {
            if page.iter().any(|&byte| byte != 0) {
                copy.write(index as u64 * PAGE_BYTES, page);
            }
        }
        copy
    }

    /// Number of bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All of it.
    pub fn range(&self) -> ByteRange {
        ByteRange::new(0, self.size).expect("the size is checked where it is set")
    }

    /// Grows by a hole, or cuts off.
    pub fn resize(&mut self, size: u64) {
        assert!(size <= ByteRange::END_MAX, "a disk is at most i64::MAX bytes long");
        if let Some(cut) = ByteRange::between(size, self.size) {
            self.punch(cut);
        }
        self.size = size;
    }

    /// Copies the bytes from `offset` into `into`.
    ///
    /// # Panics
    /// If they are not all there: callers check ranges first, as devices must.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for piece in self.checked(offset, into.len() as u64).split_by(PAGE_BYTES) {
            let at = (piece.start() - offset) as usize;
            let into = &mut into[at..at + piece.len() as usize];
            match self.page(piece.start()) {
                Some(page) => into.copy_from_slice(&page[within_page(piece)]),
                None => into.fill(0),
            }
        }
    }

    /// As [`Self::read`], into a scatter list.
    pub fn read_sg(&self, offset: u64, into: &SgList) {
        for piece in self.checked(offset, into.len()).split_by(PAGE_BYTES) {
            let at = piece.start() - offset;
            match self.page(piece.start()) {
                Some(page) => into.copy_from_slice(at, &page[within_page(piece)]),
                None => into.fill(at, piece.len(), 0),
            }
        }
    }

    /// A copy of `range`, which must be there.
    pub fn to_vec(&self, range: ByteRange) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(range.len()).expect("what is copied fits memory")];
        self.read(range.start(), &mut bytes);
        bytes
    }

    /// Writes `from` at `offset`.
    ///
    /// # Panics
    /// If it would end beyond the size.
    pub fn write(&mut self, offset: u64, from: &[u8]) {
        for piece in self.checked(offset, from.len() as u64).split_by(PAGE_BYTES) {
            let at = (piece.start() - offset) as usize;
            let from = &from[at..at + piece.len() as usize];
            self.page_mut(piece.start())[within_page(piece)].copy_from_slice(from);
        }
    }

    /// As [`Self::write`], from a scatter list.
    pub fn write_sg(&mut self, offset: u64, from: &SgList) {
        for piece in self.checked(offset, from.len()).split_by(PAGE_BYTES) {
            let into = &mut self.page_mut(piece.start())[within_page(piece)];
            from.copy_to_slice(piece.start() - offset, into);
        }
    }

    /// Makes `range` zeroes and its whole pages holes. What lies beyond the size is left out.
    pub fn punch(&mut self, range: ByteRange) {
        let Some(range) = range.intersection(self.range()) else { return };
        let chunks = range.start() / CHUNK_BYTES..=(range.end() - 1) / CHUNK_BYTES;
        let present: Vec<u64> = self.chunks.range(chunks).map(|(&index, _)| index).collect();
        for index in present {
            let piece = chunk_range(index).intersection(range).expect("the chunk was found in the range");
            if piece.len() == CHUNK_BYTES {
                self.chunks.remove(&index);
            } else {
                self.punch_pages(index, piece);
            }
        }
    }

    fn punch_pages(&mut self, index: u64, range: ByteRange) {
        let size = self.size;
        let Some(chunk) = self.chunks.get_mut(&index) else { return };
        let chunk = Arc::make_mut(chunk);
        for piece in range.split_by(PAGE_BYTES) {
            let slot = &mut chunk.0[page_in_chunk(piece.start())];
            let whole = piece.start().is_multiple_of(PAGE_BYTES)
                && (piece.len() == PAGE_BYTES || piece.end() == size);
            if whole {
                *slot = None;
            } else if let Some(page) = slot {
                Arc::make_mut(page)[within_page(piece)].fill(0);
            }
        }
        if chunk.0.iter().all(Option::is_none) {
            self.chunks.remove(&index);
        }
    }

    /// Makes `range`, which must be there, zeroes that are stored: no page of it is a hole afterwards.
    pub fn fill_zeroes(&mut self, range: ByteRange) {
        for piece in self.checked(range.start(), range.len()).split_by(CHUNK_BYTES) {
            if piece.len() == CHUNK_BYTES {
                self.chunks.insert(piece.start() / CHUNK_BYTES, ZERO_CHUNK.clone());
                continue;
            }
            for piece in piece.split_by(PAGE_BYTES) {
                if piece.len() == PAGE_BYTES {
                    *self.slot_mut(piece.start()) = Some(ZERO_PAGE.clone());
                } else {
                    self.page_mut(piece.start())[within_page(piece)].fill(0);
                }
            }
        }
    }

    /// The maximal stored stretches of `range`, ascending; what is not in one is a hole.
    pub fn stored(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut found: Vec<ByteRange> = Vec::new();
        let Some(range) = range.intersection(self.range()) else { return found };
        let chunks = range.start() / CHUNK_BYTES..=(range.end() - 1) / CHUNK_BYTES;
        for (&index, chunk) in self.chunks.range(chunks) {
            for (page, _) in chunk.0.iter().enumerate().filter(|(_, page)| page.is_some()) {
                let start = index * CHUNK_BYTES + page as u64 * PAGE_BYTES;
                let end = (start + PAGE_BYTES).min(range.end());
                let Some(piece) = ByteRange::between(start.max(range.start()), end) else { continue };
                match found.last_mut() {
                    _ if piece.is_empty() => {}
                    Some(last) if last.end() == piece.start() => {
                        *last = ByteRange::between(last.start(), piece.end()).expect("both lie on the disk");
                    }
                    _ => found.push(piece),
                }
            }
        }
        found
    }

    /// Where the first byte lies that differs from `other`'s; sizes that differ are a difference at the smaller one.
    pub fn first_difference(&self, other: &Self) -> Option<u64> {
        let common = self.size.min(other.size);
        let mut indices: Vec<u64> = self.chunks.keys().chain(other.chunks.keys()).copied().collect();
        indices.sort_unstable();
        indices.dedup();
        let in_chunks = indices.into_iter().find_map(|index| self.first_difference_in(other, index));
        in_chunks.filter(|&at| at < common).or((self.size != other.size).then_some(common))
    }

    fn first_difference_in(&self, other: &Self, index: u64) -> Option<u64> {
        let (ours, theirs) = (self.chunks.get(&index), other.chunks.get(&index));
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && Arc::ptr_eq(ours, theirs)
        {
            return None;
        }
        (0..CHUNK_PAGES as u64).find_map(|page| {
            let start = index * CHUNK_BYTES + page * PAGE_BYTES;
            let ours = self.page(start).unwrap_or(&ZERO_PAGE);
            let theirs = other.page(start).unwrap_or(&ZERO_PAGE);
            if std::ptr::eq(ours, theirs) {
                return None;
            }
            ours.iter().zip(theirs).position(|(a, b)| a != b).map(|at| start + at as u64)
        })
    }

    fn checked(&self, offset: u64, len: u64) -> ByteRange {
        ByteRange::new(offset, len).filter(|range| range.end() <= self.size).unwrap_or_else(|| {
            panic!("{len:#x} bytes at {offset:#x} lie in the {:#x} bytes there are", self.size)
        })
    }

    fn page(&self, offset: u64) -> Option<&Page> {
        self.chunks.get(&(offset / CHUNK_BYTES))?.0[page_in_chunk(offset)].as_deref()
    }

    fn slot_mut(&mut self, offset: u64) -> &mut Option<Arc<Page>> {
        let empty = || Arc::new(Chunk([const { None }; CHUNK_PAGES]));
        let chunk = self.chunks.entry(offset / CHUNK_BYTES).or_insert_with(empty);
        &mut Arc::make_mut(chunk).0[page_in_chunk(offset)]
    }

    fn page_mut(&mut self, offset: u64) -> &mut Page {
        Arc::make_mut(self.slot_mut(offset).get_or_insert_with(|| ZERO_PAGE.clone()))
    }
}

impl std::fmt::Debug for SparseBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SparseBytes({} bytes, {} MiB chunks in use)", self.size, self.chunks.len())
    }
}

fn chunk_range(index: u64) -> ByteRange {
    let start = index * CHUNK_BYTES;
    let end = start.saturating_add(CHUNK_BYTES).min(ByteRange::END_MAX);
    ByteRange::between(start, end).expect("a chunk in use starts on the disk")
}

fn page_in_chunk(offset: u64) -> usize {
    (offset % CHUNK_BYTES / PAGE_BYTES) as usize
}

fn within_page(piece: ByteRange) -> std::ops::Range<usize> {
    let start = (piece.start() % PAGE_BYTES) as usize;
    start..start + piece.len() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    #[test]
    fn random_changes_agree_with_a_plain_vector() {
        let size = 3 * CHUNK_BYTES + 5000;
        let (mut sparse, mut plain) = (SparseBytes::new(size), vec![0u8; size as usize]);
        let mut rng = Rng::new(1);
        for _ in 0..500 {
            let start = rng.below(size);
            let len_max = if rng.one_in(4) { size } else { 9000 };
            let len = rng.below(len_max.min(size - start)) + 1;
            let piece = range(start, len);
            let plain = &mut plain[start as usize..piece.end() as usize];
            match rng.below(4) {
                0 => {
                    sparse.punch(piece);
                    plain.fill(0);
                }
                1 => {
                    sparse.fill_zeroes(piece);
                    plain.fill(0);
                }
                2 => {
                    rng.fill(plain);
                    sparse.write(start, plain);
                }
                _ => {
                    rng.fill(plain);
                    sparse.write_sg(start, &SgList::copy_of(plain));
                }
            }
        }
        assert!(sparse.to_vec(sparse.range()) == plain);
        assert_eq!(SparseBytes::copy_of(&plain).first_difference(&sparse), None);
        let list = SgList::unspecified(plain.len());
        sparse.read_sg(0, &list);
        assert!(list.to_vec() == plain);
    }

    #[test]
    fn only_written_pages_are_stored_and_punched_ones_are_not() {
        let mut sparse = SparseBytes::new(ByteRange::END_MAX);
        sparse.write(10, b"x");
        sparse.fill_zeroes(range(1 << 40, 2 * CHUNK_BYTES));
        sparse.write(ByteRange::END_MAX - 1, b"z");
        sparse.punch(range((1 << 40) + PAGE_BYTES, PAGE_BYTES + 5));
        let stored: Vec<_> = sparse.stored(sparse.range()).iter().map(|r| (r.start(), r.len())).collect();
        let last_page = ByteRange::END_MAX / PAGE_BYTES * PAGE_BYTES;
        assert_eq!(
            stored,
            [
                (0, PAGE_BYTES),
                (1 << 40, PAGE_BYTES),
                ((1 << 40) + 2 * PAGE_BYTES, 2 * CHUNK_BYTES - 2 * PAGE_BYTES),
                (last_page, ByteRange::END_MAX - last_page),
            ]
        );
        sparse.punch(sparse.range());
        assert!(sparse.chunks.is_empty());
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let mut sparse = SparseBytes::new(8192);
        sparse.write(0, &[7; 8192]);
        sparse.resize(5000);
        sparse.resize(8192);
        assert_eq!(sparse.to_vec(range(4998, 4)), [7, 7, 0, 0]);
        assert_eq!(sparse.to_vec(range(8190, 2)), [0, 0]);
    }

    #[test]
    fn clones_do_not_see_each_others_writes() {
        let mut one = SparseBytes::new(8192);
        one.write(0, b"both");
        let mut two = one.clone();
        assert_eq!(one.first_difference(&two), None);
        two.write(1, b"Xx");
        assert_eq!(one.to_vec(range(0, 4)), b"both");
        assert_eq!(one.first_difference(&two), Some(1));
        two.write(1, b"ot");
        two.resize(8000);
        assert_eq!(one.first_difference(&two), Some(8000));
    }
}
