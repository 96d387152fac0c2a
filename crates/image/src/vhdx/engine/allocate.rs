//! Room for new blocks: free space in the file, space on its way back, and growth, in that order.

use block::{ByteRange, Result, ResultExt};

use super::Shared;
use super::inflight::Epoch;
use super::state::State;
use crate::vhdx::layout::{BITMAP_BLOCK_BYTES, MIB};

/// The file grows by an eighth of its size at a time, within these bounds, so that growth, which has to be durable
/// before the log may refer to it, is rare; close cuts off what is left.
const GROWTH_BYTES_MIN: u64 = 64 << 20;
const GROWTH_BYTES_MAX: u64 = 256 << 20;

/// Space that was set aside for one request; what it does not use becomes free again on drop.
///
/// All of it reads as zeroes.
pub(super) struct Reservation<'s> {
    shared: &'s Shared,
    payload: Vec<u64>,
    bitmaps: Vec<u64>,
}

impl<'s> Reservation<'s> {
    pub(super) fn new(shared: &'s Shared) -> Self {
        Self { shared, payload: Vec::new(), bitmaps: Vec::new() }
    }

    /// Whether it holds room for `payload` blocks and `bitmaps` sector bitmaps.
    pub(super) fn covers(&self, payload: usize, bitmaps: usize) -> bool {
        self.payload.len() >= payload && self.bitmaps.len() >= bitmaps
    }

    /// Host offset of room for a block; the caller has checked that there is some.
    pub(super) fn take_payload(&mut self) -> u64 {
        self.payload.pop().expect("room for the block was checked")
    }

    /// Host offset of room for a sector bitmap; the caller has checked that there is some.
    pub(super) fn take_bitmap(&mut self) -> u64 {
        self.bitmaps.pop().expect("room for the bitmap was checked")
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.payload.is_empty() && self.bitmaps.is_empty() {
            return;
        }
        let block_bytes = u64::from(self.shared.geometry.block_bytes);
        let mut state = self.shared.state();
        for offset in self.payload.drain(..) {
            state.space.release(stretch(offset, block_bytes));
        }
        for offset in self.bitmaps.drain(..) {
            state.space.release(stretch(offset, BITMAP_BLOCK_BYTES));
        }
    }
}

impl Shared {
    /// Adds room to `reserved` until it covers `payload` blocks and `bitmaps` sector bitmaps.
    ///
    /// # Errors
    /// `NoSpace` where the host file cannot grow; what the flushes report that make freed space free.
    pub(super) async fn reserve(
        &self,
        reserved: &mut Reservation<'_>,
        payload: usize,
        bitmaps: usize,
    ) -> Result<()> {
        let _turn = self.allocation.lock().await;
        let block_bytes = u64::from(self.geometry.block_bytes);
        while reserved.payload.len() < payload {
            reserved.payload.push(self.find_room(block_bytes).await?);
        }
        while reserved.bitmaps.len() < bitmaps {
            reserved.bitmaps.push(self.find_room(BITMAP_BLOCK_BYTES).await?);
        }
        Ok(())
    }

    /// Takes `len` bytes that read as zeroes. The caller holds `allocation`.
    async fn find_room(&self, len: u64) -> Result<u64> {
        loop {
            let waits_for = {
                let mut state = self.state();
                if let Some(offset) = state.take_gap(len) {
                    return Ok(offset);
                }
                if !state.can_reclaim() {
                    break;
                }
                state.reclaim_point()
            };
            self.reclaim().await?;
            self.state().note_reclaim(waits_for);
        }
        self.grow_for(len).await?;
        let mut state = self.state();
        let offset = state.space.end();
        state.take(offset, len);
        Ok(offset)
    }

    /// Brings freed space to be free: one flush releases it and punches it, the next makes the punch durable.
    pub(super) async fn reclaim(&self) -> Result<()> {
        self.flush().await?;
        if !self.state().returning.punched.is_empty() {
            self.flush().await?;
        }
        Ok(())
    }

    /// Makes the file reach `len` bytes beyond what is taken.
    async fn grow_for(&self, len: u64) -> Result<()> {
        let size = self.file.size();
        let needed = self.state().space.end() + len;
        if needed <= size {
            return Ok(());
        }
        let step = (size / 8).clamp(GROWTH_BYTES_MIN, GROWTH_BYTES_MAX) / MIB * MIB;
        let wished = needed.max(size + step);
        if self.file.resize(wished).await.is_ok() {
            return Ok(());
        }
        // The host may have room for what is needed though not for more.
        self.file.resize(needed).await.context(|| format!("grow the file from {size} to {needed} bytes"))
    }
}

impl State {
    fn take_gap(&mut self, len: u64) -> Option<u64> {
        let offset = self.space.find_free(len, 0)?;
        self.take(offset, len);
        Some(offset)
    }

    fn take(&mut self, offset: u64, len: u64) {
        self.space.claim(stretch(offset, len)).expect("the space was found free under the same lock");
    }

    /// Whether flushes could make space free: something is on its way, and no request under way holds it back.
    fn can_reclaim(&self) -> bool {
        let returning = &self.returning;
        let any =
            !(returning.freed.is_empty() && returning.released.is_empty() && returning.punched.is_empty());
        any && self.reclaim_waits_for.is_none_or(|epoch| self.requests.is_quiet(epoch))
    }

    fn reclaim_point(&self) -> Epoch {
        self.requests.current()
    }

    /// Notes that a reclaim has just run: what it left waits for the requests up to `epoch`.
    fn note_reclaim(&mut self, epoch: Epoch) {
        let left = !(self.returning.freed.is_empty() && self.returning.released.is_empty());
        self.reclaim_waits_for = left.then_some(epoch);
    }
}

fn stretch(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len).expect("space lies inside the host file")
}
