//! A guest's side of vhost-user-blk without a guest, on the `virtio-driver` crate: for tests and measurements.
//!
//! A [`Client`] connects to a server's socket, shares memory with it that is cut into numbered buffers, and drives the
//! virtqueues itself. It sleeps on the call descriptor, as a guest sleeps for its interrupt, and never polls.
#![expect(unsafe_code, reason = "requests name memory that is shared with the server by address")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

pub use virtio_driver::VirtioBlkConfig;

/// What a client is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Virtqueues to use.
    pub queue_count: usize,
    /// Entries of each; a request needs three.
    pub queue_size: u16,
    /// Buffers in the shared memory.
    pub buffer_count: usize,
    /// Length of each in bytes.
    pub buffer_bytes: usize,
    /// Whether notifications are suppressed by index (`VIRTIO_F_RING_EVENT_IDX`), as Linux does.
    pub event_idx: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { queue_count: 1, queue_size: 128, buffer_count: 32, buffer_bytes: 4096, event_idx: true }
    }
}

/// What the server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fill `len` bytes of the buffer from `offset`.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
    /// Write `len` bytes of the buffer at `offset`.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
    /// Make what was written durable.
    Flush,
    /// The content of the range is not needed.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// The range is to read as zeroes.
    WriteZeroes {
        /// First byte on the disk.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether it may become a hole.
        unmap: bool,
    },
}

/// A request's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The buffer that the request was submitted with.
    pub buffer: usize,
    /// 0, or a negative error number.
    pub result: i32,
}

/// A connection to a server. The fields are in the order in which they must go: queues lie in the transport's memory.
pub struct Client {
    queues: Vec<Queue>,
    transport: Box<VirtioBlkTransport>,
    memory: MmapRegion,
    shape: Shape,
}

struct Queue {
    ring: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    call: std::sync::Arc<EventFd>,
}

impl Client {
    /// Connects to the server that listens at `socket`.
    ///
    /// # Errors
    /// If nobody listens, or the server does not offer what is asked.
    pub fn connect(socket: &Path, shape: Shape) -> io::Result<Self> {
        let path = socket.to_str().ok_or_else(|| io::Error::other("the socket's path is not UTF-8"))?;
        let mut features = VirtioFeatureFlags::VERSION_1.bits() | VirtioBlkFeatureFlags::all().bits();
        if shape.event_idx {
            features |= VirtioFeatureFlags::RING_EVENT_IDX.bits();
        }
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(path, features)?);
        let file = File::from(memfd_create("client", MemfdFlags::CLOEXEC)?);
        let bytes = shape.buffer_count * shape.buffer_bytes;
        file.set_len(bytes as u64)?;
        let descriptor = file.as_raw_fd();
        // The queues' own memory goes first: qemu-storage-daemon wants the regions in that order.
        let rings = VirtioBlkQueue::setup_queues(&mut *transport, shape.queue_count, shape.queue_size)?;
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), bytes).map_err(io::Error::other)?;
        transport.map_mem_region(memory.as_ptr() as usize, bytes, descriptor, 0)?;
        let queue = |(index, mut ring): (usize, VirtioBlkQueue<'static, usize>)| {
            ring.set_used_notif_enabled(true);
            Queue {
                ring,
                kick: transport.get_submission_notifier(index),
                call: transport.get_completion_fd(index),
            }
        };
        let queues = rings.into_iter().enumerate().map(queue).collect();
        Ok(Self { queues, transport, memory, shape })
    }

    /// The features that both sides know.
    pub fn features(&self) -> u64 {
        self.transport.get_features()
    }

    /// The configuration space.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn config(&self) -> io::Result<VirtioBlkConfig> {
        self.transport.get_config()
    }

    /// Puts `command` on a virtqueue, with the buffer of that number; [`Self::kick`] tells the server.
    ///
    /// # Errors
    /// If the queue is full, or offset or length are not multiples of a sector.
    ///
    /// # Panics
    /// If there is no such queue or buffer, or a buffer is shorter than the command.
    pub fn submit(&mut self, queue: usize, command: Command, buffer: usize) -> io::Result<()> {
        let start = self.address(buffer);
        let ring = &mut self.queues[queue].ring;
        match command {
            Command::Read { offset, len } => {
                assert!(len <= self.shape.buffer_bytes, "a read fits its buffer");
                // SAFETY: the buffer is `buffer_bytes` of shared memory, of which nobody holds a reference.
                unsafe { ring.read_raw(offset, start, len, buffer) }
            }
            Command::Write { offset, len } => {
                assert!(len <= self.shape.buffer_bytes, "a write fits its buffer");
                // SAFETY: as for reads.
                unsafe { ring.write_raw(offset, start, len, buffer) }
            }
            Command::Flush => ring.flush(buffer),
            Command::Discard { offset, len } => ring.discard(offset, len, buffer),
            Command::WriteZeroes { offset, len, unmap } => ring.write_zeroes(offset, len, unmap, buffer),
        }
    }

    /// Tells the server of what was submitted to `queue`, if it wants to know.
    ///
    /// # Errors
    /// If the descriptor is gone.
    pub fn kick(&mut self, queue: usize) -> io::Result<()> {
        let queue = &mut self.queues[queue];
        if queue.ring.avail_notif_needed() {
            queue.kick.notify()?;
        }
        Ok(())
    }

    /// Waits until something on `queue` is done, and appends all that is to `done`.
    ///
    /// # Errors
    /// `TimedOut` where nothing is done within `timeout`.
    pub fn wait(&mut self, queue: usize, timeout: Duration, done: &mut Vec<Done>) -> io::Result<()> {
        let queue = &mut self.queues[queue];
        loop {
            let before = done.len();
            done.extend(queue.ring.completions().map(|end| Done { buffer: end.context, result: end.ret }));
            if done.len() > before {
                return Ok(());
            }
            let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&*queue.call, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout))? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
            }
            queue.call.read()?;
        }
    }

    /// Does one command on queue 0, with buffer 0, and waits for its end.
    ///
    /// # Errors
    /// What the server answers; `TimedOut` where it does not within ten seconds.
    pub fn run(&mut self, command: Command) -> io::Result<()> {
        self.submit(0, command, 0)?;
        self.kick(0)?;
        let mut done = Vec::new();
        self.wait(0, Duration::from_secs(10), &mut done)?;
        match done[0].result {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Copies `bytes` into a buffer.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn fill(&self, buffer: usize, bytes: &[u8]) {
        assert!(bytes.len() <= self.shape.buffer_bytes, "the bytes fit the buffer");
        let slice = self.memory.as_volatile_slice();
        slice.write_slice(bytes, buffer * self.shape.buffer_bytes).expect("the buffer is in the memory");
    }

    /// A copy of the first `len` bytes of a buffer.
    ///
    /// # Panics
    /// If it is shorter.
    pub fn bytes(&self, buffer: usize, len: usize) -> Vec<u8> {
        assert!(len <= self.shape.buffer_bytes, "the buffer is long enough");
        let mut bytes = vec![0; len];
        let slice = self.memory.as_volatile_slice();
        slice.read_slice(&mut bytes, buffer * self.shape.buffer_bytes).expect("the buffer is in the memory");
        bytes
    }

    fn address(&self, buffer: usize) -> *mut u8 {
        assert!(buffer < self.shape.buffer_count, "there is such a buffer");
        self.memory.as_ptr().wrapping_add(buffer * self.shape.buffer_bytes)
    }
}
