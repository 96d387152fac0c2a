//! Scatter lists: memory that requests read into and write from.
#![expect(
    unsafe_code,
    reason = "the memory may be shared with a guest or with the kernel, so it has no Rust reference"
)]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::Buffer;

/// A stretch of memory and what keeps it mapped.
///
/// The memory may change at any time under us, because a guest or the kernel writes to it; there is therefore no way
/// to get a reference to it, only to copy in and out.
#[derive(Clone)]
pub struct Segment {
    start: NonNull<u8>,
    len: usize,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the owner is `Send + Sync` and keeps the memory alive; access goes through raw copies that tolerate
// concurrent change (each byte read is some byte that was there).
unsafe impl Send for Segment {}
// SAFETY: as for `Send`.
unsafe impl Sync for Segment {}

impl Segment {
    /// A segment of `len` bytes from `start`.
    ///
    /// # Safety
    /// The bytes are readable and writable for as long as `owner` lives, and no Rust reference to any of them is
    /// used while the segment or a clone of it lives.
    pub unsafe fn new(start: NonNull<u8>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { start, len, owner }
    }

    /// Address of the first byte, for handing to the kernel while a clone of the segment is kept.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn owner(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.owner
    }

    fn slice(&self, offset: usize, len: usize) -> Self {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "a slice lies inside its segment"
        );
        // SAFETY: `offset` is within the segment, so the address is within (or one past) the same memory.
        let start = unsafe { self.start.add(offset) };
        Self { start, len, owner: self.owner.clone() }
    }
}

/// An ordered list of memory segments, which is cheap to clone and to slice.
///
/// Every clone and slice keeps the memory alive. Empty segments are never stored.
#[derive(Clone, Default)]
pub struct SgList {
    segments: SmallVec<[Segment; 2]>,
    len: u64,
}

impl SgList {
    /// The empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// A list of `len` fresh, page-aligned bytes whose content is unspecified.
    pub fn unspecified(len: usize) -> Self {
        Buffer::unspecified(len).into_sg()
    }

    /// A list of fresh, page-aligned memory that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Buffer::unspecified(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer.into_sg()
    }

    /// Appends a segment.
    pub fn push(&mut self, segment: Segment) {
        if !segment.is_empty() {
            self.len += segment.len as u64;
            self.segments.push(segment);
        }
    }

    /// Appends all segments of `other`.
    pub fn append(&mut self, other: Self) {
        self.len += other.len;
        self.segments.extend(other.segments);
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The `len` bytes from `offset` as a list of their own.
    ///
    /// # Panics
    /// If they are not all inside the list: callers slice what they have checked.
    #[must_use]
    pub fn slice(&self, offset: u64, len: u64) -> Self {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "a slice lies inside its list");
        if offset == 0 && len == self.len {
            return self.clone();
        }
        let mut part = Self::new();
        self.for_each_part(offset, len, |segment, at, count| part.push(segment.slice(at, count)));
        part
    }

    /// Copies out the bytes from `offset` until `into` is full.
    ///
    /// # Panics
    /// If the list ends before.
    pub fn copy_to_slice(&self, offset: u64, into: &mut [u8]) {
        let mut rest = into;
        self.for_each_part(offset, rest.len() as u64, |segment, at, count| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(count);
            // SAFETY: the part lies inside the segment, which its owner keeps mapped; `now` is ours alone.
            unsafe { std::ptr::copy_nonoverlapping(segment.start.as_ptr().add(at), now.as_mut_ptr(), count) };
            rest = later;
        });
    }

    /// Copies `from` into the bytes from `offset`.
    ///
    /// # Panics
    /// If the list ends before.
    pub fn copy_from_slice(&self, offset: u64, from: &[u8]) {
        let mut rest = from;
        self.for_each_part(offset, rest.len() as u64, |segment, at, count| {
            let (now, later) = rest.split_at(count);
            // SAFETY: the part lies inside the segment, which its owner keeps mapped and writable.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), segment.start.as_ptr().add(at), count) };
            rest = later;
        });
    }

    /// Sets `len` bytes from `offset` to `value`.
    ///
    /// # Panics
    /// If the list ends before.
    pub fn fill(&self, offset: u64, len: u64, value: u8) {
        self.for_each_part(offset, len, |segment, at, count| {
            // SAFETY: the part lies inside the segment, which its owner keeps mapped and writable.
            unsafe { std::ptr::write_bytes(segment.start.as_ptr().add(at), value, count) };
        });
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let len = usize::try_from(self.len).expect("what is in memory has a length that fits usize");
        let mut bytes = vec![0; len];
        self.copy_to_slice(0, &mut bytes);
        bytes
    }

    /// Whether every segment starts and ends on a multiple of `align` bytes, as O_DIRECT asks.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.segments
            .iter()
            .all(|segment| (segment.start.as_ptr() as usize | segment.len).is_multiple_of(align))
    }

    /// Calls `each(segment, offset in segment, byte count)` for the parts that make up `len` bytes from `offset`.
    fn for_each_part(&self, offset: u64, len: u64, mut each: impl FnMut(&Segment, usize, usize)) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "an access lies inside its list");
        let (mut skip, mut rest) = (offset, len);
        for segment in &self.segments {
            if rest == 0 {
                return;
            }
            let here = segment.len as u64;
            if skip >= here {
                skip -= here;
                continue;
            }
            let count = rest.min(here - skip);
            each(segment, skip as usize, count as usize);
            rest -= count;
            skip = 0;
        }
    }
}

impl From<Segment> for SgList {
    fn from(segment: Segment) -> Self {
        let mut list = Self::new();
        list.push(segment);
        list
    }
}

impl std::fmt::Debug for SgList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SgList({} bytes in {} segments)", self.len, self.segments.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list_of(parts: &[&[u8]]) -> SgList {
        let mut list = SgList::new();
        for part in parts {
            list.append(SgList::copy_of(part));
        }
        list
    }

    #[test]
    fn copies_cross_segment_borders() {
        let list = list_of(&[b"abc", b"", b"defg", b"h"]);
        let mut out = [0; 5];
        list.copy_to_slice(2, &mut out);
        assert_eq!(&out, b"cdefg");
        list.copy_from_slice(1, b"XYZ");
        list.fill(6, 2, b'-');
        assert_eq!(list.to_vec(), b"aXYZef--");
    }

    #[test]
    fn a_slice_shares_the_memory_and_outlives_the_list() {
        let list = list_of(&[b"abc", b"def"]);
        let part = list.slice(2, 3);
        list.copy_from_slice(3, b"D");
        drop(list);
        assert_eq!(part.to_vec(), b"cDe");
        assert_eq!(part.slice(1, 0).len(), 0);
    }

    #[test]
    #[expect(clippy::should_panic_without_expect, reason = "the message is the assertion's")]
    #[should_panic]
    fn a_slice_beyond_the_end_is_a_bug_of_the_caller() {
        let _ = list_of(&[b"abc"]).slice(2, 2);
    }
}
