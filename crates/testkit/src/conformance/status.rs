//! The line "block_status".

use block::{ByteRange, Disk, Extent, ExtentState, ZeroFlags};

use super::bench::{Bench, nasty_ranges};
use super::{Checked, Doing as _, Finding};
use crate::status::{check_extents, holes};

/// A stretch that no device gives, to find out whether what was in the list before stays.
const SENTINEL: Extent = Extent {
    len: 12345,
    state: ExtentState::Undefined,
    depth: u32::MAX,
    host_offset: Some(77),
    zeroes: true,
};

/// The extents of `range`, whose form is right.
async fn extents(disk: &Disk, range: ByteRange) -> Result<Vec<Extent>, Finding> {
    let mut list = vec![SENTINEL];
    disk.block_status(range, &mut list).await.doing(|| format!("block_status {range}"))?;
    if list.first() != Some(&SENTINEL) {
        return Err(Finding(format!(
            "block_status {range} changed what was in the list before, and should append"
        )));
    }
    list.remove(0);
    check_extents(range, &list)?;
    Ok(list)
}

/// Gapless and not empty, from anywhere; asked again from where it ended, it gets to the end of the disk.
pub(super) async fn form(disk: &Disk) -> Checked {
    for range in nasty_ranges(disk) {
        extents(disk, range).await?;
    }
    walk(disk).await.map(|_| ())
}

/// All that the device calls zeroes, from start to end.
async fn walk(disk: &Disk) -> Result<Vec<ByteRange>, Finding> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(rest) = ByteRange::between(at, disk.size()).filter(|rest| !rest.is_empty()) {
        let list = extents(disk, rest).await?;
        found.extend(holes(rest, &list));
        at += list.iter().map(|extent| extent.len).sum::<u64>();
    }
    Ok(found)
}

/// What is called anything but data reads as zeroes, however the range is asked for.
pub(super) async fn agrees_with_content(disk: &Disk) -> Checked {
    let mut bench = Bench::new(disk);
    for (index, range) in nasty_ranges(disk).into_iter().enumerate() {
        let flags = ZeroFlags { may_unmap: true, ..ZeroFlags::default() };
        match index % 4 {
            0 | 2 => bench.write(range).await?,
            1 => bench.zeroes(range, flags).await?,
            _ => bench.discard(range).await?,
        }
        if index % 16 == 0 {
            disk.flush().await?;
        }
        let look = bench.model.start_read();
        let list = extents(disk, range).await?;
        bench.model.end_status(look, &holes(range, &list))?;
    }
    // A discarded range that the device has not looked at again may still be old or zero: reading settles it.
    bench.check_all().await?;
    let look = bench.model.start_read();
    let found = walk(disk).await?;
    Ok(bench.model.end_status(look, &found)?)
}
