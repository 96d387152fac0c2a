//! The lines "Visibility", "Order" and "flush", as far as a disk that does not lose power can show them.

use std::collections::BTreeSet;

use block::{ByteRange, Disk, SgList, WriteFlags};

use super::bench::{Bench, borders, nasty_ranges};
use super::{Checked, Doing as _, Finding};
use crate::{LocalTasks, Model, Rng, Runner, Shape, pattern};

/// What was written is read back, through another clone, and nothing beside it changes.
pub(super) async fn writes_are_seen(disk: &Disk) -> Checked {
    let mut bench = Bench::new(disk);
    let other = disk.clone();
    for range in nasty_ranges(disk) {
        bench.disk = disk;
        bench.write(range).await?;
        bench.disk = &other;
        bench.check_around(range).await?;
    }
    bench.check_all().await
}

/// Memory in many odd pieces, in an order of its own, is read from and written to as if it were one.
pub(super) async fn scattered_memory(disk: &Disk) -> Checked {
    let mut bench = Bench::new(disk);
    let (unit, align) = (u64::from(disk.info().block_bytes), u64::from(disk.info().memory_align));
    // More segments than one call of the kernel takes (IOV_MAX is 1024); the other lengths make odd pieces.
    for (pieces, step) in [(2, 1), (7, 3), (64, 1), (1500, 1), (1500, 5)] {
        let lens: Vec<u64> = (0..pieces).map(|index| (index % step + 1) * align).collect();
        let whole = lens.iter().sum::<u64>() / unit * unit;
        if whole == 0 || whole > disk.size() / 2 {
            continue;
        }
        let range = ByteRange::new(disk.size() / 2 / unit * unit, whole).expect("half of the disk is free");
        let lens = cut_to(lens, whole);
        let bytes = pattern(pieces * 10 + step, range);
        let from = scatter(&lens, Some(&bytes));
        let write = disk.write(range.start(), from.list, WriteFlags::default()).await;
        write.doing(|| format!("write {range} from {} segments", lens.len()))?;
        bench.model.write(range.start(), &bytes);
        bench.check_around(range).await.doing(|| format!("written from {} segments", lens.len()))?;
        let into = scatter(&lens, None);
        disk.read(range.start(), into.list.clone())
            .await
            .doing(|| format!("read {range} into {} segments", lens.len()))?;
        bench
            .model
            .check(range.start(), &into.list.to_vec())
            .doing(|| format!("read into {} segments", lens.len()))?;
        into.gaps_are_untouched().doing(|| format!("read {range} into {} segments", lens.len()))?;
    }
    Ok(())
}

const GAP_BYTE: u8 = 0xa5;

/// A list of slices of one memory, with a gap after each, in reverse order.
struct Scattered {
    list: SgList,
    memory: SgList,
    gaps: Vec<ByteRange>,
}

fn scatter(lens: &[u64], content: Option<&[u8]>) -> Scattered {
    // Gaps as long as the longest segment keep every start aligned, because all lengths are multiples of that unit.
    let stride = 2 * lens.iter().max().copied().unwrap_or(1).next_power_of_two();
    let memory = SgList::unspecified(stride as usize * lens.len());
    memory.fill(0, memory.len(), GAP_BYTE);
    let (mut list, mut gaps, mut at) = (SgList::new(), Vec::new(), 0);
    for (index, &len) in lens.iter().enumerate() {
        let start = (lens.len() - 1 - index) as u64 * stride;
        let segment = memory.slice(start, len);
        if let Some(content) = content {
            segment.copy_from_slice(0, &content[at as usize..(at + len) as usize]);
        }
        list.append(segment);
        gaps.extend(ByteRange::between(start + len, start + stride));
        at += len;
    }
    Scattered { list, memory, gaps }
}

impl Scattered {
    fn gaps_are_untouched(&self) -> Result<(), String> {
        let touched = self.gaps.iter().find(|gap| {
            self.memory.slice(gap.start(), gap.len()).to_vec().iter().any(|&byte| byte != GAP_BYTE)
        });
        match touched {
            Some(gap) => Err(format!("memory beside the segments was written, in {gap} of it")),
            None => Ok(()),
        }
    }
}

/// Cuts the end off, so that the lengths add up to `whole`.
fn cut_to(lens: Vec<u64>, whole: u64) -> Vec<u64> {
    let mut rest = whole;
    let cut = lens.into_iter().map(|len| {
        let len = len.min(rest);
        rest -= len;
        len
    });
    cut.take_while(|&len| len > 0).collect()
}

/// Requests of all kinds, one after the other.
pub(super) async fn random_requests(disk: &Disk) -> Checked {
    random(disk, 1, 300).await
}

/// Requests of all kinds, many in flight.
pub(super) async fn random_requests_in_flight(disk: &Disk) -> Checked {
    random(disk, 16, 600).await
}

async fn random(disk: &Disk, depth: usize, count: usize) -> Checked {
    let mut model = Model::new(disk.size(), disk.info());
    let borders = borders(disk);
    // Few hot places, so that requests in flight meet.
    let shape = Shape { borders, len_max: 128 << 10, hot_places: 4, ..Shape::of(disk) };
    for seed in 0..2 {
        let run = Runner::new(disk, &mut model).depth(depth, seed).run(&shape.ops(seed, count)).await;
        run.doing(|| format!("random requests, seed {seed}, {depth} in flight"))?;
        model
            .check_disk(disk)
            .await
            .doing(|| format!("after random requests, seed {seed}, {depth} in flight"))?;
    }
    Ok(())
}

/// Overlapping writes in flight: each block ends as one or the other, and stays so.
pub(super) async fn overlapping_writes(disk: &Disk) -> Checked {
    const WRITERS: u64 = 8;
    let unit = u64::from(disk.info().block_bytes);
    let mut rng = Rng::new(1);
    for round in 0..8 {
        let start = (1 + rng.below(disk.size() / 2 / unit)) * unit;
        let ranges: Vec<ByteRange> = (0..WRITERS)
            .map(|_| {
                let shift = rng.below(8) * unit;
                ByteRange::new(start + shift, (1 + rng.below(32)) * unit).expect("the disk is that large")
            })
            .collect();
        let mut tasks = LocalTasks::new(round);
        for (writer, &range) in ranges.iter().enumerate() {
            let bytes = SgList::copy_of(&vec![writer as u8 + 1; range.len() as usize]);
            tasks.spawn(async move { disk.write(range.start(), bytes, WriteFlags::default()).await });
        }
        tasks.await.into_iter().collect::<Result<Vec<_>, _>>().doing(|| "write in flight".to_owned())?;
        each_block_is_of_one_writer(disk, &ranges).await?;
    }
    Ok(())
}

async fn each_block_is_of_one_writer(disk: &Disk, ranges: &[ByteRange]) -> Checked {
    let unit = u64::from(disk.info().block_bytes);
    let starts: BTreeSet<u64> =
        ranges.iter().flat_map(|range| range.split_by(unit)).map(ByteRange::start).collect();
    for start in starts {
        let block = ByteRange::new(start, unit).expect("the block lies in a range");
        let found = disk.read_vec(start, unit as usize).await?;
        let writer = usize::from(found[0]).checked_sub(1);
        let one = found.iter().all(|byte| byte == &found[0]);
        let range = writer.and_then(|writer| ranges.get(writer)).filter(|range| range.contains(block));
        if !one || range.is_none() {
            let some: Vec<u8> = BTreeSet::from_iter(found).into_iter().collect();
            return Err(Finding(format!(
                "after overlapping writes {ranges:?}, block {block} holds bytes {some:?}"
            )));
        }
        if disk.read_vec(start, unit as usize).await?[0] != writer.map_or(0, |writer| writer as u8 + 1) {
            return Err(Finding(format!(
                "block {block} changes after the overlapping writes have completed"
            )));
        }
    }
    Ok(())
}

/// A flush succeeds on a sound device, alone and beside writes; FUA is accepted; neither changes content.
pub(super) async fn flush_and_fua(disk: &Disk) -> Checked {
    disk.flush().await.doing(|| "flush a fresh disk".to_owned())?;
    let mut bench = Bench::new(disk);
    for range in nasty_ranges(disk).into_iter().step_by(9) {
        bench.write(range).await?;
        let bytes = pattern(range.len(), range);
        let fua = disk.write(range.start(), SgList::copy_of(&bytes), WriteFlags { fua: true }).await;
        fua.doing(|| format!("write {range} with FUA"))?;
        bench.model.write(range.start(), &bytes);
        let (one, two) = futures_util::future::join(disk.flush(), disk.clone().flush()).await;
        one.and(two).doing(|| "flush twice at once".to_owned())?;
        bench.check(range).await?;
    }
    bench.check_all().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_written_beside_the_segments_is_noticed() {
        let scattered = scatter(&[3, 1, 2], Some(b"abcdef"));
        assert_eq!(scattered.list.to_vec(), b"abcdef");
        scattered.gaps_are_untouched().unwrap();
        scattered.memory.fill(scattered.gaps[1].start(), 1, 0);
        scattered.gaps_are_untouched().unwrap_err();
    }
}
