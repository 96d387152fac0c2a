//! Which of the pending changes a power cut leaves, and in what form.

use std::sync::Arc;

use block::ByteRange;

use super::{Change, Effect};
use crate::{Rng, SparseBytes};

/// What becomes of the pending changes at a power cut. The same value gives the same disk every time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// All are lost.
    Nothing,
    /// All are there, those in flight too.
    All,
    /// The first of them, this many, are there, in the order in which they landed.
    Prefix(usize),
    /// Exactly those are there whose bit is set, the first pending change at bit 0: to go through all subsets.
    Mask(u64),
    /// A random selection is there, applied in a random order.
    Subset {
        /// Decides which and how.
        seed: u64,
    },
    /// As `Subset`, and each change may be there in part.
    Torn {
        /// Decides which and how.
        seed: u64,
        /// What the medium writes atomically: 512 or 4096 for disks.
        unit_bytes: u64,
    },
    /// The program died, not the machine: what landed is there, what was in flight may be, in part.
    Killed {
        /// Decides which and how.
        seed: u64,
    },
}

/// A change that is not durable at the cut.
pub(super) struct Pending<'a> {
    pub(super) change: &'a Arc<Change>,
    pub(super) landed: bool,
}

impl Pending<'_> {
    fn is_resize(&self) -> bool {
        matches!(self.change.effect, Effect::Resize)
    }

    /// Whether the disk promised that the change is durable.
    fn is_promised(&self) -> bool {
        self.landed && self.change.fua
    }

    /// Whether no other change may be moved past this one.
    fn is_barrier(&self) -> bool {
        self.is_resize() || self.is_promised()
    }
}

/// The fate of a pending change: the parts of it that are found.
enum Fate {
    Lost,
    Whole,
    Parts(Vec<ByteRange>),
}

/// The writes that a file system's page cache passes on are torn at its pages and at nothing smaller than a sector.
const KILLED_UNIT_BYTES: u64 = 4096;

/// Applies to `image` what `survival` leaves of `pending`, which is in the order of landing.
pub(super) fn survive(image: &mut SparseBytes, pending: &[Pending<'_>], survival: Survival) {
    let mut fates = fates(pending, survival);
    keep_promises(pending, &mut fates);
    let mut order: Vec<usize> = (0..pending.len()).collect();
    if let Survival::Subset { seed } | Survival::Torn { seed, .. } = survival {
        reorder(&mut order, pending, &mut Rng::new(!seed));
    }
    for index in order {
        let change = pending[index].change;
        match &fates[index] {
            Fate::Lost => {}
            Fate::Whole => change.apply(image, change.range()),
            Fate::Parts(parts) => parts.iter().for_each(|&part| change.apply(image, part)),
        }
    }
}

fn fates(pending: &[Pending<'_>], survival: Survival) -> Vec<Fate> {
    let whole_if = |kept: bool| if kept { Fate::Whole } else { Fate::Lost };
    let each = 0..pending.len();
    match survival {
        Survival::Nothing => each.map(|_| Fate::Lost).collect(),
        Survival::All => each.map(|_| Fate::Whole).collect(),
        Survival::Prefix(count) => each.map(|index| whole_if(index < count)).collect(),
        Survival::Mask(mask) => each.map(|index| whole_if(index < 64 && mask >> index & 1 == 1)).collect(),
        Survival::Subset { seed } => {
            select(pending.len(), &mut Rng::new(seed)).into_iter().map(whole_if).collect()
        }
        Survival::Torn { seed, unit_bytes } => {
            let mut rng = Rng::new(seed);
            let kept = select(pending.len(), &mut rng);
            let fate = |(pending, kept): (&Pending<'_>, bool)| {
                if kept { torn(pending, unit_bytes, &mut rng) } else { Fate::Lost }
            };
            pending.iter().zip(kept).map(fate).collect()
        }
        Survival::Killed { seed } => {
            let mut rng = Rng::new(seed);
            let fate = |pending: &Pending<'_>| match pending.landed {
                true => Fate::Whole,
                false if rng.one_in(2) => Fate::Lost,
                false => torn(pending, KILLED_UNIT_BYTES, &mut rng),
            };
            pending.iter().map(fate).collect()
        }
    }
}

/// Makes the changes with completed FUA whole, and gives pending resizes the order that file systems keep: a later one
/// is there only if the earlier ones are, and all are that came before something promised.
fn keep_promises(pending: &[Pending<'_>], fates: &mut [Fate]) {
    let promised = pending.iter().rposition(Pending::is_promised);
    let mut resizes_survive = true;
    for (index, (pending, fate)) in pending.iter().zip(fates).enumerate() {
        if pending.is_promised() {
            *fate = Fate::Whole;
        }
        if pending.is_resize() {
            let must = promised.is_some_and(|promised| index < promised);
            resizes_survive = must || resizes_survive && !matches!(fate, Fate::Lost);
            *fate = if resizes_survive { Fate::Whole } else { Fate::Lost };
        }
    }
}

/// Which of `count` changes are kept. The rare cases are the ones that break software, so they get their share: one
/// change alone is there, or one alone is missing.
fn select(count: usize, rng: &mut Rng) -> Vec<bool> {
    if count == 0 {
        return Vec::new();
    }
    let one = rng.below(count as u64) as usize;
    let style = rng.below(5);
    let keep = |index| match style {
        0 => index == one,
        1 => index != one,
        2 => rng.one_in(8),
        3 => !rng.one_in(8),
        _ => rng.one_in(2),
    };
    (0..count).map(keep).collect()
}

/// Shuffles the changes between barriers.
fn reorder(order: &mut [usize], pending: &[Pending<'_>], rng: &mut Rng) {
    for segment in order.split_mut(|&index| pending[index].is_barrier()) {
        rng.shuffle(segment);
    }
}

/// Most units that are decided one by one; longer changes are cut into runs.
const UNITS_MAX: u64 = 1024;
/// Most borders between the runs of a long change.
const RUN_BORDERS_MAX: u64 = 16;

/// A random part of a change, in whole units: all, the head, the tail, units here and there, or runs of units.
fn torn(pending: &Pending<'_>, unit: u64, rng: &mut Rng) -> Fate {
    let range = pending.change.range();
    if range.is_empty() {
        return Fate::Whole;
    }
    let units = (range.end() - 1) / unit - range.start() / unit + 1;
    let border = |index: u64| ((range.start() / unit + index) * unit).clamp(range.start(), range.end());
    let between = |from: u64, to: u64| ByteRange::between(border(from), border(to)).expect("borders ascend");
    let cut = rng.below(units + 1);
    let parts = match rng.below(5) {
        0 => return Fate::Whole,
        1 => vec![between(0, cut)],
        2 => vec![between(cut, units)],
        3 if units <= UNITS_MAX => {
            (0..units).filter(|_| rng.one_in(2)).map(|index| between(index, index + 1)).collect()
        }
        _ => {
            let mut borders: Vec<u64> =
                (0..rng.below(RUN_BORDERS_MAX) + 1).map(|_| rng.below(units + 1)).collect();
            borders.extend([0, units]);
            borders.sort_unstable();
            let first = rng.below(2) as usize;
            borders.windows(2).skip(first).step_by(2).map(|run| between(run[0], run[1])).collect()
        }
    };
    Fate::Parts(parts)
}
