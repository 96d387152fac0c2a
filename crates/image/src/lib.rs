//! Virtual-disk image formats: VHDX and raw.

pub mod vhdx;
