//! The handshake: which export a client gets, and how it will be spoken to.

use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::export::{Export, Exports, Security};
use crate::limits;
use crate::meta::{MetaContext, Selection};
use crate::option::{InfoRequest, MetaError, MetaRequest, string};
use crate::output::{Framing, Output};
use crate::violation::Violation;
use crate::wire;

/// What the client has asked for so far.
pub(crate) struct Handshake {
    exports: Arc<Exports>,
    fixed_newstyle: bool,
    no_zeroes: bool,
    encrypted: bool,
    framing: Framing,
    /// The last selection of contexts, and the export it was made for.
    selected: Option<(usize, Selection)>,
    options: u32,
}

/// What an option leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// More options.
    Continue,
    /// The transmission phase on the export with this index.
    Transmit(usize),
    /// TLS, once the reply is out.
    StartTls,
    /// The end, once the reply is out.
    Abort,
}

impl Handshake {
    pub(crate) fn new(exports: Arc<Exports>) -> Self {
        Self {
            exports,
            fixed_newstyle: false,
            no_zeroes: false,
            encrypted: false,
            framing: Framing::Simple,
            selected: None,
            options: 0,
        }
    }

    /// proto.md, "Newstyle negotiation": the server speaks first.
    pub(crate) fn greet(&self, output: &mut Output) {
        let greeting = wire::Greeting {
            init_magic: wire::INIT_MAGIC.into(),
            option_magic: wire::OPTION_MAGIC.into(),
            flags: (wire::HANDSHAKE_FIXED_NEWSTYLE | wire::HANDSHAKE_NO_ZEROES).into(),
        };
        output.bytes(greeting.as_bytes().to_vec());
    }

    pub(crate) fn client_flags(&mut self, flags: u32) -> Result<(), Violation> {
        if flags & !(wire::CLIENT_FIXED_NEWSTYLE | wire::CLIENT_NO_ZEROES) != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        self.fixed_newstyle = flags & wire::CLIENT_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & wire::CLIENT_NO_ZEROES != 0;
        Ok(())
    }

    /// TLS is up. What was agreed before could have been agreed by somebody in between.
    ///
    /// proto.md, "Option types", STRUCTURED_REPLY: a client must negotiate it again after STARTTLS.
    pub(crate) fn tls_started(&mut self) {
        self.encrypted = true;
        self.framing = Framing::Simple;
        self.selected = None;
    }

    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    /// The contexts that count for `export`: those selected last, if they were selected for it.
    ///
    /// proto.md, "Metadata querying": the selection must have used the same export name.
    pub(crate) fn selection_for(&self, export: usize) -> Selection {
        self.selected
            .filter(|(index, _)| *index == export)
            .map(|(_, selection)| selection)
            .unwrap_or_default()
    }

    fn needs_tls(&self) -> bool {
        self.exports.security() == Security::TlsRequired && !self.encrypted
    }

    /// Counts an option, whatever it holds.
    pub(crate) fn count_option(&mut self) -> Result<(), Violation> {
        self.options += 1;
        if self.options > limits::OPTIONS_MAX { Err(Violation::OptionCount) } else { Ok(()) }
    }

    /// Refuses an option whose data was not looked at.
    pub(crate) fn too_big(&self, option: u32, output: &mut Output) -> Result<(), Violation> {
        if option == wire::OPT_EXPORT_NAME {
            return Err(Violation::ExportName("the name is too long"));
        }
        Reply { output, option }.error(wire::REP_ERR_TOO_BIG, "the data of the option is too long");
        Ok(())
    }

    /// Carries out an option.
    pub(crate) fn option(
        &mut self,
        option: u32,
        data: &[u8],
        output: &mut Output,
    ) -> Result<Step, Violation> {
        let mut reply = Reply { output, option };
        match option {
            wire::OPT_EXPORT_NAME => return self.export_name(data, output),
            wire::OPT_ABORT => {
                reply.ack();
                return Ok(Step::Abort);
            }
            wire::OPT_STARTTLS => return Ok(self.start_tls(data, reply)),
            // proto.md, "FORCEDTLS mode": any other option gets ERR_TLS_REQD if TLS has not been initiated.
            _ if self.needs_tls() => reply.error(wire::REP_ERR_TLS_REQD, "this server requires TLS"),
            wire::OPT_LIST => self.list(data, reply),
            wire::OPT_INFO | wire::OPT_GO => return Ok(self.info(data, reply)),
            wire::OPT_STRUCTURED_REPLY => self.structured_reply(data, reply),
            wire::OPT_EXTENDED_HEADERS => self.extended_headers(data, reply),
            wire::OPT_LIST_META_CONTEXT => self.list_contexts(data, reply),
            wire::OPT_SET_META_CONTEXT => self.set_contexts(data, reply),
            _ => reply.error(wire::REP_ERR_UNSUP, "the option is not known"),
        }
        Ok(Step::Continue)
    }

    /// proto.md, "Option types", EXPORT_NAME: no error can be told, so the session ends instead.
    fn export_name(&self, data: &[u8], output: &mut Output) -> Result<Step, Violation> {
        if self.needs_tls() {
            return Err(Violation::ExportName("it has not started TLS"));
        }
        let index = self.exports.find(data).ok_or(Violation::ExportName("no export has that name"))?;
        let facts = self.exports.list()[index].facts(self.framing != Framing::Simple);
        let mut bytes = facts.as_bytes().to_vec();
        if !self.no_zeroes {
            bytes.resize(bytes.len() + wire::EXPORT_NAME_ZEROES, 0);
        }
        output.bytes(bytes);
        Ok(Step::Transmit(index))
    }

    fn start_tls(&self, data: &[u8], mut reply: Reply<'_>) -> Step {
        if !data.is_empty() {
            reply.error(wire::REP_ERR_INVALID, "STARTTLS has no data");
        } else if self.encrypted {
            // proto.md, "FORCEDTLS mode": ERR_INVALID when TLS has already been negotiated.
            reply.error(wire::REP_ERR_INVALID, "TLS has been started already");
        } else if self.exports.security() == Security::Plain || !self.fixed_newstyle {
            // proto.md, "Server-side requirements": NOTLS unless both sides said fixed newstyle.
            reply.error(wire::REP_ERR_UNSUP, "this server has no TLS");
        } else {
            reply.ack();
            return Step::StartTls;
        }
        Step::Continue
    }

    fn list(&self, data: &[u8], mut reply: Reply<'_>) {
        if !data.is_empty() {
            return reply.error(wire::REP_ERR_INVALID, "LIST has no data");
        }
        for export in self.exports.list() {
            let len = (export.name.len() as u32).to_be_bytes();
            reply.send(wire::REP_SERVER, &[&len, export.name.as_bytes(), export.description.as_bytes()]);
        }
        reply.ack();
    }

    fn info(&self, data: &[u8], mut reply: Reply<'_>) -> Step {
        let Some(request) = InfoRequest::parse(data) else {
            reply.error(wire::REP_ERR_INVALID, "the data does not have the form of the option");
            return Step::Continue;
        };
        let Some(index) = self.exports.find(request.name.as_bytes()) else {
            reply.unknown_export();
            return Step::Continue;
        };
        self.send_info(&self.exports.list()[index], &request.kinds, &mut reply);
        reply.ack();
        if reply.option == wire::OPT_GO { Step::Transmit(index) } else { Step::Continue }
    }

    /// proto.md, "Option reply types", INFO: the export's facts are mandatory; the rest comes when it is asked for,
    /// and the block sizes whenever they are not the default.
    fn send_info(&self, export: &Export, kinds: &[u16], reply: &mut Reply<'_>) {
        let facts = export.facts(self.framing != Framing::Simple);
        reply.info(wire::INFO_EXPORT, facts.as_bytes());
        if kinds.contains(&wire::INFO_NAME) {
            reply.info(wire::INFO_NAME, export.name.as_bytes());
        }
        if kinds.contains(&wire::INFO_DESCRIPTION) && !export.description.is_empty() {
            reply.info(wire::INFO_DESCRIPTION, export.description.as_bytes());
        }
        if kinds.contains(&wire::INFO_BLOCK_SIZE) || export.disk.info().block_bytes > 1 {
            reply.info(wire::INFO_BLOCK_SIZE, export.block_sizes().as_bytes());
        }
    }

    fn structured_reply(&mut self, data: &[u8], mut reply: Reply<'_>) {
        match self.framing {
            _ if !data.is_empty() => reply.error(wire::REP_ERR_INVALID, "STRUCTURED_REPLY has no data"),
            Framing::Simple => {
                self.framing = Framing::Structured;
                reply.ack();
            }
            Framing::Structured => {
                reply.error(wire::REP_ERR_INVALID, "structured replies have been agreed already");
            }
            // proto.md, "Option reply types", ERR_EXT_HEADER_REQD: extended headers replace structured replies.
            Framing::Extended => {
                reply.error(wire::REP_ERR_EXT_HEADER_REQD, "extended headers have been agreed already");
            }
        }
    }

    fn extended_headers(&mut self, data: &[u8], mut reply: Reply<'_>) {
        if !data.is_empty() {
            reply.error(wire::REP_ERR_INVALID, "EXTENDED_HEADERS has no data");
        } else if self.framing == Framing::Extended {
            reply.error(wire::REP_ERR_INVALID, "extended headers have been agreed already");
        } else {
            self.framing = Framing::Extended;
            reply.ack();
        }
    }

    fn list_contexts(&self, data: &[u8], mut reply: Reply<'_>) {
        let Some((_, request)) = self.meta_request(data, &mut reply) else { return };
        for context in MetaContext::ALL {
            // proto.md, LIST_META_CONTEXT: without queries, all contexts; the identifier should be zero.
            let queries = &request.queries;
            if queries.is_empty() || queries.iter().any(|query| context.is_listed_by(query)) {
                reply.context(0, context);
            }
        }
        reply.ack();
    }

    fn set_contexts(&mut self, data: &[u8], mut reply: Reply<'_>) {
        // proto.md, SET_META_CONTEXT: it replaces what was selected before, including when it fails.
        self.selected = None;
        let Some((index, request)) = self.meta_request(data, &mut reply) else { return };
        let selection = Selection::of(&request.queries);
        for context in selection.contexts() {
            reply.context(context.id(), context);
        }
        reply.ack();
        self.selected = Some((index, selection));
    }

    /// The request and the export that it names; where there is none, the client has been told.
    fn meta_request<'a>(&self, data: &'a [u8], reply: &mut Reply<'_>) -> Option<(usize, MetaRequest<'a>)> {
        // proto.md, LIST_META_CONTEXT and SET_META_CONTEXT: ERR_INVALID before structured replies were negotiated.
        if self.framing == Framing::Simple {
            reply.error(wire::REP_ERR_INVALID, "metadata contexts need structured replies");
            return None;
        }
        let request = match MetaRequest::parse(data) {
            Ok(request) => request,
            Err(MetaError::Syntax) => {
                reply.error(wire::REP_ERR_INVALID, "the data does not have the form of the option");
                return None;
            }
            Err(MetaError::TooMany) => {
                reply.error(wire::REP_ERR_TOO_BIG, "the option holds too many queries");
                return None;
            }
        };
        // A query without a colon belongs to no namespace (proto.md, LIST_META_CONTEXT).
        if request.queries.iter().any(|query| !query.contains(':')) {
            reply.error(wire::REP_ERR_INVALID, "a query needs a namespace and a colon");
            return None;
        }
        let index = self.exports.find(request.name.as_bytes());
        if index.is_none() {
            reply.unknown_export();
        }
        Some((index?, request))
    }
}

/// Replies to one option.
struct Reply<'a> {
    output: &'a mut Output,
    option: u32,
}

impl Reply<'_> {
    fn send(&mut self, kind: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let header = wire::OptionReplyHeader {
            magic: wire::OPTION_REPLY_MAGIC.into(),
            option: self.option.into(),
            kind: kind.into(),
            len: (len as u32).into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        self.output.bytes(bytes);
    }

    fn ack(&mut self) {
        self.send(wire::REP_ACK, &[]);
    }

    fn error(&mut self, kind: u32, message: &str) {
        debug_assert!(string(message.as_bytes()).is_some(), "our own messages are strings of the protocol");
        self.send(kind, &[message.as_bytes()]);
    }

    fn unknown_export(&mut self) {
        self.error(wire::REP_ERR_UNKNOWN, "no export has that name");
    }

    fn info(&mut self, kind: u16, data: &[u8]) {
        self.send(wire::REP_INFO, &[&kind.to_be_bytes(), data]);
    }

    fn context(&mut self, id: u32, context: MetaContext) {
        self.send(wire::REP_META_CONTEXT, &[&id.to_be_bytes(), context.name().as_bytes()]);
    }
}
