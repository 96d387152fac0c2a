//! A client that says what it is told to, and a server without sockets.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use block::{Buffer, Disk, Result, SgList};
use testkit::block_on;

use crate::wire;
use crate::{Command, Connection, Event, Export, Exports, Request, Security, Violation};

/// The two ends of a connection.
pub(super) struct Client {
    pub(super) connection: Connection,
    exports: Arc<Exports>,
    /// What the server has sent and nobody has looked at.
    pub(super) received: VecDeque<u8>,
    /// Requests that wait for [`Self::carry_out_held`] instead of being carried out at once.
    pub(super) held: Option<Vec<Request>>,
    pub(super) disconnected: bool,
}

/// A reply to an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OptionReply {
    pub(super) option: u32,
    pub(super) kind: u32,
    pub(super) data: Vec<u8>,
}

/// A reply chunk of the transmission phase.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) done: bool,
    pub(super) kind: u16,
    pub(super) cookie: u64,
    pub(super) payload: Vec<u8>,
}

pub(super) fn exports(disks: &[(&str, &Disk)], security: Security) -> Arc<Exports> {
    let list = disks.iter().map(|(name, disk)| Export {
        name: (*name).to_owned(),
        description: format!("the disk {name:?}"),
        disk: (*disk).clone(),
    });
    Arc::new(Exports::new(list.collect(), security).expect("the names are good"))
}

impl Client {
    pub(super) fn new(exports: Arc<Exports>) -> Self {
        let connection = Connection::new(exports.clone());
        let mut client =
            Self { connection, exports, received: VecDeque::new(), held: None, disconnected: false };
        client.drain();
        client
    }

    /// A client in the option phase, past the greeting.
    pub(super) fn greeted(exports: Arc<Exports>) -> Self {
        let mut client = Self::new(exports);
        client.take(18);
        let flags = wire::CLIENT_FIXED_NEWSTYLE | wire::CLIENT_NO_ZEROES;
        client.send(&flags.to_be_bytes()).expect("known flags are accepted");
        client
    }

    /// A client in the transmission phase with the replies of `option`, or simple ones, and all contexts.
    pub(super) fn transmitting(disk: &Disk, option: Option<u32>) -> Self {
        let mut client = Self::greeted(exports(&[("", disk)], Security::Plain));
        if let Some(option) = option {
            client.option(option, &[]);
            let contexts = meta_data("", &["base:allocation", "godwit:state"]);
            client.option(wire::OPT_SET_META_CONTEXT, &contexts);
        }
        client.option(wire::OPT_GO, &info_data("", &[]));
        assert!(client.connection.export().is_some(), "the client is in the transmission phase");
        client
    }

    /// Sends `bytes` and lets the server act on them until they are used up or it stops reading.
    pub(super) fn send(&mut self, mut bytes: &[u8]) -> std::result::Result<usize, Violation> {
        let all = bytes.len();
        loop {
            self.act()?;
            if bytes.is_empty() || !self.connection.wants_input() {
                return Ok(all - bytes.len());
            }
            let count = self.connection.feed(bytes);
            assert!(count > 0, "there is room for what is wanted");
            bytes = &bytes[count..];
        }
    }

    fn act(&mut self) -> std::result::Result<(), Violation> {
        loop {
            let event = self.connection.next_event();
            match event? {
                Some(Event::Request(request)) => match &mut self.held {
                    Some(held) => held.push(request),
                    None => self.carry_out(request),
                },
                Some(Event::StartTls) => {
                    self.drain();
                    self.connection.tls_started();
                }
                Some(Event::Transmission(_)) => {}
                Some(Event::Disconnect) => self.disconnected = true,
                None if self.held.is_some() || !self.connection.has_output() => return Ok(()),
                None => {}
            }
            if self.held.is_none() {
                self.drain();
            }
        }
    }

    /// Receives everything that the server has to send, a few bytes at a time.
    pub(super) fn drain(&mut self) {
        while self.connection.has_output() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = self.connection.output(&mut slices);
            let bytes: Vec<u8> =
                slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(70_000).collect();
            self.received.extend(&bytes);
            self.connection.sent(bytes.len());
        }
    }

    pub(super) fn carry_out_held(&mut self) {
        for request in self.held.replace(Vec::new()).expect("requests are held") {
            self.carry_out(request);
        }
    }

    fn carry_out(&mut self, request: Request) {
        let export = self.connection.export().expect("requests come after an export was chosen");
        let disk = self.exports.list().iter().find(|one| one.name == export.name).expect("it is offered");
        let disk = disk.disk.clone();
        let result = block_on(answer(&disk, request.command));
        let pending = request.pending;
        match result {
            Ok(Answer::Done) => self.connection.reply_done(pending),
            Ok(Answer::Data(data)) => self.connection.reply_data(pending, data),
            Ok(Answer::Extents(extents)) => self.connection.reply_extents(pending, &extents),
            Err(error) => self.connection.reply_error(pending, &error),
        }
    }

    /// The next `count` bytes from the server.
    pub(super) fn take(&mut self, count: usize) -> Vec<u8> {
        assert!(self.received.len() >= count, "{count} bytes are wanted, {} are here", self.received.len());
        self.received.drain(..count).collect()
    }

    fn take_u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    pub(super) fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub(super) fn take_u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// Sends an option and takes the replies to it.
    pub(super) fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.try_option(option, data).expect("the option breaks no rule")
    }

    pub(super) fn try_option(
        &mut self,
        option: u32,
        data: &[u8],
    ) -> std::result::Result<Vec<OptionReply>, Violation> {
        self.send(&option_bytes(option, data))?;
        let mut replies = Vec::new();
        while !self.received.is_empty() {
            assert_eq!(self.take_u64(), wire::OPTION_REPLY_MAGIC);
            let (option, kind, len) = (self.take_u32(), self.take_u32(), self.take_u32());
            replies.push(OptionReply { option, kind, data: self.take(len as usize) });
        }
        Ok(replies)
    }

    /// Takes a simple reply without payload: the error and the cookie.
    pub(super) fn simple(&mut self) -> (u32, u64) {
        assert_eq!(self.take_u32(), wire::SIMPLE_REPLY_MAGIC);
        (self.take_u32(), self.take_u64())
    }

    /// Takes a structured or extended reply chunk.
    pub(super) fn chunk(&mut self) -> Chunk {
        let magic = self.take_u32();
        let (flags, kind, cookie) = (self.take_u16(), self.take_u16(), self.take_u64());
        let len = match magic {
            wire::STRUCTURED_REPLY_MAGIC => u64::from(self.take_u32()),
            wire::EXTENDED_REPLY_MAGIC => {
                self.take(8);
                self.take_u64()
            }
            other => panic!("{other:#x} does not start a chunk"),
        };
        Chunk { done: flags & wire::REPLY_FLAG_DONE != 0, kind, cookie, payload: self.take(len as usize) }
    }

    /// Takes the chunks of one reply.
    pub(super) fn chunks(&mut self) -> Vec<Chunk> {
        let mut chunks = vec![self.chunk()];
        while !chunks[chunks.len() - 1].done {
            chunks.push(self.chunk());
        }
        chunks
    }
}

impl Chunk {
    /// The error number and message of an error chunk.
    pub(super) fn error(&self) -> (u32, &str) {
        assert_eq!(self.kind, wire::REPLY_ERROR);
        let len = u16::from_be_bytes(self.payload[4..6].try_into().unwrap());
        assert_eq!(self.payload.len(), 6 + usize::from(len));
        let errno = u32::from_be_bytes(self.payload[..4].try_into().unwrap());
        (errno, std::str::from_utf8(&self.payload[6..]).expect("messages are UTF-8"))
    }
}

enum Answer {
    Done,
    Data(Buffer),
    Extents(Vec<block::Extent>),
}

async fn answer(disk: &Disk, command: Command) -> Result<Answer> {
    match command {
        Command::Read { offset, len } => {
            let memory = SgList::unspecified(len as usize);
            disk.read(offset, memory.clone()).await?;
            return Ok(Answer::Data(Buffer::reclaim(memory).expect("nobody else has the memory")));
        }
        Command::Write { offset, payload, flags } => disk.write(offset, payload.into_sg(), flags).await?,
        Command::Flush => disk.flush().await?,
        Command::Trim { range, .. } => disk.discard(range).await?,
        Command::Cache { range } => disk.read(range.start(), SgList::unspecified(0)).await?,
        Command::WriteZeroes { range, flags } => disk.write_zeroes(range, flags).await?,
        Command::BlockStatus { range, .. } => {
            let mut extents = Vec::new();
            disk.block_status(range, &mut extents).await?;
            return Ok(Answer::Extents(extents));
        }
    }
    Ok(Answer::Done)
}

pub(super) fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn framed(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// The data of INFO and GO.
pub(super) fn info_data(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = framed(name);
    data.extend((kinds.len() as u16).to_be_bytes());
    kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(super) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = framed(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(framed(query)));
    data
}

/// A request with a 32-bit length.
pub(super) fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = wire::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// A request with a 64-bit length.
pub(super) fn extended_request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = wire::EXTENDED_REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}
