//! Stock QEMU from outside: command lines, the QEMU Machine Protocol, and the process itself.
//!
//! Nothing in QEMU is patched and no management layer stands between: a [`Machine`] is what a virtual machine is made
//! of, [`Machine::arguments`] the command line that makes it so, [`Vm`] the running process, and [`Qmp`] the
//! conversation with it. [`Accel::probe`] finds out what can run guests here by running one.
//!
//! Everything is synchronous: QMP is a slow control channel, and callers that wait for several things wait for file
//! descriptors ([`Child::pidfd`]).

mod accel;
mod child;
mod machine;
mod qmp;
mod version;
mod vm;

pub use accel::Accel;
pub use child::Child;
pub use machine::{Attachment, Boot, Console, Disk, Machine, MachineError, MachineKind, Memory};
pub use qmp::{Event, Qmp, QmpError};
pub use version::Version;
pub use vm::{StartError, Stopped, Vm};
