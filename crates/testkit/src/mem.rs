//! A RAM disk.

use std::sync::Mutex;

use block::{
    BlockDev, BlockError, ByteRange, DevInfo, Discard, ErrorKind, Extent, ExtentState, Result, SgList,
    WriteFlags, ZeroFlags, push_extent,
};

use crate::SparseBytes;

/// A sparse RAM disk, as strict about the contract as a device can be: what [`block::Disk`] promises never to pass
/// down makes it panic, and memory that is not aligned as [`DevInfo::memory_align`] asks is refused.
///
/// Every request completes at its first poll. Holes have the granularity of 4 KiB.
pub struct MemDev {
    info: DevInfo,
    state: Mutex<State>,
}

struct State {
    image: SparseBytes,
    closed: bool,
}

impl MemDev {
    /// What [`Self::new`] says of itself; a start for others: `DevInfo { read_only: true, ..MemDev::INFO }`.
    pub const INFO: DevInfo = DevInfo {
        block_bytes: 512,
        physical_block_bytes: 512,
        optimal_bytes: 65536,
        read_only: false,
        discard: Discard::Zeroes,
        discard_bytes: 4096,
        native_fua: false,
        fast_zeroes: true,
        memory_align: 1,
    };

    /// A writable disk of `size` zero bytes with [`Self::INFO`].
    pub fn new(size: u64) -> Self {
        Self::with_info(size, Self::INFO)
    }

    /// A disk of `size` zero bytes that `info` describes and that behaves accordingly.
    pub fn with_info(size: u64, info: DevInfo) -> Self {
        Self::from_image(SparseBytes::new(size), info)
    }

    /// A disk with the content of `image`.
    pub fn from_image(image: SparseBytes, info: DevInfo) -> Self {
        Self { info, state: Mutex::new(State { image, closed: false }) }
    }

    /// A disk with a copy of `bytes`, and with [`Self::INFO`] but blocks of one byte, as a host file has.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::from_image(SparseBytes::copy_of(bytes), DevInfo { block_bytes: 1, ..Self::INFO })
    }

    /// The content, now; cheap, and independent of later writes. Works on a closed disk too.
    pub fn image(&self) -> SparseBytes {
        self.state.lock().expect(NO_PANIC).image.clone()
    }

    fn open<T>(&self, with: impl FnOnce(&mut SparseBytes) -> Result<T>) -> Result<T> {
        let mut state = self.state.lock().expect(NO_PANIC);
        if state.closed {
            return Err(BlockError::new(ErrorKind::Io, "the RAM disk is closed"));
        }
        with(&mut state.image)
    }

    fn change<T>(&self, with: impl FnOnce(&mut SparseBytes) -> Result<T>) -> Result<T> {
        if self.info.read_only {
            return Err(BlockError::new(ErrorKind::ReadOnly, "the RAM disk is read-only"));
        }
        self.open(with)
    }
}

const NO_PANIC: &str = "a request panicked before";

impl BlockDev for MemDev {
    fn info(&self) -> DevInfo {
        self.info
    }

    fn size(&self) -> u64 {
        self.state.lock().expect(NO_PANIC).image.size()
    }

    async fn read(&self, offset: u64, into: SgList) -> Result<()> {
        self.open(|image| {
            check_request(&self.info, image.size(), offset, into.len())?;
            check_memory(&self.info, &into)?;
            image.read_sg(offset, &into);
            Ok(())
        })
    }

    async fn write(&self, offset: u64, from: SgList, flags: WriteFlags) -> Result<()> {
        check_fua(&self.info, flags.fua);
        self.change(|image| {
            check_request(&self.info, image.size(), offset, from.len())?;
            check_memory(&self.info, &from)?;
            image.write_sg(offset, &from);
            Ok(())
        })
    }

    async fn write_zeroes(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        check_fua(&self.info, flags.fua);
        self.change(|image| {
            check_request(&self.info, image.size(), range.start(), range.len())?;
            check_fast(&self.info, flags)?;
            zero(image, range, flags);
            Ok(())
        })
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        self.change(|image| {
            check_request(&self.info, image.size(), range.start(), range.len())?;
            discard(image, range, &self.info);
            Ok(())
        })
    }

    async fn flush(&self) -> Result<()> {
        self.open(|_| Ok(()))
    }

    async fn block_status(&self, range: ByteRange, out: &mut Vec<Extent>) -> Result<()> {
        self.open(|image| {
            check_request(&self.info, image.size(), range.start(), range.len())?;
            status(image, range, out);
            Ok(())
        })
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.change(|image| {
            check_size(size)?;
            image.resize(size);
            Ok(())
        })
    }

    async fn close(&self) -> Result<()> {
        self.state.lock().expect(NO_PANIC).closed = true;
        Ok(())
    }
}

/// Refuses what ends beyond the device.
///
/// # Panics
/// If the range is misaligned: `Disk` lets none pass.
pub(crate) fn check_request(info: &DevInfo, size: u64, offset: u64, len: u64) -> Result<()> {
    let unit = u64::from(info.block_bytes);
    assert!(
        (offset | len).is_multiple_of(unit),
        "a device never sees a misaligned range: {len:#x} at {offset:#x}"
    );
    match ByteRange::new(offset, len) {
        Some(range) if range.end() <= size => Ok(()),
        _ => {
            let message =
                format!("{len:#x} bytes at {offset:#x} end beyond the device, which has {size:#x} bytes");
            Err(BlockError::new(ErrorKind::OutOfRange, message))
        }
    }
}

/// Refuses memory that is not aligned as the device asks: where segments start, and between them. What ends a request
/// is a multiple of the block, however long the alignment is.
pub(crate) fn check_memory(info: &DevInfo, memory: &SgList) -> Result<()> {
    let (align, unit) = (info.memory_align as usize, info.memory_align.min(info.block_bytes) as usize);
    let aligned = |segment: &block::Segment| {
        (segment.as_ptr() as usize).is_multiple_of(align) && segment.len().is_multiple_of(unit)
    };
    if memory.segments().iter().all(aligned) {
        return Ok(());
    }
    let message = format!("memory is not aligned to {} bytes", info.memory_align);
    Err(BlockError::new(ErrorKind::Misaligned, message))
}

pub(crate) fn check_fua(info: &DevInfo, fua: bool) {
    assert!(info.native_fua || !fua, "a device without FUA of its own never sees the flag");
}

pub(crate) fn check_fast(info: &DevInfo, flags: ZeroFlags) -> Result<()> {
    if flags.fast_only && !info.fast_zeroes {
        return Err(BlockError::new(ErrorKind::Unsupported, "the device cannot write zeroes fast"));
    }
    Ok(())
}

pub(crate) fn check_size(size: u64) -> Result<()> {
    if size > ByteRange::END_MAX {
        let message = format!("a size of {size:#x} bytes is beyond the largest offset");
        return Err(BlockError::new(ErrorKind::OutOfRange, message));
    }
    Ok(())
}

pub(crate) fn zero(image: &mut SparseBytes, range: ByteRange, flags: ZeroFlags) {
    if flags.may_unmap { image.punch(range) } else { image.fill_zeroes(range) }
}

/// Does what `info.discard` says. Where that is `Unspecified`, whole units become zeroes and the edges stay, as on a
/// file system that can only free whole blocks.
pub(crate) fn discard(image: &mut SparseBytes, range: ByteRange, info: &DevInfo) {
    match info.discard {
        Discard::Ignored => {}
        Discard::Zeroes => image.punch(range),
        Discard::Unspecified => image.punch(range.whole_units(u64::from(info.discard_bytes.max(1)))),
    }
}

pub(crate) fn status(image: &SparseBytes, range: ByteRange, out: &mut Vec<Extent>) {
    let mut at = range.start();
    for stored in image.stored(range) {
        push_extent(out, Extent::hole(stored.start() - at, ExtentState::NotPresent));
        push_extent(out, Extent::present(stored.len(), Some(stored.start())));
        at = stored.end();
    }
    push_extent(out, Extent::hole(range.end() - at, ExtentState::NotPresent));
}

#[cfg(test)]
mod tests {
    use block::Disk;

    use super::*;
    use crate::block_on;

    #[test]
    fn a_terabyte_disk_costs_only_what_is_written() {
        block_on(async {
            let disk = Disk::new(MemDev::new(1 << 40));
            disk.write_all((1 << 40) - 512, &[5; 512]).await.unwrap();
            disk.write_zeroes(disk.range(), ZeroFlags { may_unmap: true, ..ZeroFlags::default() })
                .await
                .unwrap();
            disk.write_all(1 << 39, &[6; 512]).await.unwrap();
            let mut extents = Vec::new();
            disk.block_status(disk.range(), &mut extents).await.unwrap();
            let data: Vec<_> = extents.iter().map(|extent| (extent.len, extent.state.is_data())).collect();
            assert_eq!(data, [(1 << 39, false), (4096, true), ((1 << 39) - 4096, false)]);
        });
    }

    #[test]
    fn memory_that_is_not_aligned_as_asked_is_refused() {
        block_on(async {
            let disk = Disk::new(MemDev::with_info(1 << 20, DevInfo { memory_align: 512, ..MemDev::INFO }));
            let odd = SgList::unspecified(1024).slice(8, 512);
            assert_eq!(disk.read(0, odd).await.unwrap_err().kind(), ErrorKind::Misaligned);
            disk.read(0, SgList::unspecified(512)).await.unwrap();
        });
    }

    #[test]
    fn an_unspecified_discard_keeps_the_edges() {
        block_on(async {
            let info = DevInfo { discard: Discard::Unspecified, ..MemDev::INFO };
            let disk = Disk::new(MemDev::with_info(16384, info));
            disk.write_all(0, &[9; 16384]).await.unwrap();
            disk.discard(ByteRange::new(512, 8192).unwrap()).await.unwrap();
            let bytes = disk.read_vec(0, 16384).await.unwrap();
            let zeroes = bytes.iter().filter(|&&byte| byte == 0).count();
            assert_eq!((zeroes, bytes[4095], bytes[4096], bytes[8192]), (4096, 9, 0, 9));
        });
    }
}
