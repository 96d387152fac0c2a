//! Checking everything before the blocks: identifier, headers, log, region tables, metadata.

use block::{ByteRange, Disk, Result};

use super::super::error::TableFault;
use super::super::header::{Header, Headers};
use super::super::layout::{BAT_REGION, METADATA_REGION};
use super::super::layout::{
    HEADER_BYTES, HEADER_OFFSETS, METADATA_TABLE_BYTES, PARAMETER_HAS_PARENT,
    PARAMETER_LEAVE_BLOCKS_ALLOCATED, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS,
};
use super::super::locator::ParentLocator;
use super::super::metadata::{self, ItemReader, MetadataItem, Values};
use super::super::overlay::Overlay;
use super::super::regions::{self, Region};
use super::super::replay::Replay;
use super::super::space::{Owner, Taken};
use super::super::{Geometry, OpenError, SpaceMap, disk_io, open};
use super::{CheckReport, record};

/// What the check of the blocks needs: a file of which everything else could be read.
pub(super) struct Structure {
    /// The file, after its log's replay if that is possible.
    pub(super) file: Disk,
    pub(super) bat: Region,
    pub(super) geometry: Geometry,
    pub(super) is_fixed: bool,
    pub(super) locator: Option<ParentLocator>,
    pub(super) space: SpaceMap,
}

impl Structure {
    /// Checks the structures; `None` where the blocks cannot be found.
    pub(super) async fn check(file: &Disk, report: &mut CheckReport) -> Result<Option<Self>> {
        let identifier = record(report, open::read_identifier(file).await)?;
        // A file that is too short for its headers has no further structures, one without a signature may.
        if identifier.is_none() && !report.has("identifier") {
            return Ok(None);
        }
        let mut space = SpaceMap::new();
        let Some(header) = check_headers(file, report).await? else { return Ok(None) };
        let usable = record(report, header.validate(file.size()))?.is_some();
        let file = if usable { check_log(file, &header, report).await? } else { file.clone() };
        if usable {
            claim(ByteRange::new(header.log_offset, header.log_len), Owner::Log, &mut space, report);
        }
        let Some(all) = check_region_tables(&file, report).await? else { return Ok(None) };
        for fault in regions::faults(&all, file.size()) {
            record::<()>(report, Err(fault))?;
        }
        let placed: Vec<Region> = all.into_iter().filter(|region| region.fits(file.size())).collect();
        for region in &placed {
            claim(Some(region.range()), Owner::Region(region.guid), &mut space, report);
        }
        let find = |guid| placed.iter().find(|region| region.guid == guid).copied();
        let Some(metadata) = find(METADATA_REGION) else { return Ok(None) };
        let Some(values) = check_metadata(&file, metadata, report).await? else { return Ok(None) };
        report.counts.virtual_size = Some(values.geometry.virtual_size);
        let Some(bat) = find(BAT_REGION) else { return Ok(None) };
        let KnownValues { geometry, is_fixed, locator } = values;
        Ok(Some(Self { file, bat, geometry, is_fixed, locator, space }))
    }
}

fn claim(range: Option<ByteRange>, owner: Owner, space: &mut SpaceMap, report: &mut CheckReport) {
    let Some(range) = range.filter(|range| !range.is_empty()) else { return };
    if let Err(Taken { offset, owner: first }) = space.claim_structure(range, owner) {
        let error = OpenError::StructuresOverlap { first, second: owner, offset };
        report.corrupt(error.rule(), error.to_string());
    }
}

/// Checks both headers and returns the current one, or any valid one where they contradict each other.
async fn check_headers(file: &Disk, report: &mut CheckReport) -> Result<Option<Header>> {
    let first = disk_io::read(file, HEADER_OFFSETS[0], HEADER_BYTES).await?;
    let second = disk_io::read(file, HEADER_OFFSETS[1], HEADER_BYTES).await?;
    let decoded = [Header::decode(&first), Header::decode(&second)];
    for (header, offset) in decoded.iter().zip(HEADER_OFFSETS) {
        if let Err(fault) = header {
            report.note("header-invalid", format!("the header at {offset:#x} {fault}"));
        }
    }
    if let [Ok(a), Ok(b)] = &decoded {
        note_differences(a, b, report);
    }
    let chosen = record(report, Headers::choose(&first, &second))?.map(|headers| headers.current);
    Ok(chosen.or_else(|| decoded.into_iter().find_map(std::result::Result::ok)))
}

fn note_differences(a: &Header, b: &Header, report: &mut CheckReport) {
    let fields = [
        ("FileWriteGuid", a.file_write_guid != b.file_write_guid),
        ("DataWriteGuid", a.data_write_guid != b.data_write_guid),
        ("LogGuid", a.log_guid != b.log_guid),
        ("log", (a.log_offset, a.log_len) != (b.log_offset, b.log_len)),
    ];
    let differing: Vec<_> = fields.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    if !differing.is_empty() {
        report.note("headers-differ", format!("the headers differ in {}", differing.join(", ")));
    }
}

/// Checks the log and returns the file as it is after replay, or as it is where the log cannot be replayed.
async fn check_log(file: &Disk, header: &Header, report: &mut CheckReport) -> Result<Disk> {
    if header.log_guid.is_nil() {
        return Ok(file.clone());
    }
    let Some(replay) = record(report, Replay::read(file, header).await)? else { return Ok(file.clone()) };
    let changes = replay.patches.iter().count();
    report.note("log-dirty", format!("the log holds {changes} changes that the next open replays"));
    Ok(Disk::new(Overlay::new(file.clone(), replay.patches, replay.file_bytes)))
}

/// Checks both copies of the region table and returns what the one lists that an open uses.
async fn check_region_tables(file: &Disk, report: &mut CheckReport) -> Result<Option<Vec<Region>>> {
    let mut decoded = Vec::new();
    for offset in REGION_TABLE_OFFSETS {
        decoded.push(regions::decode(&disk_io::read(file, offset, REGION_TABLE_BYTES).await?));
    }
    if let [Err(first), Err(second)] = decoded[..] {
        record::<()>(report, Err(OpenError::NoRegionTable { first, second }))?;
        return Ok(None);
    }
    for (table, offset) in decoded.iter().zip(REGION_TABLE_OFFSETS) {
        if let Err(fault) = table {
            report.corrupt("region-table-invalid", format!("the region table at {offset:#x} {fault}"));
        }
    }
    if let [Ok(first), Ok(second)] = &decoded[..]
        && first != second
    {
        report.corrupt("region-tables-differ", "the two copies of the region table list different regions");
    }
    Ok(decoded.into_iter().find_map(std::result::Result::ok))
}

/// What the metadata says of the disk, as far as the blocks depend on it.
struct KnownValues {
    geometry: Geometry,
    is_fixed: bool,
    locator: Option<ParentLocator>,
}

async fn check_metadata(
    file: &Disk,
    region: Region,
    report: &mut CheckReport,
) -> Result<Option<KnownValues>> {
    let table = disk_io::read(file, region.offset, METADATA_TABLE_BYTES).await?;
    let decoded = metadata::decode_table(&table)
        .map_err(|fault: TableFault| OpenError::MetadataTable { offset: region.offset, fault });
    let Some(items) = record(report, decoded)? else { return Ok(None) };
    for fault in metadata::item_faults(&items, region) {
        record::<()>(report, Err(fault))?;
    }
    let placed: Vec<MetadataItem> = items.into_iter().filter(|item| item.fits(region.len)).collect();
    let values = Values::read(&ItemReader { file, region, items: &placed }).await;
    let parameters = record(report, values.parameters)?;
    let logical = record(report, values.logical_sector)?;
    let physical = record(report, values.physical_sector)?;
    let virtual_size = record(report, values.virtual_size)?;
    record(report, values.disk_id)?;
    let locator = values.locator.map(|locator| record(report, locator)).transpose()?.flatten();
    let (Some((block_bytes, flags)), Some(logical), Some(size)) = (parameters, logical, virtual_size) else {
        return Ok(None);
    };
    let has_parent = flags & PARAMETER_HAS_PARENT != 0;
    // The physical sector does not matter to where the blocks are.
    let geometry = Geometry::new(size, block_bytes, logical, physical.unwrap_or(logical), has_parent);
    let is_fixed = flags & PARAMETER_LEAVE_BLOCKS_ALLOCATED != 0 && !has_parent;
    Ok(Some(KnownValues { geometry, is_fixed, locator }))
}
