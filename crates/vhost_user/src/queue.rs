//! A running queue: requests are taken off its available ring and answered in its used ring.

use std::collections::VecDeque;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::chain::{DescriptorTable, Span};
use crate::config::QUEUE_SIZE_MAX;
use crate::error::{ChainError, QueueError};
use crate::inflight::InflightQueue;
use crate::log::DirtyLog;
use crate::memory::{GuestMemory, holds};
use crate::request::{ReplyTo, Request, Status};

const DESCRIPTOR_BYTES: u64 = 16;
const USED_HEADER_BYTES: u64 = 4;
const USED_ENTRY_BYTES: u64 = 8;

/// What a front end says of a ring before it starts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RingSpec {
    /// Number of entries.
    pub(crate) size: u16,
    /// Guest-physical address of the descriptor table.
    pub(crate) descriptors: u64,
    /// Guest-physical address of the available ring.
    pub(crate) available: u64,
    /// Guest-physical address of the used ring.
    pub(crate) used: u64,
    /// Where the used ring is in the dirty log, if changes of it are to be logged.
    pub(crate) log_used_at: Option<u64>,
    /// Index of the next available entry.
    pub(crate) base: u16,
    /// Whether notifications are suppressed by index.
    pub(crate) event_idx: bool,
}

/// What a queue shares with the device it belongs to, and what the front end may change while it runs.
#[derive(Clone, Default)]
pub(crate) struct Environment {
    /// The guest's memory, now.
    pub(crate) memory: Arc<GuestMemory>,
    /// The dirty log, while logging is on.
    pub(crate) log: Option<Arc<DirtyLog>>,
}

/// A running queue. It has one owner, who takes requests, has them done, and answers each once.
pub struct Queue {
    ring: Ring,
    log_used_at: Option<u64>,
    environment: Environment,
    inflight: Option<InflightQueue>,
    /// Requests that an earlier process had taken and not answered, oldest first.
    resubmit: VecDeque<u16>,
    in_flight_count: u16,
    /// Answers since the driver's wish for notifications was last looked at.
    answered: Wrapping<u16>,
}

impl Queue {
    /// Starts a queue, and recovers what an earlier process had in flight where `inflight` says so.
    ///
    /// # Errors
    /// If the ring is not all in memory, or the in-flight region contradicts it.
    pub(crate) fn start(
        spec: RingSpec,
        environment: Environment,
        inflight: Option<InflightQueue>,
    ) -> Result<Self, QueueError> {
        let mut queue = Self {
            ring: make_ring(&spec, &environment.memory)?,
            log_used_at: spec.log_used_at,
            environment,
            inflight,
            resubmit: VecDeque::new(),
            in_flight_count: 0,
            answered: Wrapping(0),
        };
        queue.recover(spec.size)?;
        Ok(queue)
    }

    /// Takes the next request: first those that an earlier process left behind, then what the driver makes available.
    /// `None` where there is no more for now.
    ///
    /// # Errors
    /// If the driver broke a rule and the queue cannot go on; what is in flight can still be answered.
    pub fn take(&mut self) -> Result<Option<Request>, QueueError> {
        let Some(head) = self.take_head()? else { return Ok(None) };
        let size = self.ring.size();
        if head >= size {
            let source = ChainError::IndexOutOfRange { index: head.into(), size: size.into() };
            return Err(QueueError::Chain { head, source });
        }
        let table = DescriptorTable { start: GuestAddress(self.ring.desc_table()), size: u32::from(size) };
        let request = Request::parse(&self.environment.memory, table, head)
            .map_err(|source| QueueError::Chain { head, source })?;
        self.in_flight_count += 1;
        Ok(Some(request))
    }

    /// Answers a request: status byte, used ring, in-flight mark and dirty log, in the order that lets each of them be
    /// trusted after a crash at any point between.
    ///
    /// # Errors
    /// If the ring's memory is gone.
    pub fn answer(&mut self, reply_to: &ReplyTo, status: Status) -> Result<(), QueueError> {
        let memory = reply_to.memory.regions();
        memory.write_obj(status.code(), reply_to.status).map_err(QueueError::Memory)?;
        // The memory of a read that failed may hold part of the data, so it is marked as well.
        self.mark_data(reply_to);
        if let Some(inflight) = &mut self.inflight {
            inflight.prepare_end(reply_to.head);
        }
        let used_index = self.ring.next_used();
        self.ring
            .add_used(self.environment.memory.regions(), reply_to.head, reply_to.writable_bytes)
            .map_err(QueueError::Ring)?;
        if let Some(inflight) = &mut self.inflight {
            inflight.end(reply_to.head, self.ring.next_used());
        }
        self.mark_used(used_index);
        self.in_flight_count -= 1;
        self.answered += Wrapping(1);
        Ok(())
    }

    /// Whether the driver wants to be notified of the answers since the last call.
    ///
    /// # Errors
    /// If the ring's memory is gone.
    pub fn wants_notification(&mut self) -> Result<bool, QueueError> {
        if self.answered.0 == 0 {
            return Ok(false);
        }
        self.answered = Wrapping(0);
        let memory = self.environment.memory.regions();
        if self.ring.event_idx_enabled() {
            return self.ring.needs_notification(memory).map_err(QueueError::Ring);
        }
        // Virtio 1.2, 2.7.10: the used index is to be visible before the flag is read.
        fence(Ordering::SeqCst);
        let flags: u16 = memory
            .load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed)
            .map_err(QueueError::Memory)?;
        Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }

    /// Asks the driver for a kick at the next request; `true` if one is available already, which then gets no kick.
    ///
    /// # Errors
    /// If the ring's memory is gone.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        let more =
            self.ring.enable_notification(self.environment.memory.regions()).map_err(QueueError::Ring)?;
        Ok(more || !self.resubmit.is_empty())
    }

    /// Tells the driver that kicks are not needed for now.
    ///
    /// # Errors
    /// If the ring's memory is gone.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        self.ring.disable_notification(self.environment.memory.regions()).map_err(QueueError::Ring)
    }

    /// How many requests were taken and not answered.
    pub fn in_flight_count(&self) -> u16 {
        self.in_flight_count
    }

    /// Number of entries, the most requests that can be in flight.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Index of the next available entry, from which the queue goes on when it is started again.
    pub(crate) fn base(&self) -> u16 {
        self.ring.next_avail()
    }

    /// The front end changed the memory or the log.
    pub(crate) fn set_environment(&mut self, environment: Environment) {
        self.environment = environment;
    }

    fn recover(&mut self, size: u16) -> Result<(), QueueError> {
        let memory = self.environment.memory.regions();
        let used_idx = self.ring.used_idx(memory, Ordering::Acquire).map_err(QueueError::Ring)?.0;
        self.ring.set_next_used(used_idx);
        let Some(inflight) = &mut self.inflight else { return Ok(()) };
        let Some(heads) = inflight.recover(size, used_idx).map_err(QueueError::Inflight)? else {
            return Ok(());
        };
        // Each request that was ever taken is answered or in flight, and the region was marked before the next one
        // was taken. The index that the front end gives cannot know that: it only sees the used ring.
        let taken = u16::try_from(heads.len()).expect("there are at most as many heads as entries");
        self.ring.set_next_avail(used_idx.wrapping_add(taken));
        self.resubmit = heads.into();
        Ok(())
    }

    fn take_head(&mut self) -> Result<Option<u16>, QueueError> {
        if let Some(head) = self.resubmit.pop_front() {
            return Ok(Some(head));
        }
        let memory = self.environment.memory.regions();
        let head = self.ring.iter(memory).map_err(QueueError::Ring)?.next().map(|chain| chain.head_index());
        let Some(head) = head else { return Ok(None) };
        let size = self.ring.size();
        if self.in_flight_count >= size {
            return Err(QueueError::TooManyInFlight { in_flight: self.in_flight_count, size });
        }
        if let Some(inflight) = self.inflight.as_mut().filter(|_| head < size) {
            inflight.begin(head);
        }
        Ok(Some(head))
    }

    fn mark_data(&self, reply_to: &ReplyTo) {
        let Some(log) = &self.environment.log else { return };
        for &Span { start, len } in &reply_to.data {
            log.mark(start, u64::from(len));
        }
        log.mark(reply_to.status.0, 1);
    }

    /// Marks the entry `index` of the used ring, and the ring's header.
    fn mark_used(&self, index: u16) {
        let (Some(log), Some(start)) = (&self.environment.log, self.log_used_at) else { return };
        let entry = USED_HEADER_BYTES + USED_ENTRY_BYTES * u64::from(index % self.ring.size());
        log.mark(start, USED_HEADER_BYTES);
        log.mark(start.saturating_add(entry), USED_ENTRY_BYTES);
    }
}

fn make_ring(spec: &RingSpec, memory: &GuestMemory) -> Result<Ring, QueueError> {
    let bad = || QueueError::BadRing { size: spec.size };
    let size = u64::from(spec.size);
    let parts = [
        (spec.descriptors, DESCRIPTOR_BYTES * size),
        (spec.available, 2 * size + 6),
        (spec.used, USED_ENTRY_BYTES * size + 6),
    ];
    if !parts.iter().all(|&(start, len)| holds(memory.regions(), GuestAddress(start), len)) {
        return Err(bad());
    }
    let mut ring = Ring::new(QUEUE_SIZE_MAX).map_err(QueueError::Ring)?;
    ring.try_set_size(spec.size).map_err(|_| bad())?;
    ring.try_set_desc_table_address(GuestAddress(spec.descriptors)).map_err(QueueError::Ring)?;
    ring.try_set_avail_ring_address(GuestAddress(spec.available)).map_err(QueueError::Ring)?;
    ring.try_set_used_ring_address(GuestAddress(spec.used)).map_err(QueueError::Ring)?;
    ring.set_next_avail(spec.base);
    ring.set_event_idx(spec.event_idx);
    ring.set_ready(true);
    Ok(ring)
}
