//! Resizing, failing, closing, and devices that only read.

use block::{ByteRange, Disk, ErrorKind, Result as DiskResult, SgList, WriteFlags, ZeroFlags};
use futures_util::FutureExt as _;

use super::bench::{Bench, nasty_ranges};
use super::{Checked, Doing as _, Finding};
use crate::status::holes;
use crate::{Fault, FaultDev, LocalTasks, RequestKind};

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).expect("the disk is that large")
}

/// New bytes are zeroes, also those that were cut off before; the end moves for requests at once.
pub(super) async fn resize(disk: &Disk) -> Checked {
    let (unit, size) = (u64::from(disk.info().block_bytes), disk.size());
    let mut bench = Bench::new(disk);
    bench.write(range(size - 2 * unit, 2 * unit)).await?;
    let sizes = [
        size,
        size + unit,
        size + (1 << 20),
        size,
        size - unit,
        size + 3 * unit,
        size / 2 / unit * unit,
        size,
    ];
    for to in sizes {
        let from = disk.size();
        match disk.resize(to).await {
            Ok(()) => bench.model.resize(to),
            // A device of fixed size, or one that only grows, changes nothing when it refuses.
            Err(error) if error.kind() == ErrorKind::Unsupported && disk.size() == from => continue,
            Err(error) => return Err(Finding(format!("resize from {from:#x} to {to:#x} gives {error:?}"))),
        }
        let resized = || format!("after a resize from {from:#x} to {to:#x}");
        bench.check_all().await.doing(resized)?;
        let beyond = disk.read(to, SgList::unspecified(unit as usize)).await;
        if !matches!(&beyond, Err(error) if error.kind() == ErrorKind::OutOfRange) {
            return Err(Finding(format!("{}, a read at the end gives {beyond:?}", resized())));
        }
        bench.write(range(to - unit, unit)).await.doing(resized)?;
        bench.check_all().await.doing(resized)?;
    }
    let absurd = disk.resize(u64::MAX / unit * unit).await;
    if absurd.is_ok() {
        return Err(Finding("a resize beyond i64::MAX succeeds".to_owned()));
    }
    bench.check_all().await
}

/// Requests whose futures are dropped do no harm: the memory lives on, and the device goes on.
pub(super) async fn dropped_futures(disk: &Disk) -> Checked {
    let unit = u64::from(disk.info().block_bytes);
    let mut bench = Bench::new(disk);
    let (here, there) = (range(0, 64 * unit), range(128 * unit, 64 * unit));
    bench.write(here).await?;
    bench.write(there).await?;
    let bytes = bench.abandon_write(here);
    for _ in 0..8 {
        // Polled once, then dropped with its memory.
        let _ = disk.read(there.start(), SgList::unspecified(there.len() as usize)).now_or_never();
        let _ = disk.write(here.start(), SgList::copy_of(&bytes), WriteFlags::default()).now_or_never();
        let _ = disk.flush().now_or_never();
        bench.check(there).await?;
    }
    // What lands late lands before the flush that comes after it is done, or not at all; either way it is the same
    // bytes, so a block is the old one or the new.
    disk.flush().await?;
    for block in here.split_by(unit) {
        let found = disk.read_vec(block.start(), unit as usize).await?;
        bench.model.clone().check(block.start(), &found)?;
    }
    bench.write(there).await?;
    bench.check(there).await
}

/// Requests after the close fail; so may a second close, but nothing panics.
pub(super) async fn close(disk: &Disk) -> Checked {
    let unit = u64::from(disk.info().block_bytes);
    if !disk.info().read_only {
        Bench::new(disk).write(range(0, unit)).await?;
    }
    disk.close().await.doing(|| "close".to_owned())?;
    let must_fail = |name: &str, result: DiskResult<()>| match result {
        Ok(()) => Err(Finding(format!("{name} succeeds on a closed device"))),
        Err(_) => Ok(()),
    };
    let memory = || SgList::copy_of(&vec![1; unit as usize]);
    must_fail("read", disk.read(0, memory()).await)?;
    must_fail("block_status", disk.block_status(range(0, unit), &mut Vec::new()).await)?;
    must_fail("write", disk.write(0, memory(), WriteFlags::default()).await)?;
    must_fail("write_zeroes", disk.write_zeroes(range(0, unit), ZeroFlags::default()).await)?;
    must_fail("discard", disk.discard(range(0, unit)).await)?;
    if !disk.info().read_only {
        must_fail("flush", disk.flush().await)?;
    }
    must_fail("resize", disk.resize(disk.size() + unit).await)?;
    let _ = disk.close().await;
    Ok(())
}

/// A close beside requests lets each of them end, one way or the other.
pub(super) async fn close_waits(disk: &Disk) -> Checked {
    let unit = u64::from(disk.info().block_bytes);
    let mut tasks = LocalTasks::new(1);
    for index in 0..16 {
        tasks.spawn(async move {
            let bytes = SgList::copy_of(&vec![1; unit as usize]);
            // Those that the close overtakes fail.
            let _ = disk.write(index * unit, bytes, WriteFlags::default()).await;
            if index == 8 { disk.close().await } else { Ok(()) }
        });
    }
    let closed: DiskResult<Vec<()>> = tasks.await.into_iter().collect();
    closed.doing(|| "close beside writes".to_owned())?;
    match disk.write(0, SgList::copy_of(&vec![1; unit as usize]), WriteFlags::default()).await {
        Ok(()) => Err(Finding("a write succeeds on a closed device".to_owned())),
        Err(_) => Ok(()),
    }
}

/// Changes are refused as `ReadOnly`; reads are repeatable and agree with the status.
pub(super) async fn read_only(disk: &Disk) -> Checked {
    let unit = u64::from(disk.info().block_bytes);
    let must_refuse = |name: &str, result: DiskResult<()>| match result {
        Err(error) if error.kind() == ErrorKind::ReadOnly => Ok(()),
        other => Err(Finding(format!("{name} on a read-only device gives {other:?}"))),
    };
    for len in [0, unit] {
        let memory = SgList::copy_of(&vec![1; len as usize]);
        must_refuse("write", disk.write(0, memory, WriteFlags::default()).await)?;
        must_refuse("write_zeroes", disk.write_zeroes(range(0, len), ZeroFlags::default()).await)?;
        must_refuse("discard", disk.discard(range(0, len)).await)?;
    }
    must_refuse("resize", disk.resize(disk.size() + unit).await)?;
    disk.flush().await.doing(|| "flush a read-only device".to_owned())?;
    for piece in nasty_ranges(disk) {
        let bytes = disk.read_vec(piece.start(), piece.len() as usize).await?;
        if bytes != disk.read_vec(piece.start(), piece.len() as usize).await? {
            return Err(Finding(format!("two reads of {piece} differ")));
        }
        let mut extents = Vec::new();
        disk.block_status(piece, &mut extents).await?;
        for hole in holes(piece, &extents) {
            let at = (hole.start() - piece.start()) as usize;
            if bytes[at..at + hole.len() as usize].iter().any(|&byte| byte != 0) {
                return Err(Finding(format!(
                    "block_status calls {hole} a hole, but it does not read as zeroes"
                )));
            }
        }
    }
    Ok(())
}

/// A flush that fails below latches the device: reads go on, writes and flushes fail as `Poisoned`.
pub(super) async fn failed_flush(disk: &Disk, below: &FaultDev) -> Checked {
    let unit = u64::from(disk.info().block_bytes);
    let mut bench = Bench::new(disk);
    bench.write(range(0, 4 * unit)).await?;
    disk.flush().await?;
    bench.write(range(unit, unit)).await?;
    below.add(Fault::on(RequestKind::Flush).error(ErrorKind::Io));
    if disk.flush().await.is_ok() {
        return Err(Finding("a flush succeeds although the flush below failed".to_owned()));
    }
    if below.failures() == 0 {
        return Err(Finding("a flush fails without having asked the device below".to_owned()));
    }
    let must_latch = |name: &str, result: DiskResult<()>| match result {
        Err(error) if error.kind() == ErrorKind::Poisoned => Ok(()),
        other => Err(Finding(format!("{name} after a failed flush gives {other:?}, not Poisoned"))),
    };
    must_latch("flush", disk.flush().await)?;
    let memory = SgList::copy_of(&vec![1; unit as usize]);
    must_latch("write", disk.write(0, memory, WriteFlags::default()).await)?;
    must_latch("flush", disk.flush().await)?;
    bench.check_all().await.doing(|| "reads go on after a failed flush".to_owned())
}
