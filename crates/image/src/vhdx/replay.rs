//! The log: finding what must be replayed, and replaying it.
//!
//! The log is a ring of sectors of 4 KiB that holds entries, each with pages or ranges of zeroes and the places in
//! the file where they go. Whatever else is in the ring, stale entries of earlier sessions or a torn last one, the
//! *active sequence* is what counts: the longest run of valid entries with consecutive numbers whose newest entry's
//! tail lies inside the run. It is replayed from that tail on, which can be later than the run's start.
//!
//! Replay is idempotent, so a crash while it runs only means that it runs again. Source: MS-VHDX 2.3.

use std::collections::{HashMap, HashSet, VecDeque};

use block::{ByteRange, Disk, ZeroFlags};
use crc_fast::{CrcAlgorithm, Digest};
use uuid::Uuid;
use zerocopy::FromBytes;

use super::header::{Header, Headers};
use super::layout::{
    FILE_BYTES_MAX, LOG_DATA_DESCRIPTOR_SIGNATURE, LOG_DATA_SIGNATURE, LOG_DESCRIPTOR_BYTES,
    LOG_ENTRY_HEADER_BYTES, LOG_ENTRY_SIGNATURE, LOG_SECTOR_BYTES, LOG_ZERO_DESCRIPTOR_SIGNATURE,
    LogDataSector, LogDescriptor, LogEntryHeader, REGION_TABLE_OFFSETS, log_descriptor_sectors,
};
use super::overlay::{Content, Patches};
use super::{OpenError, disk_io};

const SECTOR: u64 = LOG_SECTOR_BYTES as u64;
/// Sectors that one read of the log asks for at most.
const READ_SECTORS_MAX: u64 = 64;

/// What a replay would do to the file.
#[derive(Debug)]
pub(super) struct Replay {
    /// What it would write, the newest of each place.
    pub(super) patches: Patches,
    /// How long the file must be afterwards, at least.
    pub(super) file_bytes: u64,
}

impl Replay {
    /// Reads from the log of `file` what must be replayed. `header` is the current one, validated, with a log GUID.
    pub(super) async fn read(file: &Disk, header: &Header) -> Result<Self, OpenError> {
        let log = Ring { file, offset: header.log_offset, len: header.log_len, guid: header.log_guid };
        let mut entries = Vec::new();
        for head in log.entry_heads().await? {
            if log.is_valid(&head).await? {
                entries.push(head);
            }
        }
        let active = active_sequence(&entries, log.len);
        let active = active.ok_or(OpenError::LogEmpty { log_guid: header.log_guid })?;
        // Only the newest entry's sizes count.
        let head = active.last().expect("an active sequence has an entry");
        if file.size() < head.flushed_file_bytes {
            let flushed_bytes = head.flushed_file_bytes;
            return Err(OpenError::LogFileCut { file_bytes: file.size(), flushed_bytes });
        }
        if head.last_file_bytes > FILE_BYTES_MAX {
            return Err(OpenError::LogBeyondLimit { end: head.last_file_bytes, max: FILE_BYTES_MAX });
        }
        let mut patches = Patches::default();
        for entry in &active {
            log.collect(entry, &mut patches).await?;
        }
        let pages = patches.iter().filter(|(_, content)| matches!(content, Content::Page(_)));
        let pages_end = pages.map(|(range, _)| range.end()).max().unwrap_or(0);
        let file_bytes = file.size().max(head.last_file_bytes).max(pages_end);
        Ok(Self { patches, file_bytes })
    }

    /// Makes the file what the log says and marks the log as empty; durable on return.
    ///
    /// The first change of a writable open gives the file a new FileWriteGuid before anything else changes. What a
    /// guest sees does not change, so DataWriteGuid stays and children still fit.
    pub(super) async fn apply(
        &self,
        file: &Disk,
        headers: &mut Headers,
        file_write_guid: Uuid,
    ) -> block::Result<()> {
        headers.update_once(file, |header| header.file_write_guid = file_write_guid).await?;
        if file.size() < self.file_bytes {
            file.resize(self.file_bytes).await?;
        }
        for (range, content) in self.patches.iter() {
            match content {
                Content::Page(page) => file.write_all(range.start(), &page[..]).await?,
                Content::Zeroes => {
                    if let Some(range) = range.intersection(file.range()) {
                        file.write_zeroes(range, ZeroFlags { may_unmap: true, ..ZeroFlags::default() })
                            .await?;
                    }
                }
            }
        }
        file.flush().await?;
        headers.update(file, |header| header.log_guid = Uuid::nil()).await
    }
}

/// The head of an entry that looks right by itself; the rest of the entry may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EntryHead {
    /// Offset in the log.
    at: u64,
    len: u64,
    tail: u64,
    sequence: u64,
    descriptors: u32,
    checksum: u32,
    flushed_file_bytes: u64,
    last_file_bytes: u64,
}

impl EntryHead {
    /// Decodes the first sector of an entry of the log `guid` of `log_len` bytes; `None` if there is no such entry.
    fn decode(sector: &[u8], at: u64, guid: Uuid, log_len: u64) -> Option<Self> {
        let (raw, _) = LogEntryHeader::ref_from_prefix(sector).ok()?;
        let head = Self {
            at,
            len: raw.entry_length.get().into(),
            tail: raw.tail.get().into(),
            sequence: raw.sequence_number.get(),
            descriptors: raw.descriptor_count.get(),
            checksum: raw.checksum.get(),
            flushed_file_bytes: raw.flushed_file_offset.get(),
            last_file_bytes: raw.last_file_offset.get(),
        };
        let ours = raw.signature == LOG_ENTRY_SIGNATURE && raw.log_guid.uuid() == guid && head.sequence != 0;
        let aligned = head.len.is_multiple_of(SECTOR) && head.tail.is_multiple_of(SECTOR);
        let inside = head.len <= log_len && head.tail < log_len;
        let holds_descriptors = u64::from(log_descriptor_sectors(head.descriptors)) * SECTOR <= head.len;
        (ours && aligned && inside && holds_descriptors).then_some(head)
    }

    fn descriptor_sectors(&self) -> u64 {
        log_descriptor_sectors(self.descriptors).into()
    }
}

/// What a descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Update {
    /// A page from the next data sector.
    Page(PageUpdate),
    /// Zeroes.
    Zeroes(ByteRange),
}

/// A page and where it goes; the bytes whose places the data sector needs for itself are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PageUpdate {
    offset: u64,
    leading: [u8; 8],
    trailing: [u8; 4],
}

impl PageUpdate {
    /// The page that the descriptor and its data sector make.
    fn page(&self, sector: &[u8]) -> Box<[u8; LOG_SECTOR_BYTES]> {
        let mut page = Box::new([0; LOG_SECTOR_BYTES]);
        page.copy_from_slice(sector);
        page[..8].copy_from_slice(&self.leading);
        page[LOG_SECTOR_BYTES - 4..].copy_from_slice(&self.trailing);
        page
    }
}

impl Update {
    /// Decodes a descriptor of the entry `sequence`; `None` if it breaks a rule. `log` is where the log lies.
    fn decode(bytes: &[u8], sequence: u64, log: ByteRange) -> Option<Self> {
        let raw = LogDescriptor::ref_from_bytes(bytes).ok()?;
        let offset = raw.file_offset.get();
        let (update, len) = match raw.signature {
            LOG_DATA_DESCRIPTOR_SIGNATURE => {
                let (leading, trailing) = (raw.leading_bytes, raw.trailing_bytes);
                (Self::Page(PageUpdate { offset, leading, trailing }), SECTOR)
            }
            LOG_ZERO_DESCRIPTOR_SIGNATURE => {
                let len = u64::from_le_bytes(raw.leading_bytes);
                (Self::Zeroes(ByteRange::new(offset, len)?), len)
            }
            _ => return None,
        };
        let range = ByteRange::new(offset, len).filter(|range| range.end() <= FILE_BYTES_MAX)?;
        let aligned = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        // Region tables are changed through the log; identifier, headers and the log itself never are.
        let allowed = offset >= REGION_TABLE_OFFSETS[0] && !range.overlaps(log);
        (raw.sequence_number.get() == sequence && aligned && allowed).then_some(update)
    }
}

/// Checks an entry sector by sector, so that one of any length is checked in little memory.
struct EntryCheck {
    head: EntryHead,
    log: ByteRange,
    digest: Digest,
    sectors_seen: u64,
    descriptors_left: u32,
    pages: u64,
}

impl EntryCheck {
    fn new(head: EntryHead, log: ByteRange) -> Self {
        let digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        Self { head, log, digest, sectors_seen: 0, descriptors_left: head.descriptors, pages: 0 }
    }

    /// Takes the next sector; false if it cannot be one of a valid entry.
    fn push(&mut self, sector: &[u8]) -> bool {
        if self.sectors_seen == 0 {
            self.digest.update(&sector[..4]);
            self.digest.update(&[0; 4]);
            self.digest.update(&sector[8..]);
        } else {
            self.digest.update(sector);
        }
        self.sectors_seen += 1;
        if self.sectors_seen <= self.head.descriptor_sectors() {
            return self.push_descriptors(sector);
        }
        is_data_sector(sector, self.head.sequence)
    }

    fn push_descriptors(&mut self, sector: &[u8]) -> bool {
        let first = self.sectors_seen == 1;
        for bytes in descriptors_in(sector, first, &mut self.descriptors_left) {
            match Update::decode(bytes, self.head.sequence, self.log) {
                Some(Update::Page(_)) => self.pages += 1,
                Some(Update::Zeroes(_)) => {}
                None => return false,
            }
        }
        // With the last descriptor the length is known: one data sector for each page.
        self.sectors_seen < self.head.descriptor_sectors()
            || (self.head.descriptor_sectors() + self.pages) * SECTOR == self.head.len
    }

    /// Whether the entry, all of whose sectors were pushed, has its checksum.
    fn finish(self) -> bool {
        self.digest.finalize() == u64::from(self.head.checksum)
    }
}

/// The descriptors in a sector, of which `left` have not been seen.
fn descriptors_in<'a>(sector: &'a [u8], first: bool, left: &mut u32) -> impl Iterator<Item = &'a [u8]> {
    let start = if first { LOG_ENTRY_HEADER_BYTES } else { 0 };
    let here = ((LOG_SECTOR_BYTES - start) / LOG_DESCRIPTOR_BYTES).min(*left as usize);
    *left -= here as u32;
    sector[start..].chunks_exact(LOG_DESCRIPTOR_BYTES).take(here)
}

fn is_data_sector(sector: &[u8], sequence: u64) -> bool {
    LogDataSector::ref_from_bytes(sector).is_ok_and(|data| {
        let number = u64::from(data.sequence_high.get()) << 32 | u64::from(data.sequence_low.get());
        data.signature == LOG_DATA_SIGNATURE && number == sequence
    })
}

/// The entries to replay, oldest first, out of the valid ones of a log of `log_len` bytes.
///
/// Valid entries never share a sector: the first sector of one has a signature that no later sector of another may
/// have. So each has one successor at most, and the runs of consecutive numbers are disjoint.
fn active_sequence(entries: &[EntryHead], log_len: u64) -> Option<Vec<EntryHead>> {
    let by_place: HashMap<u64, &EntryHead> = entries.iter().map(|entry| (entry.at, entry)).collect();
    let next = |entry: &EntryHead| {
        let next = by_place.get(&((entry.at + entry.len) % log_len))?;
        (entry.sequence.checked_add(1) == Some(next.sequence)).then_some(**next)
    };
    let followers: HashSet<u64> = entries.iter().filter_map(next).map(|entry| entry.at).collect();
    let starts = entries.iter().filter(|entry| !followers.contains(&entry.at));
    let runs = starts.map(|start| std::iter::successors(Some(*start), next).collect::<Vec<_>>());
    let from_tail = runs.filter_map(|mut run| {
        let head = *run.last()?;
        let tail = run.iter().position(|entry| entry.at == head.tail)?;
        run.drain(..tail);
        Some(run)
    });
    from_tail.max_by_key(|run| run.last().map(|head| head.sequence))
}

/// The log as a ring.
struct Ring<'a> {
    file: &'a Disk,
    offset: u64,
    len: u64,
    /// What the entries that count carry.
    guid: Uuid,
}

impl Ring<'_> {
    fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, self.len).expect("the log's place was validated")
    }

    /// Reads `sectors` from `at`, going on at the start of the ring where it ends.
    async fn read(&self, at: u64, sectors: u64) -> Result<Vec<u8>, OpenError> {
        let doing = OpenError::host("read the log");
        let bytes = |len: u64| usize::try_from(len).expect("a read of the log fits memory");
        let len = sectors * SECTOR;
        let before_end = len.min(self.len - at);
        let mut read = disk_io::read(self.file, self.offset + at, bytes(before_end)).await.map_err(&doing)?;
        if before_end < len {
            let rest = disk_io::read(self.file, self.offset, bytes(len - before_end)).await;
            read.extend(rest.map_err(&doing)?);
        }
        Ok(read)
    }

    /// The heads of everything in the ring that looks like an entry that counts.
    async fn entry_heads(&self) -> Result<Vec<EntryHead>, OpenError> {
        let mut heads = Vec::new();
        let mut at = 0;
        while at < self.len {
            let sectors = READ_SECTORS_MAX.min((self.len - at) / SECTOR);
            let bytes = self.read(at, sectors).await?;
            let found = bytes.chunks_exact(LOG_SECTOR_BYTES).zip(0..).filter_map(|(sector, index)| {
                EntryHead::decode(sector, at + index * SECTOR, self.guid, self.len)
            });
            heads.extend(found);
            at += sectors * SECTOR;
        }
        Ok(heads)
    }

    async fn is_valid(&self, head: &EntryHead) -> Result<bool, OpenError> {
        let mut check = EntryCheck::new(*head, self.range());
        let mut reader = EntryReader::new(self, head);
        while let Some(bytes) = reader.next().await? {
            if !bytes.chunks_exact(LOG_SECTOR_BYTES).all(|sector| check.push(sector)) {
                return Ok(false);
            }
        }
        Ok(check.finish())
    }

    /// Adds what a valid entry changes to `patches`.
    async fn collect(&self, head: &EntryHead, patches: &mut Patches) -> Result<(), OpenError> {
        let mut collect = Collect::new(*head, self.range());
        let mut reader = EntryReader::new(self, head);
        while let Some(bytes) = reader.next().await? {
            if !bytes.chunks_exact(LOG_SECTOR_BYTES).all(|sector| collect.push(sector, patches)) {
                return Err(OpenError::LogEmpty { log_guid: self.guid });
            }
        }
        Ok(())
    }
}

/// Turns the sectors of a valid entry into changes, one after the other.
struct Collect {
    head: EntryHead,
    log: ByteRange,
    sectors_seen: u64,
    descriptors_left: u32,
    /// Descriptors whose data sector has not come yet.
    pages: VecDeque<PageUpdate>,
}

impl Collect {
    fn new(head: EntryHead, log: ByteRange) -> Self {
        Self { head, log, sectors_seen: 0, descriptors_left: head.descriptors, pages: VecDeque::new() }
    }

    /// Takes the next sector; false if it is not what it was when the entry was checked, which means that somebody
    /// writes to the file in spite of its lock.
    fn push(&mut self, sector: &[u8], patches: &mut Patches) -> bool {
        self.sectors_seen += 1;
        if self.sectors_seen > self.head.descriptor_sectors() {
            let Some(update) = self.pages.pop_front() else { return false };
            let range = ByteRange::new(update.offset, SECTOR).expect("it was checked when it was decoded");
            patches.set(range, Content::Page(update.page(sector)));
            return true;
        }
        for bytes in descriptors_in(sector, self.sectors_seen == 1, &mut self.descriptors_left) {
            match Update::decode(bytes, self.head.sequence, self.log) {
                Some(Update::Page(update)) => self.pages.push_back(update),
                Some(Update::Zeroes(range)) => patches.set(range, Content::Zeroes),
                None => return false,
            }
        }
        true
    }
}

/// Reads an entry in pieces that start small, because most of what looks like a long entry is not one.
struct EntryReader<'a> {
    ring: &'a Ring<'a>,
    at: u64,
    sectors_left: u64,
    piece: u64,
}

impl<'a> EntryReader<'a> {
    fn new(ring: &'a Ring<'a>, head: &EntryHead) -> Self {
        Self { ring, at: head.at, sectors_left: head.len / SECTOR, piece: 1 }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, OpenError> {
        let sectors = self.piece.min(self.sectors_left);
        if sectors == 0 {
            return Ok(None);
        }
        let bytes = self.ring.read(self.at, sectors).await?;
        self.at = (self.at + sectors * SECTOR) % self.ring.len;
        self.sectors_left -= sectors;
        self.piece = (self.piece * 2).min(READ_SECTORS_MAX);
        Ok(Some(bytes))
    }
}
