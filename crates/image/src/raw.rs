//! Raw images: the host file is the disk.
//!
//! There is nothing to map, so a raw image is its host file's [`Disk`] itself: its holes are the host's holes, its
//! trim is the host's. This module only says which files can be disks.

use block::{BlockError, Disk, ErrorKind, Result};

/// The smallest sector that front ends speak of.
pub const SECTOR_BYTES: u64 = 512;

/// The disk that the raw image in `file` is.
///
/// # Errors
/// `Unsupported` where the file is not made of whole sectors: a guest could neither see nor write its last bytes, and
/// rounding either way would make two programs see two disks.
pub fn open(file: Disk) -> Result<Disk> {
    let size = file.size();
    if !size.is_multiple_of(SECTOR_BYTES) {
        let message = format!(
            "the raw image is {size} bytes long, which is not a multiple of the {SECTOR_BYTES}-byte sector; \
             make it {} bytes long with `truncate` if nothing is wrong with it",
            size.next_multiple_of(SECTOR_BYTES)
        );
        return Err(BlockError::new(ErrorKind::Unsupported, message));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use testkit::MemDev;

    use super::*;

    #[test]
    fn a_raw_image_is_made_of_whole_sectors() {
        let open_bytes = |len| open(Disk::new(MemDev::from_bytes(&vec![1; len])));
        assert_eq!(open_bytes(1024).unwrap().size(), 1024);
        let error = open_bytes(1000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("1024 bytes"), "{error}");
    }
}
