//! Devices and suites that test what implements the block contract.
