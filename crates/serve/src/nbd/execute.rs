//! One request against the disk.

use block::{Buffer, ByteRange, Disk, Extent, Result, SgList};
use nbd::{Command, limits};

/// What a request gave.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// What was read.
    Data(Buffer),
    /// The extents from the start of the range.
    Extents(Vec<Extent>),
}

/// What is read at once for a cache request.
const CACHE_STEP_BYTES: u64 = 1 << 20;

/// The first and the longest stretch whose extents are asked for at once. Disks tell all extents of a range, so the
/// longest stretch bounds the list: at 512 bytes an extent, half a million of them.
const STATUS_STEP_BYTES_MIN: u64 = 8 << 20;
const STATUS_STEP_BYTES_MAX: u64 = 256 << 20;

/// Carries out `command`.
///
/// # Errors
/// What the disk reports.
pub(super) async fn carry_out(disk: &Disk, command: Command) -> Result<Answer> {
    match command {
        Command::Read { offset, len } => return read(disk, offset, len).await.map(Answer::Data),
        Command::Write { offset, payload, flags } => disk.write(offset, payload.into_sg(), flags).await?,
        Command::Flush => disk.flush().await?,
        Command::Trim { range, fua } => {
            disk.discard(range).await?;
            // proto.md, "Command flags", FUA: no reply before what the command wrote is durable.
            if fua {
                disk.flush().await?;
            }
        }
        Command::Cache { range } => cache(disk, range).await?,
        Command::WriteZeroes { range, flags } => disk.write_zeroes(range, flags).await?,
        Command::BlockStatus { range, first_only } => {
            return extents(disk, range, first_only).await.map(Answer::Extents);
        }
    }
    Ok(Answer::Done)
}

async fn read(disk: &Disk, offset: u64, len: u32) -> Result<Buffer> {
    let memory = SgList::unspecified(len as usize);
    disk.read(offset, memory.clone()).await?;
    // A device may keep a clone of the list a moment longer than the request; the bytes are then copied.
    Ok(Buffer::reclaim(memory).unwrap_or_else(|memory| {
        let mut copy = Buffer::unspecified(len as usize);
        memory.copy_to_slice(0, &mut copy);
        copy
    }))
}

/// Reads the range and drops what was read, which leaves it in whatever caches lie below.
async fn cache(disk: &Disk, range: ByteRange) -> Result<()> {
    let memory = SgList::unspecified(range.len().min(CACHE_STEP_BYTES) as usize);
    let mut at = range.start();
    loop {
        let len = (range.end() - at).min(CACHE_STEP_BYTES);
        disk.read(at, memory.slice(0, len)).await?;
        at += len;
        if at == range.end() {
            return Ok(());
        }
    }
}

/// The extents from the start of `range`, until it is covered or there are as many as one reply holds.
async fn extents(disk: &Disk, range: ByteRange, first_only: bool) -> Result<Vec<Extent>> {
    let most = if first_only { 1 } else { limits::EXTENTS_MAX };
    let (mut list, mut at, mut step) = (Vec::new(), range.start(), STATUS_STEP_BYTES_MIN);
    while at < range.end() && list.len() <= most {
        let piece = ByteRange::new(at, step.min(range.end() - at)).expect("a piece ends within its range");
        let mut found = Vec::new();
        disk.block_status(piece, &mut found).await?;
        assert!(!found.is_empty(), "a device tells at least one extent of a range");
        for extent in found {
            at += extent.len;
            append(&mut list, extent);
        }
        step = (step * 2).min(STATUS_STEP_BYTES_MAX);
    }
    Ok(list)
}

/// Appends `extent`, joined with the last one if no context can tell them apart.
fn append(list: &mut Vec<Extent>, extent: Extent) {
    let told = |extent: &Extent| (extent.state, extent.depth, extent.zeroes);
    match list.last_mut() {
        Some(last) if told(last) == told(&extent) => last.len += extent.len,
        _ => list.push(extent),
    }
}

#[cfg(test)]
mod tests {
    use block::ExtentState;
    use testkit::{MemDev, block_on};

    use super::*;

    #[test]
    fn extents_join_over_the_seams_of_the_steps() {
        let disk = Disk::new(MemDev::new(4 << 30));
        block_on(async {
            disk.write_all(3 << 30, &[1; 4096]).await.unwrap();
            let list = extents(&disk, disk.range(), false).await.unwrap();
            let states: Vec<_> = list.iter().map(|extent| extent.state.is_data()).collect();
            assert_eq!(states, [false, true, false], "{list:?}");
            assert_eq!(list.iter().map(|extent| extent.len).sum::<u64>(), 4 << 30);
            assert_eq!(list[0].len, 3 << 30);
            let first = extents(&disk, disk.range(), true).await.unwrap();
            assert_eq!((first[0].len, first[0].state.is_data()), (3 << 30, false));
        });
    }

    #[test]
    fn only_extents_that_a_context_tells_apart_stay_apart() {
        let mut list = Vec::new();
        append(&mut list, Extent::present(8, Some(0)));
        append(&mut list, Extent::present(8, Some(4096)));
        append(&mut list, Extent::present(8, None));
        append(&mut list, Extent { zeroes: true, ..Extent::present(8, Some(8192)) });
        append(&mut list, Extent::present(8, Some(12288)));
        append(&mut list, Extent::hole(8, ExtentState::Zero));
        append(&mut list, Extent::hole(8, ExtentState::Zero));
        append(&mut list, Extent { depth: 1, ..Extent::hole(8, ExtentState::Zero) });
        let told: Vec<_> = list.iter().map(|extent| (extent.len, extent.zeroes)).collect();
        assert_eq!(told, [(24, false), (8, true), (8, false), (16, true), (8, true)]);
    }
}
