//! The region table: where the metadata and the block allocation table are, and what else the file holds.
//!
//! Source: MS-VHDX 2.2.3.

use std::collections::HashSet;

use block::{ByteRange, Disk};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::error::TableFault;
use super::header::place_fault;
use super::layout::{
    self, BAT_REGION, METADATA_REGION, REGION_COUNT_MAX, REGION_REQUIRED, REGION_TABLE_BYTES,
    REGION_TABLE_OFFSETS, REGION_TABLE_SIGNATURE, RegionTableEntry, RegionTableHeader,
};
use super::{OpenError, disk_io};

/// A region as the table lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Which region.
    pub guid: Uuid,
    /// First byte in the host file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether a program that does not know the region must not open the file.
    pub required: bool,
}

impl Region {
    /// Whether its place is one that a region may have in a host file of `file_bytes`.
    pub(super) fn fits(&self, file_bytes: u64) -> bool {
        place_fault(self.offset, self.len, file_bytes).is_none()
    }

    /// Its bytes in the host file; open has checked that they are a range.
    pub fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, self.len).expect("the place of a region was checked when it was read")
    }
}

/// The regions of a file, each in a place that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// The block allocation table.
    pub bat: Region,
    /// The metadata.
    pub metadata: Region,
    /// All of them as the table lists them, unknown ones too: those must survive whatever is done to the file.
    pub all: Vec<Region>,
    /// The copy of the table that they come from: 1 only where the first is damaged.
    pub table: usize,
}

impl Regions {
    pub(super) async fn read(file: &Disk) -> Result<Self, OpenError> {
        let doing = OpenError::host("read the region tables");
        let mut faults = [TableFault::None; 2];
        for (table, offset) in REGION_TABLE_OFFSETS.into_iter().enumerate() {
            let bytes = disk_io::read(file, offset, REGION_TABLE_BYTES).await.map_err(&doing)?;
            match decode(&bytes) {
                Ok(entries) => return Self::from_entries(&entries, table, file.size()),
                Err(fault) => faults[table] = fault,
            }
        }
        Err(OpenError::NoRegionTable { first: faults[0], second: faults[1] })
    }

    /// Checks what a valid table lists, for a host file of `file_bytes`.
    pub(super) fn from_entries(all: &[Region], table: usize, file_bytes: u64) -> Result<Self, OpenError> {
        if let Some(fault) = faults(all, file_bytes).into_iter().next() {
            return Err(fault);
        }
        let known = |guid| all.iter().find(|region| region.guid == guid).copied();
        let bat = known(BAT_REGION).ok_or(OpenError::MissingRegion { name: BAT_NAME })?;
        let metadata = known(METADATA_REGION).ok_or(OpenError::MissingRegion { name: METADATA_NAME })?;
        Ok(Self { bat, metadata, all: all.to_vec(), table })
    }
}

const BAT_NAME: &str = "block allocation table";
const METADATA_NAME: &str = "metadata";

/// What is wrong with the regions that a valid table lists, for a host file of `file_bytes`.
pub(super) fn faults(all: &[Region], file_bytes: u64) -> Vec<OpenError> {
    let mut faults = Vec::new();
    let mut seen = HashSet::new();
    for region in all {
        let Region { guid, offset, len, required } = *region;
        if let Some(fault) = place_fault(offset, len, file_bytes) {
            faults.push(OpenError::RegionPlace { guid, offset, len, fault });
        }
        if !seen.insert(guid) {
            faults.push(OpenError::DuplicateRegion { guid });
        }
        if required && !is_known(guid) {
            faults.push(OpenError::UnknownRegion { guid });
        }
    }
    for (guid, name) in [(BAT_REGION, BAT_NAME), (METADATA_REGION, METADATA_NAME)] {
        if !seen.contains(&guid) {
            faults.push(OpenError::MissingRegion { name });
        }
    }
    faults
}

/// Whether a region is one that the format defines.
pub(super) fn is_known(guid: Uuid) -> bool {
    guid == BAT_REGION || guid == METADATA_REGION
}

/// Decodes a region table of 64 KiB; what its entries say is not checked.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Region>, TableFault> {
    let (header, rest) = RegionTableHeader::read_from_prefix(bytes).map_err(|_| TableFault::Signature)?;
    if header.signature != REGION_TABLE_SIGNATURE {
        return Err(TableFault::Signature);
    }
    if !layout::is_sealed(bytes) {
        return Err(TableFault::Checksum);
    }
    let count = header.entry_count.get();
    if count > REGION_COUNT_MAX {
        return Err(TableFault::Count { count, max: REGION_COUNT_MAX });
    }
    if header.reserved.get() != 0 {
        return Err(TableFault::Reserved);
    }
    let entries = rest.chunks_exact(size_of::<RegionTableEntry>()).take(count as usize);
    let region = |bytes: &[u8]| {
        let entry = RegionTableEntry::read_from_bytes(bytes).expect("the chunk has the entry's length");
        Region {
            guid: entry.guid.uuid(),
            offset: entry.file_offset.get(),
            len: u64::from(entry.length.get()),
            // A field of 32 bits with the values 0 and 1; what else it may come to mean, 0 is the only "no".
            required: entry.flags.get() != 0,
        }
    };
    Ok(entries.map(region).collect())
}

/// The 64 KiB of a region table.
///
/// # Panics
/// If there are more regions than a table holds, or one is longer than 4 GiB.
pub(super) fn encode(regions: &[Region]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).ok().filter(|count| *count <= REGION_COUNT_MAX);
    let header = RegionTableHeader {
        signature: REGION_TABLE_SIGNATURE,
        checksum: 0.into(),
        entry_count: count.expect("a region table holds 2047 regions").into(),
        reserved: 0.into(),
    };
    let mut bytes = header.as_bytes().to_vec();
    for region in regions {
        let entry = RegionTableEntry {
            guid: region.guid.into(),
            file_offset: region.offset.into(),
            length: u32::try_from(region.len).expect("a region's length has 32 bits").into(),
            flags: if region.required { REGION_REQUIRED } else { 0 }.into(),
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes.resize(REGION_TABLE_BYTES, 0);
    layout::seal(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::error::PlaceFault;
    use super::super::layout::MIB;
    use super::*;

    fn regions() -> Vec<Region> {
        let metadata = Region { guid: METADATA_REGION, offset: 2 * MIB, len: MIB, required: true };
        vec![metadata, Region { guid: BAT_REGION, offset: 3 * MIB, len: MIB, required: true }]
    }

    #[test]
    fn a_table_survives_its_encoding() {
        assert_eq!(decode(&encode(&regions())), Ok(regions()));
        let mut bytes = encode(&regions());
        bytes[20] ^= 1;
        assert_eq!(decode(&bytes), Err(TableFault::Checksum));
        bytes[8..12].copy_from_slice(&2048u32.to_le_bytes());
        layout::seal(&mut bytes);
        assert_eq!(decode(&bytes), Err(TableFault::Count { count: 2048, max: 2047 }));
    }

    #[test]
    fn unknown_regions_are_kept_unless_they_are_required() {
        let mut all = regions();
        all.push(Region { guid: Uuid::from_u128(7), offset: 4 * MIB, len: MIB, required: false });
        let read = Regions::from_entries(&all, 0, 5 * MIB).unwrap();
        assert_eq!((read.all.len(), read.bat.offset), (3, 3 * MIB));
        all[2].required = true;
        let refused = Regions::from_entries(&all, 0, 5 * MIB);
        assert!(matches!(refused, Err(OpenError::UnknownRegion { guid }) if guid == Uuid::from_u128(7)));
    }

    #[test]
    fn regions_in_forbidden_places_are_refused() {
        let fault = |offset, len| {
            let mut all = regions();
            (all[1].offset, all[1].len) = (offset, len);
            match Regions::from_entries(&all, 0, 5 * MIB) {
                Err(OpenError::RegionPlace { guid: BAT_REGION, fault, .. }) => Some(fault),
                Err(other) => panic!("{other}"),
                Ok(_) => None,
            }
        };
        assert_eq!(fault(0, MIB), Some(PlaceFault::InHeader));
        assert_eq!(fault(3 * MIB, 4096), Some(PlaceFault::Unaligned));
        assert_eq!(fault(3 * MIB, 0), Some(PlaceFault::Empty));
        assert_eq!(fault(4 * MIB, 2 * MIB), Some(PlaceFault::BeyondEnd));
        assert_eq!(fault(4 * MIB, MIB), None);
    }
}
