//! The contract between everything that holds a disk's bytes and everything that wants them.
//!
//! A [`BlockDev`] is implemented by host files, image formats, layers and test devices alike, so that the file under
//! a VHDX and the disk that a guest sees are the same kind of thing. Front ends, layers and jobs never see the trait:
//! they hold a [`Disk`], a cheap handle that checks what is common and caches what is fixed.
//!
//! ```text
//!   NBD session   vhost-user queue   copy job          front ends: Disk in hand
//!         \             |             /
//!          +---------- Disk ---------+                 range and alignment checks, FUA emulation
//!                       |
//!                 dyn BlockDev                         an image, a layer, a host file
//!                       |
//!                     Disk  ...                        and so on, down to the host
//! ```
//!
//! # Semantics
//!
//! `testkit::conformance` holds every device to this table.
//!
//! | Question | Answer |
//! | --- | --- |
//! | Order | None between requests in flight. When overlapping writes are in flight, each unit of `block_bytes` ends as one or the other. |
//! | Visibility | A completed write is seen by every later read through any clone of the `Disk`. NBD's multi-conn may therefore be offered. |
//! | `flush` | Makes durable every write that *completed* before the call, through any clone. |
//! | FUA | Durable at completion. Where it is not native, `Disk` adds a flush and the device never sees the flag. |
//! | Failure | A failed flush or a failed *metadata* write latches the device as [`ErrorKind::Poisoned`]: reads go on, writes and flushes fail until it is opened again, because the kernel reports a lost write-back only once. A failed guest write is that request's error alone. |
//! | `write_zeroes` | Afterwards the range reads as zeroes. `may_unmap` allows a hole. `fast_only` fails at once with [`ErrorKind::Unsupported`] where zeroes would have to be written out. |
//! | `discard` | Advice. Afterwards reads follow [`DevInfo::discard`]. It never exposes another owner's data nor that of an older layer. |
//! | `block_status` | Ascending and gapless from the start of the range, at least one extent, each at least one byte; the last may end early or late. A hint: it can be stale when it arrives. |
//! | Range | `Disk` rejects what is misaligned or ends beyond `i64::MAX`. The *device* rejects what ends beyond its size, because only it can do so atomically with a resize. No input panics. |
//! | Zero length | Succeeds after the same checks. |
//! | Cancellation | There is none: a request runs to completion. Dropping a future never frees memory that the kernel still writes to, because a [`SgList`] keeps its memory alive. |

mod buffer;
mod dev;
mod disk;
mod error;
mod extent;
mod range;
mod sg;

pub use buffer::Buffer;
pub use dev::{BlockDev, DevInfo, Discard, WriteFlags, ZeroFlags};
pub use disk::Disk;
pub use error::{BlockError, ErrorKind, Result, ResultExt};
pub use extent::{Extent, ExtentState, push_extent};
pub use range::ByteRange;
pub use sg::{Segment, SgList};
