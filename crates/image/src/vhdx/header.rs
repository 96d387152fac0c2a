//! The two headers: choosing the current one, and changing it without ever having none.
//!
//! Source: MS-VHDX 2.2.2.

use block::Disk;
use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::error::{PlaceFault, TableFault};
use super::layout::{self, FILE_BYTES_MAX, HEADER_BYTES, HEADER_OFFSETS, HEADER_SIGNATURE, MIB, RawHeader};
use super::{OpenError, disk_io};

/// Updates of the header that a file must have room for to be opened for writing: more than can ever be made.
const SEQUENCE_ROOM: u64 = 1 << 32;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The header with the larger one is current.
    pub sequence_number: u64,
    /// New with the first change of the file in each writable open.
    pub file_write_guid: Uuid,
    /// New before the first change that a guest could see; children keep a copy.
    pub data_write_guid: Uuid,
    /// Nil where the log holds nothing to replay.
    pub log_guid: Uuid,
    /// Must be 0 where `log_guid` is not nil.
    pub log_version: u16,
    /// Version of the format.
    pub version: u16,
    /// First byte of the log.
    pub log_offset: u64,
    /// Length of the log in bytes; 0 where there is none.
    pub log_len: u64,
}

impl Header {
    /// Decodes 4096 bytes; what the fields say is not checked.
    ///
    /// # Errors
    /// Signature or checksum.
    pub fn decode(bytes: &[u8]) -> Result<Self, TableFault> {
        let raw = RawHeader::ref_from_bytes(bytes).map_err(|_| TableFault::Signature)?;
        if raw.signature != HEADER_SIGNATURE {
            return Err(TableFault::Signature);
        }
        if !layout::is_sealed(bytes) {
            return Err(TableFault::Checksum);
        }
        Ok(Self {
            sequence_number: raw.sequence_number.get(),
            file_write_guid: raw.file_write_guid.uuid(),
            data_write_guid: raw.data_write_guid.uuid(),
            log_guid: raw.log_guid.uuid(),
            log_version: raw.log_version.get(),
            version: raw.version.get(),
            log_offset: raw.log_offset.get(),
            log_len: u64::from(raw.log_length.get()),
        })
    }

    /// The 4096 bytes of the header, with its checksum.
    ///
    /// # Panics
    /// If the log is longer than 4 GiB, which no decoded header is.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawHeader::new_zeroed();
        raw.signature = HEADER_SIGNATURE;
        raw.sequence_number.set(self.sequence_number);
        raw.file_write_guid = self.file_write_guid.into();
        raw.data_write_guid = self.data_write_guid.into();
        raw.log_guid = self.log_guid.into();
        raw.log_version.set(self.log_version);
        raw.version.set(self.version);
        raw.log_length.set(u32::try_from(self.log_len).expect("a log's length has 32 bits"));
        raw.log_offset.set(self.log_offset);
        let mut bytes = raw.as_bytes().to_vec();
        layout::seal(&mut bytes);
        bytes
    }

    /// Checks what the current header says, for a host file of `file_bytes`.
    pub(super) fn validate(&self, file_bytes: u64) -> Result<(), OpenError> {
        if self.version != layout::VERSION {
            return Err(OpenError::UnknownVersion { version: self.version });
        }
        // The log's version may be anything while the log is not in use.
        if !self.log_guid.is_nil() && self.log_version != layout::LOG_VERSION {
            return Err(OpenError::UnknownLogVersion { log_guid: self.log_guid, version: self.log_version });
        }
        match self.log_fault(file_bytes) {
            Some(fault) => Err(OpenError::LogPlace { offset: self.log_offset, len: self.log_len, fault }),
            None => Ok(()),
        }
    }

    fn log_fault(&self, file_bytes: u64) -> Option<PlaceFault> {
        if self.log_len == 0 {
            return (!self.log_guid.is_nil()).then_some(PlaceFault::Empty);
        }
        place_fault(self.log_offset, self.log_len, file_bytes)
    }
}

/// What is wrong with the place of the log or of a region in a host file of `file_bytes`.
pub(super) fn place_fault(offset: u64, len: u64, file_bytes: u64) -> Option<PlaceFault> {
    let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX);
    if !(offset.is_multiple_of(MIB) && len.is_multiple_of(MIB)) {
        Some(PlaceFault::Unaligned)
    } else if len == 0 {
        Some(PlaceFault::Empty)
    } else if offset < layout::HEADER_AREA_BYTES {
        Some(PlaceFault::InHeader)
    } else if end.is_none_or(|end| end > file_bytes) {
        Some(PlaceFault::BeyondEnd)
    } else {
        None
    }
}

/// The current header and the slot that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The current header.
    pub current: Header,
    /// 0 or 1: where it lies, [`HEADER_OFFSETS`].
    pub slot: usize,
}

impl Headers {
    /// Chooses the current one of two headers of 4096 bytes: the valid one with the larger sequence number.
    ///
    /// # Errors
    /// Neither is valid, or both carry the same number and are not the same: then nothing tells which is newer.
    /// disk2vhd writes two headers that are the same byte for byte, which is accepted.
    pub fn choose(first: &[u8], second: &[u8]) -> Result<Self, OpenError> {
        let slot_of = |slot, current| Ok(Self { current, slot });
        match (Header::decode(first), Header::decode(second)) {
            (Err(first), Err(second)) => Err(OpenError::NoHeader { first, second }),
            (Ok(header), Err(_)) => slot_of(0, header),
            (Err(_), Ok(header)) => slot_of(1, header),
            (Ok(a), Ok(b)) if a.sequence_number == b.sequence_number && first != second => {
                Err(OpenError::HeadersContradict { sequence_number: a.sequence_number })
            }
            (Ok(a), Ok(b)) if a.sequence_number < b.sequence_number => slot_of(1, b),
            (Ok(a), Ok(_)) => slot_of(0, a),
        }
    }

    pub(super) async fn read(file: &Disk) -> Result<Self, OpenError> {
        let doing = OpenError::host("read the headers");
        let first = disk_io::read(file, HEADER_OFFSETS[0], HEADER_BYTES).await.map_err(&doing)?;
        let second = disk_io::read(file, HEADER_OFFSETS[1], HEADER_BYTES).await.map_err(&doing)?;
        Self::choose(&first, &second)
    }

    /// Whether the sequence number leaves no room for the updates of a writable open.
    pub fn is_exhausted(&self) -> bool {
        self.current.sequence_number.checked_add(SEQUENCE_ROOM).is_none()
    }

    /// Makes `change` to the header and writes it to the slot that is not current, durable on return, whereupon that
    /// slot is current. The file has a valid header at every moment of it.
    ///
    /// # Errors
    /// What the host reports; then either header may be the current one.
    pub async fn update_once(&mut self, file: &Disk, change: impl FnOnce(&mut Header)) -> block::Result<()> {
        let mut next = self.current.clone();
        change(&mut next);
        next.sequence_number += 1;
        let slot = 1 - self.slot;
        file.write_all(HEADER_OFFSETS[slot], &next.encode()).await?;
        file.flush().await?;
        *self = Self { current: next, slot };
        Ok(())
    }

    /// Makes `change` to the header in both slots, one after the other, so that losing one of them loses nothing.
    /// Durable on return.
    ///
    /// # Errors
    /// As [`Self::update_once`].
    pub async fn update(&mut self, file: &Disk, change: impl FnOnce(&mut Header)) -> block::Result<()> {
        self.update_once(file, change).await?;
        self.update_once(file, |_| {}).await
    }
}

#[cfg(test)]
mod tests {
    use testkit::{MemDev, block_on};

    use super::*;

    fn header(sequence_number: u64) -> Header {
        Header {
            sequence_number,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            log_guid: Uuid::nil(),
            log_version: 0,
            version: 1,
            log_offset: MIB,
            log_len: MIB,
        }
    }

    #[test]
    fn a_header_survives_its_encoding() {
        let header = header(7);
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn the_valid_header_with_the_larger_number_is_current() {
        let (old, new) = (header(7).encode(), header(8).encode());
        let slot = |a: &[u8], b: &[u8]| Headers::choose(a, b).map(|headers| headers.slot);
        assert_eq!(slot(&old, &new).unwrap(), 1);
        assert_eq!(slot(&new, &old).unwrap(), 0);
        assert_eq!(slot(&old, &old).unwrap(), 0);
        let mut torn = new.clone();
        torn[4000] ^= 1;
        assert_eq!(slot(&old, &torn).unwrap(), 0);
        let neither = OpenError::NoHeader { first: TableFault::Checksum, second: TableFault::Signature };
        assert_eq!(slot(&torn, &[0; 4096]).unwrap_err().to_string(), neither.to_string());
    }

    #[test]
    fn headers_that_differ_under_one_number_are_refused() {
        let mut other = header(7);
        other.data_write_guid = Uuid::from_u128(3);
        let chosen = Headers::choose(&header(7).encode(), &other.encode());
        assert!(matches!(chosen, Err(OpenError::HeadersContradict { sequence_number: 7 })));
    }

    #[test]
    fn the_version_of_an_unused_log_does_not_matter() {
        let mut header = header(7);
        header.log_version = 1;
        assert!(header.validate(4 * MIB).is_ok());
        header.log_guid = Uuid::from_u128(9);
        assert!(matches!(header.validate(4 * MIB), Err(OpenError::UnknownLogVersion { version: 1, .. })));
    }

    #[test]
    fn a_log_outside_its_place_is_refused() {
        let fault = |log_offset, log_len| {
            Header { log_offset, log_len, ..header(1) }.validate(4 * MIB).map_err(|error| match error {
                OpenError::LogPlace { fault, .. } => fault,
                other => panic!("{other}"),
            })
        };
        assert_eq!(fault(MIB + 4096, MIB), Err(PlaceFault::Unaligned));
        assert_eq!(fault(0, MIB), Err(PlaceFault::InHeader));
        assert_eq!(fault(3 * MIB, 2 * MIB), Err(PlaceFault::BeyondEnd));
        assert_eq!(fault(u64::MAX - MIB + 1, MIB), Err(PlaceFault::BeyondEnd));
        assert_eq!((fault(3 * MIB, MIB), fault(0, 0)), (Ok(()), Ok(())));
    }

    #[test]
    fn an_update_reaches_both_slots_one_after_the_other() {
        block_on(async {
            let file = Disk::new(MemDev::new(MIB));
            file.write_all(HEADER_OFFSETS[0], &header(7).encode()).await.unwrap();
            let mut headers = Headers::read(&file).await.unwrap();
            headers.update(&file, |header| header.data_write_guid = Uuid::from_u128(5)).await.unwrap();
            assert_eq!((headers.slot, headers.current.sequence_number), (0, 9));
            for offset in HEADER_OFFSETS {
                let bytes = file.read_vec(offset, HEADER_BYTES).await.unwrap();
                assert_eq!(Header::decode(&bytes).unwrap().data_write_guid, Uuid::from_u128(5));
            }
            assert_eq!(Headers::read(&file).await.unwrap(), headers);
        });
    }
}
