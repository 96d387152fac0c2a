//! The log as a writer sees it: a ring of sectors that takes entries of page images.
//!
//! An entry stays *live* until the pages in it are durable in their places, whereupon it *retires*; the tail that each
//! new entry carries points to the oldest live one, where a replay starts. The tail of the newest durable entry counts
//! until a newer one is durable, so a retired entry is *kept*, not written over, until then: a crash that tears the
//! newer one must find all entries from that tail on. Source: MS-VHDX 2.3.

use std::collections::VecDeque;

use block::ByteRange;
use uuid::Uuid;
use zerocopy::IntoBytes;

use super::pages::PageImage;
use crate::vhdx::layout::{
    LOG_DATA_DESCRIPTOR_SIGNATURE, LOG_DATA_SIGNATURE, LOG_ENTRY_SIGNATURE, LOG_SECTOR_BYTES, LogDataSector,
    LogDescriptor, LogEntryHeader, log_descriptor_sectors, seal,
};

/// An entry takes at most this part of the log. There is always room for one more where each retires when the next is
/// durable: beside it the log keeps the entry before it, which is live, and the one that the tail of that one points to.
const ENTRY_SHARE: u32 = 4;

/// File sizes that an entry carries, in bytes, multiples of 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileSizes {
    /// What is durable already: replay refuses a file that is shorter.
    pub(super) flushed: u64,
    /// What holds every structure: replay makes a shorter file this long.
    pub(super) last: u64,
}

/// Bytes to be written to the host file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LogWrite {
    pub(super) host_offset: u64,
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    start: u32,
    sectors: u32,
}

/// A log that this process has opened for its own entries.
#[derive(Debug)]
pub(super) struct Log {
    region: ByteRange,
    guid: Uuid,
    next_sequence: u64,
    /// Sector that the next entry starts at.
    head: u32,
    /// The entries that must not be written over, oldest first.
    kept: VecDeque<Kept>,
    /// How many of the oldest kept ones are not live any more.
    retired: usize,
    /// How many of the oldest kept ones are before the tail of the newest.
    before_tail: usize,
}

impl Log {
    /// An empty log in `region`, whose entries will carry `guid` and count from `first_sequence`, which is not 0.
    pub(super) fn new(region: ByteRange, guid: Uuid, first_sequence: u64) -> Self {
        assert!(first_sequence > 0, "sequence number 0 is invalid");
        Self {
            region,
            guid,
            next_sequence: first_sequence,
            head: 0,
            kept: VecDeque::new(),
            retired: 0,
            before_tail: 0,
        }
    }

    /// What the header must name for the entries to count.
    pub(super) fn guid(&self) -> Uuid {
        self.guid
    }

    /// How many pages the next entry can take while the kept entries stay.
    pub(super) fn pages_max(&self) -> usize {
        let used: u32 = self.kept.iter().map(|kept| kept.sectors).sum();
        // One sector stays free, so that head and tail are equal only in an empty log.
        let free = (self.sectors() - 1).saturating_sub(used).min(self.sectors() / ENTRY_SHARE);
        pages_in(free)
    }

    /// How many pages any entry can take at most.
    pub(super) fn entry_pages_max(&self) -> usize {
        pages_in(self.sectors() / ENTRY_SHARE)
    }

    /// Number of live entries, to be given to [`Self::retire`] when their pages are in place.
    pub(super) fn live_count(&self) -> usize {
        self.kept.len() - self.retired
    }

    /// Notes that the `count` oldest live entries need no replay: their pages are durable in their places. The next
    /// entry's tail says so.
    pub(super) fn retire(&mut self, count: usize) {
        assert!(count <= self.live_count(), "only live entries retire");
        self.retired += count;
    }

    /// Notes that all entries up to now are durable, so that nothing before the newest one's tail counts any more.
    pub(super) fn note_durable(&mut self) {
        self.kept.drain(..self.before_tail);
        self.retired -= self.before_tail;
        self.before_tail = 0;
    }

    /// Appends an entry with `images`, at most [`Self::pages_max`] of them; gives the one or two writes that store it.
    pub(super) fn append(&mut self, images: &[PageImage], sizes: FileSizes) -> Vec<LogWrite> {
        assert!(images.is_empty() || images.len() <= self.pages_max(), "an entry fits the log's free space");
        let descriptors = u32::try_from(images.len()).expect("an entry is smaller than the log");
        let sectors = log_descriptor_sectors(descriptors) + descriptors;
        let start = self.head;
        self.before_tail = self.retired;
        self.kept.push_back(Kept { start, sectors });
        let bytes = self.encode(images, sectors, sizes);
        self.head = (start + sectors) % self.sectors();
        self.next_sequence += 1;
        self.split(start, bytes)
    }

    fn sectors(&self) -> u32 {
        u32::try_from(self.region.len() / LOG_SECTOR_BYTES as u64).expect("a log is shorter than 4 GiB")
    }

    fn encode(&self, images: &[PageImage], sectors: u32, sizes: FileSizes) -> Vec<u8> {
        let length = sectors as usize * LOG_SECTOR_BYTES;
        let mut bytes = vec![0; length];
        let header = LogEntryHeader {
            signature: LOG_ENTRY_SIGNATURE,
            checksum: 0.into(),
            entry_length: u32::try_from(length).expect("an entry is shorter than the log").into(),
            tail: (self.kept[self.before_tail].start * LOG_SECTOR_BYTES as u32).into(),
            sequence_number: self.next_sequence.into(),
            descriptor_count: u32::try_from(images.len()).expect("an entry is smaller than the log").into(),
            reserved: 0.into(),
            log_guid: self.guid.into(),
            flushed_file_offset: sizes.flushed.into(),
            last_file_offset: sizes.last.into(),
        };
        put(&mut bytes, 0, header.as_bytes());
        let first_data = (sectors as usize - images.len()) * LOG_SECTOR_BYTES;
        for (index, image) in images.iter().enumerate() {
            let (descriptor, sector) = self.encode_page(image);
            put(
                &mut bytes,
                size_of::<LogEntryHeader>() + index * size_of::<LogDescriptor>(),
                descriptor.as_bytes(),
            );
            put(&mut bytes, first_data + index * LOG_SECTOR_BYTES, sector.as_bytes());
        }
        seal(&mut bytes);
        bytes
    }

    /// A page as descriptor and data sector: the descriptor holds what the sector's marks displace.
    fn encode_page(&self, image: &PageImage) -> (LogDescriptor, LogDataSector) {
        let sequence = self.next_sequence;
        let page = &*image.bytes;
        let descriptor = LogDescriptor {
            signature: LOG_DATA_DESCRIPTOR_SIGNATURE,
            trailing_bytes: page[LOG_SECTOR_BYTES - 4..].try_into().expect("4 bytes"),
            leading_bytes: page[..8].try_into().expect("8 bytes"),
            file_offset: image.offset().into(),
            sequence_number: sequence.into(),
        };
        let sector = LogDataSector {
            signature: LOG_DATA_SIGNATURE,
            sequence_high: ((sequence >> 32) as u32).into(),
            data: page[8..LOG_SECTOR_BYTES - 4].try_into().expect("the middle of a page"),
            sequence_low: (sequence as u32).into(),
        };
        (descriptor, sector)
    }

    /// Cuts an entry that starts at sector `start` where the ring ends.
    fn split(&self, start: u32, mut bytes: Vec<u8>) -> Vec<LogWrite> {
        let until_end = (self.sectors() - start) as usize * LOG_SECTOR_BYTES;
        let host_offset = self.region.start() + u64::from(start) * LOG_SECTOR_BYTES as u64;
        if bytes.len() <= until_end {
            return vec![LogWrite { host_offset, bytes }];
        }
        let wrapped = bytes.split_off(until_end);
        vec![LogWrite { host_offset, bytes }, LogWrite { host_offset: self.region.start(), bytes: wrapped }]
    }
}

/// How many pages an entry of `sectors` holds.
fn pages_in(sectors: u32) -> usize {
    let mut pages = sectors.saturating_sub(1);
    while pages > 0 && pages + log_descriptor_sectors(pages) > sectors {
        pages -= 1;
    }
    pages as usize
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZES: FileSizes = FileSizes { flushed: 4 * MIB, last: 8 * MIB };

    fn log() -> Log {
        Log::new(ByteRange::new(MIB, MIB).unwrap(), Uuid::from_u128(7), 1)
    }

    fn images(count: usize) -> Vec<PageImage> {
        (0..count)
            .map(|number| PageImage { number: number as u64, bytes: Box::new([5; 4096]), version: 1 })
            .collect()
    }

    #[test]
    fn an_entry_takes_a_quarter_of_the_log_at_most_and_never_the_last_sector() {
        let mut log = log();
        assert_eq!(log.pages_max(), 63);
        for _ in 0..3 {
            log.append(&images(63), SIZES);
        }
        // 3 × 64 of 256 sectors are live; 63 are left but for the spare one: header sector and 62 pages.
        assert_eq!(log.pages_max(), 62);
        log.append(&images(62), SIZES);
        assert_eq!(log.pages_max(), 0);
    }

    #[test]
    fn an_entry_that_retired_is_kept_until_a_tail_behind_it_is_durable() {
        let mut log = log();
        for _ in 0..3 {
            log.append(&images(63), SIZES);
        }
        log.note_durable();
        log.retire(2);
        assert_eq!(log.pages_max(), 62, "the durable tail still points to the first entry");
        log.append(&images(1), SIZES);
        assert_eq!(log.pages_max(), 60, "the new tail is not durable yet");
        log.note_durable();
        assert_eq!((log.pages_max(), log.live_count()), (63, 2));
    }

    #[test]
    fn there_is_always_room_for_an_entry_where_each_retires_when_the_next_is_durable() {
        let mut log = log();
        for _ in 0..50 {
            assert_eq!(log.pages_max(), 63);
            let live = log.live_count();
            log.append(&images(63), SIZES);
            log.note_durable();
            log.retire(live);
        }
    }

    #[test]
    fn entries_wrap_at_the_end_of_the_region() {
        let mut log = log();
        for _ in 0..4 {
            let live = log.live_count();
            log.append(&images(62), SIZES);
            log.note_durable();
            log.retire(live);
        }
        let writes = log.append(&images(10), SIZES);
        let places: Vec<_> = writes.iter().map(|write| (write.host_offset, write.bytes.len())).collect();
        assert_eq!(places, [(MIB + 252 * 4096, 4 * 4096), (MIB, 7 * 4096)]);
    }
}
