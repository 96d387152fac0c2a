//! The in-flight region: memory that the front end keeps while this process may die, and that says which requests had
//! been taken off the rings and not answered.
//!
//! Layout and order of updates follow the vhost-user specification, "Inflight I/O tracking", for split rings:
//!
//! ```text
//! per queue, 64-byte aligned          per descriptor, from byte 16
//!  0  features u64                     0  in flight  u8
//!  8  version u16 (0: fresh, 1)        6  next       u16   list of the last batch
//! 10  descriptors u16                  8  counter    u64   order of submission
//! 12  head of the last batch u16
//! 14  used index u16
//! ```
//!
//! A request counts as in flight from before it may touch the disk until after its answer is in the used ring. What
//! this process stores is in the region when it dies, in the order of the stores, because the memory is shared.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::{MmapRegion, VolatileMemory};

use crate::config::{QUEUE_COUNT_MAX, QUEUE_SIZE_MAX};
use crate::error::InflightError;
use crate::memory::map_shared;

const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const DESCRIPTOR_BYTES: usize = 16;
const QUEUE_ALIGN_BYTES: usize = 64;

/// The region of all queues of a device.
#[derive(Clone)]
pub(crate) struct InflightRegion {
    mapping: Arc<MmapRegion>,
    shape: Shape,
}

/// For how many queues of how many entries a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Number of queues.
    pub(crate) queue_count: u16,
    /// Entries of each.
    pub(crate) queue_size: u16,
}

impl Shape {
    /// Length of the region in bytes.
    ///
    /// # Errors
    /// If there are more queues or entries than the device allows.
    pub(crate) fn region_bytes(self) -> Result<u64, InflightError> {
        let in_bounds = |count: u16, max: u16| (1..=max).contains(&count);
        if !in_bounds(self.queue_count, QUEUE_COUNT_MAX) || !in_bounds(self.queue_size, QUEUE_SIZE_MAX) {
            return Err(self.bad(0));
        }
        Ok(self.queue_bytes() as u64 * u64::from(self.queue_count))
    }

    fn queue_bytes(self) -> usize {
        (HEADER_BYTES + DESCRIPTOR_BYTES * usize::from(self.queue_size)).next_multiple_of(QUEUE_ALIGN_BYTES)
    }

    fn bad(self, len: u64) -> InflightError {
        InflightError::BadShape { queue_count: self.queue_count, queue_size: self.queue_size, len }
    }
}

impl InflightRegion {
    /// A file for a fresh region, to be given to the front end.
    ///
    /// # Errors
    /// If the shape is out of bounds, or the kernel has no room.
    pub(crate) fn create(shape: Shape) -> Result<(File, u64), InflightError> {
        let len = shape.region_bytes()?;
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("vhost-user-inflight", flags)
            .map_err(|error| InflightError::Create(error.into()))?;
        let file = File::from(fd);
        file.set_len(len).map_err(InflightError::Create)?;
        Ok((file, len))
    }

    /// The region that the front end hands over: `len` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// If the shape is out of bounds or does not fit into the bytes; if they are not in the file.
    pub(crate) fn open(shape: Shape, file: File, offset: u64, len: u64) -> Result<Self, InflightError> {
        if shape.region_bytes()? > len {
            return Err(shape.bad(len));
        }
        let mapping = Arc::new(map_shared(file, offset, len)?);
        Ok(Self { mapping, shape })
    }

    /// The part of queue `index`.
    ///
    /// # Errors
    /// If the region is for fewer queues.
    pub(crate) fn queue(&self, index: usize) -> Result<InflightQueue, InflightError> {
        if index >= usize::from(self.shape.queue_count) {
            return Err(InflightError::NoSuchQueue { index });
        }
        let start = index * self.shape.queue_bytes();
        Ok(InflightQueue {
            mapping: self.mapping.clone(),
            start,
            size: self.shape.queue_size,
            next_counter: 0,
        })
    }
}

/// One queue's part of the region. Every descriptor index given to its methods is below its size.
pub(crate) struct InflightQueue {
    mapping: Arc<MmapRegion>,
    start: usize,
    size: u16,
    next_counter: u64,
}

impl InflightQueue {
    /// Brings the region in line with a ring of `ring_size` entries whose used index is `used_idx`, and gives the
    /// heads that were in flight, in the order in which they were taken off the ring; `None` if the region is fresh.
    ///
    /// # Errors
    /// If the region is of another version or ring size, or its last batch is nonsense.
    pub(crate) fn recover(
        &mut self,
        ring_size: u16,
        used_idx: u16,
    ) -> Result<Option<Vec<u16>>, InflightError> {
        match self.version().load(Ordering::Acquire) {
            0 => {
                self.format(used_idx);
                return Ok(None);
            }
            VERSION => {}
            version => return Err(InflightError::UnknownVersion { version }),
        }
        let region = self.size;
        if region < ring_size || self.descriptor_count().load(Ordering::Relaxed) != region {
            return Err(InflightError::OtherSize { region, ring: ring_size });
        }
        self.finish_last_batch(used_idx)?;
        let mut heads: Vec<(u64, u16)> = (0..ring_size)
            .filter(|&head| self.in_flight(head).load(Ordering::Relaxed) == 1)
            .map(|head| (self.counter(head).load(Ordering::Relaxed), head))
            .collect();
        heads.sort_unstable();
        self.next_counter = heads.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        Ok(Some(heads.into_iter().map(|(_, head)| head).collect()))
    }

    /// Notes that the request at `head` was taken off the ring.
    pub(crate) fn begin(&mut self, head: u16) {
        self.counter(head).store(self.next_counter, Ordering::Relaxed);
        self.next_counter = self.next_counter.wrapping_add(1);
        self.in_flight(head).store(1, Ordering::Release);
    }

    /// Notes that the answer to the request at `head` is about to go into the used ring.
    pub(crate) fn prepare_end(&mut self, head: u16) {
        let last = self.last_batch().load(Ordering::Relaxed);
        self.next_in_batch(head).store(last, Ordering::Relaxed);
        self.last_batch().store(head, Ordering::Release);
    }

    /// Notes that the answer to the request at `head` is in the used ring, whose index is now `used_idx`.
    pub(crate) fn end(&mut self, head: u16, used_idx: u16) {
        self.in_flight(head).store(0, Ordering::Release);
        self.used_idx().store(used_idx, Ordering::Release);
    }

    fn format(&mut self, used_idx: u16) {
        self.descriptor_count().store(self.size, Ordering::Relaxed);
        self.used_idx().store(used_idx, Ordering::Relaxed);
        self.version().store(VERSION, Ordering::Release);
    }

    /// Requests whose answer made it into the used ring, but whose mark was not yet taken away.
    fn finish_last_batch(&mut self, used_idx: u16) -> Result<(), InflightError> {
        let batch = used_idx.wrapping_sub(self.used_idx().load(Ordering::Acquire));
        if batch > self.size {
            return Err(InflightError::BadBatch { batch });
        }
        let mut head = self.last_batch().load(Ordering::Acquire);
        for _ in 0..batch {
            if head >= self.size {
                return Err(InflightError::BadBatch { batch });
            }
            self.in_flight(head).store(0, Ordering::Relaxed);
            head = self.next_in_batch(head).load(Ordering::Relaxed);
        }
        self.used_idx().store(used_idx, Ordering::Release);
        Ok(())
    }

    fn version(&self) -> &AtomicU16 {
        self.field(8)
    }

    fn descriptor_count(&self) -> &AtomicU16 {
        self.field(10)
    }

    fn last_batch(&self) -> &AtomicU16 {
        self.field(12)
    }

    fn used_idx(&self) -> &AtomicU16 {
        self.field(14)
    }

    fn in_flight(&self, head: u16) -> &AtomicU8 {
        self.field(Self::descriptor(head))
    }

    fn next_in_batch(&self, head: u16) -> &AtomicU16 {
        self.field(Self::descriptor(head) + 6)
    }

    fn counter(&self, head: u16) -> &AtomicU64 {
        self.field(Self::descriptor(head) + 8)
    }

    fn descriptor(head: u16) -> usize {
        HEADER_BYTES + DESCRIPTOR_BYTES * usize::from(head)
    }

    fn field<T: vm_memory::AtomicInteger>(&self, at: usize) -> &T {
        self.mapping.get_atomic_ref(self.start + at).expect("the region was checked to hold every descriptor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { queue_count: 2, queue_size: 8 };

    /// The same memory before and after a restart.
    fn regions() -> (InflightRegion, InflightRegion) {
        let (file, len) = InflightRegion::create(SHAPE).unwrap();
        let again = file.try_clone().unwrap();
        let open = |file| InflightRegion::open(SHAPE, file, 0, len).unwrap();
        (open(file), open(again))
    }

    #[test]
    fn a_fresh_region_has_nothing_in_flight_and_the_next_start_finds_it_in_use() {
        let (before, after) = regions();
        assert_eq!(before.queue(1).unwrap().recover(8, 500).unwrap(), None);
        assert_eq!(after.queue(1).unwrap().recover(8, 500).unwrap(), Some(vec![]));
        assert_eq!(after.queue(0).unwrap().recover(8, 0).unwrap(), None, "each queue has its own part");
    }

    #[test]
    fn requests_come_back_in_the_order_in_which_they_were_taken() {
        let (before, after) = regions();
        let mut queue = before.queue(0).unwrap();
        queue.recover(8, 0).unwrap();
        for head in [5, 2, 7, 0] {
            queue.begin(head);
        }
        queue.prepare_end(2);
        queue.end(2, 1);
        let mut queue = after.queue(0).unwrap();
        assert_eq!(queue.recover(8, 1).unwrap(), Some(vec![5, 7, 0]));
        queue.begin(1);
        queue.begin(5);
        assert_eq!(before.queue(0).unwrap().recover(8, 1).unwrap(), Some(vec![7, 0, 1, 5]));
    }

    #[test]
    fn a_death_between_the_used_ring_and_the_mark_does_not_repeat_the_request() {
        let (before, after) = regions();
        let mut queue = before.queue(0).unwrap();
        queue.recover(8, 0xffff).unwrap();
        queue.begin(3);
        queue.begin(4);
        queue.prepare_end(3);
        // The used index went from 0xffff to 0 here; `end` was never reached.
        assert_eq!(after.queue(0).unwrap().recover(8, 0).unwrap(), Some(vec![4]));
    }

    #[test]
    fn a_death_before_the_used_ring_repeats_the_request() {
        let (before, after) = regions();
        let mut queue = before.queue(0).unwrap();
        queue.recover(8, 10).unwrap();
        queue.begin(3);
        queue.prepare_end(3);
        assert_eq!(after.queue(0).unwrap().recover(8, 10).unwrap(), Some(vec![3]));
    }

    #[test]
    fn a_region_that_does_not_fit_is_refused() {
        let (file, len) = InflightRegion::create(SHAPE).unwrap();
        let open = |shape, len| InflightRegion::open(shape, file.try_clone().unwrap(), 0, len);
        assert!(open(Shape { queue_size: 16, ..SHAPE }, len).is_err());
        assert!(open(Shape { queue_count: 0, ..SHAPE }, len).is_err());
        assert!(open(SHAPE, len + 1).is_err(), "it is longer than the file");
        let region = open(SHAPE, len).unwrap();
        assert!(region.queue(2).is_err());
        region.queue(0).unwrap().recover(8, 0).unwrap();
        assert!(region.queue(0).unwrap().recover(16, 0).is_err(), "the ring is larger than the region's");
        assert!(region.queue(0).unwrap().recover(8, 9).is_err(), "the batch is longer than the ring");
    }
}
