//! One io_uring, and the records that keep what the kernel works on alive.
//!
//! An operation is *queued* when a slot and a submission entry are taken, *submitted* when the ring is entered, and
//! *done* when its completion was reaped. Its slot holds the file, the scatter list and the vectors from the first of
//! these until the last, whatever becomes of the future that waits for it: a dropped future only leaves its slot
//! marked as abandoned, to be cleared when the kernel is done with it.
#![expect(unsafe_code, reason = "submission entries carry addresses of memory that the slots keep alive")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::task::Waker;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};

use crate::op::{Op, Request};
use crate::sys::{self, Direction, IoVecs};

/// Operations of one thread that are queued or submitted at the same time, at most; others wait for a slot.
pub(crate) const OPS_MAX: usize = 1024;
/// Entries of the submission queue; when it is full, it is submitted at once.
const SUBMISSIONS_MAX: u32 = 256;
/// Completions have room for every slot, so the completion queue cannot overflow.
const COMPLETIONS_MAX: u32 = OPS_MAX as u32;

/// A thread's ring. It never leaves its thread.
pub(crate) struct Ring {
    uring: IoUring,
    /// Counted up by the kernel for every batch of completions. An event rather than the ring's own descriptor, which
    /// missed completions that came just as a first poll began (6.18, with DEFER_TASKRUN).
    event: OwnedFd,
    /// Never moved and never resized: submission entries point into it.
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// Submission entries that the kernel has not been told of.
    queued: usize,
    /// Operations that the kernel has been told of and has not completed.
    submitted: usize,
    /// Tasks that found no slot.
    waiting: Vec<Waker>,
}

/// Names an operation to the future that waits for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotIndex(u16);

#[derive(Default)]
struct Slot {
    state: SlotState,
    op: Option<Op>,
    vecs: IoVecs,
}

#[derive(Default)]
enum SlotState {
    #[default]
    Free,
    Pending(Waker),
    Abandoned,
    Done(i32),
}

/// What a turn found, to be acted on when the ring is no longer borrowed, because wakers and owners of memory may run
/// any code, such as that which drops another operation's future.
#[derive(Default)]
pub(crate) struct Reaped {
    wakers: Vec<Waker>,
    abandoned: Vec<Op>,
}

impl Reaped {
    pub(crate) const fn new() -> Self {
        Self { wakers: Vec::new(), abandoned: Vec::new() }
    }

    /// Wakes and frees; the ring must not be borrowed.
    pub(crate) fn settle(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
        self.abandoned.clear();
    }
}

impl Ring {
    /// A ring with the best set-up flags that the kernel has.
    ///
    /// # Errors
    /// What `io_uring_setup` says where the host has none for us: `ENOSYS`, `EPERM`, `ENOMEM`.
    pub(crate) fn new() -> io::Result<Self> {
        let uring = build_cooperative().or_else(|_| build_plain())?;
        if !uring.params().is_feature_nodrop() || !uring.params().is_feature_rw_cur_pos() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel's io_uring is older than 5.6",
            ));
        }
        let free = (0..OPS_MAX as u16).rev().collect();
        let slots = (0..OPS_MAX).map(|_| Slot::default()).collect();
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self { uring, event, slots, free, queued: 0, submitted: 0, waiting: Vec::new() })
    }

    /// The event descriptor that becomes readable when a turn would find completions.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Whether something is queued that the kernel has not been told of.
    pub(crate) fn has_queued(&self) -> bool {
        self.queued > 0
    }

    /// Whether operations are under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.queued + self.submitted > 0
    }

    /// Queues `op`, whose end wakes `waker`; gives it back where all slots are taken, and wakes `waker` when there
    /// are some again.
    ///
    /// # Errors
    /// What `io_uring_enter` says when the submission queue was full and could not be submitted.
    pub(crate) fn queue(&mut self, op: Op, waker: &Waker) -> Result<SlotIndex, (Op, Option<io::Error>)> {
        let Some(&index) = self.free.last() else {
            self.waiting.push(waker.clone());
            return Err((op, None));
        };
        if self.is_full()
            && let Err(error) = self.submit()
        {
            return Err((op, Some(error)));
        }
        if self.is_full() {
            self.waiting.push(waker.clone());
            return Err((op, None));
        }
        let slot = &mut self.slots[usize::from(index)];
        let entry = slot.fill(op, waker.clone()).user_data(u64::from(index));
        // SAFETY: the entry points at the slot's vectors and at the memory of its operation. The slots never move,
        // and the slot keeps both until `reap` sees the completion, or for good if there is none (`drop`).
        unsafe { self.uring.submission().push(&entry) }.expect("a queue that is not full has room");
        self.free.pop();
        self.queued += 1;
        Ok(SlotIndex(index))
    }

    fn is_full(&self) -> bool {
        self.queued >= self.uring.params().sq_entries() as usize
    }

    /// The result of the operation in `index` and the operation itself, if it is done; else `waker` is kept, and the
    /// one that it replaces is given back, to be dropped when the ring is no longer borrowed.
    pub(crate) fn take_done(
        &mut self,
        index: SlotIndex,
        waker: &Waker,
    ) -> Result<(io::Result<u64>, Op), Option<Waker>> {
        let slot = &mut self.slots[usize::from(index.0)];
        match &mut slot.state {
            SlotState::Done(result) => {
                let result = match *result {
                    count @ 0.. => Ok(count as u64),
                    errno => Err(io::Error::from_raw_os_error(-errno)),
                };
                let op = slot.clear();
                self.free.push(index.0);
                Ok((result, op))
            }
            SlotState::Pending(kept) if kept.will_wake(waker) => Err(None),
            SlotState::Pending(kept) => Err(Some(std::mem::replace(kept, waker.clone()))),
            SlotState::Free | SlotState::Abandoned => unreachable!("a waiting future owns its slot"),
        }
    }

    /// Gives up waiting for `index`. What the kernel may still touch stays alive until it is done; what it is done
    /// with is returned, to be dropped when the ring is no longer borrowed.
    pub(crate) fn abandon(&mut self, index: SlotIndex) -> (Option<Op>, Option<Waker>) {
        let slot = &mut self.slots[usize::from(index.0)];
        if let SlotState::Done(_) = slot.state {
            let op = slot.clear();
            self.free.push(index.0);
            return (Some(op), None);
        }
        match std::mem::replace(&mut slot.state, SlotState::Abandoned) {
            SlotState::Pending(waker) => (None, Some(waker)),
            _ => unreachable!("a waiting future owns its slot"),
        }
    }

    /// Submits what is queued, with one call to the kernel as a rule, and reaps what is complete, without any.
    ///
    /// # Errors
    /// What `io_uring_enter` says; what was queued stays so.
    pub(crate) fn turn(&mut self, reaped: &mut Reaped) -> io::Result<()> {
        let result = if self.has_queued() { self.submit() } else { Ok(()) };
        self.reap(reaped);
        if !self.free.is_empty() {
            reaped.wakers.append(&mut self.waiting);
        }
        result
    }

    /// Submits what is queued and waits, blocking the thread, until nothing is under way.
    ///
    /// # Errors
    /// What `io_uring_enter` says, unless it is a passing shortage.
    pub(crate) fn finish(&mut self, reaped: &mut Reaped) -> io::Result<()> {
        while self.is_busy() {
            let waited = self.enter(1);
            self.reap(reaped);
            match waited {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Enters the ring until all is submitted or the kernel takes no more for now.
    fn submit(&mut self) -> io::Result<()> {
        loop {
            let before = self.queued;
            self.enter(0)?;
            // The kernel stops after an entry that it refuses, whose completion says why; the rest goes next.
            if self.queued == 0 || self.queued == before {
                return Ok(());
            }
        }
    }

    /// Enters the ring once, and waits for `wait_for` completions.
    fn enter(&mut self, wait_for: u32) -> io::Result<()> {
        let queued = self.queued as u32;
        // SAFETY: no argument structure is passed, and the entries were checked when they were queued.
        let entered = unsafe {
            let flags = EnterFlags::GETEVENTS.bits();
            self.uring.submitter().enter::<libc::sigset_t>(queued, wait_for, flags, None)
        };
        match entered {
            Ok(count) => {
                self.queued -= count;
                self.submitted += count;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn reap(&mut self, reaped: &mut Reaped) {
        for entry in self.uring.completion() {
            let index = entry.user_data() as u16;
            let slot = &mut self.slots[usize::from(index)];
            self.submitted -= 1;
            match std::mem::replace(&mut slot.state, SlotState::Done(entry.result())) {
                SlotState::Pending(waker) => reaped.wakers.push(waker),
                SlotState::Abandoned => {
                    reaped.abandoned.push(slot.clear());
                    self.free.push(index);
                }
                SlotState::Free | SlotState::Done(_) => unreachable!("an operation completes once"),
            }
        }
    }
}

impl Slot {
    /// Takes `op` in and builds its submission entry, which points into this slot.
    fn fill(&mut self, op: Op, waker: Waker) -> squeue::Entry {
        self.state = SlotState::Pending(waker);
        let op = self.op.insert(op);
        let fd = Fd(op.file.as_fd().as_raw_fd());
        match &op.request {
            Request::Transfer { direction, offset, memory, dsync } => {
                sys::iovecs(memory, &mut self.vecs);
                let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
                transfer_entry(fd, *direction, *offset, &self.vecs, flags)
            }
            Request::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Request::Allocate { mode, offset, len } => {
                opcode::Fallocate::new(fd, *len).offset(*offset).mode(mode.bits() as i32).build()
            }
        }
    }

    fn clear(&mut self) -> Op {
        self.state = SlotState::Free;
        self.op.take().expect("a slot that is not free holds its operation")
    }
}

/// The entry for a transfer; one segment goes without a vector, which saves the kernel copying it.
fn transfer_entry(
    fd: Fd,
    direction: Direction,
    offset: u64,
    vecs: &IoVecs,
    flags: libc::c_int,
) -> squeue::Entry {
    match (direction, vecs.as_slice()) {
        (Direction::Read, [one]) => {
            opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Direction::Write, [one]) => opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .rw_flags(flags)
            .build(),
        (Direction::Read, many) => {
            opcode::Readv::new(fd, many.as_ptr(), many.len() as u32).offset(offset).build()
        }
        (Direction::Write, many) => {
            opcode::Writev::new(fd, many.as_ptr(), many.len() as u32).offset(offset).rw_flags(flags).build()
        }
    }
}

impl Drop for Ring {
    /// Waits for what is under way, because closing a ring does not stop operations that have begun.
    fn drop(&mut self) {
        let mut reaped = Reaped::default();
        if let Err(error) = self.finish(&mut reaped) {
            tracing::error!(%error, "a ring with operations under way cannot be waited for; their memory is kept");
            Box::leak(std::mem::take(&mut self.slots));
        }
        reaped.settle();
    }
}

fn build_cooperative() -> io::Result<IoUring> {
    // Completions are handled when the thread next enters the kernel and never interrupt it in between (5.19, 6.0).
    // Not DEFER_TASKRUN: that also puts off letting go of files, until the ring is entered again, and a thread that
    // has no more I/O to do would keep what it closed open.
    IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_cqsize(COMPLETIONS_MAX)
        .build(SUBMISSIONS_MAX)
}

fn build_plain() -> io::Result<IoUring> {
    IoUring::builder().setup_cqsize(COMPLETIONS_MAX).build(SUBMISSIONS_MAX)
}
