//! A front end's connection: looks at the next message without taking it, and then lets it in.
//!
//! The message handler of the `vhost` crate answers at once and waits for bytes that are missing. A thread that serves
//! others can afford neither, so each message is peeked at first: it is taken only when all of it is there, and the
//! queues that it would disturb can be stopped before, however long that takes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::Disk;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::message::{FrontendReq, MAX_MSG_SIZE};
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::config::DeviceOptions;
use crate::device::Device;

const HEADER_BYTES: usize = 12;
/// The header, and the first two words of the message, which name the queue where there is one.
const PEEK_BYTES: usize = HEADER_BYTES + 8;

/// The device's side of one front end's connection.
pub struct Connection {
    socket: UnixStream,
    handler: BackendReqHandler<Mutex<Device>>,
    device: Arc<Mutex<Device>>,
}

/// What there is to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// No whole message yet.
    Nothing,
    /// The front end has closed the connection.
    Closed,
    /// A message, which [`Connection::handle`] takes. The queues that it disturbs are to be stopped before.
    Message(Disturbed),
}

/// The queues that a message must find stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbed {
    /// None.
    None,
    /// The one with this index, if it exists.
    One(usize),
    /// All.
    All,
}

impl Connection {
    /// The connection on `socket`, serving `disk`.
    ///
    /// # Errors
    /// If the socket cannot be set up.
    pub fn new(socket: UnixStream, disk: Disk, options: DeviceOptions) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let device = Arc::new(Mutex::new(Device::new(disk, options)));
        let handler = BackendReqHandler::from_stream(socket.try_clone()?, device.clone());
        Ok(Self { socket, handler, device })
    }

    /// Looks at what there is to receive; never waits.
    ///
    /// # Errors
    /// If the socket is broken, or the front end breaks the protocol: a message that is too long, or replies that it
    /// does not read.
    pub fn incoming(&self) -> io::Result<Incoming> {
        let mut bytes = [0; PEEK_BYTES];
        let count = match recv(&self.socket, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(Incoming::Closed),
            Ok((count, _)) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Incoming::Nothing),
            Err(error) => return Err(error.into()),
        };
        let Some(body_bytes) = word(&bytes[..count], 8) else { return Ok(Incoming::Nothing) };
        if body_bytes as usize > MAX_MSG_SIZE {
            return Err(io::Error::other(format!("a message of {body_bytes} bytes is too long")));
        }
        let waiting = rustix::io::ioctl_fionread(&self.socket)?;
        if waiting < (HEADER_BYTES + body_bytes as usize) as u64 {
            return Ok(Incoming::Nothing);
        }
        self.check_replies_are_read()?;
        let in_message = count.min(HEADER_BYTES + body_bytes as usize);
        Ok(Incoming::Message(disturbed_by(&bytes[..in_message])))
    }

    /// Takes the message that [`Self::incoming`] has reported, and answers it.
    ///
    /// # Errors
    /// If the message was refused. The front end was told, if it had asked; its idea of the device may now be another
    /// than ours, so the connection is to be given up.
    pub fn handle(&mut self) -> Result<(), Error> {
        self.handler.handle_request()
    }

    /// The device, as the messages so far have set it up.
    pub fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reply is sent without waiting for room. There is room while the socket polls writable, since that takes three
    /// quarters of its buffer free and a reply is a few KiB at most.
    fn check_replies_are_read(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if fds[0].revents().contains(PollFlags::OUT) {
            return Ok(());
        }
        Err(io::Error::other("the front end does not read its replies"))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the message that starts with `bytes` disturbs. Where the start of the body is not there to be seen (a front
/// end may send it apart from the header), all queues.
fn disturbed_by(bytes: &[u8]) -> Disturbed {
    let request = word(bytes, 0).and_then(|code| FrontendReq::try_from(code).ok());
    let (first, second) = (word(bytes, HEADER_BYTES), word(bytes, HEADER_BYTES + 4));
    let one = |index: Option<u32>| index.map_or(Disturbed::All, |index| Disturbed::One(index as usize));
    match request {
        Some(
            FrontendReq::SET_VRING_NUM
            | FrontendReq::SET_VRING_ADDR
            | FrontendReq::SET_VRING_BASE
            | FrontendReq::GET_VRING_BASE,
        ) => one(first),
        // The low byte is the index, the bit above it says that there is no descriptor.
        Some(FrontendReq::SET_VRING_KICK) => one(first.map(|value| value & 0xff)),
        Some(FrontendReq::SET_VRING_ENABLE) if second != Some(1) => one(first),
        Some(FrontendReq::RESET_DEVICE | FrontendReq::SET_INFLIGHT_FD) => Disturbed::All,
        _ => Disturbed::None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")))
}
