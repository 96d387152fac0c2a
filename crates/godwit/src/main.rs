//! The disk and mobility layer for virtual machines on stock QEMU.

fn main() {}
