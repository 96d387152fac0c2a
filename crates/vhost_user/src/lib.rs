//! vhost-user-blk: the device side of virtio block over a Unix socket.
//!
//! A front end (QEMU) connects, shares the guest's memory and its rings, and this side answers the guest's requests
//! straight from there. The crate holds the protocol and the rings and touches no disk and no event loop by itself:
//!
//! - [`Connection`] looks at each message and lets it in; [`Device`] is what the messages have set up.
//! - [`Queue`] takes requests off a ring and puts answers back; it keeps the in-flight region and the dirty log.
//! - [`Request`] is a parsed request whose data points into guest memory; [`Target`] has it done by a disk.
//!
//! Whoever owns them waits for the socket and the kick descriptors, runs the requests, and writes the call
//! descriptors. Everything that comes from the guest or the front end is untrusted: it is answered with an error, or
//! the queue or connection that it came through is given up.
//!
//! Sources: the vhost-user specification of QEMU (docs/interop/vhost-user.rst), virtio 1.2 sections 2.7 and 5.2.

mod chain;
mod config;
mod connection;
mod device;
mod error;
mod execute;
mod inflight;
mod log;
mod memory;
mod queue;
mod request;
#[cfg(test)]
mod test_memory;

pub use chain::DESCRIPTORS_MAX;
pub use config::{DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, DeviceOptions, QUEUE_COUNT_MAX, QUEUE_SIZE_MAX};
pub use connection::{Connection, Disturbed, Incoming};
pub use device::{Device, Events, StartedQueue};
pub use error::{ChainError, InflightError, MemoryError, QueueError};
pub use execute::Target;
pub use memory::{GuestMemory, MEMORY_REGIONS_MAX, RegionSpec};
pub use queue::Queue;
pub use request::{
    ID_BYTES, Operation, REQUEST_BYTES_MAX, ReplyTo, Request, SECTOR_BYTES, Status, ZeroRange,
};
