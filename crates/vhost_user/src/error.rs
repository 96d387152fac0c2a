//! What can be wrong with what a front end or a guest hands over.

use vm_memory::GuestRegionCollectionError;
use vm_memory::mmap::MmapRegionError;

/// What is wrong with a region of memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The range is empty, or not all inside the file.
    #[error(
        "{len:#x} bytes at {file_offset:#x} of the shared file are not all inside it (it has {file_bytes:#x})"
    )]
    OutsideFile {
        /// Where the range starts in the file.
        file_offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The length of the file in bytes.
        file_bytes: u64,
    },
    /// The file's length cannot be read.
    #[error("read the length of the shared file")]
    Stat(#[source] std::io::Error),
    /// The kernel refuses the mapping.
    #[error("map {len:#x} bytes at {file_offset:#x} of the shared file")]
    Map {
        /// Where the range starts in the file.
        file_offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The kernel's reason.
        source: MmapRegionError,
    },
    /// The region has bytes in common with another one.
    #[error("add the memory region at guest address {guest_start:#x}")]
    Overlap {
        /// Guest-physical start of the region.
        guest_start: u64,
        /// The rule that it breaks.
        source: GuestRegionCollectionError,
    },
    /// There is no more room in the table.
    #[error("the front end registers more than {} memory regions", crate::memory::MEMORY_REGIONS_MAX)]
    TooManyRegions,
    /// A region that is to be removed is not there.
    #[error("there is no memory region of {len:#x} bytes at guest address {guest_start:#x} to remove")]
    NoSuchRegion {
        /// Guest-physical start of the region.
        guest_start: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// An address of the front end is in no region.
    #[error("the front end's address {user:#x} is in no memory region")]
    NoUserAddress {
        /// The address.
        user: u64,
    },
    /// Guest memory that is in no region.
    #[error("{len:#x} bytes at guest address {start:#x} are not all in memory regions")]
    OutsideMemory {
        /// Guest-physical start.
        start: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// What is wrong with a ring; the queue can then not go on until the guest's driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The ring's parts are not in memory, or its size is no power of two.
    #[error("the ring of {size} entries is not all in memory regions, or its size is not allowed")]
    BadRing {
        /// Entries of the ring.
        size: u16,
    },
    /// The ring cannot be read or written.
    #[error("access the ring")]
    Ring(#[source] virtio_queue::Error),
    /// Part of the ring or of a request went out of the memory regions.
    #[error("access guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    /// More requests in flight than the ring has entries.
    #[error("the driver makes a request available while {in_flight} of {size} are in flight")]
    TooManyInFlight {
        /// Requests that are in flight.
        in_flight: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A chain of descriptors breaks a rule, so that there is nothing that could be answered.
    #[error("request at descriptor {head}")]
    Chain {
        /// First descriptor of the chain.
        head: u16,
        /// The rule that it breaks.
        source: ChainError,
    },
    /// The in-flight region contradicts the ring.
    #[error("recover requests in flight")]
    Inflight(#[source] InflightError),
}

/// What is wrong with a chain of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor index is not in its table.
    #[error("descriptor index {index} is not in the table of {size} entries")]
    IndexOutOfRange {
        /// The index.
        index: u32,
        /// Entries of the table.
        size: u32,
    },
    /// A descriptor table is in no memory region.
    #[error("the descriptor at guest address {address:#x} is not in memory")]
    TableOutsideMemory {
        /// Guest-physical address of the descriptor.
        address: u64,
    },
    /// More descriptors than allowed, which is also what a loop looks like.
    #[error("the chain has more than {max} descriptors or loops")]
    TooLong {
        /// The limit.
        max: u16,
    },
    /// An indirect descriptor inside an indirect table, or one that also has a successor.
    #[error("an indirect descriptor is nested or has a successor")]
    NestedIndirect,
    /// An indirect table whose length is no positive multiple of a descriptor's.
    #[error("an indirect table of {len} bytes is not made of descriptors")]
    IndirectLength {
        /// Length of the table in bytes.
        len: u32,
    },
    /// A part that the device reads after one that it writes.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// No writable byte for the status.
    #[error("the chain has no writable byte for the status")]
    NoStatus,
    /// The status byte is in no memory region.
    #[error("the status byte at guest address {address:#x} is not in memory")]
    StatusOutsideMemory {
        /// Guest-physical address of the byte.
        address: u64,
    },
}

/// What is wrong with an in-flight region.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// The region cannot be mapped.
    #[error("map the in-flight region")]
    Memory(#[from] MemoryError),
    /// The region cannot be made.
    #[error("create the in-flight region")]
    Create(#[source] std::io::Error),
    /// Queue count or size out of bounds, or a region too small for them.
    #[error("{queue_count} queues of {queue_size} entries do not fit an in-flight region of {len:#x} bytes")]
    BadShape {
        /// Queues that the region is for.
        queue_count: u16,
        /// Entries of each.
        queue_size: u16,
        /// Length of the region in bytes.
        len: u64,
    },
    /// The region is of a version that is not known.
    #[error("the in-flight region has version {version}, known are 0 (fresh) and 1")]
    UnknownVersion {
        /// The version found.
        version: u16,
    },
    /// The region is for another ring size.
    #[error("the in-flight region is for rings of {region} entries, the ring has {ring}")]
    OtherSize {
        /// Entries that the region is for.
        region: u16,
        /// Entries of the ring.
        ring: u16,
    },
    /// The region does not cover this queue.
    #[error("the in-flight region does not cover queue {index}")]
    NoSuchQueue {
        /// Index of the queue.
        index: usize,
    },
    /// The last batch in the region is longer than the ring, or leads out of it.
    #[error("the last batch of {batch} requests in the in-flight region leads out of the ring")]
    BadBatch {
        /// Length of the batch.
        batch: u16,
    },
}
