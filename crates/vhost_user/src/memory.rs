//! The guest's memory as this process sees it: mapped regions, and the scatter lists that point into them.
#![expect(
    unsafe_code,
    reason = "segments of scatter lists carry addresses of guest memory, and must say what keeps it mapped"
)]

use std::any::Any;
use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use block::{Segment, SgList};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use crate::error::MemoryError;

/// How many regions a front end may register: what QEMU's own back end offers.
pub const MEMORY_REGIONS_MAX: usize = 509;

/// A region of guest memory as the front end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest-physical address of its first byte.
    pub guest_start: u64,
    /// Address of its first byte in the front end's own address space, in which ring addresses are given.
    pub user_start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the region starts in its file.
    pub file_offset: u64,
}

/// The memory of a guest: an immutable table of mapped regions.
///
/// A change of the table makes a new one, which shares the mappings that stay. Each scatter list that
/// [`Self::push_segments`] fills keeps the table it came from, and so its mappings, until the request is over: the
/// front end may take a region away while a request still uses it.
///
/// A front end that truncates the file under a region makes this process fault when it touches what is gone (the
/// kernel's own copies fail with `EFAULT` instead). The length of the file is therefore checked when it is mapped;
/// what comes after that is the front end's word, as it is with every vhost-user device.
#[derive(Default)]
pub struct GuestMemory {
    regions: GuestMemoryMmap,
    specs: Vec<RegionSpec>,
}

impl GuestMemory {
    /// A table with the regions of `self` and one more, which is mapped from `file`.
    ///
    /// # Errors
    /// If the region is empty, overlaps another one, lies outside its file, or cannot be mapped; if there are
    /// [`MEMORY_REGIONS_MAX`] already.
    pub fn with_region(&self, spec: RegionSpec, file: File) -> Result<Self, MemoryError> {
        if self.specs.len() >= MEMORY_REGIONS_MAX {
            return Err(MemoryError::TooManyRegions);
        }
        let region = Arc::new(map_region(&spec, file)?);
        let regions = self
            .regions
            .insert_region(region)
            .map_err(|source| MemoryError::Overlap { guest_start: spec.guest_start, source })?;
        let mut specs = self.specs.clone();
        specs.push(spec);
        Ok(Self { regions, specs })
    }

    /// A table without the region that `spec` names by its two addresses and its length.
    ///
    /// # Errors
    /// If there is no such region.
    pub fn without_region(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        let same = |known: &RegionSpec| {
            (known.guest_start, known.user_start, known.len) == (spec.guest_start, spec.user_start, spec.len)
        };
        let index = self
            .specs
            .iter()
            .position(same)
            .ok_or(MemoryError::NoSuchRegion { guest_start: spec.guest_start, len: spec.len })?;
        let (regions, _) = self
            .regions
            .remove_region(GuestAddress(spec.guest_start), spec.len)
            .map_err(|_| MemoryError::NoSuchRegion { guest_start: spec.guest_start, len: spec.len })?;
        let mut specs = self.specs.clone();
        specs.remove(index);
        Ok(Self { regions, specs })
    }

    /// The guest-physical address of what the front end has at `user` in its own address space.
    ///
    /// # Errors
    /// If no region holds that address.
    pub fn guest_address(&self, user: u64) -> Result<GuestAddress, MemoryError> {
        self.specs
            .iter()
            .find(|spec| user >= spec.user_start && user - spec.user_start < spec.len)
            .map(|spec| GuestAddress(spec.guest_start + (user - spec.user_start)))
            .ok_or(MemoryError::NoUserAddress { user })
    }

    /// Appends the `len` bytes from `start` to `into`, without copying; regions that touch count as one.
    ///
    /// # Errors
    /// If any of the bytes is in no region; `into` is then in an unspecified state.
    pub fn push_segments(
        self: &Arc<Self>,
        start: GuestAddress,
        len: u32,
        into: &mut SgList,
    ) -> Result<(), MemoryError> {
        for slice in self.regions.get_slices(start, len as usize) {
            let slice = slice.map_err(|_| MemoryError::OutsideMemory { start: start.0, len })?;
            let address = NonNull::new(slice.ptr_guard_mut().as_ptr())
                .ok_or(MemoryError::OutsideMemory { start: start.0, len })?;
            let owner: Arc<dyn Any + Send + Sync> = self.clone();
            // SAFETY: the slice lies inside a region of this table, which is mapped readable and writable for as
            // long as the table lives, and `owner` is the table. Nobody here makes Rust references to guest memory:
            // this crate reaches it through the volatile accessors of vm-memory and through scatter lists.
            into.push(unsafe { Segment::new(address, slice.len(), owner) });
        }
        Ok(())
    }

    /// The regions, for what the guest's rings are read and written with.
    pub(crate) fn regions(&self) -> &GuestMemoryMmap {
        &self.regions
    }
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.specs).finish()
    }
}

fn map_region(spec: &RegionSpec, file: File) -> Result<GuestRegionMmap, MemoryError> {
    let mapping = map_shared(file, spec.file_offset, spec.len)?;
    let outside = MemoryError::OutsideFile { file_offset: spec.file_offset, len: spec.len, file_bytes: 0 };
    GuestRegionMmap::new(mapping, GuestAddress(spec.guest_start)).ok_or(outside)
}

/// Maps `len` bytes of `file` from `offset`, shared with whoever else has the file.
///
/// # Errors
/// If the range is empty or not all inside the file, or the kernel refuses (an offset that is not a multiple of the
/// page size, for one).
pub(crate) fn map_shared(file: File, offset: u64, len: u64) -> Result<MmapRegion, MemoryError> {
    let file_bytes = file.metadata().map_err(MemoryError::Stat)?.len();
    let outside = MemoryError::OutsideFile { file_offset: offset, len, file_bytes };
    let inside = len > 0 && offset.checked_add(len).is_some_and(|end| end <= file_bytes);
    let Some(len) = usize::try_from(len).ok().filter(|_| inside) else { return Err(outside) };
    MmapRegion::from_file(FileOffset::new(file, offset), len).map_err(|source| MemoryError::Map {
        file_offset: offset,
        len: len as u64,
        source,
    })
}

/// Whether the `len` bytes from `start` are all in `memory`.
pub(crate) fn holds(memory: &GuestMemoryMmap, start: GuestAddress, len: u64) -> bool {
    let Ok(len) = usize::try_from(len) else { return false };
    len > 0
        && memory.get_slices(start, len).all(|slice| slice.is_ok())
        && memory.find_region(start).is_some_and(|region| region.len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_memory::{memfd, region};

    #[test]
    fn a_region_that_ends_beyond_its_file_is_refused() {
        let memory = GuestMemory::default();
        for (file_offset, len) in [(0, 0x3000), (0x1000, 0x2000), (u64::MAX - 0xfff, 0x1000), (0, 0)] {
            let spec = RegionSpec { guest_start: 0, user_start: 0, len, file_offset };
            let error = memory.with_region(spec, memfd(0x2000)).expect_err("it lies outside the file");
            assert!(matches!(error, MemoryError::OutsideFile { .. }), "{error}");
        }
    }

    #[test]
    fn regions_that_overlap_are_refused_and_the_old_table_stays() {
        let memory = GuestMemory::default().with_region(region(0x1000, 0x2000), memfd(0x2000)).unwrap();
        assert!(memory.with_region(region(0x2000, 0x1000), memfd(0x1000)).is_err());
        assert_eq!(memory.guest_address(region(0x1000, 0).user_start + 5).unwrap(), GuestAddress(0x1005));
    }

    #[test]
    fn segments_cross_regions_that_touch_and_stop_at_holes() {
        let memory = GuestMemory::default()
            .with_region(region(0, 0x1000), memfd(0x1000))
            .and_then(|memory| memory.with_region(region(0x1000, 0x1000), memfd(0x1000)))
            .unwrap();
        let memory = Arc::new(memory);
        let mut list = SgList::new();
        memory.push_segments(GuestAddress(0xff0), 0x20, &mut list).unwrap();
        assert_eq!((list.segments().len(), list.len()), (2, 0x20));
        assert!(memory.push_segments(GuestAddress(0x1ff0), 0x20, &mut SgList::new()).is_err());
    }

    #[test]
    fn a_scatter_list_keeps_a_region_that_was_taken_away() {
        let memory = GuestMemory::default().with_region(region(0, 0x1000), memfd(0x1000)).unwrap();
        let memory = Arc::new(memory);
        let mut list = SgList::new();
        memory.push_segments(GuestAddress(0x10), 4, &mut list).unwrap();
        let memory = memory.without_region(region(0, 0x1000)).unwrap();
        assert!(Arc::new(memory).push_segments(GuestAddress(0x10), 4, &mut SgList::new()).is_err());
        list.copy_from_slice(0, b"kept");
        assert_eq!(list.to_vec(), b"kept");
    }
}
