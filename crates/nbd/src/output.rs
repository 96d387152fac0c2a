//! What waits to be sent: replies and their payloads, in order, without copying the payloads.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use block::{Buffer, Extent};
use zerocopy::byteorder::big_endian::U64;
use zerocopy::{Immutable, IntoBytes};

use crate::errno::Errno;
use crate::limits;
use crate::meta::MetaContext;
use crate::request::Pending;
use crate::wire;

/// Zeroes of this length and alignment inside a longer read are sent as a hole.
const HOLE_BYTES: u64 = 64 << 10;

/// Longest of all headers: an extended reply with the offset of a data chunk or the body of a hole.
const HEAD_BYTES_MAX: usize = size_of::<wire::ExtendedReply>() + size_of::<wire::Hole>();

/// How replies are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Framing {
    /// Simple replies only.
    Simple,
    /// Structured replies for everything that has a payload.
    Structured,
    /// Extended headers for every request and reply.
    Extended,
}

/// Bytes on their way to the client.
#[derive(Default)]
pub(crate) struct Output {
    queue: VecDeque<Piece>,
    /// How much of the first piece has been sent.
    front_sent: usize,
    /// Bytes that have not been sent.
    len: usize,
}

/// What the departure of bytes set free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) requests: usize,
    pub(crate) bytes: u64,
}

struct Piece {
    head: [u8; HEAD_BYTES_MAX],
    head_len: usize,
    body: Body,
    /// What the last piece of a reply gives back when it is out.
    cost: Option<u64>,
}

enum Body {
    None,
    Bytes(Vec<u8>),
    Whole(Buffer),
    Part(Arc<Buffer>, Range<usize>),
}

impl Piece {
    fn new(body: Body, cost: Option<u64>) -> Self {
        Self { head: [0; HEAD_BYTES_MAX], head_len: 0, body, cost }
    }

    fn push(&mut self, part: &(impl IntoBytes + Immutable)) {
        let part = part.as_bytes();
        self.head[self.head_len..self.head_len + part.len()].copy_from_slice(part);
        self.head_len += part.len();
    }

    fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    fn body(&self) -> &[u8] {
        match &self.body {
            Body::None => &[],
            Body::Bytes(bytes) => bytes,
            Body::Whole(buffer) => buffer,
            Body::Part(buffer, range) => &buffer[range.clone()],
        }
    }

    fn len(&self) -> usize {
        self.head_len + self.body().len()
    }
}

impl Output {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that wait to be sent.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn push(&mut self, piece: Piece) {
        self.len += piece.len();
        self.queue.push_back(piece);
    }

    /// Fills `slices` with what comes next, and says how many it filled.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut skip = self.front_sent;
        let mut count = 0;
        for part in self.queue.iter().flat_map(|piece| [piece.head(), piece.body()]) {
            let now = skip.min(part.len());
            skip -= now;
            if now == part.len() {
                continue;
            }
            if count == slices.len() {
                break;
            }
            slices[count] = IoSlice::new(&part[now..]);
            count += 1;
        }
        count
    }

    /// Says that `count` bytes were sent.
    pub(crate) fn sent(&mut self, count: usize) -> Released {
        assert!(count <= self.len, "no more was sent than there was");
        let mut released = Released::default();
        self.len -= count;
        self.front_sent += count;
        while let Some(front) = self.queue.front()
            && self.front_sent >= front.len()
        {
            self.front_sent -= front.len();
            if let Some(cost) = front.cost {
                released.requests += 1;
                released.bytes += cost;
            }
            self.queue.pop_front();
        }
        released
    }

    /// Appends bytes that are no reply to a request.
    pub(crate) fn bytes(&mut self, bytes: Vec<u8>) {
        self.push(Piece::new(Body::Bytes(bytes), None));
    }

    /// Success without payload.
    ///
    /// proto.md, "Simple reply message": with structured replies a simple reply may answer anything but a read.
    pub(crate) fn done(&mut self, framing: Framing, pending: &Pending) {
        let mut piece = Piece::new(Body::None, Some(pending.cost));
        match framing {
            Framing::Simple | Framing::Structured if !pending.is_read => piece.push(&simple(pending, 0)),
            _ => piece.chunk(framing, pending, wire::REPLY_FLAG_DONE, wire::REPLY_NONE, 0),
        }
        self.push(piece);
    }

    /// Failure; the message goes along where the framing has room for it.
    pub(crate) fn error(&mut self, framing: Framing, pending: &Pending, errno: Errno, message: &str) {
        if framing == Framing::Simple {
            let mut piece = Piece::new(Body::None, Some(pending.cost));
            piece.push(&simple(pending, errno.code()));
            self.push(piece);
            return;
        }
        // proto.md, "Structured reply types", ERROR: the number, the length of the message, the message.
        let message = shortened(message);
        let mut body = Vec::with_capacity(6 + message.len());
        body.extend_from_slice(&errno.code().to_be_bytes());
        body.extend_from_slice(&(message.len() as u16).to_be_bytes());
        body.extend_from_slice(message.as_bytes());
        self.chunk_of(framing, pending, wire::REPLY_ERROR, body, true);
    }

    /// The content that a read asked for.
    pub(crate) fn data(&mut self, framing: Framing, pending: &Pending, data: Buffer) {
        if framing == Framing::Simple {
            let mut piece = Piece::new(Body::Whole(data), Some(pending.cost));
            piece.push(&simple(pending, 0));
            self.push(piece);
            return;
        }
        if data.is_empty() {
            // proto.md, "Structured reply types": a data chunk holds at least one byte.
            self.done(framing, pending);
            return;
        }
        let mut runs = Runs { bytes: &data, offset: pending.offset, at: 0 };
        match runs.next() {
            Some(run) if run.range.len() == data.len() => {
                let hole = run.zero;
                self.content(framing, pending, 0..data.len(), hole, true, |_| Body::Whole(data));
            }
            // proto.md, READ: with DF the area is one data chunk, with its zeroes explicitly present.
            _ if pending.single => {
                self.content(framing, pending, 0..data.len(), false, true, |_| Body::Whole(data));
            }
            _ => self.fragments(framing, pending, data),
        }
    }

    fn fragments(&mut self, framing: Framing, pending: &Pending, data: Buffer) {
        let data = Arc::new(data);
        for run in (Runs { bytes: &data, offset: pending.offset, at: 0 }) {
            let last = run.range.end == data.len();
            self.content(framing, pending, run.range, run.zero, last, |range| {
                Body::Part(data.clone(), range)
            });
        }
    }

    /// One content chunk of a read, for the bytes `range` of what was asked for.
    fn content(
        &mut self,
        framing: Framing,
        pending: &Pending,
        range: Range<usize>,
        hole: bool,
        last: bool,
        body: impl FnOnce(Range<usize>) -> Body,
    ) {
        let offset = pending.offset + range.start as u64;
        let len = range.len();
        let cost = last.then_some(pending.cost);
        let flags = if last { wire::REPLY_FLAG_DONE } else { 0 };
        let piece = if hole {
            let mut piece = Piece::new(Body::None, cost);
            let hole = wire::Hole { offset: offset.into(), len: (len as u32).into() };
            piece.chunk(framing, pending, flags, wire::REPLY_OFFSET_HOLE, size_of_val(&hole));
            piece.push(&hole);
            piece
        } else {
            let mut piece = Piece::new(body(range), cost);
            piece.chunk(framing, pending, flags, wire::REPLY_OFFSET_DATA, size_of::<u64>() + len);
            piece.push(&U64::new(offset));
            piece
        };
        self.push(piece);
    }

    /// The extents from the start of what a block status request covers, one chunk for each context.
    pub(crate) fn extents(
        &mut self,
        framing: Framing,
        pending: &Pending,
        contexts: impl Iterator<Item = MetaContext> + Clone,
        extents: &[Extent],
    ) {
        let mut contexts = contexts.peekable();
        while let Some(context) = contexts.next() {
            let descriptors = descriptors(context, pending, extents);
            let (kind, body) = status_body(framing, context, &descriptors);
            self.chunk_of(framing, pending, kind, body, contexts.peek().is_none());
        }
    }

    fn chunk_of(&mut self, framing: Framing, pending: &Pending, kind: u16, body: Vec<u8>, last: bool) {
        let flags = if last { wire::REPLY_FLAG_DONE } else { 0 };
        let len = body.len();
        let mut piece = Piece::new(Body::Bytes(body), last.then_some(pending.cost));
        piece.chunk(framing, pending, flags, kind, len);
        self.push(piece);
    }
}

impl Piece {
    /// Starts the piece as a reply chunk with `len` bytes of payload.
    fn chunk(&mut self, framing: Framing, pending: &Pending, flags: u16, kind: u16, len: usize) {
        let (flags, kind, cookie) = (flags.into(), kind.into(), pending.cookie.into());
        if framing == Framing::Extended {
            let (magic, offset) = (wire::EXTENDED_REPLY_MAGIC.into(), pending.offset.into());
            let len = (len as u64).into();
            self.push(&wire::ExtendedReply { magic, flags, kind, cookie, offset, len });
        } else {
            let len = u32::try_from(len).expect("a payload of at most 32 MiB has a length of 32 bits").into();
            self.push(&wire::StructuredReply {
                magic: wire::STRUCTURED_REPLY_MAGIC.into(),
                flags,
                kind,
                cookie,
                len,
            });
        }
    }
}

fn simple(pending: &Pending, error: u32) -> wire::SimpleReply {
    wire::SimpleReply {
        magic: wire::SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: pending.cookie.into(),
    }
}

/// `message`, cut at a character to the longest string of the protocol.
fn shortened(message: &str) -> &str {
    &message[..message.floor_char_boundary(limits::STRING_BYTES_MAX)]
}

/// Length and status of consecutive extents, neighbours of one status joined.
///
/// The sum of the lengths stays within the request, and there are at most [`limits::EXTENTS_MAX`], or one.
fn descriptors(context: MetaContext, pending: &Pending, extents: &[Extent]) -> Vec<(u64, u32)> {
    let most = if pending.single { 1 } else { limits::EXTENTS_MAX };
    let mut list: Vec<(u64, u32)> = Vec::new();
    let mut rest = pending.len;
    for extent in extents {
        let len = extent.len.min(rest);
        if len == 0 {
            break;
        }
        rest -= len;
        let status = context.status(extent);
        let full = list.len() == most;
        match list.last_mut() {
            Some(last) if last.1 == status => last.0 += len,
            _ if full => break,
            _ => list.push((len, status)),
        }
    }
    list
}

/// The payload of a block status chunk, and the chunk's type.
fn status_body(framing: Framing, context: MetaContext, descriptors: &[(u64, u32)]) -> (u16, Vec<u8>) {
    let mut body = context.id().to_be_bytes().to_vec();
    if framing == Framing::Extended {
        body.extend_from_slice(&(descriptors.len() as u32).to_be_bytes());
        for (len, status) in descriptors {
            body.extend_from_slice(&len.to_be_bytes());
            body.extend_from_slice(&u64::from(*status).to_be_bytes());
        }
        return (wire::REPLY_BLOCK_STATUS_EXT, body);
    }
    for (len, status) in descriptors {
        // Without extended headers the request's length has 32 bits, and no extent is longer than the request.
        body.extend_from_slice(&(u32::try_from(*len).unwrap_or(u32::MAX)).to_be_bytes());
        body.extend_from_slice(&status.to_be_bytes());
    }
    (wire::REPLY_BLOCK_STATUS, body)
}

/// Splits content into stretches of zeroes and of data, cut at multiples of [`HOLE_BYTES`] of the disk.
///
/// The content itself is asked, not the extents of the disk: the look ends at the first byte that is not zero, it sees
/// zeroes that were written as data, and what is sent is what was read, even while somebody writes.
struct Runs<'a> {
    bytes: &'a [u8],
    offset: u64,
    at: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Run {
    range: Range<usize>,
    zero: bool,
}

impl Runs<'_> {
    /// Where the stretch that starts at `start` has its next cut.
    fn cut(&self, start: usize) -> usize {
        let rest = HOLE_BYTES - (self.offset + start as u64) % HOLE_BYTES;
        (self.bytes.len() - start).min(rest as usize) + start
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let start = self.at;
        if start == self.bytes.len() {
            return None;
        }
        let mut end = self.cut(start);
        let zero = is_zero(&self.bytes[start..end]);
        while end < self.bytes.len() {
            let next = self.cut(end);
            if is_zero(&self.bytes[end..next]) != zero {
                break;
            }
            end = next;
        }
        self.at = end;
        Some(Run { range: start..end, zero })
    }
}

/// Whether all bytes are zero; ends early where one is not.
fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<256>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(bytes: &[u8], offset: u64) -> Vec<(Range<usize>, bool)> {
        Runs { bytes, offset, at: 0 }.map(|run| (run.range, run.zero)).collect()
    }

    #[test]
    fn content_is_cut_at_multiples_of_the_hole_size_of_the_disk() {
        const K: usize = 1 << 10;
        let mut bytes = vec![0; 256 * K];
        assert_eq!(runs(&bytes, 512), [(0..256 * K, true)]);
        bytes[100 * K] = 1;
        assert_eq!(runs(&bytes, 0), [(0..64 * K, true), (64 * K..128 * K, false), (128 * K..256 * K, true)]);
        // One KiB before a multiple of 64 KiB.
        assert_eq!(
            runs(&bytes, 63 * K as u64),
            [(0..65 * K, true), (65 * K..129 * K, false), (129 * K..256 * K, true)]
        );
        bytes.fill(7);
        assert_eq!(runs(&bytes, 5), [(0..256 * K, false)]);
        assert_eq!(runs(&[], 5), []);
    }

    #[test]
    fn a_single_byte_anywhere_is_not_zero() {
        for len in [1, 255, 256, 257, 1000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let message = "é".repeat(limits::STRING_BYTES_MAX);
        assert_eq!(shortened(&message).len(), limits::STRING_BYTES_MAX);
        let message = format!("x{message}");
        assert_eq!(shortened(&message).len(), limits::STRING_BYTES_MAX - 1);
    }

    #[test]
    fn what_was_sent_is_released_with_the_last_byte_of_a_reply() {
        let mut output = Output::default();
        let pending = Pending {
            cookie: 1,
            offset: 0,
            len: 4096,
            cost: 4096,
            purpose: crate::errno::Purpose::Other,
            is_read: true,
            single: false,
        };
        let mut data = Buffer::zeroed(4096);
        data[0] = 1;
        output.data(Framing::Structured, &pending, data);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(output.slices(&mut slices), 2);
        assert_eq!(slices.iter().map(|slice| slice.len()).sum::<usize>(), 20 + 8 + 4096);
        assert_eq!(output.sent(30), Released::default());
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(output.slices(&mut slices), 1);
        assert_eq!(slices[0].len(), 4094);
        assert_eq!(output.sent(4094), Released { requests: 1, bytes: 4096 });
        assert!(output.is_empty());
    }
}
