//! Facts, and the lines "Range" and "Zero length".

use block::{ByteRange, Disk, ErrorKind, Result as DiskResult, SgList, WriteFlags, ZeroFlags};

use super::bench::Bench;
use super::{Checked, Doing as _, Finding};

/// What `DevInfo`'s fields promise of themselves.
pub(super) async fn facts(disk: &Disk) -> Checked {
    let info = disk.info();
    let wrong = |what: &str| Err(Finding(format!("{what}: {info:?}")));
    if !info.physical_block_bytes.is_power_of_two() || info.physical_block_bytes < info.block_bytes {
        return wrong("physical_block_bytes is not a power of two that is at least block_bytes");
    }
    if info.optimal_bytes == 0 || !info.optimal_bytes.is_multiple_of(info.block_bytes) {
        return wrong("optimal_bytes is not a multiple of block_bytes");
    }
    if !info.memory_align.is_power_of_two() {
        return wrong("memory_align is not a power of two");
    }
    if info.discard_bytes == 0 || !info.discard_bytes.is_multiple_of(info.block_bytes) {
        return wrong("discard_bytes is not a multiple of block_bytes");
    }
    if disk.size() > ByteRange::END_MAX || !disk.size().is_multiple_of(u64::from(info.block_bytes)) {
        return wrong(&format!(
            "the size {:#x} is not a multiple of block_bytes up to i64::MAX",
            disk.size()
        ));
    }
    Ok(())
}

/// Every kind of request beyond the end is refused, and changes nothing.
pub(super) async fn beyond_the_end(disk: &Disk) -> Checked {
    let (unit, size) = (u64::from(disk.info().block_bytes), disk.size());
    let mut bench = Bench::new(disk);
    if !disk.info().read_only {
        bench.write(ByteRange::new(size - 2 * unit, 2 * unit).expect("the disk is that large")).await?;
    }
    let last = ByteRange::END_MAX / unit * unit;
    let beyond = [
        (size, unit),
        (size - unit, 2 * unit),
        (size + unit, 0),
        (size + unit, unit),
        (0, size + unit),
        (last, 0),
        (last - unit, unit),
        (last, unit),
        (last + unit, 0),
        (u64::MAX / unit * unit, 0),
        (u64::MAX / unit * unit, unit),
    ];
    // A request that is longer than memory has no scatter list.
    for (offset, len) in beyond.into_iter().filter(|&(_, len)| len <= size + unit && len < 1 << 30) {
        all_kinds(disk, offset, len, ErrorKind::OutOfRange).await?;
    }
    if disk.size() != size {
        return Err(Finding(format!("the size went from {size:#x} to {:#x}", disk.size())));
    }
    if disk.info().read_only { Ok(()) } else { bench.check_all().await }
}

/// What is no multiple of the block is refused, and changes nothing.
pub(super) async fn misaligned(disk: &Disk) -> Checked {
    let unit = u64::from(disk.info().block_bytes);
    if unit == 1 {
        return Ok(());
    }
    for (offset, len) in
        [(1, unit), (0, unit - 1), (0, unit + 1), (unit - 1, 1), (unit / 2, unit), (unit + 1, 0)]
    {
        all_kinds(disk, offset, len, ErrorKind::Misaligned).await?;
    }
    if disk.info().read_only { Ok(()) } else { Bench::new(disk).check_all().await }
}

/// Nothing at all, anywhere up to the end, succeeds and changes nothing.
pub(super) async fn zero_length(disk: &Disk) -> Checked {
    let unit = u64::from(disk.info().block_bytes);
    for offset in [0, unit, disk.size() / 2 / unit * unit, disk.size()] {
        let range = ByteRange::new(offset, 0).expect("the disk ends before i64::MAX");
        disk.read(offset, SgList::new()).await.doing(|| format!("read no bytes at {offset:#x}"))?;
        disk.block_status(range, &mut Vec::new()).await.doing(|| format!("block_status {range}"))?;
        if disk.info().read_only {
            continue;
        }
        for fua in [false, true] {
            let write = disk.write(offset, SgList::new(), WriteFlags { fua }).await;
            write.doing(|| format!("write no bytes at {offset:#x}"))?;
            let flags = ZeroFlags { fua, may_unmap: true, fast_only: false };
            disk.write_zeroes(range, flags).await.doing(|| format!("write_zeroes {range}"))?;
        }
        disk.discard(range).await.doing(|| format!("discard {range}"))?;
    }
    if disk.info().read_only { Ok(()) } else { Bench::new(disk).check_all().await }
}

/// Tries each kind of request on the range; all must fail with `kind`.
async fn all_kinds(disk: &Disk, offset: u64, len: u64, kind: ErrorKind) -> Checked {
    let must = |name: &str, kind: ErrorKind, result: DiskResult<()>| match result {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => {
            Err(Finding(format!("{name} of {len:#x} bytes at {offset:#x} gives {error:?}, not {kind:?}")))
        }
        Ok(()) => Err(Finding(format!(
            "{name} of {len:#x} bytes at {offset:#x} succeeds, and should give {kind:?}"
        ))),
    };
    // A read-only disk says so first, because no range would make the request good.
    let change = if disk.info().read_only { ErrorKind::ReadOnly } else { kind };
    let memory = SgList::unspecified(len as usize);
    must("read", kind, disk.read(offset, memory.clone()).await)?;
    must("write", change, disk.write(offset, memory, WriteFlags::default()).await)?;
    let Some(range) = ByteRange::new(offset, len) else { return Ok(()) };
    must("write_zeroes", change, disk.write_zeroes(range, ZeroFlags::default()).await)?;
    must("discard", change, disk.discard(range).await)?;
    must("block_status", kind, disk.block_status(range, &mut Vec::new()).await)
}
