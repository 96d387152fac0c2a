//! Virtual-disk image formats: VHDX and raw.
//!
//! A format maps the guest's bytes to places in a host file and never moves them; [`ImageDev`] moves them, for every
//! format, and is the block device that the guest sees. A raw image needs no format: its host file is the device.

mod format;
mod image_dev;
pub mod raw;
pub mod vhdx;

pub use image_dev::ImageDev;
