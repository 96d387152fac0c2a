//! Futures in numbered slots, polled by one task: what a queue's requests are while they are under way.
//!
//! A local task per request costs an allocation and two trips through the scheduler. Here a slot's memory and its
//! waker are made once and used for one request after the other, a wake-up sets a bit, and the queue's task polls all
//! slots whose bits are set in one go, so that their answers go to the guest together.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use vhost_user::QUEUE_SIZE_MAX;

const WORDS: usize = (QUEUE_SIZE_MAX as usize).div_ceil(64);

/// Futures under way, each with a value of `T` that is given back with its output.
pub(super) struct Slots<F, T> {
    slots: Vec<Slot<F, T>>,
    free: Vec<u16>,
    ready: Arc<ReadySet>,
}

struct Slot<F, T> {
    future: Pin<Box<Option<F>>>,
    value: Option<T>,
    waker: Waker,
}

/// The slots that can go on, and the task to wake for them. Wakers of any thread may set it.
#[derive(Default)]
pub(super) struct ReadySet {
    words: [AtomicU64; WORDS],
    task: AtomicWaker,
}

impl ReadySet {
    /// Wakes the task itself.
    pub(super) fn wake_task(&self) {
        self.task.wake();
    }

    /// Has `waker` woken when a slot can go on; `false` if one can already, and then it may not be woken.
    ///
    /// A task registers only before it sleeps: what its own polls wake meanwhile costs no trip to the scheduler.
    pub(super) fn register(&self, waker: &Waker) -> bool {
        self.task.register(waker);
        self.words.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }
}

struct SlotWaker {
    index: u16,
    ready: Arc<ReadySet>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let bit = 1 << (self.index % 64);
        self.ready.words[usize::from(self.index / 64)].fetch_or(bit, Ordering::AcqRel);
        self.ready.task.wake();
    }
}

impl<F: Future, T> Slots<F, T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), ready: Arc::default() }
    }

    pub(super) fn ready_set(&self) -> &Arc<ReadySet> {
        &self.ready
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Starts `future`: polls it once, and keeps it if that is not its end.
    pub(super) fn start(&mut self, future: F, value: T) -> Option<(F::Output, T)> {
        let index = self.free.pop().unwrap_or_else(|| self.add_slot());
        let slot = &mut self.slots[usize::from(index)];
        slot.future.set(Some(future));
        slot.value = Some(value);
        self.poll_slot(index)
    }

    /// Polls every slot that can go on, and gives `each` what has ended.
    pub(super) fn poll_ready(&mut self, mut each: impl FnMut(F::Output, T)) {
        for at in 0..self.slots.len().div_ceil(64) {
            if self.ready.words[at].load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut word = self.ready.words[at].swap(0, Ordering::AcqRel);
            while word != 0 {
                let index = at as u16 * 64 + word.trailing_zeros() as u16;
                word &= word - 1;
                if let Some((output, value)) = self.poll_slot(index) {
                    each(output, value);
                }
            }
        }
    }

    fn poll_slot(&mut self, index: u16) -> Option<(F::Output, T)> {
        let slot = &mut self.slots[usize::from(index)];
        // A waker that outlives its request can set the bit of an empty slot.
        let future = slot.future.as_mut().as_pin_mut()?;
        let Poll::Ready(output) = future.poll(&mut Context::from_waker(&slot.waker)) else { return None };
        slot.future.set(None);
        let value = slot.value.take().expect("a slot has a value as long as it has a future");
        self.free.push(index);
        Some((output, value))
    }

    fn add_slot(&mut self) -> u16 {
        let index = u16::try_from(self.slots.len()).expect("a queue bounds its requests");
        assert!(index < QUEUE_SIZE_MAX, "a queue has at most {QUEUE_SIZE_MAX} requests in flight");
        let waker = Waker::from(Arc::new(SlotWaker { index, ready: self.ready.clone() }));
        self.slots.push(Slot { future: Box::pin(None), value: None, waker });
        index
    }
}
