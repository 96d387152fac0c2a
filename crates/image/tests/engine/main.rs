//! The VHDX engine against the block contract, a reference model, and power cuts.

mod cases;
mod conformance;
mod crash;
mod identity;
mod qemu;
mod random;
mod space;
