//! Changes of what the guest sees: which states blocks take, and where the bytes go.
//!
//! Each `prepare_*` looks first and changes then: if it lacks a page, room or the session, it stops before it has
//! changed anything and is called again. A block that reads as zeroes becomes FULLY_PRESENT at once, because its new
//! space reads as zeroes too. A sector that comes from the parent changes only when its bytes are written, so those
//! blocks wait for [`State::commit`]. Source: MS-VHDX 2.5.1.1, and the table of states in the format's notes.

use std::collections::BTreeSet;
use std::sync::Arc;

use block::{ByteRange, ExtentState, Result};
use smallvec::SmallVec;

use super::allocate::Reservation;
use super::inflight::Epoch;
use super::state::{Need, PendingBlock, State, Stop};
use super::{Shared, bits};
use crate::format::{Mapping, Mappings, Place, push_mapping};
use crate::vhdx::layout::PayloadState;

/// Sectors of a block of a differencing disk that will be in this file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    block: u64,
    host_offset: u64,
    piece: ByteRange,
    /// Whether the part counts as a user of a pending block.
    pending: bool,
}

/// What a prepared change has to give back.
#[derive(Debug)]
pub(super) struct Ticket {
    epoch: Epoch,
    parts: SmallVec<[Part; 1]>,
}

/// A change that was prepared; dropping it without a commit leaves the old content.
pub(crate) struct Prepared {
    shared: Arc<Shared>,
    ticket: Ticket,
    /// The I/O on the places has ended.
    landed: bool,
}

impl Prepared {
    pub(super) fn new(shared: Arc<Shared>, ticket: Ticket) -> Self {
        Self { shared, ticket, landed: false }
    }

    /// Notes that no I/O on the places is under way any more.
    pub(super) fn note_landed(&mut self) {
        self.landed = true;
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.ticket.parts
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        for part in self.ticket.parts.iter().filter(|part| part.pending) {
            state.leave_pending(part.block);
        }
        if self.landed {
            state.end_request(self.ticket.epoch);
        } else {
            // It may land at any time, so its epoch never ends, and no space that it may lie in is used again.
            state.leave();
        }
    }
}

/// What a change does to one piece of one block.
enum Action {
    /// Nothing is to be done.
    Keep,
    /// The caller works on the host file, in place.
    InPlace { host_offset: u64 },
    /// The caller works on the host file; afterwards the sectors are in this file.
    Sectors { host_offset: u64 },
    /// The block gets space that reads as zeroes, at once.
    Allocate,
    /// The block gets space, or has it pending; the parent's content shows until the commit.
    AllocatePending,
    /// The block takes a state without data.
    Become(PayloadState),
}

impl State {
    /// Prepares a write of `range`.
    pub(super) fn prepare_write(
        &mut self,
        range: ByteRange,
        reserved: &mut Reservation<'_>,
        out: &mut Mappings,
    ) -> Result<Ticket, Stop> {
        self.prepare(range, reserved, out, |state, piece| {
            let block = state.geometry.block_of(piece.start());
            let (payload, entry) = state.payload(block)?;
            Ok(match payload {
                PayloadState::FullyPresent => Action::InPlace { host_offset: entry.offset_bytes() },
                PayloadState::PartiallyPresent => Action::Sectors { host_offset: entry.offset_bytes() },
                PayloadState::NotPresent if state.geometry.has_parent => Action::AllocatePending,
                PayloadState::NotPresent
                | PayloadState::Undefined
                | PayloadState::Zero
                | PayloadState::Unmapped => Action::Allocate,
            })
        })
    }

    /// Prepares zeroes in `range`. `may_free` lets blocks that are wholly covered lose their space.
    pub(super) fn prepare_zeroes(
        &mut self,
        range: ByteRange,
        may_free: bool,
        reserved: &mut Reservation<'_>,
        out: &mut Mappings,
    ) -> Result<Ticket, Stop> {
        self.prepare(range, reserved, out, |state, piece| {
            let block = state.geometry.block_of(piece.start());
            let whole = state.covers_block(piece);
            let (payload, entry) = state.payload(block)?;
            Ok(match payload {
                PayloadState::Zero => Action::Keep,
                _ if whole && (may_free || !payload.is_data()) => Action::Become(PayloadState::Zero),
                PayloadState::FullyPresent => Action::InPlace { host_offset: entry.offset_bytes() },
                PayloadState::PartiallyPresent => Action::Sectors { host_offset: entry.offset_bytes() },
                PayloadState::NotPresent if state.geometry.has_parent => Action::AllocatePending,
                // The whole block reads as zeroes; ZERO promises it to every reader of the file, where the others
                // leave the content open.
                PayloadState::NotPresent | PayloadState::Undefined | PayloadState::Unmapped => {
                    Action::Become(PayloadState::Zero)
                }
            })
        })
    }

    /// Prepares a discard of `range`.
    pub(super) fn prepare_discard(
        &mut self,
        range: ByteRange,
        reserved: &mut Reservation<'_>,
        out: &mut Mappings,
    ) -> Result<Ticket, Stop> {
        self.prepare(range, reserved, out, |state, piece| {
            let (payload, entry) = state.payload(state.geometry.block_of(piece.start()))?;
            Ok(match payload {
                PayloadState::FullyPresent | PayloadState::PartiallyPresent if state.covers_block(piece) => {
                    Action::Become(PayloadState::Unmapped)
                }
                PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                    Action::InPlace { host_offset: entry.offset_bytes() }
                }
                // In a child NOT_PRESENT stays what it is: the parent's content may show, and a discard is advice.
                PayloadState::NotPresent
                | PayloadState::Undefined
                | PayloadState::Zero
                | PayloadState::Unmapped => Action::Keep,
            })
        })
    }

    /// Decides on every piece of `range`, makes sure of everything that is needed, and only then changes anything.
    fn prepare(
        &mut self,
        range: ByteRange,
        reserved: &mut Reservation<'_>,
        out: &mut Mappings,
        decide: impl Fn(&Self, ByteRange) -> Result<Action, Stop>,
    ) -> Result<Ticket, Stop> {
        out.clear();
        self.check_usable().map_err(Stop::Failed)?;
        let pieces = range.split_by(u64::from(self.geometry.block_bytes));
        let actions = pieces
            .map(|piece| Ok((piece, decide(self, piece)?)))
            .collect::<Result<SmallVec<[(ByteRange, Action); 2]>, Stop>>()?;
        if actions.iter().any(|(_, action)| !matches!(action, Action::Keep)) {
            self.check_changeable()?;
        }
        self.check_needs(&actions, reserved)?;
        let mut ticket = Ticket { epoch: self.begin_request(), parts: SmallVec::new() };
        for (piece, action) in actions {
            self.act(piece, action, reserved, out, &mut ticket);
        }
        Ok(ticket)
    }

    /// Stops if a page, a block's room or a bitmap's room is missing for `actions`.
    fn check_needs(&self, actions: &[(ByteRange, Action)], reserved: &Reservation<'_>) -> Result<(), Stop> {
        let mut payload = 0;
        let mut bitmaps = BTreeSet::new();
        for (piece, action) in actions {
            let block = self.geometry.block_of(piece.start());
            match action {
                Action::Allocate => payload += 1,
                Action::AllocatePending => {
                    payload += usize::from(!self.pending.contains_key(&block));
                    let chunk = self.geometry.chunk_of(block);
                    if !self.covers_block(*piece) && self.bitmap_offset(chunk)?.is_none() {
                        bitmaps.insert(chunk);
                    }
                }
                Action::Keep | Action::InPlace { .. } | Action::Sectors { .. } | Action::Become(_) => {}
            }
        }
        if reserved.covers(payload, bitmaps.len()) {
            Ok(())
        } else {
            Err(Stop::Needs(Need::Space { payload, bitmaps: bitmaps.len() }))
        }
    }

    fn act(
        &mut self,
        piece: ByteRange,
        action: Action,
        reserved: &mut Reservation<'_>,
        out: &mut Mappings,
        ticket: &mut Ticket,
    ) {
        let block = self.geometry.block_of(piece.start());
        let host_offset = match action {
            Action::Keep => return,
            Action::Become(state) => return self.set_payload(block, state, 0),
            Action::InPlace { host_offset } => host_offset,
            Action::Sectors { host_offset } => {
                ticket.parts.push(Part { block, host_offset, piece, pending: false });
                host_offset
            }
            Action::Allocate => {
                let host_offset = reserved.take_payload();
                self.set_payload(block, PayloadState::FullyPresent, host_offset);
                host_offset
            }
            Action::AllocatePending => {
                let host_offset = self.join_pending(block, piece, reserved);
                ticket.parts.push(Part { block, host_offset, piece, pending: true });
                host_offset
            }
        };
        let place = Place::Host(host_offset + (piece.start() - self.geometry.block_start(block)));
        push_mapping(out, Mapping { guest: piece, place, state: ExtentState::Present });
    }

    /// Gives the space that is pending for `block`, or new one, and the bitmap that its sectors will need.
    fn join_pending(&mut self, block: u64, piece: ByteRange, reserved: &mut Reservation<'_>) -> u64 {
        let chunk = self.geometry.chunk_of(block);
        if !self.covers_block(piece) && matches!(self.bitmap_offset(chunk), Ok(None)) {
            self.set_bitmap(chunk, reserved.take_bitmap());
        }
        let pending = self.pending.entry(block).or_insert_with(|| PendingBlock {
            host_offset: reserved.take_payload(),
            users: 0,
            committed: false,
        });
        pending.users += 1;
        pending.host_offset
    }

    /// Counts a user of a pending block out; the last one gives space back that nothing was committed to.
    fn leave_pending(&mut self, block: u64) {
        let pending = self.pending.get_mut(&block).expect("a part keeps its pending block");
        pending.users -= 1;
        if pending.users > 0 {
            return;
        }
        let pending = self.pending.remove(&block).expect("it was there");
        if !pending.committed {
            let space = ByteRange::new(pending.host_offset, u64::from(self.geometry.block_bytes));
            self.returning.freed.push(space.expect("a block lies inside the host file"));
        }
    }

    /// Makes sectors that were written what reads see.
    ///
    /// A block that was trimmed, zeroed or replaced while the write was under way keeps that: the two overlapped, and
    /// either may be the last.
    pub(super) fn commit(&mut self, parts: &[Part]) -> Result<(), Stop> {
        self.check_usable().map_err(Stop::Failed)?;
        for part in parts {
            self.check_commit(part)?;
        }
        self.data_before_metadata = true;
        for part in parts {
            self.commit_part(part);
        }
        Ok(())
    }

    /// Stops if a page is missing that [`Self::commit_part`] will change.
    fn check_commit(&self, part: &Part) -> Result<(), Stop> {
        let (state, _) = self.payload(part.block)?;
        let bits = match state {
            PayloadState::NotPresent if !self.covers_block(part.piece) => self.block_range(part.block),
            PayloadState::PartiallyPresent => part.piece,
            _ => return Ok(()),
        };
        for part in self.bitmap_parts(part.block, bits)? {
            self.page(part.page)?;
        }
        Ok(())
    }

    fn commit_part(&mut self, part: &Part) {
        let (state, entry) = self.payload(part.block).expect("checked before");
        let whole = self.covers_block(part.piece);
        match state {
            PayloadState::NotPresent => {
                if whole {
                    self.set_payload(part.block, PayloadState::FullyPresent, part.host_offset);
                } else {
                    // The bits of a block that is not present may be anything.
                    self.set_bits(part.block, self.block_range(part.block), false);
                    self.set_bits(part.block, part.piece, true);
                    self.set_payload(part.block, PayloadState::PartiallyPresent, part.host_offset);
                }
                if let Some(pending) = self.pending.get_mut(&part.block) {
                    pending.committed = true;
                }
            }
            PayloadState::PartiallyPresent if entry.offset_bytes() == part.host_offset => {
                if whole {
                    self.set_payload(part.block, PayloadState::FullyPresent, part.host_offset);
                } else {
                    self.set_bits(part.block, part.piece, true);
                }
            }
            _ => {}
        }
    }

    fn set_bits(&mut self, block: u64, piece: ByteRange, value: bool) {
        for part in self.bitmap_parts(block, piece).expect("checked before") {
            let page = self.pages.change(part.page).expect("checked before");
            bits::set(page, part.first_bit, part.bits, value);
        }
    }

    /// Whether `piece` is all of its block that lies on the disk.
    fn covers_block(&self, piece: ByteRange) -> bool {
        piece.len() == self.geometry.block_len(self.geometry.block_of(piece.start()))
    }

    fn block_range(&self, block: u64) -> ByteRange {
        ByteRange::new(self.geometry.block_start(block), self.geometry.block_len(block))
            .expect("a block lies on the disk")
    }
}
