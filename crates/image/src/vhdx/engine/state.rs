//! What the engine knows in memory, behind one lock.

use std::collections::HashMap;
use std::task::Waker;

use block::{BlockError, ByteRange, ErrorKind, Result};

use super::inflight::{Epoch, InFlight};
use super::pages::{PAGE_BYTES, PageBytes, PageNumber, Pages};
use crate::vhdx::geometry::Geometry;
use crate::vhdx::layout::{BAT_ENTRY_BYTES, BITMAP_BLOCK_BYTES, BatEntry, BitmapState, PayloadState};
use crate::vhdx::open::Opened;
use crate::vhdx::space::SpaceMap;

/// What an attempt on the state lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A metadata page that is not in memory.
    Page(PageNumber),
    /// Room for new blocks and new sector bitmaps.
    Space { payload: usize, bitmaps: usize },
    /// The identifiers that must be durable before anything changes.
    Session,
}

/// Why an attempt on the state stopped, with nothing changed.
#[derive(Debug)]
pub(super) enum Stop {
    Needs(Need),
    Failed(BlockError),
}

/// Space for a block of which no sector is committed yet.
#[derive(Debug)]
pub(super) struct PendingBlock {
    pub(super) host_offset: u64,
    /// Prepared changes that have its address.
    pub(super) users: usize,
    /// Whether the map refers to it by now.
    pub(super) committed: bool,
}

/// Whether changes are possible.
#[derive(Debug)]
pub(super) enum Session {
    /// Nothing was changed since open.
    NotBegun,
    /// The new identifiers are durable and the log is open.
    Begun,
    /// A flush or a change of metadata failed; what the file holds is uncertain until it is opened again.
    Poisoned(String),
    /// Closed.
    Closed,
}

/// Space on its way from a block back to the free space.
#[derive(Debug, Default)]
pub(super) struct Returning {
    /// The map in memory no longer refers to it.
    pub(super) freed: Vec<ByteRange>,
    /// Neither does the durable one; requests of the epoch and before may still touch it.
    pub(super) released: Vec<(Epoch, ByteRange)>,
    /// Punched; free when that is durable.
    pub(super) punched: Vec<ByteRange>,
}

/// The engine's memory.
pub(super) struct State {
    pub(super) geometry: Geometry,
    pub(super) bat: ByteRange,
    pub(super) pages: Pages,
    /// What is taken in the host file. What is not taken reads as zeroes, durably, once the session has begun.
    pub(super) space: SpaceMap,
    pub(super) returning: Returning,
    pub(super) requests: InFlight,
    /// Requests that close waits for: those that hold places, and those that are still on their way to them.
    pub(super) requests_count: usize,
    pub(super) idle_wakers: Vec<Waker>,
    /// A close has begun, and no request may.
    pub(super) closing: bool,
    /// What the last reclaim could not free waits for the requests of this epoch.
    pub(super) reclaim_waits_for: Option<Epoch>,
    /// New blocks of a differencing disk, by block number.
    pub(super) pending: HashMap<u64, PendingBlock>,
    /// The next log entries refer to data that must be durable before them.
    pub(super) data_before_metadata: bool,
    pub(super) session: Session,
    /// Flushes that have taken their images.
    pub(super) flushes_started: u64,
    /// How often images were taken for the log.
    pub(super) images_taken: u64,
    /// The last of those times whose images were written there.
    pub(super) images_logged: u64,
}

impl State {
    pub(super) fn new(opened: &Opened) -> Self {
        let bat = opened.regions.bat.range();
        Self {
            geometry: opened.geometry,
            bat,
            pages: Pages::new(bat),
            space: opened.space.clone(),
            returning: Returning::default(),
            requests: InFlight::new(),
            requests_count: 0,
            idle_wakers: Vec::new(),
            closing: false,
            reclaim_waits_for: None,
            pending: HashMap::new(),
            data_before_metadata: false,
            session: Session::NotBegun,
            flushes_started: 0,
            images_taken: 0,
            images_logged: 0,
        }
    }

    /// Refuses changes of a file that cannot take them, and asks for the session that they need.
    pub(super) fn check_changeable(&self) -> Result<(), Stop> {
        match &self.session {
            Session::Begun => Ok(()),
            Session::NotBegun => Err(Stop::Needs(Need::Session)),
            Session::Poisoned(_) | Session::Closed => self.check_usable().map_err(Stop::Failed),
        }
    }

    /// Refuses changes and flushes of a file that failed or was closed.
    pub(super) fn check_usable(&self) -> Result<()> {
        self.check_open()?;
        match &self.session {
            Session::Poisoned(why) => Err(BlockError::new(
                ErrorKind::Poisoned,
                format!("an earlier change failed and the file must be opened again to be changed: {why}"),
            )),
            Session::NotBegun | Session::Begun | Session::Closed => Ok(()),
        }
    }

    /// Refuses everything on a file that was closed.
    pub(super) fn check_open(&self) -> Result<()> {
        match &self.session {
            Session::Closed => Err(closed()),
            Session::NotBegun | Session::Begun | Session::Poisoned(_) => Ok(()),
        }
    }

    /// Counts a request in, from its first step on; [`Self::leave`] counts it out.
    pub(super) fn enter(&mut self) -> Result<()> {
        if self.closing {
            return Err(closed());
        }
        self.requests_count += 1;
        Ok(())
    }

    /// Counts a request out.
    pub(super) fn leave(&mut self) {
        self.requests_count -= 1;
        if self.requests_count == 0 {
            self.idle_wakers.drain(..).for_each(Waker::wake);
        }
    }

    /// Counts a request in that gets places in the host file.
    pub(super) fn begin_request(&mut self) -> Epoch {
        self.requests_count += 1;
        self.requests.begin()
    }

    /// Counts a request out whose I/O on its places has ended.
    pub(super) fn end_request(&mut self, epoch: Epoch) {
        self.requests.end(epoch);
        self.leave();
    }

    /// The entry of a payload block, with its state.
    pub(super) fn payload(&self, block: u64) -> Result<(PayloadState, BatEntry), Stop> {
        let entry = self.entry(self.geometry.payload_entry_index(block))?;
        let state = entry.state().ok_or_else(|| {
            Stop::Failed(BlockError::new(
                ErrorKind::Corrupt,
                format!(
                    "the bat entry of block {block} changed under us to {:#x}, a reserved state",
                    entry.0
                ),
            ))
        })?;
        Ok((state, entry))
    }

    /// Where the sector bitmap of a chunk lies in the host file, if the chunk has one.
    pub(super) fn bitmap_offset(&self, chunk: u64) -> Result<Option<u64>, Stop> {
        let entry = self.entry(self.geometry.bitmap_entry_index(chunk))?;
        Ok((entry.bitmap_state() == Some(BitmapState::Present)).then(|| entry.offset_bytes()))
    }

    /// Sets the entry of a payload block and frees the space that the block had and does not keep.
    ///
    /// The page is in memory, because the caller has read the entry.
    pub(super) fn set_payload(&mut self, block: u64, state: PayloadState, host_offset: u64) {
        let index = self.geometry.payload_entry_index(block);
        let before = self.entry(index).expect("the entry was read before it is set");
        let entry = BatEntry::new(state, host_offset);
        if before == entry {
            return;
        }
        self.set_entry(index, entry);
        if let Some(space) = before.owned(self.geometry.block_bytes)
            && space.start() != host_offset
        {
            self.returning.freed.push(space);
        }
    }

    /// Gives a chunk a sector bitmap at `host_offset`, in space that reads as zeroes.
    pub(super) fn set_bitmap(&mut self, chunk: u64, host_offset: u64) {
        let entry = BatEntry::bitmap(BitmapState::Present, host_offset);
        self.set_entry(self.geometry.bitmap_entry_index(chunk), entry);
        for page in 0..BITMAP_BLOCK_BYTES / PAGE_BYTES as u64 {
            self.pages.insert(host_offset / PAGE_BYTES as u64 + page, Box::new([0; PAGE_BYTES]));
        }
    }

    /// A metadata page's bytes.
    pub(super) fn page(&self, number: PageNumber) -> Result<&PageBytes, Stop> {
        self.pages.get(number).ok_or(Stop::Needs(Need::Page(number)))
    }

    fn entry(&self, index: u64) -> Result<BatEntry, Stop> {
        let (number, at) = self.entry_place(index);
        let bytes = &self.page(number)?[at..at + BAT_ENTRY_BYTES as usize];
        Ok(BatEntry(u64::from_le_bytes(bytes.try_into().expect("an entry is 8 bytes long"))))
    }

    fn set_entry(&mut self, index: u64, entry: BatEntry) {
        let (number, at) = self.entry_place(index);
        let page = self.pages.change(number).expect("the entry was read before it is set");
        page[at..at + BAT_ENTRY_BYTES as usize].copy_from_slice(&entry.0.to_le_bytes());
    }

    fn entry_place(&self, index: u64) -> (PageNumber, usize) {
        let offset = self.bat.start() + index * BAT_ENTRY_BYTES;
        (offset / PAGE_BYTES as u64, (offset % PAGE_BYTES as u64) as usize)
    }
}

fn closed() -> BlockError {
    BlockError::new(ErrorKind::Io, "the file is closed")
}
