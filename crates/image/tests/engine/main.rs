//! The VHDX engine against the block contract, a reference model, and power cuts.

mod cases;
mod conformance;
mod crash;
mod faults;
mod identity;
mod order;
mod qemu;
mod races;
mod random;
mod space;
