//! The lines "write_zeroes" and "discard".

use block::{ByteRange, Discard, Disk, ErrorKind, ZeroFlags};

use super::bench::{Bench, nasty_ranges};
use super::{Checked, Doing as _, Finding};

/// Everything around the ranges holds data before, so that zeroes which reach too far or not far enough show.
async fn full(disk: &Disk) -> Result<Bench<'_>, Finding> {
    const PIECE_BYTES: u64 = 1 << 20;
    // Of a large disk only what the ranges touch.
    let mut bench = Bench::new(disk);
    let touched = nasty_ranges(disk);
    for piece in disk.range().split_by(PIECE_BYTES) {
        if touched.iter().any(|range| range.overlaps(piece)) {
            bench.write(piece).await?;
        }
    }
    Ok(bench)
}

/// The range reads as zeroes, whatever the flags, and nothing beside it does.
pub(super) async fn write_zeroes(disk: &Disk) -> Checked {
    let mut bench = full(disk).await?;
    for (index, range) in nasty_ranges(disk).into_iter().enumerate() {
        let flags = ZeroFlags { fua: index % 16 == 0, may_unmap: index % 2 == 0, fast_only: false };
        bench.zeroes(range, flags).await?;
        bench.check_around(range).await.doing(|| format!("after write_zeroes {range} with {flags:?}"))?;
        if index % 3 == 0 {
            bench.write(range).await?;
            bench.check_around(range).await.doing(|| format!("after a write of the zeroed {range}"))?;
        }
    }
    bench.check_all().await?;
    let flags = ZeroFlags { may_unmap: true, ..ZeroFlags::default() };
    bench.zeroes(disk.range(), flags).await?;
    bench.check_all().await.doing(|| "after write_zeroes of the whole disk".to_owned())
}

/// `fast_only` gives zeroes or fails with `Unsupported` and changes nothing.
pub(super) async fn fast_zeroes(disk: &Disk) -> Checked {
    let mut bench = full(disk).await?;
    let mut successes = 0;
    for (index, range) in nasty_ranges(disk).into_iter().chain([disk.range()]).enumerate() {
        let flags = ZeroFlags { fua: false, may_unmap: index % 4 != 1, fast_only: true };
        match disk.write_zeroes(range, flags).await {
            Ok(()) => {
                successes += 1;
                bench.model.zeroes(range);
                bench.model.flush();
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => {
                return Err(Finding(format!("write_zeroes {range} with {flags:?} gives {error:?}")));
            }
        }
        bench.check_around(range).await.doing(|| format!("after write_zeroes {range} with {flags:?}"))?;
    }
    bench.check_all().await?;
    if (successes > 0) != disk.info().fast_zeroes {
        let says = disk.info().fast_zeroes;
        return Err(Finding(format!(
            "info().fast_zeroes is {says}, but {successes} requests with fast_only succeeded"
        )));
    }
    Ok(())
}

/// Afterwards reads follow `info().discard`, again and again, and nothing beside the range changes.
pub(super) async fn discard(disk: &Disk) -> Checked {
    let mut bench = full(disk).await?;
    for (index, range) in nasty_ranges(disk).into_iter().enumerate() {
        bench.discard(range).await?;
        let discarded =
            || format!("after a discard of {range} on a device that says {:?}", disk.info().discard);
        bench.check_around(range).await.doing(discarded)?;
        if index % 5 == 0 {
            disk.flush().await?;
        }
        // The model has learned what the discard left; it must stay.
        bench.check_around(range).await.doing(|| format!("read again {}", discarded()))?;
        if index % 3 == 0 {
            bench.write(range).await?;
            bench.check_around(range).await.doing(|| format!("after a write of the discarded {range}"))?;
        }
    }
    bench.check_all().await?;
    bench.discard(disk.range()).await?;
    bench.check_all().await.doing(|| "after a discard of the whole disk".to_owned())
}

/// What was freed and is used again never shows what it held: not elsewhere, and not when it grows back.
pub(super) async fn discard_exposes_nothing(disk: &Disk) -> Checked {
    let mut bench = Bench::new(disk);
    let half = disk.size() / 2 / u64::from(disk.info().block_bytes) * u64::from(disk.info().block_bytes);
    let (unit, piece) = (u64::from(disk.info().block_bytes), (1 << 20).min(half));
    let pieces = |start: u64| {
        let end = (start + 8 * piece).min(start + half);
        ByteRange::between(start, end).expect("half of the disk lies on it").split_by(piece)
    };
    for range in pieces(0) {
        bench.write(range).await?;
    }
    let zero = ZeroFlags { may_unmap: true, ..ZeroFlags::default() };
    for range in pieces(0) {
        bench.discard(range).await?;
        if disk.info().discard == Discard::Ignored {
            bench.zeroes(range, zero).await?;
        }
    }
    disk.flush().await?;
    // One block of each piece of the other half takes space that was freed; the rest of the piece must read as zeroes.
    for range in pieces(half) {
        let part = ByteRange::new(range.start(), unit).expect("a piece has a block");
        bench.write(part).await?;
        bench
            .check(range)
            .await
            .doing(|| format!("the rest of {range}, of which only {part} was written"))?;
    }
    for range in pieces(0) {
        let part = ByteRange::new(range.end() - unit, unit).expect("a piece has a block");
        bench.write(part).await?;
        bench
            .check(range)
            .await
            .doing(|| format!("the rest of {range}, discarded, of which {part} was written again"))?;
    }
    bench.check_all().await
}
