//! Buffers that nobody else can see, cut from a pool of the thread, aligned for O_DIRECT.
#![expect(unsafe_code, reason = "owns memory from the allocator that is later lent to the kernel by address")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::{Segment, SgList};

/// Alignment of every buffer: the page size, which satisfies O_DIRECT on every device we know.
const ALIGN_BYTES: usize = 4096;
/// Buffers above this are given back to the allocator at once.
const POOLED_BYTES_MAX: usize = 1 << 20;
/// What a thread keeps of each size class at most.
const POOLED_CLASS_BYTES_MAX: usize = 4 << 20;
const CLASSES: usize = (POOLED_BYTES_MAX / ALIGN_BYTES).ilog2() as usize + 1;

thread_local! {
    static POOL: RefCell<[Vec<Allocation>; CLASSES]> = const { RefCell::new([const { Vec::new() }; CLASSES]) };
}

/// A page-aligned buffer with one owner; [`Buffer::into_sg`] lends it to a device.
pub struct Buffer {
    memory: Arc<PooledMemory>,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes whose content is unspecified: zeroes, or what this process last kept there.
    pub fn unspecified(len: usize) -> Self {
        Self { memory: Arc::new(PooledMemory(Some(Allocation::take(len)))), len }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::unspecified(len);
        buffer.fill(0);
        buffer
    }

    /// Makes the buffer a scatter list of one segment, which devices read and write.
    pub fn into_sg(self) -> SgList {
        if self.len == 0 {
            return SgList::new();
        }
        let start = self.memory.start();
        // SAFETY: the allocation is at least `len` bytes and lives as long as the `Arc` that the segment keeps.
        // `self` is consumed, so no reference to the memory exists while the segment does.
        let segment = unsafe { Segment::new(start, self.len, self.memory) };
        SgList::from(segment)
    }

    /// Takes a buffer back from the list that [`Self::into_sg`] gave, if nobody else holds any of it any more.
    ///
    /// # Errors
    /// Gives the list back where a clone or a slice of it still lives, or where it did not come from one buffer.
    pub fn reclaim(list: SgList) -> Result<Self, SgList> {
        if list.is_empty() {
            return Ok(Self::unspecified(0));
        }
        let [segment] = list.segments() else { return Err(list) };
        let (start, len) = (segment.as_ptr(), segment.len());
        let Ok(memory) = segment.owner().clone().downcast::<PooledMemory>() else { return Err(list) };
        // Two owners: the segment in `list`, and `memory` here.
        if memory.start().as_ptr() != start || Arc::strong_count(&memory) != 2 {
            return Err(list);
        }
        drop(list);
        let mut memory = memory;
        if Arc::get_mut(&mut memory).is_none() {
            unreachable!("the only other owner was dropped, and new ones come only from an owner");
        }
        Ok(Self { memory, len })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is initialized, at least `len` bytes, and `self` is its only owner.
        unsafe { std::slice::from_raw_parts(self.memory.start().as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// Memory that goes back to the pool of the thread that drops it.
struct PooledMemory(Option<Allocation>);

impl PooledMemory {
    fn start(&self) -> NonNull<u8> {
        self.0.as_ref().expect("the allocation is there until drop").start
    }
}

impl Drop for PooledMemory {
    fn drop(&mut self) {
        if let Some(allocation) = self.0.take() {
            allocation.give_back();
        }
    }
}

struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: an allocation is plain memory with one owner; it has no tie to the thread that made it.
unsafe impl Send for Allocation {}
// SAFETY: through a shared reference only the address can be read.
unsafe impl Sync for Allocation {}

impl Allocation {
    fn take(len: usize) -> Self {
        let bytes = len.max(1).next_multiple_of(ALIGN_BYTES);
        let bytes = if bytes <= POOLED_BYTES_MAX { bytes.next_power_of_two() } else { bytes };
        if bytes <= POOLED_BYTES_MAX {
            let pooled = POOL.try_with(|pool| pool.borrow_mut()[Self::class(bytes)].pop()).ok().flatten();
            if let Some(allocation) = pooled {
                return allocation;
            }
        }
        let layout =
            Layout::from_size_align(bytes, ALIGN_BYTES).expect("a buffer's size fits the address space");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }

    fn class(bytes: usize) -> usize {
        (bytes / ALIGN_BYTES).ilog2() as usize
    }

    fn give_back(self) {
        let bytes = self.layout.size();
        let mut rest = Some(self);
        if bytes <= POOLED_BYTES_MAX {
            // The pool is gone when a thread ends; the allocation is then freed like a large one.
            let _ = POOL.try_with(|pool| {
                let class = &mut pool.borrow_mut()[Self::class(bytes)];
                if class.len() * bytes < POOLED_CLASS_BYTES_MAX {
                    class.extend(rest.take());
                }
            });
        }
        drop(rest);
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the memory came from `alloc_zeroed` with this layout and has no owner left.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_only_when_nobody_else_holds_it() {
        let mut buffer = Buffer::zeroed(100);
        buffer[7] = 42;
        let list = buffer.into_sg();
        let other = list.slice(0, 10);
        let list = Buffer::reclaim(list).expect_err("a slice is still alive");
        drop(other);
        let buffer = Buffer::reclaim(list).expect("nobody else is left");
        assert_eq!((buffer.len(), buffer[7]), (100, 42));
    }

    #[test]
    fn part_of_a_buffer_is_not_the_buffer() {
        let list = Buffer::zeroed(8192).into_sg();
        let tail = list.slice(4096, 4096);
        drop(list);
        assert!(Buffer::reclaim(tail).is_err());
    }

    #[test]
    fn buffers_are_page_aligned_whatever_their_length() {
        for len in [1, 511, 4096, 4097, POOLED_BYTES_MAX, POOLED_BYTES_MAX + 1] {
            let buffer = Buffer::unspecified(len);
            assert_eq!(buffer.as_ptr() as usize % ALIGN_BYTES, 0);
            assert_eq!(buffer.len(), len);
        }
    }
}
