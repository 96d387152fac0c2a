//! Bits of a sector bitmap, inside one page of it.
//!
//! A sector's bit is 1 where the sector is in the file and 0 where it is the parent's; bit 0 of a byte is the lowest.
//! Source: MS-VHDX 2.5.2.

use super::pages::{PAGE_BYTES, PageBytes};

/// Bits in a page.
pub(super) const PAGE_BITS: u64 = PAGE_BYTES as u64 * 8;

/// Sets `count` bits from `from` to `value`; they lie in the page.
pub(super) fn set(page: &mut PageBytes, from: u64, count: u64, value: bool) {
    let (mut at, end) = (from as usize, (from + count) as usize);
    while at < end {
        let in_byte = (8 - at % 8).min(end - at);
        let mask = (0xff_u8 >> (8 - in_byte)) << (at % 8);
        let byte = &mut page[at / 8];
        *byte = if value { *byte | mask } else { *byte & !mask };
        at += in_byte;
    }
}

/// The bit at `from` and how many bits from there, up to `count`, are like it.
pub(super) fn run(page: &PageBytes, from: u64, count: u64) -> (bool, u64) {
    let (start, end) = (from as usize, (from + count) as usize);
    let bit = |at: usize| page[at / 8] >> (at % 8) & 1 == 1;
    let value = bit(start);
    let same = if value { 0xff } else { 0 };
    let mut at = start + 1;
    while at < end {
        if at.is_multiple_of(8) && page[at / 8] == same {
            at += 8;
        } else if bit(at) == value {
            at += 1;
        } else {
            break;
        }
    }
    (value, (at.min(end) - start) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_set() {
        let mut page = [0; PAGE_BYTES];
        set(&mut page, 3, 20, true);
        set(&mut page, 10, 2, false);
        set(&mut page, PAGE_BITS - 9, 9, true);
        assert_eq!(page[0], 0b1111_1000);
        let mut runs = Vec::new();
        let mut at = 0;
        while at < PAGE_BITS {
            let (value, count) = run(&page, at, PAGE_BITS - at);
            runs.push((value, count));
            at += count;
        }
        let rest = PAGE_BITS - 9 - 23;
        assert_eq!(runs, [(false, 3), (true, 7), (false, 2), (true, 11), (false, rest), (true, 9)]);
        assert_eq!(run(&page, 4, 2), (true, 2), "a run ends where the question does");
    }
}
