//! Devices and suites that test what implements the block contract.
//!
//! | Item | For |
//! | --- | --- |
//! | [`MemDev`] | a sparse RAM disk, terabytes if need be, strict about the contract |
//! | [`block_on`], [`run_tasks`], [`LocalTasks`] | futures without a runtime, several of them in a seeded order |

mod executor;
mod mem;
mod rng;
mod sparse;

pub use executor::{LocalTasks, block_on, run_tasks, yield_now};
pub use mem::MemDev;
pub use rng::Rng;
pub use sparse::SparseBytes;
