//! Which parts of the host file are taken.
//!
//! One bit for each MiB, because nothing in a VHDX file is aligned to less. Pages of bits exist only where something
//! is taken, so an empty disk of any size costs nothing and a full one of 64 TiB costs 8 MiB.

use std::collections::BTreeMap;
use std::fmt;

use block::ByteRange;
use uuid::Uuid;

use super::layout::{HEADER_AREA_BYTES, MIB};

/// What has taken a part of the host file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The first MiB.
    HeaderArea,
    /// The log.
    Log,
    /// A region of the region table.
    Region(Uuid),
    /// A payload block or a sector bitmap.
    Block,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderArea => f.write_str("header area"),
            Self::Log => f.write_str("log"),
            Self::Region(guid) => write!(f, "region {guid}"),
            Self::Block => f.write_str("space of another block"),
        }
    }
}

/// Why a range could not be claimed: part of it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// First byte of the first MiB that is taken.
    pub offset: u64,
    /// By whom.
    pub owner: Owner,
}

const PAGE_WORDS: usize = 512;
/// Units of 1 MiB in a page of bits.
const PAGE_UNITS: u64 = PAGE_WORDS as u64 * 64;

#[derive(Clone)]
struct Page {
    words: [u64; PAGE_WORDS],
    used: u32,
}

/// The taken parts of the host file, in units of 1 MiB.
///
/// Ranges given to it start and end at multiples of 1 MiB.
#[derive(Clone, Default)]
pub struct SpaceMap {
    pages: BTreeMap<u64, Box<Page>>,
    /// Header area, log and regions: few, and named when something collides with them.
    structures: Vec<(ByteRange, Owner)>,
    used: u64,
}

impl SpaceMap {
    /// A map in which only the header area is taken.
    pub fn new() -> Self {
        let mut map = Self::default();
        let header = ByteRange::new(0, HEADER_AREA_BYTES).expect("the header area is 1 MiB");
        map.claim_structure(header, Owner::HeaderArea).expect("an empty map has room");
        map
    }

    /// Takes `range` for the log or a region.
    ///
    /// # Errors
    /// Who has the first taken part of it; nothing is changed then.
    pub fn claim_structure(&mut self, range: ByteRange, owner: Owner) -> Result<(), Taken> {
        self.claim(range)?;
        self.structures.push((range, owner));
        Ok(())
    }

    /// Takes `range`, which was free, for a block.
    ///
    /// # Errors
    /// Who has the first taken part of it; nothing is changed then.
    pub fn claim(&mut self, range: ByteRange) -> Result<(), Taken> {
        if let Some(unit) = self.first_used(range) {
            let offset = unit * MIB;
            return Err(Taken { offset, owner: self.owner_of(offset) });
        }
        self.set(range, true);
        Ok(())
    }

    /// Gives `range` back, all of which was taken by [`Self::claim`].
    ///
    /// # Panics
    /// If part of it was free: two owners would think that they have it.
    pub fn release(&mut self, range: ByteRange) {
        assert!(self.first_free(range).is_none(), "space that is released was taken: {range}");
        self.set(range, false);
    }

    /// Whether any part of `range` is taken.
    pub fn is_used(&self, range: ByteRange) -> bool {
        self.first_used(range).is_some()
    }

    /// The first free stretch of `len` bytes, a multiple of 1 MiB, that starts at `from` or later and ends at
    /// [`Self::end`] or before. `None` where there is none and the file has to grow.
    pub fn find_free(&self, len: u64, from: u64) -> Option<u64> {
        let (need, end) = (units(len), units(self.end()));
        let mut at = from.div_ceil(MIB);
        while at + need <= end {
            match self.last_used_unit(at, at + need) {
                None => return Some(at * MIB),
                Some(used) => at = self.next_free_unit(used + 1, end)?,
            }
        }
        None
    }

    /// One past the last taken byte: the smallest length that the file can have.
    pub fn end(&self) -> u64 {
        let Some((index, page)) = self.pages.last_key_value() else { return 0 };
        let (word, bits) =
            page.words.iter().enumerate().rev().find(|(_, bits)| **bits != 0).expect("a page has a bit set");
        (index * PAGE_UNITS + word as u64 * 64 + u64::from(64 - bits.leading_zeros())) * MIB
    }

    /// Bytes that are taken.
    pub fn used_bytes(&self) -> u64 {
        self.used * MIB
    }

    /// Header area, log and regions, as they were claimed.
    pub fn structures(&self) -> &[(ByteRange, Owner)] {
        &self.structures
    }

    /// The free stretches before [`Self::end`], ascending.
    pub fn free_ranges(&self) -> impl Iterator<Item = ByteRange> {
        let end = units(self.end());
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next_free_unit(at, end)?;
            let stop = self.next_used_unit(start, end).unwrap_or(end);
            at = stop;
            ByteRange::between(start * MIB, stop * MIB)
        })
    }

    fn owner_of(&self, offset: u64) -> Owner {
        let here = |(range, _): &&(ByteRange, Owner)| range.start() <= offset && offset < range.end();
        self.structures.iter().find(here).map_or(Owner::Block, |(_, owner)| *owner)
    }

    fn first_used(&self, range: ByteRange) -> Option<u64> {
        let (start, end) = unit_range(range);
        self.next_used_unit(start, end)
    }

    fn first_free(&self, range: ByteRange) -> Option<u64> {
        let (start, end) = unit_range(range);
        self.next_free_unit(start, end)
    }

    /// The first taken unit in `start..end`.
    fn next_used_unit(&self, start: u64, end: u64) -> Option<u64> {
        let mut at = start;
        while at < end {
            // Skip to the next page that exists.
            let (&index, page) = self.pages.range(at / PAGE_UNITS..).next()?;
            at = at.max(index * PAGE_UNITS);
            let stop = end.saturating_sub(index * PAGE_UNITS).min(PAGE_UNITS);
            if let Some(bit) = next_bit(&page.words, at % PAGE_UNITS, stop, false) {
                return Some(index * PAGE_UNITS + bit);
            }
            at = (index + 1) * PAGE_UNITS;
        }
        None
    }

    /// The first free unit in `start..end`.
    fn next_free_unit(&self, start: u64, end: u64) -> Option<u64> {
        let mut at = start;
        while at < end {
            let index = at / PAGE_UNITS;
            let Some(page) = self.pages.get(&index) else { return Some(at) };
            let stop = (end - index * PAGE_UNITS).min(PAGE_UNITS);
            if u64::from(page.used) < PAGE_UNITS
                && let Some(bit) = next_bit(&page.words, at % PAGE_UNITS, stop, true)
            {
                return Some(index * PAGE_UNITS + bit);
            }
            at = (index + 1) * PAGE_UNITS;
        }
        None
    }

    /// The last taken unit in `start..end`, so that a search can go on after it.
    fn last_used_unit(&self, start: u64, end: u64) -> Option<u64> {
        let mut last = None;
        let mut at = start;
        while let Some(used) = self.next_used_unit(at, end) {
            let stop = self.next_free_unit(used, end).unwrap_or(end);
            last = Some(stop - 1);
            at = stop;
        }
        last
    }

    fn set(&mut self, range: ByteRange, used: bool) {
        let (start, end) = unit_range(range);
        let mut at = start;
        while at < end {
            let index = at / PAGE_UNITS;
            let stop = end.min((index + 1) * PAGE_UNITS);
            let page =
                self.pages.entry(index).or_insert_with(|| Box::new(Page { words: [0; PAGE_WORDS], used: 0 }));
            set_bits(&mut page.words, at % PAGE_UNITS, stop - at, used);
            let count = u32::try_from(stop - at).expect("a page has few units");
            page.used = if used { page.used + count } else { page.used - count };
            if page.used == 0 {
                self.pages.remove(&index);
            }
            at = stop;
        }
        self.used = if used { self.used + (end - start) } else { self.used - (end - start) };
    }
}

impl fmt::Debug for SpaceMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpaceMap({} MiB of {} MiB taken)", self.used, units(self.end()))
    }
}

fn units(bytes: u64) -> u64 {
    assert!(bytes.is_multiple_of(MIB), "space is counted in units of 1 MiB");
    bytes / MIB
}

fn unit_range(range: ByteRange) -> (u64, u64) {
    (units(range.start()), units(range.end()))
}

/// The first bit in `from..to` that is set, or clear where `invert`.
fn next_bit(words: &[u64; PAGE_WORDS], from: u64, to: u64, invert: bool) -> Option<u64> {
    let mut at = from;
    while at < to {
        let word = words[(at / 64) as usize];
        let bits = (if invert { !word } else { word }) & (u64::MAX << (at % 64));
        if bits != 0 {
            let bit = at / 64 * 64 + u64::from(bits.trailing_zeros());
            return (bit < to).then_some(bit);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

fn set_bits(words: &mut [u64; PAGE_WORDS], from: u64, count: u64, value: bool) {
    let mut at = from;
    while at < from + count {
        let in_word = (64 - at % 64).min(from + count - at);
        let mask = if in_word == 64 { u64::MAX } else { ((1 << in_word) - 1) << (at % 64) };
        let word = &mut words[(at / 64) as usize];
        *word = if value { *word | mask } else { *word & !mask };
        at += in_word;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start * MIB, len * MIB).unwrap()
    }

    #[test]
    fn a_collision_names_who_has_the_space() {
        let mut map = SpaceMap::new();
        map.claim_structure(range(1, 2), Owner::Log).unwrap();
        map.claim(range(5, 2)).unwrap();
        assert_eq!(map.claim(range(0, 1)), Err(Taken { offset: 0, owner: Owner::HeaderArea }));
        assert_eq!(map.claim(range(2, 9)), Err(Taken { offset: 2 * MIB, owner: Owner::Log }));
        assert_eq!(map.claim(range(4, 3)), Err(Taken { offset: 5 * MIB, owner: Owner::Block }));
        assert_eq!((map.end(), map.used_bytes()), (7 * MIB, 5 * MIB));
    }

    #[test]
    fn a_map_of_far_apart_blocks_stays_small() {
        let mut map = SpaceMap::new();
        map.claim(range(64 << 20, 256)).unwrap();
        assert_eq!(map.pages.len(), 2);
        assert_eq!(map.find_free(256 * MIB, 0), Some(MIB));
        map.release(range(64 << 20, 256));
        assert_eq!((map.pages.len(), map.end()), (1, MIB));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_map_agrees_with_a_set_of_units(
            steps in prop::collection::vec((0u64..70_000, prop_oneof![1u64..70, Just(32_768u64)], any::<bool>()), 1..40),
            wanted in 1u64..300, from in 0u64..70_000,
        ) {
            let (mut map, mut model) = (SpaceMap::new(), BTreeSet::from([0u64]));
            for (start, len, claim) in steps {
                let taken = (start..start + len).find(|unit| model.contains(unit));
                if claim {
                    prop_assert_eq!(map.claim(range(start, len)).err().map(|t| t.offset / MIB), taken);
                    if taken.is_none() {
                        model.extend(start..start + len);
                    }
                } else if let Some(first) = taken.filter(|first| *first > 0) {
                    let last = (first..).find(|unit| !model.contains(unit)).unwrap();
                    map.release(range(first, last - first));
                    model.retain(|unit| !(first..last).contains(unit));
                }
            }
            let end = model.last().unwrap() + 1;
            prop_assert_eq!(map.end() / MIB, end);
            prop_assert_eq!(map.used_bytes() / MIB, model.len() as u64);
            let mut run = 0;
            let mut expected = None;
            for unit in from..end {
                run = if model.contains(&unit) { 0 } else { run + 1 };
                if run == wanted {
                    expected = Some(unit + 1 - wanted);
                    break;
                }
            }
            prop_assert_eq!(map.find_free(wanted * MIB, from * MIB).map(|offset| offset / MIB), expected);
            let free: u64 = map.free_ranges().map(|r| r.len() / MIB).sum();
            prop_assert_eq!(free, end - model.len() as u64);
        }
    }
}
