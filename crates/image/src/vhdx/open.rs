//! Opening a file: everything that its content depends on is read and checked before anything is mapped.
//!
//! The order is the format's: identifier, headers, log, region table, metadata, block allocation table. The log
//! comes before all that it may change.

use block::{ByteRange, Disk};
use uuid::Uuid;
use zerocopy::FromBytes;

use super::bat_scan;
use super::header::{Header, Headers};
use super::layout::{FILE_BYTES_MAX, FILE_SIGNATURE, FileIdentifier, HEADER_AREA_BYTES};
use super::locator::ParentLocator;
use super::metadata::{Metadata, MetadataItem};
use super::overlay::{Overlay, Patches};
use super::regions::Regions;
use super::replay::Replay;
use super::space::{Owner, Taken};
use super::{Geometry, OpenError, SpaceMap, disk_io};

/// What the opener may do to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: a dirty log is replayed in memory.
    ReadOnly,
    /// Change it: a dirty log is replayed into the file.
    ReadWrite,
}

/// A file that keeps the rules of the format, and what its metadata says.
#[derive(Debug)]
pub struct Opened {
    /// The host file; in a read-only open what it is after its log's replay, which may be longer than it is.
    ///
    /// All space that [`Self::space`] holds lies inside it.
    pub file: Disk,
    /// The current header and where it lies. After a writable open its log GUID is nil.
    pub headers: Headers,
    /// Where the block allocation table and the metadata are, and all other regions.
    pub regions: Regions,
    /// Blocks, sectors, sizes.
    pub geometry: Geometry,
    /// Properties of the disk.
    pub parameters: Parameters,
    /// Where the parent is; there if, and only if, the disk has one.
    pub locator: Option<ParentLocator>,
    /// All metadata items, those of users and unknown ones too.
    pub items: Vec<MetadataItem>,
    /// The program that made the file, as it calls itself.
    pub creator: String,
    /// What of the host file is taken, blocks included.
    pub space: SpaceMap,
    /// Whether the log held updates when the file was opened.
    pub was_dirty: bool,
    /// What the file may be used for.
    pub access: Access,
}

impl Opened {
    /// The current header.
    pub fn header(&self) -> &Header {
        &self.headers.current
    }

    /// Makes a read-only open of `file` a writable one, after all that the content depends on was found to be in
    /// order: what [`open`] changes in a writable open is changed now.
    ///
    /// # Errors
    /// As for a writable [`open()`].
    pub async fn into_writable(self, file: Disk) -> Result<Self, OpenError> {
        // A file whose content is not yet what was read must be read again once it is.
        if self.was_dirty || file.size() < self.space.end() {
            return open(file, Access::ReadWrite).await;
        }
        check_writable(&self.headers)?;
        Ok(Self { file, access: Access::ReadWrite, ..self })
    }
}

/// Properties of the virtual disk beside its geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The disk is fixed: its blocks stay allocated and its file as long as they need.
    pub leave_blocks_allocated: bool,
    /// The disk is differencing.
    pub has_parent: bool,
    /// The identifier that a guest sees.
    pub disk_id: Uuid,
}

/// Opens the VHDX in `file`.
///
/// A writable open changes the file only where its log is dirty, which is then replayed, or where its last block
/// reaches beyond the end of the file, as files of old QEMU do, which is then made long enough. Either gives it a new
/// FileWriteGuid first and keeps its DataWriteGuid. A read-only open changes nothing.
///
/// # Errors
/// The rule of the format that the file breaks; what the host reports.
pub async fn open(file: Disk, access: Access) -> Result<Opened, OpenError> {
    let creator = read_identifier(&file).await?;
    let mut headers = Headers::read(&file).await?;
    headers.current.validate(file.size())?;
    if access == Access::ReadWrite {
        check_writable(&headers)?;
    }
    let was_dirty = !headers.current.log_guid.is_nil();
    let file = if was_dirty { replay(file, access, &mut headers).await? } else { file };

    let regions = Regions::read(&file).await?;
    let mut space = claim_structures(&headers.current, &regions)?;
    let metadata = Metadata::read(&file, regions.metadata).await?;
    bat_scan::claim_blocks(&file, &regions, &metadata.geometry, &mut space).await?;
    let file = extend_to(file, space.end(), access, &mut headers).await?;

    let Metadata { geometry, leave_blocks_allocated, disk_id, locator, items } = metadata;
    let parameters = Parameters { leave_blocks_allocated, has_parent: geometry.has_parent, disk_id };
    Ok(Opened {
        file,
        headers,
        regions,
        geometry,
        parameters,
        locator,
        items,
        creator,
        space,
        was_dirty,
        access,
    })
}

/// Checks length and signature and returns the creator.
pub(super) async fn read_identifier(file: &Disk) -> Result<String, OpenError> {
    let file_bytes = file.size();
    if file_bytes < HEADER_AREA_BYTES {
        return Err(OpenError::TooShort { file_bytes });
    }
    if file_bytes > FILE_BYTES_MAX {
        return Err(OpenError::TooLong { file_bytes, max: FILE_BYTES_MAX });
    }
    let doing = OpenError::host("read the file identifier");
    let bytes = disk_io::read(file, 0, size_of::<FileIdentifier>()).await.map_err(doing)?;
    let identifier = FileIdentifier::ref_from_bytes(&bytes).expect("the length is the struct's");
    if identifier.signature != FILE_SIGNATURE {
        return Err(OpenError::NotVhdx);
    }
    // Not every program ends the text with a zero.
    let units: Vec<u16> =
        identifier.creator.iter().map(|unit| unit.get()).take_while(|unit| *unit != 0).collect();
    Ok(String::from_utf16_lossy(&units))
}

fn check_writable(headers: &Headers) -> Result<(), OpenError> {
    if headers.is_exhausted() {
        return Err(OpenError::SequenceExhausted { sequence_number: headers.current.sequence_number });
    }
    if headers.current.log_len == 0 {
        return Err(OpenError::NoLog);
    }
    Ok(())
}

async fn replay(file: Disk, access: Access, headers: &mut Headers) -> Result<Disk, OpenError> {
    let replay = Replay::read(&file, &headers.current).await?;
    match access {
        Access::ReadOnly => Ok(Disk::new(Overlay::new(file, replay.patches, replay.file_bytes))),
        Access::ReadWrite => {
            let replayed = replay.apply(&file, headers, Uuid::new_v4()).await;
            replayed.map_err(OpenError::host("replay the log"))?;
            Ok(file)
        }
    }
}

/// Takes the space of header area, log and regions.
pub(super) fn claim_structures(header: &Header, regions: &Regions) -> Result<SpaceMap, OpenError> {
    let mut space = SpaceMap::new();
    let log = ByteRange::new(header.log_offset, header.log_len).expect("the log's place was validated");
    let log = (log, Owner::Log);
    let all = regions.all.iter().map(|region| (region.range(), Owner::Region(region.guid)));
    for (range, owner) in std::iter::once(log).chain(all).filter(|(range, _)| !range.is_empty()) {
        space.claim_structure(range, owner).map_err(|Taken { offset, owner: other }| {
            OpenError::StructuresOverlap { first: other, second: owner, offset }
        })?;
    }
    Ok(space)
}

/// Makes a file that ends inside its last block as long as its blocks need.
async fn extend_to(file: Disk, end: u64, access: Access, headers: &mut Headers) -> Result<Disk, OpenError> {
    if file.size() >= end {
        return Ok(file);
    }
    if access == Access::ReadOnly {
        return Ok(Disk::new(Overlay::new(file, Patches::default(), end)));
    }
    let doing = OpenError::host("extend the file to the end of its last block");
    headers.update(&file, |header| header.file_write_guid = Uuid::new_v4()).await.map_err(&doing)?;
    file.resize(end).await.map_err(&doing)?;
    file.flush().await.map_err(&doing)?;
    Ok(file)
}
