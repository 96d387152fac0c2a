//! The log of dirty pages: a bitmap that the front end shares while it migrates the guest's memory (vhost-user
//! specification, "Migration").

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{MmapRegion, VolatileMemory};

use crate::error::MemoryError;
use crate::memory::map_shared;

const PAGE_BYTES: u64 = 4096;

/// A bitmap with one bit for each page of guest-physical memory.
pub(crate) struct DirtyLog {
    mapping: MmapRegion,
}

impl DirtyLog {
    /// The log in `len` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// If they are not all in the file, or cannot be mapped.
    pub(crate) fn open(file: File, offset: u64, len: u64) -> Result<Self, MemoryError> {
        Ok(Self { mapping: map_shared(file, offset, len)? })
    }

    /// Marks the pages of `len` bytes from `start`, which were written *before* the call: whoever copies pages clears
    /// a bit first and copies then, so a mark that comes first could be cleared without the data in the copy.
    ///
    /// What lies beyond the end of the log is left out: the front end made the log for all memory that it has.
    pub(crate) fn mark(&self, start: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|more| start.checked_add(more)) else { return };
        let in_log = self.mapping.size() as u64 * 8;
        let (first, last) = (start / PAGE_BYTES, (last / PAGE_BYTES).min(in_log - 1));
        for page in first..=last {
            if let Ok(byte) = self.mapping.get_atomic_ref::<AtomicU8>((page / 8) as usize) {
                byte.fetch_or(1 << (page % 8), Ordering::AcqRel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::test_memory::memfd;

    #[test]
    fn each_touched_page_is_marked_and_no_other() {
        let file = memfd(4);
        let log = DirtyLog::open(file.try_clone().unwrap(), 0, 4).unwrap();
        log.mark(0xfff, 2);
        log.mark(9 * 4096, 4096);
        log.mark(20 * 4096, 0);
        log.mark(31 * 4096 + 1, u64::from(u32::MAX));
        log.mark(u64::MAX, 2);
        let mut bits = [0; 4];
        file.read_exact_at(&mut bits, 0).unwrap();
        assert_eq!(bits, [0b11, 0b10, 0, 0b1000_0000]);
    }
}
