//! Devices and suites that test what implements the block contract.
//!
//! | Item | For |
//! | --- | --- |
//! | [`MemDev`] | a sparse RAM disk, terabytes if need be, strict about the contract |
//! | [`CrashDev`], [`History`], [`Survival`] | every power cut of a run: writes lost, reordered and torn |
//! | [`HeldDev`] | requests that wait until the test releases them |
//! | [`FaultDev`], [`Fault`] | requests that fail by rules with states |
//! | [`block_on`], [`run_tasks`], [`LocalTasks`] | futures without a runtime, several of them in a seeded order |

mod crash;
mod executor;
mod fault;
mod held;
mod mem;
mod request;
mod rng;
mod sparse;

pub use crash::{CrashDev, Event, History, Survival};
pub use executor::{LocalTasks, block_on, run_tasks, yield_now};
pub use fault::{Fault, FaultDev, Leaves};
pub use held::{Held, HeldDev, HoldAt};
pub use mem::MemDev;
pub use request::{Request, RequestKind};
pub use rng::Rng;
pub use sparse::SparseBytes;
