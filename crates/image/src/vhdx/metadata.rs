//! The metadata region: a table of items, of which six describe the disk and the rest are kept as they are.
//!
//! Source: MS-VHDX 2.6.

use block::{ByteRange, Disk};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::error::{PlaceFault, TableFault};
use super::layout::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, CHS_PARAMETERS, FILE_PARAMETERS, FileParameters, INCOMPLETE_FILE,
    ITEM_BYTES_MAX, ITEM_COUNT_MAX, ITEM_IS_REQUIRED, ITEM_IS_USER, ITEM_IS_VIRTUAL_DISK,
    LOGICAL_SECTOR_SIZE, METADATA_SIGNATURE, METADATA_TABLE_BYTES, MetadataTableEntry, MetadataTableHeader,
    PARAMETER_HAS_PARENT, PARAMETER_LEAVE_BLOCKS_ALLOCATED, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, PMEM_LABEL,
    USER_ITEM_COUNT_MAX, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE, VIRTUAL_SIZE_MAX,
};
use super::locator::ParentLocator;
use super::regions::Region;
use super::{Geometry, OpenError, disk_io};

/// An item as the table lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataItem {
    /// Which item; unique together with `is_user`.
    pub id: Uuid,
    /// From the start of the metadata region; 0 where the item is empty.
    pub offset: u32,
    /// Length in bytes, at most 1 MiB.
    pub len: u32,
    /// Whether it belongs to a user of the file rather than to the format.
    pub is_user: bool,
    /// Whether it describes the virtual disk and goes where that goes.
    pub is_virtual_disk: bool,
    /// Whether a program that does not know the item must not open the file.
    pub is_required: bool,
}

/// What the items of the format say, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Sizes of the disk, its sectors and its blocks.
    pub geometry: Geometry,
    /// Whether the disk is fixed: its blocks stay allocated. Always false where the disk has a parent.
    pub leave_blocks_allocated: bool,
    /// The identifier of the virtual disk that a guest sees.
    pub disk_id: Uuid,
    /// Where the parent is; there if, and only if, the disk has one.
    pub locator: Option<ParentLocator>,
    /// All items as the table lists them, those of users and unknown ones too.
    pub items: Vec<MetadataItem>,
}

impl Metadata {
    pub(super) async fn read(file: &Disk, region: Region) -> Result<Self, OpenError> {
        let table = disk_io::read(file, region.offset, METADATA_TABLE_BYTES)
            .await
            .map_err(OpenError::host("read the metadata table"))?;
        let items = decode_table(&table)
            .map_err(|fault| OpenError::MetadataTable { offset: region.offset, fault })?;
        if let Some(fault) = item_faults(&items, region).into_iter().next() {
            return Err(fault);
        }
        let values = Values::read(&ItemReader { file, region, items: &items }).await;
        let (block_bytes, flags) = values.parameters?;
        let has_parent = flags & PARAMETER_HAS_PARENT != 0;
        let (logical, physical) = (values.logical_sector?, values.physical_sector?);
        let geometry = Geometry::new(values.virtual_size?, block_bytes, logical, physical, has_parent);
        Ok(Self {
            geometry,
            // The flag is to be ignored where there is a parent.
            leave_blocks_allocated: flags & PARAMETER_LEAVE_BLOCKS_ALLOCATED != 0 && !has_parent,
            disk_id: values.disk_id?,
            locator: values.locator.transpose()?,
            items,
        })
    }
}

/// What each item of the format says, or what is wrong with it.
pub(super) struct Values {
    /// Block size and flags.
    pub(super) parameters: Result<(u32, u32), OpenError>,
    pub(super) virtual_size: Result<u64, OpenError>,
    pub(super) logical_sector: Result<u32, OpenError>,
    pub(super) physical_sector: Result<u32, OpenError>,
    pub(super) disk_id: Result<Uuid, OpenError>,
    /// There where the flags say that there is a parent.
    pub(super) locator: Option<Result<ParentLocator, OpenError>>,
}

impl Values {
    pub(super) async fn read(reader: &ItemReader<'_>) -> Self {
        let logical_sector = reader.sector_size("logical", LOGICAL_SECTOR_ITEM).await;
        let parameters = reader.parameters().await;
        let has_parent = parameters.as_ref().is_ok_and(|(_, flags)| flags & PARAMETER_HAS_PARENT != 0);
        Self {
            virtual_size: reader.virtual_size(*logical_sector.as_ref().unwrap_or(&512)).await,
            physical_sector: reader.sector_size("physical", PHYSICAL_SECTOR_ITEM).await,
            disk_id: reader.array(VIRTUAL_DISK_ID_ITEM).await.map(Uuid::from_bytes_le),
            locator: if has_parent { Some(reader.locator().await) } else { None },
            logical_sector,
            parameters,
        }
    }
}

/// An item that the format defines: its identifier, its name in errors, and its `IsVirtualDisk` bit.
#[derive(Clone, Copy)]
struct Known {
    id: Uuid,
    name: &'static str,
    is_virtual_disk: bool,
}

const FILE_PARAMETERS_ITEM: Known =
    Known { id: FILE_PARAMETERS, name: "file parameters", is_virtual_disk: false };
const SIZE_ITEM: Known = Known { id: VIRTUAL_DISK_SIZE, name: "virtual disk size", is_virtual_disk: true };
const VIRTUAL_DISK_ID_ITEM: Known =
    Known { id: VIRTUAL_DISK_ID, name: "virtual disk id", is_virtual_disk: true };
const LOGICAL_SECTOR_ITEM: Known =
    Known { id: LOGICAL_SECTOR_SIZE, name: "logical sector size", is_virtual_disk: true };
const PHYSICAL_SECTOR_ITEM: Known =
    Known { id: PHYSICAL_SECTOR_SIZE, name: "physical sector size", is_virtual_disk: true };
const LOCATOR_ITEM: Known = Known { id: PARENT_LOCATOR, name: "parent locator", is_virtual_disk: false };

/// Items of the format, or of its maker, that may be marked as required.
const KNOWN_ITEMS: [Uuid; 8] = [
    FILE_PARAMETERS,
    VIRTUAL_DISK_SIZE,
    VIRTUAL_DISK_ID,
    LOGICAL_SECTOR_SIZE,
    PHYSICAL_SECTOR_SIZE,
    PARENT_LOCATOR,
    CHS_PARAMETERS,
    PMEM_LABEL,
];

pub(super) struct ItemReader<'a> {
    pub(super) file: &'a Disk,
    pub(super) region: Region,
    pub(super) items: &'a [MetadataItem],
}

impl ItemReader<'_> {
    fn find(&self, known: Known) -> Result<&MetadataItem, OpenError> {
        let item = self.items.iter().find(|item| item.id == known.id && !item.is_user);
        let item = item.ok_or(OpenError::MissingItem { name: known.name })?;
        if item.is_virtual_disk != known.is_virtual_disk {
            let expected = ITEM_IS_REQUIRED | if known.is_virtual_disk { ITEM_IS_VIRTUAL_DISK } else { 0 };
            return Err(OpenError::ItemFlags { name: known.name, flags: item.flags(), expected });
        }
        Ok(item)
    }

    async fn bytes(&self, item: &MetadataItem) -> Result<Vec<u8>, OpenError> {
        let offset = self.region.offset + u64::from(item.offset);
        let doing = OpenError::host("read a metadata item");
        disk_io::read(self.file, offset, item.len as usize).await.map_err(doing)
    }

    async fn array<const N: usize>(&self, known: Known) -> Result<[u8; N], OpenError> {
        let item = self.find(known)?;
        if item.len as usize != N {
            return Err(OpenError::ItemLength { name: known.name, len: item.len, expected: N as u32 });
        }
        let bytes = self.bytes(item).await?;
        Ok(bytes.try_into().expect("as many bytes were read as asked for"))
    }

    /// Block size and flags.
    async fn parameters(&self) -> Result<(u32, u32), OpenError> {
        let bytes: [u8; 8] = self.array(FILE_PARAMETERS_ITEM).await?;
        let parameters = FileParameters::read_from_bytes(&bytes).expect("the length is the struct's");
        let (block_bytes, flags) = (parameters.block_size.get(), parameters.flags.get());
        if flags & !(PARAMETER_LEAVE_BLOCKS_ALLOCATED | PARAMETER_HAS_PARENT) != 0 {
            return Err(OpenError::ParameterFlags { flags });
        }
        if !block_bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
            return Err(OpenError::BlockSize { block_bytes });
        }
        Ok((block_bytes, flags))
    }

    async fn virtual_size(&self, sector_bytes: u32) -> Result<u64, OpenError> {
        let virtual_size = u64::from_le_bytes(self.array(SIZE_ITEM).await?);
        if virtual_size > VIRTUAL_SIZE_MAX {
            return Err(OpenError::SizeTooLarge { virtual_size });
        }
        if !virtual_size.is_multiple_of(u64::from(sector_bytes)) {
            return Err(OpenError::SizeNotSectors { virtual_size, sector_bytes });
        }
        Ok(virtual_size)
    }

    async fn sector_size(&self, which: &'static str, known: Known) -> Result<u32, OpenError> {
        match u32::from_le_bytes(self.array(known).await?) {
            bytes @ (512 | 4096) => Ok(bytes),
            bytes => Err(OpenError::SectorSize { which, bytes }),
        }
    }

    async fn locator(&self) -> Result<ParentLocator, OpenError> {
        let bytes = self.bytes(self.find(LOCATOR_ITEM)?).await?;
        ParentLocator::decode(&bytes).map_err(|fault| OpenError::Locator { fault })
    }
}

impl MetadataItem {
    /// The flags as the table holds them.
    fn flags(&self) -> u32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.is_user, ITEM_IS_USER)
            | bit(self.is_virtual_disk, ITEM_IS_VIRTUAL_DISK)
            | bit(self.is_required, ITEM_IS_REQUIRED)
    }

    /// Whether its place is one that an item may have in a region of `region_len` bytes.
    pub(super) fn fits(&self, region_len: u64) -> bool {
        self.fault(region_len).is_none()
    }

    fn place(&self) -> ByteRange {
        ByteRange::new(u64::from(self.offset), u64::from(self.len)).expect("32-bit numbers make a range")
    }

    fn fault(&self, region_len: u64) -> Option<PlaceFault> {
        if self.len == 0 {
            // An empty item is present and has no place.
            return (self.offset != 0).then_some(PlaceFault::Empty);
        }
        if self.len > ITEM_BYTES_MAX {
            return Some(PlaceFault::TooLarge);
        }
        if (self.offset as usize) < METADATA_TABLE_BYTES {
            return Some(PlaceFault::InTable);
        }
        (self.place().end() > region_len).then_some(PlaceFault::BeyondEnd)
    }
}

/// Decodes a metadata table of 64 KiB; what its entries say of places is not checked.
pub(super) fn decode_table(bytes: &[u8]) -> Result<Vec<MetadataItem>, TableFault> {
    let (header, rest) = MetadataTableHeader::read_from_prefix(bytes).map_err(|_| TableFault::Signature)?;
    if header.signature != METADATA_SIGNATURE {
        return Err(TableFault::Signature);
    }
    let count = header.entry_count.get();
    if count > ITEM_COUNT_MAX {
        return Err(TableFault::Count { count: count.into(), max: ITEM_COUNT_MAX.into() });
    }
    if header.reserved.get() != 0 || header.reserved2 != [0; 20] {
        return Err(TableFault::Reserved);
    }
    rest.chunks_exact(size_of::<MetadataTableEntry>()).take(count.into()).map(decode_entry).collect()
}

fn decode_entry(bytes: &[u8]) -> Result<MetadataItem, TableFault> {
    let entry = MetadataTableEntry::read_from_bytes(bytes).expect("the chunk has the entry's length");
    let flags = entry.flags.get();
    if flags & !(ITEM_IS_USER | ITEM_IS_VIRTUAL_DISK | ITEM_IS_REQUIRED) != 0 || entry.reserved.get() != 0 {
        return Err(TableFault::Reserved);
    }
    Ok(MetadataItem {
        id: entry.item_id.uuid(),
        offset: entry.offset.get(),
        len: entry.length.get(),
        is_user: flags & ITEM_IS_USER != 0,
        is_virtual_disk: flags & ITEM_IS_VIRTUAL_DISK != 0,
        is_required: flags & ITEM_IS_REQUIRED != 0,
    })
}

/// What is wrong with places, uniqueness and requirements of the items of `region`.
pub(super) fn item_faults(items: &[MetadataItem], region: Region) -> Vec<OpenError> {
    let mut faults = Vec::new();
    for item in items {
        if let Some(fault) = item.fault(region.len) {
            faults.push(place_error(item, fault));
        }
        if item.id == INCOMPLETE_FILE && !item.is_user {
            faults.push(OpenError::Incomplete);
        } else if item.is_required && (item.is_user || !KNOWN_ITEMS.contains(&item.id)) {
            // What a user requires, nobody else can know.
            faults.push(OpenError::UnknownItem { item: item.id });
        }
    }
    let users = items.iter().filter(|item| item.is_user).count();
    if users > USER_ITEM_COUNT_MAX.into() {
        let fault = TableFault::Count { count: users as u32, max: USER_ITEM_COUNT_MAX.into() };
        faults.push(OpenError::MetadataTable { offset: region.offset, fault });
    }
    faults.extend(duplicates(items));
    faults.extend(overlaps(items));
    faults
}

fn duplicates(items: &[MetadataItem]) -> Vec<OpenError> {
    let mut keys: Vec<_> = items.iter().map(|item| (item.id, item.is_user)).collect();
    keys.sort_unstable();
    let pairs = keys.windows(2).filter(|pair| pair[0] == pair[1]);
    pairs.map(|pair| OpenError::DuplicateItem { item: pair[0].0 }).collect()
}

fn overlaps(items: &[MetadataItem]) -> Vec<OpenError> {
    let mut places: Vec<_> = items.iter().filter(|item| item.len > 0).collect();
    places.sort_unstable_by_key(|item| item.offset);
    let pairs = places.windows(2).filter(|pair| pair[0].place().overlaps(pair[1].place()));
    pairs.map(|pair| place_error(pair[1], PlaceFault::Overlap)).collect()
}

fn place_error(item: &MetadataItem, fault: PlaceFault) -> OpenError {
    OpenError::ItemPlace { item: item.id, offset: item.offset.into(), len: item.len.into(), fault }
}

/// An item of a file that is being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewItem {
    /// Which item.
    pub id: Uuid,
    /// `ITEM_IS_USER`, `ITEM_IS_VIRTUAL_DISK`, `ITEM_IS_REQUIRED` of [`super::layout`].
    pub flags: u32,
    /// At most 1 MiB.
    pub content: Vec<u8>,
}

/// The table and the items of a new file, from the start of the metadata region.
///
/// # Panics
/// If there are more items than a table holds or one is longer than 1 MiB; the creator has checked both.
pub(super) fn encode(items: &[NewItem]) -> Vec<u8> {
    assert!(items.len() <= ITEM_COUNT_MAX.into(), "a table holds 2047 items");
    let header = MetadataTableHeader {
        signature: METADATA_SIGNATURE,
        reserved: 0.into(),
        entry_count: u16::try_from(items.len()).expect("it was just checked").into(),
        reserved2: [0; 20],
    };
    let mut bytes = header.as_bytes().to_vec();
    let mut content = Vec::new();
    for item in items {
        let len = u32::try_from(item.content.len()).ok().filter(|len| *len <= ITEM_BYTES_MAX);
        let len = len.expect("an item has 1 MiB at most");
        let offset =
            u32::try_from(METADATA_TABLE_BYTES + content.len()).expect("2047 items of 1 MiB have 2 GiB");
        let entry = MetadataTableEntry {
            item_id: item.id.into(),
            // An empty item has no place.
            offset: if len == 0 { 0 } else { offset }.into(),
            length: len.into(),
            flags: item.flags.into(),
            reserved: 0.into(),
        };
        bytes.extend_from_slice(entry.as_bytes());
        content.extend_from_slice(&item.content);
        content.resize(content.len().next_multiple_of(8), 0);
    }
    bytes.resize(METADATA_TABLE_BYTES, 0);
    bytes.append(&mut content);
    bytes
}

/// The items that a child of a disk takes over: those that describe the virtual disk and are not of the format, which
/// a new file writes itself. MS-VHDX 2.6.1.2.
pub(super) async fn inherited_items(
    file: &Disk,
    region: Region,
    items: &[MetadataItem],
) -> Result<Vec<NewItem>, OpenError> {
    let own = |item: &&MetadataItem| {
        item.is_virtual_disk && (item.is_user || item.id == CHS_PARAMETERS || !KNOWN_ITEMS.contains(&item.id))
    };
    let reader = ItemReader { file, region, items };
    let mut inherited = Vec::new();
    for item in items.iter().filter(own) {
        inherited.push(NewItem { id: item.id, flags: item.flags(), content: reader.bytes(item).await? });
    }
    Ok(inherited)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_items(items: &[MetadataItem], region: Region) -> Result<(), OpenError> {
        item_faults(items, region).into_iter().next().map_or(Ok(()), Err)
    }

    const REGION: Region = Region { guid: Uuid::nil(), offset: 2 << 20, len: 1 << 20, required: true };

    fn item(id: u128, offset: u32, len: u32) -> MetadataItem {
        let id = Uuid::from_u128(id);
        MetadataItem { id, offset, len, is_user: false, is_virtual_disk: false, is_required: false }
    }

    fn fault(items: &[MetadataItem]) -> Option<PlaceFault> {
        match check_items(items, REGION) {
            Ok(()) => None,
            Err(OpenError::ItemPlace { fault, .. }) => Some(fault),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_table_survives_its_encoding() {
        let item = |id, flags, content| NewItem { id, flags, content };
        let items = [
            item(FILE_PARAMETERS, ITEM_IS_REQUIRED, vec![1; 5]),
            item(VIRTUAL_DISK_SIZE, ITEM_IS_VIRTUAL_DISK, vec![2; 8]),
        ];
        let bytes = encode(&items);
        let decoded = decode_table(&bytes[..METADATA_TABLE_BYTES]).unwrap();
        assert_eq!((decoded[0].offset, decoded[1].offset), (65536, 65544));
        assert!(decoded[0].is_required && decoded[1].is_virtual_disk && !decoded[1].is_required);
        assert_eq!(bytes[65544..], [2; 8]);
    }

    #[test]
    fn items_in_forbidden_places_are_refused() {
        assert_eq!(fault(&[item(1, 65535, 8)]), Some(PlaceFault::InTable));
        assert_eq!(fault(&[item(1, 70000, 0)]), Some(PlaceFault::Empty));
        assert_eq!(fault(&[item(1, 65536, ITEM_BYTES_MAX + 1)]), Some(PlaceFault::TooLarge));
        assert_eq!(fault(&[item(1, u32::MAX, 8)]), Some(PlaceFault::BeyondEnd));
        assert_eq!(fault(&[item(1, 65540, 8), item(2, 65536, 5)]), Some(PlaceFault::Overlap));
        assert_eq!(fault(&[item(1, 65541, 8), item(2, 65536, 5), item(3, 0, 0)]), None);
    }

    #[test]
    fn an_item_is_unique_among_those_of_its_side() {
        let user = MetadataItem { is_user: true, ..item(1, 65552, 8) };
        assert!(check_items(&[item(1, 65536, 8), user], REGION).is_ok());
        let twice = check_items(&[item(1, 65536, 8), item(1, 65552, 8)], REGION);
        assert!(matches!(twice, Err(OpenError::DuplicateItem { .. })));
    }

    #[test]
    fn requirements_that_cannot_be_met_are_refused() {
        let required = |item| MetadataItem { is_required: true, ..item };
        let unknown = check_items(&[required(item(1, 65536, 8))], REGION);
        assert!(matches!(unknown, Err(OpenError::UnknownItem { .. })));
        let incomplete = MetadataItem { id: INCOMPLETE_FILE, ..item(1, 0, 0) };
        assert!(matches!(check_items(&[incomplete], REGION), Err(OpenError::Incomplete)));
    }

    #[test]
    fn users_have_1024_items_at_most() {
        let users = |count| {
            let user = |id| MetadataItem { is_user: true, ..item(id, 0, 0) };
            check_items(&(0..count).map(user).collect::<Vec<_>>(), REGION)
        };
        assert!(users(1024).is_ok());
        let error = users(1025).unwrap_err();
        assert!(matches!(
            error,
            OpenError::MetadataTable { fault: TableFault::Count { count: 1025, .. }, .. }
        ));
    }
}
