//! Sizes as people write and read them.
//!
//! The letters mean what they mean to QEMU: `K`, `M`, `G`, `T`, `P` and `E` are powers of 1024, in either case. A size
//! is exact or refused; nothing is rounded in silence.

use std::fmt;
use std::str::FromStr;

/// Letters of the powers of 1024, from the first.
const LETTERS: [char; 6] = ['k', 'm', 'g', 't', 'p', 'e'];
/// Digits after the point that are looked at; more cannot make a whole number of bytes of any unit.
const FRACTION_DIGITS_MAX: usize = 60;

/// A number of bytes from the command line, or for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    /// The number of bytes.
    pub(crate) bytes: u64,
}

impl Size {
    pub(crate) const fn of(bytes: u64) -> Self {
        Self { bytes }
    }
}

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// There is no number at the start.
    NoNumber,
    /// What follows the number is no unit.
    UnknownUnit(String),
    /// A unit that means a power of 1000 to some and of 1024 to others.
    AmbiguousUnit { written: String, binary: String },
    /// The size is not a whole number of bytes.
    NotWhole,
    /// The size does not fit.
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNumber => f.write_str("a size begins with a number: 512, 64K, 1.5G"),
            Self::UnknownUnit(unit) => {
                write!(
                    f,
                    "{unit:?} is no unit; use K, M, G, T, P or E for powers of 1024, or nothing for bytes"
                )
            }
            Self::AmbiguousUnit { written, binary } => {
                write!(
                    f,
                    "{written:?} may mean a power of 1000 or of 1024; write {binary} for the power of 1024"
                )
            }
            Self::NotWhole => f.write_str("that is not a whole number of bytes"),
            Self::TooLarge => f.write_str("that is more than 2^63-1 bytes, the largest a file can have"),
        }
    }
}

impl std::error::Error for SizeError {}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
            return Err(SizeError::NoNumber);
        }
        let shift = shift_of(unit)?;
        let whole: u64 = whole.parse().map_err(|_| SizeError::TooLarge)?;
        let bytes = whole.checked_mul(1 << shift).ok_or(SizeError::TooLarge)?;
        let bytes = bytes.checked_add(fraction_bytes(fraction, shift)?).ok_or(SizeError::TooLarge)?;
        if bytes > i64::MAX as u64 {
            return Err(SizeError::TooLarge);
        }
        Ok(Self { bytes })
    }
}

/// The power of two that a unit stands for.
fn shift_of(unit: &str) -> Result<u32, SizeError> {
    let lower = unit.to_ascii_lowercase();
    let mut chars = lower.chars();
    let Some(first) = chars.next() else { return Ok(0) };
    let rest = chars.as_str();
    if first == 'b' && rest.is_empty() {
        return Ok(0);
    }
    let Some(power) = LETTERS.iter().position(|&letter| letter == first) else {
        return Err(SizeError::UnknownUnit(unit.to_owned()));
    };
    match rest {
        "" | "ib" => Ok(10 * (power as u32 + 1)),
        "b" => Err(SizeError::AmbiguousUnit {
            written: unit.to_owned(),
            binary: first.to_ascii_uppercase().to_string(),
        }),
        _ => Err(SizeError::UnknownUnit(unit.to_owned())),
    }
}

/// The bytes in the decimal `fraction` of a unit of `1 << shift` bytes, in exact arithmetic.
fn fraction_bytes(fraction: &str, shift: u32) -> Result<u64, SizeError> {
    let digits = fraction.trim_end_matches('0');
    if digits.len() > FRACTION_DIGITS_MAX {
        return Err(SizeError::NotWhole);
    }
    // Long multiplication of the digits by the unit, from the last digit; what carries out on the left is whole bytes.
    let mut bytes: u64 = 0;
    for digit in digits.bytes().rev() {
        let sum = (u128::from(digit - b'0') << shift) + u128::from(bytes);
        if !sum.is_multiple_of(10) {
            return Err(SizeError::NotWhole);
        }
        bytes = u64::try_from(sum / 10).map_err(|_| SizeError::TooLarge)?;
    }
    Ok(bytes)
}

/// For people: exact where a unit divides the size, else with two digits after the point.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = self.bytes.checked_ilog2().unwrap_or(0) / 10;
        if power == 0 {
            return write!(f, "{} B", self.bytes);
        }
        let unit = 1_u64 << (10 * power);
        let letter = LETTERS[power as usize - 1].to_ascii_uppercase();
        if self.bytes.is_multiple_of(unit) {
            return write!(f, "{} {letter}iB", self.bytes / unit);
        }
        write!(f, "{:.2} {letter}iB", self.bytes as f64 / unit as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<u64, SizeError> {
        text.parse::<Size>().map(|size| size.bytes)
    }

    #[test]
    fn sizes_mean_what_they_mean_to_qemu() {
        for (text, expected) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("64K", 65536),
            ("64k", 65536),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("64T", 64 << 40),
            ("1.5G", 3 << 29),
            ("1.50G", 3 << 29),
            ("0.0009765625K", 1),
            ("7.999999999999999999132638262011596452794037759304046630859375E", (8 << 60) - 1),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_exact_size_is_refused_with_the_way_out() {
        for text in ["", "G", "-1", ".5G", "1.", "1.2.3", " 1", "+1"] {
            assert_eq!(bytes(text), Err(SizeError::NoNumber), "{text:?}");
        }
        for text in ["0.1K", "1.5", "1.0000000000000001G"] {
            assert_eq!(bytes(text), Err(SizeError::NotWhole), "{text:?}");
        }
        for text in ["8E", "9223372036854775808", "99999999999999999999", "1000000000E"] {
            assert_eq!(bytes(text), Err(SizeError::TooLarge), "{text:?}");
        }
        for text in ["1X", "1 G", "1Gi", "1e3", "1Kb1", "1é"] {
            assert!(matches!(bytes(text), Err(SizeError::UnknownUnit(_))), "{text:?}: {:?}", bytes(text));
        }
        let ambiguous = bytes("10GB").expect_err("GB means two things").to_string();
        assert!(ambiguous.contains("write G for"), "{ambiguous}");
    }

    #[test]
    fn people_read_the_unit_that_fits() {
        let show = |bytes| Size::of(bytes).to_string();
        assert_eq!(show(0), "0 B");
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(1 << 20), "1 MiB");
        assert_eq!(show((1 << 30) + (1 << 29)), "1.50 GiB");
        assert_eq!(show(64 << 40), "64 TiB");
    }
}
