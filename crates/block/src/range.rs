//! Byte ranges.

use std::fmt;

/// A range of bytes whose end is known to fit in an `i64`, so that offset arithmetic inside it cannot overflow.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    len: u64,
}

impl ByteRange {
    /// The largest end that a range may have: the largest offset that the kernel's file interfaces can express.
    pub const END_MAX: u64 = i64::MAX as u64;

    /// A range of `len` bytes from `start`; `None` if it would end beyond [`Self::END_MAX`].
    pub const fn new(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) if end <= Self::END_MAX => Some(Self { start, len }),
            _ => None,
        }
    }

    /// The range `start..end`; `None` if `end` comes before `start` or lies beyond [`Self::END_MAX`].
    pub const fn between(start: u64, end: u64) -> Option<Self> {
        if end < start { None } else { Self::new(start, end - start) }
    }

    /// First byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Number of bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether there are no bytes in it.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether `self` and `other` have a byte in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether all of `other` lies in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The bytes that `self` and `other` have in common; `None` where that is nothing.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Self { start, len: end - start })
    }

    /// Splits the range at every multiple of `unit` bytes; every piece lies inside one unit. `unit` is not 0.
    pub fn split_by(self, unit: u64) -> impl Iterator<Item = Self> {
        assert!(unit > 0, "a range is split by a positive unit");
        let mut at = self.start;
        std::iter::from_fn(move || {
            if at >= self.end() {
                return None;
            }
            let stop = (at / unit + 1).checked_mul(unit).map_or(self.end(), |next| next.min(self.end()));
            let piece = Self { start: at, len: stop - at };
            at = stop;
            Some(piece)
        })
    }

    /// The part of the range that is made of whole units of `unit` bytes (rounded inwards); may be empty.
    pub fn whole_units(self, unit: u64) -> Self {
        let start = self.start.div_ceil(unit).saturating_mul(unit);
        let end = self.end() / unit * unit;
        if start >= end { Self { start: self.start, len: 0 } } else { Self { start, len: end - start } }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end())
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_beyond_the_largest_file_offset_are_refused() {
        assert!(ByteRange::new(ByteRange::END_MAX, 0).is_some());
        assert!(ByteRange::new(ByteRange::END_MAX, 1).is_none());
        assert!(ByteRange::new(u64::MAX, 2).is_none());
        assert!(ByteRange::between(5, 4).is_none());
    }

    #[test]
    fn pieces_of_a_split_are_gapless_and_stay_in_their_unit() {
        let range = ByteRange::new(5, 20).unwrap();
        let pieces: Vec<_> = range.split_by(8).map(|p| (p.start(), p.len())).collect();
        assert_eq!(pieces, [(5, 3), (8, 8), (16, 8), (24, 1)]);
        assert_eq!(ByteRange::new(3, 0).unwrap().split_by(8).count(), 0);
    }

    #[test]
    fn whole_units_round_inwards() {
        let whole = |start, len| {
            let r = ByteRange::new(start, len).unwrap().whole_units(8);
            (r.start(), r.len())
        };
        assert_eq!(whole(5, 20), (8, 16));
        assert_eq!(whole(0, 8), (0, 8));
        assert_eq!(whole(1, 14).1, 0);
    }
}
