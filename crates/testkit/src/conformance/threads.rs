//! One disk, several threads: the lines "Visibility" and "Order" where requests really run at the same time.

use std::sync::{Arc, Barrier, Mutex};

use block::{ByteRange, Disk, SgList, WriteFlags, ZeroFlags};

use super::{Checked, Doing as _, Finding, ThreadFuture, Violation};
use crate::pattern;

const THREADS: u64 = 4;
const ROUNDS: u64 = 24;
/// Blocks that each thread has in a round.
const BLOCKS: u64 = 48;

/// What goes wrong when each thread changes every fourth block, and then all read what all wrote.
pub(super) fn violations(disk: &Disk, run: impl Fn(ThreadFuture) + Sync) -> Vec<Violation> {
    let (barrier, findings) = (Barrier::new(THREADS as usize), Findings::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (barrier, run, findings) = (&barrier, &run, findings.clone());
            scope.spawn(move || {
                // A thread that finds something goes on, or the others would wait for it for ever.
                for round in 0..ROUNDS {
                    let (handle, keep) = (disk.clone(), findings.clone());
                    run(Box::pin(async move { keep.add("Order", change(&handle, thread, round).await) }));
                    barrier.wait();
                    let (handle, keep) = (disk.clone(), findings.clone());
                    run(Box::pin(async move { keep.add("Visibility", look(&handle, round).await) }));
                    barrier.wait();
                }
            });
        }
    });
    let mut found = findings.0.lock().expect("no thread panics while it holds the lock");
    std::mem::take(&mut *found)
}

#[derive(Clone, Default)]
struct Findings(Arc<Mutex<Vec<Violation>>>);

impl Findings {
    fn add(&self, line: &'static str, found: Checked) {
        let found = found.err().map(|finding| Violation { line, finding: finding.0 });
        self.0.lock().expect("no thread panics while it holds the lock").extend(found);
    }
}

/// The block with this number in a round. Rounds lie apart, so that each meets space that nobody has touched.
fn block(disk: &Disk, round: u64, number: u64) -> ByteRange {
    let unit = u64::from(disk.info().block_bytes).max(512);
    let start = disk.size() / ROUNDS * round / unit * unit + number * unit;
    ByteRange::new(start, unit).expect("a round lies on the disk")
}

/// What a block holds after a round: `None` for zeroes.
fn stamp(round: u64, number: u64) -> Option<u64> {
    (!number.is_multiple_of(5)).then_some(1 + round * 1000 + number)
}

async fn change(disk: &Disk, thread: u64, round: u64) -> Checked {
    for number in (thread..THREADS * BLOCKS).step_by(THREADS as usize) {
        let range = block(disk, round, number);
        let doing = || format!("thread {thread} changes {range}");
        let bytes = SgList::copy_of(&pattern(stamp(round, number).unwrap_or(7), range));
        disk.write(range.start(), bytes, WriteFlags { fua: number % 16 == 3 }).await.doing(doing)?;
        if stamp(round, number).is_none() {
            let flags = ZeroFlags { may_unmap: true, ..ZeroFlags::default() };
            disk.write_zeroes(range, flags).await.doing(doing)?;
        }
        check(disk, round, number).await.doing(|| format!("thread {thread} reads what it wrote"))?;
        if number % 32 == thread {
            disk.flush().await.doing(doing)?;
            disk.block_status(range, &mut Vec::new()).await.doing(doing)?;
        }
    }
    Ok(())
}

async fn look(disk: &Disk, round: u64) -> Checked {
    for number in 0..THREADS * BLOCKS {
        check(disk, round, number)
            .await
            .doing(|| "after all threads wrote blocks beside each other".to_owned())?;
    }
    Ok(())
}

async fn check(disk: &Disk, round: u64, number: u64) -> Checked {
    let range = block(disk, round, number);
    let found = disk.read_vec(range.start(), range.len() as usize).await?;
    let expected = pattern(stamp(round, number).unwrap_or(0), range);
    if found == expected {
        return Ok(());
    }
    let what = if found.iter().all(|&byte| byte == 0) { "zeroes" } else { "something else" };
    Err(Finding(format!("block {range} holds {what}, and not what its only writer has put there")))
}
