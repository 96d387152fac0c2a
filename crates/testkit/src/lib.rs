//! Devices and suites that test what implements the block contract.
//!
//! | Item | For |
//! | --- | --- |
//! | [`MemDev`] | a sparse RAM disk, terabytes if need be, strict about the contract |
//! | [`CrashDev`], [`History`], [`Survival`] | every power cut of a run: writes lost, reordered and torn |
//! | [`CrashRun`] | a workload of random requests whose every cut is opened and held against the model |
//! | [`HeldDev`] | requests that wait until the test releases them |
//! | [`FaultDev`], [`Fault`] | requests that fail by rules with states |
//! | [`Model`] | what a disk may contain, live and after a crash, by the contract alone |
//! | [`Op`], [`Shape`], [`run_ops`], [`Runner`] | random requests, run against the model, one by one or several at a time |
//! | [`conformance`] | the contract's table of semantics, line by line, for every device |
//! | [`block_on`], [`run_tasks`], [`LocalTasks`] | futures without a runtime, several of them in a seeded order |

pub mod conformance;

mod crash;
mod crash_run;
mod executor;
mod fault;
mod held;
mod mem;
mod model;
mod ops;
mod request;
mod rng;
mod sparse;
mod status;

pub use crash::{CrashDev, Event, History, Survival};
pub use crash_run::CrashRun;
pub use executor::{LocalTasks, block_on, run_tasks, yield_now};
pub use fault::{Fault, FaultDev, Leaves};
pub use held::{Held, HeldDev, HoldAt};
pub use mem::MemDev;
pub use model::{Ended, Mismatch, Model, Ticket};
pub use ops::{Op, Runner, Shape, pattern, run_ops};
pub use request::{Request, RequestKind};
pub use rng::Rng;
pub use sparse::SparseBytes;
