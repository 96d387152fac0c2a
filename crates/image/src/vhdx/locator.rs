//! The parent locator of a differencing disk: which state of which file its content depends on.
//!
//! It is a list of keys and values in UTF-16. `parent_linkage` holds the parent's DataWriteGuid as it was when the
//! child was made; `parent_linkage2` a second one that also fits, which a merge uses. The paths are hints, tried in
//! order. Source: MS-VHDX 2.6.2.6.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::LocatorFault;
use super::layout::{GuidLe, ITEM_BYTES_MAX, PARENT_LOCATOR_TYPE};

/// The most pairs of a locator.
pub const PAIR_COUNT_MAX: u16 = 256;

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
const RELATIVE: &str = "relative_path";
const VOLUME: &str = "volume_path";
const ABSOLUTE: &str = "absolute_win32_path";

/// A parent locator, checked: it has a linkage, every key and value is text, no key is there twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLocator {
    linkage: Uuid,
    linkage2: Option<Uuid>,
    pairs: Vec<(String, String)>,
}

/// Why a path cannot be written into a parent locator.
#[derive(Debug, Error)]
pub enum PathError {
    /// The path is not text, and a locator holds only text.
    #[error("the path {0:?} is not valid unicode, which a parent locator needs")]
    NotUnicode(PathBuf),
    /// The path is longer than a locator's value.
    #[error("the path {0:?} is longer than the 32767 utf-16 units that a parent locator holds")]
    TooLong(PathBuf),
    /// The path cannot be made absolute.
    #[error("make the path {path:?} absolute")]
    Absolute {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    locator_type: GuidLe,
    reserved: U16,
    pair_count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPair {
    key_offset: U32,
    value_offset: U32,
    key_len: U16,
    value_len: U16,
}

impl ParentLocator {
    /// A locator for a child in `child_dir` of the parent at `parent`, whose DataWriteGuid is `linkage`.
    ///
    /// The parent is named by a relative path as Windows writes it (`.\base.vhdx`), which programs on every system
    /// read, and by an absolute path of this host.
    ///
    /// # Errors
    /// A path that is not text, or too long.
    pub fn for_parent(linkage: Uuid, child_dir: &Path, parent: &Path) -> Result<Self, PathError> {
        let (child_dir, parent) = (absolute(child_dir)?, absolute(parent)?);
        let text = |path: &Path| match path.to_str() {
            Some(text) if text.encode_utf16().count() * 2 <= u16::MAX.into() => Ok(text.to_owned()),
            Some(_) => Err(PathError::TooLong(path.to_owned())),
            None => Err(PathError::NotUnicode(path.to_owned())),
        };
        let relative = text(&relative_path(&child_dir, &parent))?.replace('/', "\\");
        let pairs = vec![
            (LINKAGE.to_owned(), linkage.braced().to_string()),
            (RELATIVE.to_owned(), relative),
            (ABSOLUTE.to_owned(), text(&parent)?),
        ];
        Ok(Self { linkage, linkage2: None, pairs })
    }

    /// The locator with a second identifier that fits too; `None` removes it.
    #[must_use]
    pub fn with_linkage2(mut self, linkage2: Option<Uuid>) -> Self {
        self.pairs.retain(|(key, _)| key != LINKAGE2);
        if let Some(linkage2) = linkage2 {
            self.pairs.push((LINKAGE2.to_owned(), linkage2.braced().to_string()));
        }
        Self { linkage2, ..self }
    }

    /// Decodes the item's bytes.
    ///
    /// # Errors
    /// The rule that the item breaks.
    pub fn decode(bytes: &[u8]) -> Result<Self, LocatorFault> {
        let (head, rest) = RawHead::ref_from_prefix(bytes).map_err(|_| LocatorFault::Short)?;
        if head.locator_type.uuid() != PARENT_LOCATOR_TYPE {
            return Err(LocatorFault::Type(head.locator_type.uuid()));
        }
        let count = head.pair_count.get();
        if count > PAIR_COUNT_MAX {
            return Err(LocatorFault::Count(count));
        }
        let (raw, _) =
            <[RawPair]>::ref_from_prefix_with_elems(rest, count.into()).map_err(|_| LocatorFault::Short)?;
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(raw.len());
        for (index, pair) in (0..).zip(raw) {
            let key = text_at(bytes, index, pair.key_offset, pair.key_len)?;
            let value = text_at(bytes, index, pair.value_offset, pair.value_len)?;
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(LocatorFault::Duplicate(index));
            }
            pairs.push((key, value));
        }
        Self::from_pairs(pairs)
    }

    fn from_pairs(pairs: Vec<(String, String)>) -> Result<Self, LocatorFault> {
        let find = |wanted| pairs.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
        let guid = |text: &str| Uuid::try_parse(text.trim()).map_err(|_| LocatorFault::Linkage);
        let linkage = guid(find(LINKAGE).ok_or(LocatorFault::NoLinkage)?)?;
        // Windows always writes the second linkage, as the nil GUID where there is none.
        let linkage2 = find(LINKAGE2).map(guid).transpose()?.filter(|linkage| !linkage.is_nil());
        Ok(Self { linkage, linkage2, pairs })
    }

    /// The bytes of the item.
    ///
    /// # Panics
    /// If they are longer than a metadata item may be, which those of a decoded or new locator are not.
    pub fn encode(&self) -> Vec<u8> {
        let units = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let count = u16::try_from(self.pairs.len()).expect("a locator has few pairs");
        let head = RawHead {
            locator_type: PARENT_LOCATOR_TYPE.into(),
            reserved: 0.into(),
            pair_count: count.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        let mut strings = Vec::new();
        let strings_start = bytes.len() + self.pairs.len() * size_of::<RawPair>();
        let mut place = |text: &str| {
            let text = units(text);
            let offset = u32::try_from(strings_start + strings.len()).expect("a locator is small");
            strings.extend_from_slice(&text);
            (U32::new(offset), U16::new(u16::try_from(text.len()).expect("a value's length has 16 bits")))
        };
        for (key, value) in &self.pairs {
            let ((key_offset, key_len), (value_offset, value_len)) = (place(key), place(value));
            let pair = RawPair { key_offset, value_offset, key_len, value_len };
            bytes.extend_from_slice(pair.as_bytes());
        }
        bytes.extend_from_slice(&strings);
        assert!(bytes.len() <= ITEM_BYTES_MAX as usize, "a locator fits a metadata item");
        bytes
    }

    /// The DataWriteGuid of the parent that the child was made on.
    pub fn linkage(&self) -> Uuid {
        self.linkage
    }

    /// A second DataWriteGuid that the parent may have, which a merge writes before it changes the parent.
    pub fn linkage2(&self) -> Option<Uuid> {
        self.linkage2
    }

    /// Whether a parent whose DataWriteGuid is `data_write_guid` has the content that the child was made on.
    pub fn matches(&self, data_write_guid: Uuid) -> bool {
        self.linkage == data_write_guid || self.linkage2 == Some(data_write_guid)
    }

    /// The value of a key, if it is there.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }

    /// All keys and values, as they are stored.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The paths of this host at which the parent may be, in the order in which to try them; `child_dir` is the
    /// directory that the child's file is in.
    ///
    /// First the relative path, then the volume's and the absolute one, as the format says; each as Windows writes
    /// paths and, where that differs, as it stands. A path with a drive or a volume means nothing on this host; of
    /// those the file name beside the child is tried last, which is where disks that were moved together are. The
    /// linkage tells whether what is found there is the parent.
    pub fn candidates(&self, child_dir: &Path) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = Vec::new();
        let mut last_resort = Vec::new();
        for key in [RELATIVE, VOLUME, ABSOLUTE] {
            let Some(value) = self.value(key).filter(|value| !value.is_empty()) else { continue };
            if names_windows_root(value) {
                last_resort.extend(file_name_of(value).map(|name| child_dir.join(name)));
                continue;
            }
            found.push(join_lexically(child_dir, &value.replace('\\', "/")));
            // No Linux program starts a path like this, and a message need not name what nobody meant.
            if !value.starts_with(".\\") && !value.starts_with("..\\") {
                found.push(join_lexically(child_dir, value));
            }
        }
        found.append(&mut last_resort);
        let mut unique: Vec<PathBuf> = Vec::new();
        for path in found {
            if !unique.contains(&path) {
                unique.push(path);
            }
        }
        unique
    }
}

fn text_at(bytes: &[u8], index: u16, offset: U32, len: U16) -> Result<String, LocatorFault> {
    let (start, len) = (offset.get() as usize, usize::from(len.get()));
    let text = start.checked_add(len).and_then(|end| bytes.get(start..end));
    let text = text.filter(|text| !text.is_empty()).ok_or(LocatorFault::Place(index))?;
    let units = <[U16]>::ref_from_bytes(text).map_err(|_| LocatorFault::Text(index))?;
    String::from_utf16(&units.iter().map(|unit| unit.get()).collect::<Vec<_>>())
        .map_err(|_| LocatorFault::Text(index))
}

/// Whether a path starts with a drive, a device or a share of Windows.
fn names_windows_root(path: &str) -> bool {
    let drive = |path: &str| {
        let mut chars = path.chars();
        chars.next().is_some_and(|letter| letter.is_ascii_alphabetic()) && chars.next() == Some(':')
    };
    path.starts_with("\\\\") || drive(path)
}

fn file_name_of(windows_path: &str) -> Option<&str> {
    windows_path.rsplit(['\\', '/']).next().filter(|name| !matches!(*name, "" | "." | ".."))
}

/// `dir` with `path` appended and `.` taken out. `..` stays, because what it means depends on symbolic links.
fn join_lexically(dir: &Path, path: &str) -> PathBuf {
    dir.join(path).components().filter(|part| *part != Component::CurDir).collect()
}

fn absolute(path: &Path) -> Result<PathBuf, PathError> {
    let failed = |source| PathError::Absolute { path: path.to_owned(), source };
    // An empty directory part ("child.vhdx") means the current one.
    std::path::absolute(if path.as_os_str().is_empty() { Path::new(".") } else { path }).map_err(failed)
}

/// The way from `dir` to `file`, both absolute, starting with `.` or `..`.
fn relative_path(dir: &Path, file: &Path) -> PathBuf {
    let (from, to): (Vec<_>, Vec<_>) = (dir.components().collect(), file.components().collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from.len() - shared;
    let start = if up == 0 { vec![Component::CurDir] } else { vec![Component::ParentDir; up] };
    start.into_iter().chain(to.into_iter().skip(shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

    fn locator(pairs: &[(&str, &str)]) -> ParentLocator {
        let mut all = vec![(LINKAGE.to_owned(), GUID.braced().to_string())];
        all.extend(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        ParentLocator::from_pairs(all).unwrap()
    }

    fn candidates(pairs: &[(&str, &str)]) -> Vec<String> {
        let paths = locator(pairs).candidates(Path::new("/disks/vm"));
        paths.into_iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_locator_survives_its_encoding() {
        let locator =
            locator(&[(RELATIVE, ".\\büro.vhdx"), (ABSOLUTE, "\\\\?\\C:\\x\\büro.vhdx"), ("other", "kept")]);
        assert_eq!(ParentLocator::decode(&locator.encode()), Ok(locator));
    }

    #[test]
    fn a_new_child_names_its_parent_by_both_kinds_of_path() {
        let paths = |child_dir, parent| {
            let locator = ParentLocator::for_parent(GUID, Path::new(child_dir), Path::new(parent)).unwrap();
            [RELATIVE, ABSOLUTE].map(|key| locator.value(key).unwrap().to_owned())
        };
        assert_eq!(paths("/disks/vm", "/disks/vm/base.vhdx"), [".\\base.vhdx", "/disks/vm/base.vhdx"]);
        assert_eq!(paths("/disks/vm", "/disks/gold/b.vhdx"), ["..\\gold\\b.vhdx", "/disks/gold/b.vhdx"]);
        let locator = ParentLocator::for_parent(GUID, Path::new(""), Path::new("base.vhdx")).unwrap();
        assert_eq!(locator.value(RELATIVE), Some(".\\base.vhdx"));
        assert_eq!(locator.value(LINKAGE), Some("{12345678-9abc-def0-1234-56789abcdef0}"));
    }

    #[test]
    fn a_parent_is_looked_for_in_the_order_of_the_format() {
        let windows = [
            (ABSOLUTE, "\\\\?\\C:\\images\\base.vhdx"),
            (VOLUME, "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\images\\base.vhdx"),
            (RELATIVE, "..\\gold\\base.vhdx"),
        ];
        let beside = "/disks/vm/base.vhdx";
        assert_eq!(candidates(&windows), ["/disks/vm/../gold/base.vhdx", beside]);
        // What a Linux file may be called comes after what Windows means.
        let odd = [(RELATIVE, "gold\\base.vhdx")];
        assert_eq!(candidates(&odd), ["/disks/vm/gold/base.vhdx", "/disks/vm/gold\\base.vhdx"]);
        assert_eq!(
            candidates(&[(RELATIVE, "base.vhdx"), (ABSOLUTE, "/gold/base.vhdx")]),
            [beside, "/gold/base.vhdx"]
        );
        assert_eq!(candidates(&[(ABSOLUTE, "C:base.vhdx")]), ["/disks/vm/C:base.vhdx"]);
        assert_eq!(candidates(&[(ABSOLUTE, "C:\\images\\..")]), [] as [&str; 0]);
    }

    #[test]
    fn linkages_are_compared_as_guids_and_nil_means_none() {
        let upper = vec![
            (LINKAGE.to_owned(), GUID.braced().to_string().to_uppercase()),
            (LINKAGE2.to_owned(), Uuid::nil().braced().to_string()),
        ];
        let locator = ParentLocator::from_pairs(upper).unwrap();
        assert!(locator.matches(GUID) && !locator.matches(Uuid::nil()));
        let second = Uuid::from_u128(7);
        let locator = self::locator(&[(LINKAGE2, &second.to_string())]);
        assert!(locator.matches(GUID) && locator.matches(second));
    }

    #[test]
    fn broken_locators_are_refused_by_their_rule() {
        let good = locator(&[(RELATIVE, "x")]).encode();
        let fault = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            ParentLocator::decode(&bytes).unwrap_err()
        };
        assert!(matches!(fault(&|b| b[0] ^= 1), LocatorFault::Type(_)));
        assert_eq!(fault(&|b| b.truncate(19)), LocatorFault::Short);
        assert_eq!(fault(&|b| b.truncate(40)), LocatorFault::Short);
        assert_eq!(fault(&|b| b[18..20].copy_from_slice(&257u16.to_le_bytes())), LocatorFault::Count(257));
        assert_eq!(fault(&|b| b[23] = 0xff), LocatorFault::Place(0));
        assert_eq!(fault(&|b| b[28..30].fill(0)), LocatorFault::Place(0));
        assert_eq!(fault(&|b| b[28] -= 1), LocatorFault::Text(0));
        let key_offset = usize::from(good[20]);
        assert_eq!(fault(&|b| b[key_offset] = b'q'), LocatorFault::NoLinkage);
        assert_eq!(fault(&|b| b[key_offset + 28..key_offset + 30].fill(b'q')), LocatorFault::Linkage);
        let lone_surrogate = |b: &mut Vec<u8>| b[key_offset..key_offset + 2].copy_from_slice(&[0, 0xd8]);
        assert_eq!(fault(&lone_surrogate), LocatorFault::Text(0));
        let same_key = |b: &mut Vec<u8>| {
            let (first, second) = b.split_at_mut(32);
            second[0..4].copy_from_slice(&first[20..24]);
            second[8..10].copy_from_slice(&first[28..30]);
        };
        assert_eq!(fault(&same_key), LocatorFault::Duplicate(1));
    }
}
