//! The engine under an open VHDX file: the map from guest to host, and how changes of it become durable.
//!
//! # How a change becomes durable
//!
//! ```text
//!   first change of the session    free space is punched, an empty log entry is written      flush
//!                                  a header with new FileWriteGuid, DataWriteGuid, LogGuid   flush
//!                                  the other header                                          flush
//!   guest writes                   to blocks in place, or to new ones; images of the changed pages go to the log
//!   guest flush                    what is left to log goes to the log                       flush, acknowledged
//!   next guest flush               the pages go to their places beside the new log entries   flush, entries retire
//!   close                          all pages in place, file cut to its end, LogGuid cleared in both headers
//! ```
//!
//! A request that changes the map is answered when the log entry is *written*: a process that is killed loses nothing
//! that it has answered, because the next one replays the log, and a guest that runs on sees no difference. Only a
//! flush makes entries *durable*, against a power cut.
//!
//! A flush costs one flush of the host file, because everything that its log entries refer to is either in place or
//! in space that reads as zeroes durably: a crash that keeps the entry but not the data shows zeroes where there were
//! zeroes before. Where that does not hold, because a sector comes from the parent until its bit is set, the data is
//! flushed first and the flush costs two.
//!
//! # How space is reused
//!
//! Space that the map lets go is *freed*; when a durable log entry says so it is *released*; when no request mapped
//! before may still touch it, it is *punched*; when the punch is durable it is free, and reads as zeroes. So a block
//! that is allocated never shows what its space held before, whenever a crash comes. Source: MS-VHDX 2.3, 2.5.
//!
//! # Locks
//!
//! `closing` (async), then `allocation` (async), then `writer` (async), then `state` (never held across an await).
//!
//! # Futures that are dropped
//!
//! The host may carry out later what a dropped future has asked of it. So a write that is given up keeps its place from
//! being reused for the rest of the session, and a change of metadata that is given up poisons the file.

mod allocate;
mod bits;
mod change;
mod flush;
mod inflight;
mod log;
mod map;
mod pages;
mod session;
mod state;

use std::sync::{Arc, Mutex, MutexGuard};

use block::{ByteRange, DevInfo, Discard, Disk, Result, ZeroFlags};
use uuid::Uuid;

use self::inflight::Epoch;
use self::session::Writer;
use self::state::{Need, State, Stop};
use super::geometry::Geometry;
use super::open::{Access, Opened};
use crate::format::{ImageFormat, Mappings};

/// A VHDX file that is in use.
pub struct Vhdx {
    shared: Arc<Shared>,
}

struct Shared {
    file: Disk,
    geometry: Geometry,
    /// A fixed disk: its blocks are never given back.
    fixed: bool,
    read_only: bool,
    state: Mutex<State>,
    writer: async_lock::Mutex<Writer>,
    allocation: async_lock::Mutex<()>,
    closing: async_lock::Mutex<()>,
}

impl Vhdx {
    /// The engine for a file that [`open()`](super::open()) has validated. It is read-only if it was opened so.
    pub fn new(opened: Opened) -> Self {
        let fixed = opened.parameters.leave_blocks_allocated && !opened.geometry.has_parent;
        let shared = Shared {
            geometry: opened.geometry,
            fixed,
            read_only: opened.access == Access::ReadOnly || opened.file.info().read_only,
            state: Mutex::new(State::new(&opened)),
            writer: async_lock::Mutex::new(Writer::new(&opened)),
            allocation: async_lock::Mutex::new(()),
            closing: async_lock::Mutex::new(()),
            file: opened.file,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The identifier of the data as of now: what a child's parent linkage must hold.
    pub async fn data_write_guid(&self) -> Uuid {
        self.shared.writer.lock().await.data_write_guid()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the state")
    }

    /// Counts a request in, so that close waits for it, until the result is dropped.
    fn enter(&self) -> Result<Entered<'_>> {
        self.state().enter()?;
        Ok(Entered(self))
    }

    /// Runs `attempt` on the state until it has what it needs.
    ///
    /// An attempt that stops has changed nothing; what it asks for is fetched without the lock, then it starts over.
    async fn retry<T>(
        &self,
        reserved: &mut allocate::Reservation<'_>,
        mut attempt: impl FnMut(&mut State, &mut allocate::Reservation<'_>) -> Result<T, Stop>,
    ) -> Result<T> {
        loop {
            let stopped = match attempt(&mut self.state(), reserved) {
                Ok(done) => return Ok(done),
                Err(stopped) => stopped,
            };
            match stopped {
                Stop::Failed(error) => return Err(error),
                Stop::Needs(Need::Page(number)) => self.load_page(number).await?,
                Stop::Needs(Need::Session) => self.begin_session().await?,
                Stop::Needs(Need::Space { payload, bitmaps }) => {
                    self.reserve(reserved, payload, bitmaps).await?;
                }
            }
        }
    }
}

/// A request that close waits for.
struct Entered<'s>(&'s Shared);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.state().leave();
    }
}

/// Keeps the places that a request was given from being reused until it is dropped.
///
/// A read that is given up may end with another block's data, which nobody sees.
pub(crate) struct Hold {
    shared: Arc<Shared>,
    epoch: Epoch,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.state().end_request(self.epoch);
    }
}

impl ImageFormat for Vhdx {
    type Hold = Hold;
    type Prepared = change::Prepared;

    fn file(&self) -> &Disk {
        &self.shared.file
    }

    fn info(&self) -> DevInfo {
        let host = self.shared.file.info();
        let geometry = &self.shared.geometry;
        let block_bytes = geometry.logical_sector_bytes.max(host.block_bytes);
        DevInfo {
            block_bytes,
            physical_block_bytes: geometry.physical_sector_bytes.max(block_bytes),
            optimal_bytes: host.optimal_bytes.max(block_bytes),
            read_only: self.shared.read_only,
            discard: match host.discard {
                _ if self.shared.fixed => Discard::Ignored,
                Discard::Zeroes if !geometry.has_parent => Discard::Zeroes,
                _ => Discard::Unspecified,
            },
            discard_bytes: geometry.block_bytes,
            native_fua: false,
            fast_zeroes: host.fast_zeroes,
            memory_align: host.memory_align,
        }
    }

    fn virtual_size(&self) -> u64 {
        self.shared.geometry.virtual_size
    }

    async fn map(&self, range: ByteRange, out: &mut Mappings) -> Result<Hold> {
        let _entered = self.shared.enter()?;
        loop {
            out.clear();
            let attempt = self.shared.state().map(range, out);
            match attempt {
                Ok(epoch) => return Ok(Hold { shared: Arc::clone(&self.shared), epoch }),
                Err(Stop::Needs(Need::Page(number))) => self.shared.load_page(number).await?,
                Err(Stop::Needs(_)) => unreachable!("looking something up needs nothing but pages"),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }

    async fn prepare_write(&self, range: ByteRange, out: &mut Mappings) -> Result<change::Prepared> {
        self.prepare(|state, reserved| state.prepare_write(range, reserved, out)).await
    }

    async fn prepare_zeroes(
        &self,
        range: ByteRange,
        flags: ZeroFlags,
        out: &mut Mappings,
    ) -> Result<change::Prepared> {
        let may_free = flags.may_unmap && !self.shared.fixed;
        self.prepare(|state, reserved| state.prepare_zeroes(range, may_free, reserved, out)).await
    }

    async fn prepare_discard(&self, range: ByteRange, out: &mut Mappings) -> Result<change::Prepared> {
        self.prepare(|state, reserved| state.prepare_discard(range, reserved, out)).await
    }

    fn note_landed(&self, prepared: &mut change::Prepared) {
        prepared.note_landed();
    }

    async fn commit(&self, prepared: change::Prepared) -> Result<()> {
        if !prepared.parts().is_empty() {
            let mut none = allocate::Reservation::new(&self.shared);
            self.shared.retry(&mut none, |state, _| state.commit(prepared.parts())).await?;
        }
        self.shared.log_changes().await
    }

    async fn flush(&self) -> Result<()> {
        let _entered = self.shared.enter()?;
        self.shared.flush().await
    }

    async fn close(&self) -> Result<()> {
        self.shared.close().await
    }
}

impl Vhdx {
    async fn prepare(
        &self,
        attempt: impl FnMut(&mut State, &mut allocate::Reservation<'_>) -> Result<change::Ticket, Stop>,
    ) -> Result<change::Prepared> {
        let _entered = self.shared.enter()?;
        let mut reserved = allocate::Reservation::new(&self.shared);
        let ticket = self.shared.retry(&mut reserved, attempt).await?;
        Ok(change::Prepared::new(Arc::clone(&self.shared), ticket))
    }
}
