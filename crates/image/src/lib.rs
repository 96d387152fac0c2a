//! Virtual-disk image formats: VHDX and raw.
