//! Walks a chain of descriptors in a split ring: untrusted bytes in, checked spans of guest memory out.

use smallvec::SmallVec;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::ChainError;

/// How many descriptors a request may have, direct and indirect together: what QEMU allows too.
pub const DESCRIPTORS_MAX: u16 = 1024;

const DESCRIPTOR_BYTES: u32 = size_of::<Descriptor>() as u32;

/// A stretch of guest memory that a descriptor names. Nothing says yet that there is memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Guest-physical address of the first byte.
    pub(crate) start: u64,
    /// Length in bytes, not 0.
    pub(crate) len: u32,
}

/// The spans of one request, in order.
pub(crate) type Spans = SmallVec<[Span; 4]>;

/// The parts of a request that the device reads and those that it writes.
#[derive(Default)]
pub(crate) struct Chain {
    /// What the driver gives.
    pub(crate) readable: Spans,
    /// What the driver wants filled.
    pub(crate) writable: Spans,
}

/// Where a ring's descriptors are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DescriptorTable {
    /// Guest-physical address.
    pub(crate) start: GuestAddress,
    /// Number of entries.
    pub(crate) size: u32,
}

impl Chain {
    /// Reads the chain that starts at descriptor `head` of `table`.
    ///
    /// # Errors
    /// If the chain breaks a rule of virtio 1.2, section 2.7, in a way that leaves its extent in doubt.
    pub(crate) fn read(
        memory: &GuestMemoryMmap,
        table: DescriptorTable,
        head: u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Self::default();
        let mut table = table;
        let mut index = head;
        let mut indirect = false;
        for _ in 0..DESCRIPTORS_MAX {
            let descriptor = table.load(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                // Virtio 1.2, 2.7.5.3.1: no indirect descriptor in an indirect table, nor with a successor.
                if indirect || descriptor.has_next() {
                    return Err(ChainError::NestedIndirect);
                }
                table = DescriptorTable::indirect(&descriptor)?;
                (index, indirect) = (0, true);
                continue;
            }
            chain.push(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(ChainError::TooLong { max: DESCRIPTORS_MAX })
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        let span = Span { start: descriptor.addr().0, len: descriptor.len() };
        if span.len == 0 {
            return Ok(());
        }
        if descriptor.is_write_only() {
            self.writable.push(span);
            return Ok(());
        }
        // Virtio 1.2, 2.7.4.2: the driver places what the device writes after what it reads.
        if !self.writable.is_empty() {
            return Err(ChainError::ReadableAfterWritable);
        }
        self.readable.push(span);
        Ok(())
    }
}

impl DescriptorTable {
    fn indirect(descriptor: &Descriptor) -> Result<Self, ChainError> {
        let len = descriptor.len();
        if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(ChainError::IndirectLength { len });
        }
        Ok(Self { start: descriptor.addr(), size: len / DESCRIPTOR_BYTES })
    }

    fn load(&self, memory: &GuestMemoryMmap, index: u16) -> Result<Descriptor, ChainError> {
        let index = u32::from(index);
        if index >= self.size {
            return Err(ChainError::IndexOutOfRange { index, size: self.size });
        }
        let address = self.start.0.saturating_add(u64::from(index * DESCRIPTOR_BYTES));
        memory.read_obj(GuestAddress(address)).map_err(|_| ChainError::TableOutsideMemory { address })
    }
}

/// Takes `count` bytes from the front of `spans`; `false` if they have fewer.
pub(crate) fn take_front(spans: &mut Spans, count: u32, mut each: impl FnMut(Span)) -> bool {
    let mut rest = count;
    let mut used = 0;
    for span in spans.iter_mut() {
        if rest == 0 {
            break;
        }
        let now = rest.min(span.len);
        each(Span { start: span.start, len: now });
        // The address may be anything; where it wraps, no memory is found later.
        span.start = span.start.wrapping_add(u64::from(now));
        span.len -= now;
        rest -= now;
        used += usize::from(span.len == 0);
    }
    spans.drain(..used);
    rest == 0
}

/// Takes the last byte off `spans` and gives its address; `None` if there is none.
pub(crate) fn take_last_byte(spans: &mut Spans) -> Option<GuestAddress> {
    let last = spans.last_mut()?;
    last.len -= 1;
    let address = last.start.checked_add(u64::from(last.len))?;
    if last.len == 0 {
        spans.pop();
    }
    Some(GuestAddress(address))
}

/// The number of bytes in `spans`.
pub(crate) fn total_bytes(spans: &Spans) -> u64 {
    spans.iter().map(|span| u64::from(span.len)).sum()
}
