//! An allocator that has only so much to give.
#![expect(
    unsafe_code,
    reason = "an allocator is an unsafe trait; this one counts and passes on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Passes on to the system's allocator until a limit is reached, where it gives nothing more.
///
/// Rust then ends the process with a message that names the size asked for, which both libFuzzer and the test runner
/// take for a failure of the input.
pub struct BoundedAllocator {
    limit_bytes: usize,
    live_bytes: AtomicUsize,
}

impl BoundedAllocator {
    /// An allocator that gives `limit_bytes` at most.
    pub const fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, live_bytes: AtomicUsize::new(0) }
    }

    /// Counts `bytes` in; whether they are within the limit. If not, nothing is counted.
    fn take(&self, bytes: usize) -> bool {
        let before = self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.limit_bytes;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every pointer comes from the system's allocator with the layout that it was asked for, and goes back with
// the same; null, which any allocator may return, is the only other answer.
unsafe impl GlobalAlloc for BoundedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !self.take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !self.take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        self.give_back(layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`, and the memory came from the system's allocator.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !self.take(new_size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `realloc`, and the memory came from the system's allocator.
        let moved = unsafe { System.realloc(start, layout, new_size) };
        self.give_back(if moved.is_null() { new_size } else { layout.size() });
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_the_limit_is_not_given_and_what_comes_back_can_be_given_again() {
        let allocator = BoundedAllocator::new(1000);
        assert!(allocator.take(600));
        assert!(!allocator.take(401));
        assert!(allocator.take(400));
        allocator.give_back(600);
        assert!(allocator.take(600));
        assert!(!allocator.take(usize::MAX));
    }
}
