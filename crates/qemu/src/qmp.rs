//! A client of the QEMU Machine Protocol.

mod wire;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use wire::Event;
use wire::Message;

use crate::child::wait_readable;

/// Events that wait to be asked for; beyond this the oldest are dropped, with a warning.
const EVENTS_MAX: usize = 4096;
/// The longest line that is accepted; the longest that QEMU sends, its schema, is a few hundred KiB.
const LINE_BYTES_MAX: usize = 16 << 20;
/// How long the greeting and the negotiation may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);

/// What went wrong in a conversation.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection failed.
    #[error("qmp connection")]
    Io(#[from] io::Error),
    /// QEMU closed the connection, most often because it ended.
    #[error("qemu closed the qmp connection")]
    Closed,
    /// No answer came in time; a late one is dropped when it comes.
    #[error("qemu did not send {what} within {} ms", timeout.as_millis())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        timeout: Duration,
    },
    /// QEMU refused a command.
    #[error("qemu refused {command:?}: {desc} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// The class of the error, for programs.
        class: String,
        /// QEMU's sentence, for people.
        desc: String,
    },
    /// What came is not QMP.
    #[error("qemu broke the protocol: {0}")]
    Protocol(String),
}

/// A connection to a QMP monitor, past the negotiation. It has one owner, and one command is under way at a time.
///
/// After any error but [`QmpError::Refused`] and [`QmpError::TimedOut`] the connection is of no more use.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    inbox: Vec<u8>,
    /// Bytes at the start of `inbox` that hold no line end.
    searched: usize,
    events: VecDeque<Event>,
    next_id: u64,
    greeting: Value,
}

impl Qmp {
    /// Connects to the monitor that listens at `path`.
    ///
    /// # Errors
    /// As [`Self::over`].
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        Self::over(UnixStream::connect(path)?)
    }

    /// Reads the greeting from `stream` and leaves capabilities negotiation mode. No capability is asked for.
    ///
    /// # Errors
    /// If QEMU ends, says nothing for half a minute, or says something else.
    pub fn over(stream: UnixStream) -> Result<Self, QmpError> {
        // Waiting is done with poll, so that each wait has its own end.
        stream.set_nonblocking(true)?;
        let mut qmp = Self {
            stream,
            inbox: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            next_id: 1,
            greeting: Value::Null,
        };
        let deadline = Instant::now() + GREETING_TIMEOUT;
        match qmp.receive(deadline)? {
            Some(Message::Greeting(greeting)) => qmp.greeting = greeting,
            Some(other) => return Err(QmpError::Protocol(format!("no greeting but {other:?}"))),
            None => {
                return Err(QmpError::TimedOut { what: "its greeting".into(), timeout: GREETING_TIMEOUT });
            }
        }
        qmp.execute("qmp_capabilities", json!({}), GREETING_TIMEOUT)?;
        Ok(qmp)
    }

    /// What QEMU said of itself: the object under `QMP` in its greeting.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Runs `command` and returns what it returned. Events that come meanwhile are kept.
    ///
    /// # Errors
    /// `Refused` if QEMU does not do it, `TimedOut` if it does not answer within `timeout`.
    pub fn execute(&mut self, command: &str, arguments: Value, timeout: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + timeout;
        let id = self.next_id;
        self.next_id += 1;
        tracing::debug!(command, %arguments, "qmp");
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.send(line.as_bytes(), deadline, command, timeout)?;
        loop {
            match self.receive(deadline)? {
                Some(Message::Return { id: of, value }) if of == Some(id) => return Ok(value),
                Some(Message::Error { id: of, class, desc }) if of == Some(id) || of.is_none() => {
                    return Err(QmpError::Refused { command: command.into(), class, desc });
                }
                // The late answer to a command that was given up.
                Some(Message::Return { id: Some(of), .. } | Message::Error { id: Some(of), .. })
                    if of < id => {}
                Some(Message::Event(event)) => self.keep(event),
                Some(other) => return Err(QmpError::Protocol(format!("unexpected {other:?}"))),
                None => {
                    return Err(QmpError::TimedOut { what: format!("an answer to {command:?}"), timeout });
                }
            }
        }
    }

    /// The next event whose name is in `names` (any, if `names` is empty), waiting at most `timeout` for it. Other
    /// events before it are dropped.
    ///
    /// # Errors
    /// `TimedOut` if none comes, `Closed` if QEMU ends first.
    pub fn wait_event(&mut self, names: &[&str], timeout: Duration) -> Result<Event, QmpError> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Some(event) = self.events.pop_front() {
                if names.is_empty() || names.contains(&event.name.as_str()) {
                    return Ok(event);
                }
            }
            match self.receive(deadline)? {
                Some(Message::Event(event)) => self.keep(event),
                Some(Message::Return { .. } | Message::Error { .. }) => {}
                Some(other) => return Err(QmpError::Protocol(format!("unexpected {other:?}"))),
                None => return Err(QmpError::TimedOut { what: names.join(" or "), timeout }),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        tracing::debug!(name = event.name, data = %event.data, "qmp event");
        if self.events.len() == EVENTS_MAX {
            let dropped = self.events.pop_front();
            tracing::warn!(?dropped, "nobody asks for qmp events; the oldest is dropped");
        }
        self.events.push_back(event);
    }

    fn send(
        &mut self,
        mut bytes: &[u8],
        deadline: Instant,
        command: &str,
        timeout: Duration,
    ) -> Result<(), QmpError> {
        use rustix::event::{PollFd, PollFlags};
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(QmpError::TimedOut {
                            what: format!("room for the command {command:?}"),
                            timeout,
                        });
                    }
                    let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
                    let tick = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                    let _ = rustix::event::poll(&mut fds, Some(&tick));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(QmpError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next message; `None` if none is whole at `deadline`.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Message>, QmpError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    wait_readable(self.stream.as_fd(), left)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(QmpError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<Message>, QmpError> {
        let end = self.inbox[self.searched..].iter().position(|&byte| byte == b'\n');
        let Some(end) = end.map(|end| end + self.searched) else {
            self.searched = self.inbox.len();
            if self.searched > LINE_BYTES_MAX {
                return Err(QmpError::Protocol(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
            }
            return Ok(None);
        };
        let message = Message::parse(&self.inbox[..end]).map_err(QmpError::Protocol);
        self.inbox.drain(..=end);
        self.searched = 0;
        message.map(Some)
    }
}

#[cfg(test)]
mod tests;
