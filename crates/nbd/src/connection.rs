//! A connection as a whole: phases, limits, and the order of events.

use std::io::IoSlice;
use std::sync::Arc;

use block::{BlockError, Buffer, Extent};

use crate::errno::errno_of;
use crate::export::{Export, Exports};
use crate::handshake::{Handshake, Step};
use crate::input::Input;
use crate::limits;
use crate::meta::Selection;
use crate::output::{Framing, Output};
use crate::request::{Command, Header, Pending, Refusal, Request, Rules};
use crate::violation::Violation;
use crate::wire;

/// What a block status reply counts for against [`limits::PAYLOAD_BYTES_IN_FLIGHT_MAX`]: two contexts of as many
/// descriptors as they may have, at 16 bytes each.
const BLOCK_STATUS_COST_BYTES: u64 = 2 * 16 * limits::EXTENTS_MAX as u64;

/// The longest payload that a refused request may announce; it is skipped.
const REFUSED_PAYLOAD_BYTES_MAX: u64 = 1 << 32;

/// The server's side of one connection.
pub struct Connection {
    exports: Arc<Exports>,
    input: Input,
    output: Output,
    handshake: Handshake,
    phase: Phase,
    /// The client said goodbye or broke a rule: nothing more is taken from it.
    over: bool,
    in_flight: InFlight,
    /// The write whose payload is being received.
    writing: Option<Request>,
    /// The request that is answered with an error once its payload has been skipped.
    refused: Option<(Pending, Refusal)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    Options,
    /// The reply to STARTTLS is on its way, or TLS is being set up.
    StartingTls,
    Transmission {
        export: usize,
        framing: Framing,
        selection: Selection,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct InFlight {
    requests: usize,
    bytes: u64,
}

/// What received bytes amount to.
#[derive(Debug)]
pub enum Event {
    /// Everything in the output is to be sent, then TLS to be set up on the connection and
    /// [`Connection::tls_started`] to be called.
    StartTls,
    /// The client has entered the transmission phase on the export with this index.
    Transmission(usize),
    /// A request to be carried out.
    Request(Request),
    /// The client is done. Everything in the output, and the replies to requests in flight, may still be sent.
    Disconnect,
}

impl Connection {
    /// A new connection, whose first output is the greeting.
    pub fn new(exports: Arc<Exports>) -> Self {
        let mut output = Output::default();
        let handshake = Handshake::new(exports.clone());
        handshake.greet(&mut output);
        Self {
            exports,
            input: Input::new(),
            output,
            handshake,
            phase: Phase::ClientFlags,
            over: false,
            in_flight: InFlight::default(),
            writing: None,
            refused: None,
        }
    }

    /// The export that was chosen, once the transmission phase has begun.
    pub fn export(&self) -> Option<&Export> {
        match self.phase {
            Phase::Transmission { export, .. } => Some(&self.exports.list()[export]),
            _ => None,
        }
    }

    /// Whether received bytes could lead to anything. Where not, reading stops: the connection is at its limits,
    /// waits for its output to be sent, or is over.
    pub fn wants_input(&self) -> bool {
        if self.over {
            return false;
        }
        match self.phase {
            // proto.md, "Fixed newstyle negotiation": the client must not send an option before it has the reply to
            // the last one; a client that does waits, so that replies do not pile up.
            Phase::ClientFlags | Phase::Options => self.output.is_empty(),
            Phase::Transmission { .. } => {
                self.writing.is_some() || self.refused.is_some() || !self.is_saturated()
            }
            Phase::StartingTls => false,
        }
    }

    /// Where received bytes belong: first the one, then the other. At least one is not empty if
    /// [`Self::next_event`] has just returned `None` and [`Self::wants_input`] is true.
    pub fn spaces(&mut self) -> [&mut [u8]; 2] {
        self.input.spaces()
    }

    /// Says that the first `count` bytes of [`Self::spaces`] were filled.
    ///
    /// # Panics
    /// If that is more than the spaces hold.
    pub fn received(&mut self, count: usize) {
        self.input.received(count);
    }

    /// Copies `bytes` in as if they had been received, as many as fit, and says how many: for tests and fuzzers.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        let mut count = 0;
        for space in self.spaces() {
            let now = space.len().min(bytes.len() - count);
            space[..now].copy_from_slice(&bytes[count..count + now]);
            count += now;
        }
        self.received(count);
        count
    }

    /// What the bytes received so far amount to; `None` if more are needed, or if the connection is at its limits.
    ///
    /// # Errors
    /// The rule that the client broke. The connection is over then; what is in the output may still be sent.
    pub fn next_event(&mut self) -> Result<Option<Event>, Violation> {
        if self.over {
            return Ok(None);
        }
        let event = match self.phase {
            Phase::ClientFlags | Phase::Options => self.next_handshake_event(),
            Phase::Transmission { .. } => self.next_request(),
            Phase::StartingTls => Ok(None),
        };
        self.over = matches!(event, Err(_) | Ok(Some(Event::Disconnect)));
        event
    }

    fn next_handshake_event(&mut self) -> Result<Option<Event>, Violation> {
        while self.output.is_empty() && !self.input.is_skipping() {
            if self.phase == Phase::ClientFlags {
                let Some(flags) = self.input.peek::<zerocopy::byteorder::big_endian::U32>() else { break };
                self.input.consume(size_of_val(&flags));
                self.handshake.client_flags(flags.get())?;
                self.phase = Phase::Options;
                continue;
            }
            let Some(header) = self.input.peek::<wire::OptionHeader>() else { break };
            if header.magic != wire::OPTION_MAGIC {
                return Err(Violation::OptionMagic(header.magic.get()));
            }
            match self.next_option(header.option.get(), header.len.get())? {
                Some(Step::Continue) => {}
                Some(step) => return self.take_step(step).map(Some),
                None => break,
            }
        }
        Ok(None)
    }

    /// Carries out the option that comes next; `None` if not all of it is here.
    fn next_option(&mut self, option: u32, len: u32) -> Result<Option<Step>, Violation> {
        let header_len = size_of::<wire::OptionHeader>();
        if len > limits::OPTION_BYTES_MAX {
            if len > limits::OPTION_SKIP_BYTES_MAX {
                return Err(Violation::OptionLength { option, len });
            }
            self.handshake.count_option()?;
            self.handshake.too_big(option, &mut self.output)?;
            self.input.consume(header_len);
            self.input.skip(u64::from(len));
            return Ok(Some(Step::Continue));
        }
        let all = header_len + len as usize;
        let Some(data) = self.input.bytes().get(header_len..all) else { return Ok(None) };
        self.handshake.count_option()?;
        let step = self.handshake.option(option, data, &mut self.output)?;
        self.input.consume(all);
        Ok(Some(step))
    }

    fn take_step(&mut self, step: Step) -> Result<Event, Violation> {
        match step {
            Step::Continue => unreachable!("only what ends the options is a step of the connection"),
            Step::Transmit(export) => {
                let (framing, selection) = (self.handshake.framing(), self.handshake.selection_for(export));
                self.phase = Phase::Transmission { export, framing, selection };
                Ok(Event::Transmission(export))
            }
            Step::StartTls => {
                self.phase = Phase::StartingTls;
                // Whatever follows in plain text was not sent by somebody who has seen our reply, and must not be
                // taken for something that came through TLS.
                match self.input.bytes().len() {
                    0 => Ok(Event::StartTls),
                    count => Err(Violation::BytesAfterStartTls(count)),
                }
            }
            Step::Abort => Ok(Event::Disconnect),
        }
    }

    /// TLS is up; the handshake goes on inside it.
    ///
    /// # Panics
    /// If [`Event::StartTls`] was not the last event.
    pub fn tls_started(&mut self) {
        assert_eq!(self.phase, Phase::StartingTls, "TLS starts when the client asks for it");
        self.handshake.tls_started();
        self.phase = Phase::Options;
    }

    fn is_saturated(&self) -> bool {
        self.in_flight.requests >= limits::REQUESTS_IN_FLIGHT_MAX
            || self.in_flight.bytes >= limits::PAYLOAD_BYTES_IN_FLIGHT_MAX
    }

    fn next_request(&mut self) -> Result<Option<Event>, Violation> {
        let Phase::Transmission { export, framing, selection } = self.phase else { return Ok(None) };
        let info = *self.exports.list()[export].disk.info();
        let rules = Rules::new(framing, &info, !selection.is_empty());
        loop {
            if self.writing.is_some() {
                return Ok(self.finish_write().map(Event::Request));
            }
            if self.input.is_skipping() {
                return Ok(None);
            }
            if let Some((pending, refusal)) = self.refused.take() {
                self.output.error(framing, &pending, refusal.errno, refusal.reason);
            }
            if self.is_saturated() {
                return Ok(None);
            }
            let Some(header) = self.next_header(framing)? else { return Ok(None) };
            if header.kind == wire::CMD_DISC {
                // proto.md, DISC: the client must not send anything after it, and there is no reply.
                return Ok(Some(Event::Disconnect));
            }
            if let Some(request) = self.take_request(header, &rules)? {
                return Ok(Some(Event::Request(request)));
            }
        }
    }

    fn next_header(&mut self, framing: Framing) -> Result<Option<Header>, Violation> {
        if framing == Framing::Extended {
            let Some(raw) = self.input.peek::<wire::ExtendedRequest>() else { return Ok(None) };
            check_magic(raw.magic.get(), wire::EXTENDED_REQUEST_MAGIC)?;
            self.input.consume(size_of_val(&raw));
            return Ok(Some(Header {
                flags: raw.flags.get(),
                kind: raw.kind.get(),
                cookie: raw.cookie.get(),
                offset: raw.offset.get(),
                len: raw.len.get(),
            }));
        }
        let Some(raw) = self.input.peek::<wire::CompactRequest>() else { return Ok(None) };
        check_magic(raw.magic.get(), wire::REQUEST_MAGIC)?;
        self.input.consume(size_of_val(&raw));
        Ok(Some(Header {
            flags: raw.flags.get(),
            kind: raw.kind.get(),
            cookie: raw.cookie.get(),
            offset: raw.offset.get(),
            len: u64::from(raw.len.get()),
        }))
    }

    /// Turns a header into a request, or refuses it, or begins to receive its payload.
    fn take_request(&mut self, header: Header, rules: &Rules) -> Result<Option<Request>, Violation> {
        let mut pending = header.pending();
        let payload_len = header.payload_len(rules.framing);
        self.in_flight.requests += 1;
        let command = match header.command(rules) {
            Ok(command) => command,
            Err(refusal) => {
                if payload_len > REFUSED_PAYLOAD_BYTES_MAX {
                    return Err(Violation::PayloadLength(payload_len));
                }
                // libnbd takes a reply that comes before it has sent all of its request for one to nothing.
                self.refused = Some((pending, refusal));
                self.input.skip(payload_len);
                return Ok(None);
            }
        };
        pending.cost = match &command {
            Command::Read { len, .. } => u64::from(*len),
            Command::Write { .. } => payload_len,
            Command::BlockStatus { .. } => BLOCK_STATUS_COST_BYTES,
            Command::Flush | Command::Trim { .. } | Command::Cache { .. } | Command::WriteZeroes { .. } => 0,
        };
        self.in_flight.bytes += pending.cost;
        let request = Request { command, pending };
        if header.kind != wire::CMD_WRITE {
            return Ok(Some(request));
        }
        let len = u32::try_from(payload_len).expect("a command's payload was checked against its maximum");
        self.input.begin_payload(len);
        self.writing = Some(request);
        Ok(self.finish_write())
    }

    /// The write whose payload is complete.
    fn finish_write(&mut self) -> Option<Request> {
        let received = self.input.take_payload()?;
        let mut request = self.writing.take()?;
        if let Command::Write { payload, .. } = &mut request.command {
            *payload = received;
        }
        Some(request)
    }

    fn framing(&self) -> Framing {
        self.handshake.framing()
    }

    /// Answers a request that has nothing to return.
    pub fn reply_done(&mut self, pending: Pending) {
        self.output.done(self.framing(), &pending);
    }

    /// Answers a read with what was read. Stretches of zeroes go as holes where the client understands them.
    ///
    /// # Panics
    /// If `data` does not have the length that was asked for.
    pub fn reply_data(&mut self, pending: Pending, data: Buffer) {
        assert_eq!(data.len() as u64, pending.len, "a read gives the bytes that were asked for");
        self.output.data(self.framing(), &pending, data);
    }

    /// Answers a block status request with the extents from the start of its range; what lies beyond it is left out.
    ///
    /// # Panics
    /// If there are none.
    pub fn reply_extents(&mut self, pending: Pending, extents: &[Extent]) {
        assert!(!extents.is_empty(), "a device tells at least one extent");
        let Phase::Transmission { framing, selection, .. } = self.phase else {
            unreachable!("requests come only from the transmission phase, which does not end")
        };
        self.output.extents(framing, &pending, selection.contexts(), extents);
    }

    /// Answers a request with an error of the device.
    pub fn reply_error(&mut self, pending: Pending, error: &BlockError) {
        let errno = errno_of(error.kind(), pending.purpose);
        self.output.error(self.framing(), &pending, errno, &error.chain());
    }

    /// Whether there is anything to send.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Number of bytes to send.
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Fills `slices` with what is to be sent next, and says how many it filled.
    pub fn output<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.output.slices(slices)
    }

    /// Says that the first `count` bytes of the output were sent.
    ///
    /// # Panics
    /// If that is more than there were.
    pub fn sent(&mut self, count: usize) {
        let released = self.output.sent(count);
        self.in_flight.requests -= released.requests;
        self.in_flight.bytes -= released.bytes;
    }

    /// How many requests are between arrival and the last byte of their reply.
    pub fn requests_in_flight(&self) -> usize {
        self.in_flight.requests
    }
}

fn check_magic(magic: u32, expected: u32) -> Result<(), Violation> {
    if magic == expected { Ok(()) } else { Err(Violation::RequestMagic(magic)) }
}
