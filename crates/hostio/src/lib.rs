//! Host files and block devices on io_uring, with a thread-pool fallback.
//!
//! A [`HostFile`] is a [`block::BlockDev`]. Its requests run on the thread that polls them: at once where the bytes
//! are in memory, else through that thread's io_uring, or on a pool of threads where the host has no ring to give.
//! Nothing here depends on a runtime: [`block_on`] drives a thread that has none, and a reactor drives its own with
//! [`turn`], [`set_turn_hook`] and [`completion_event`].
//!
//! ```text
//!   HostFile ── bytes in memory ──> preadv2 / pwritev2 on this thread
//!      │
//!      └── operation (future) ──> ring of the thread ── turn() ──> kernel
//!                            └──> pool of the process (no ring; and calls that a ring has no operation for)
//! ```
//!
//! A future that is dropped does not stop what it asked for: the operation keeps the file and the memory until the
//! kernel is done with them. `GODWIT_IO=threads` in the environment keeps the process from using rings.

mod engine;
mod file;
mod local;
mod lock;
mod op;
mod pool;
mod ring;
mod sys;

pub use engine::{completion_event, needs_turn, set_turn_hook, turn};
pub use file::{Access, Cache, HostFile, Inline, Lock, OpenOptions};
pub use local::{Task, block_on, spawn};
