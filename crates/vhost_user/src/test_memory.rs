//! Guest memory for tests: real shared files, mapped as a front end's would be.

use std::fs::File;

use crate::memory::RegionSpec;

/// A shared file of `len` zero bytes.
pub(crate) fn memfd(len: u64) -> File {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(len).unwrap();
    file
}

/// A region of `len` bytes at guest address `start`, from the start of its file.
pub(crate) fn region(start: u64, len: u64) -> RegionSpec {
    RegionSpec { guest_start: start, user_start: start + 0x7f00_0000_0000, len, file_offset: 0 }
}
