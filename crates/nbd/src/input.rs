//! Where received bytes go: headers and small payloads into one buffer, the rest of a large payload straight into the
//! memory that the device will be given.

use block::Buffer;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::limits::INPUT_BYTES;

/// What is received behind the rest of a payload at once: enough for the next headers, little enough that the payload
/// of a large write that follows is not copied.
const BEHIND_PAYLOAD_BYTES: usize = 4096;

/// Received bytes that nobody has looked at, and a payload that is being filled.
pub(crate) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    skip: u64,
    payload: Option<Payload>,
}

struct Payload {
    buffer: Buffer,
    filled: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; INPUT_BYTES].into_boxed_slice(), start: 0, end: 0, skip: 0, payload: None }
    }

    /// Where the next received bytes belong: first the one, then the other. Either may be empty, but not both as long
    /// as everything that is complete has been taken.
    pub(crate) fn spaces(&mut self) -> [&mut [u8]; 2] {
        self.make_room();
        let free = &mut self.bytes[self.end..];
        match &mut self.payload {
            Some(payload) if payload.filled < payload.buffer.len() => {
                let most = BEHIND_PAYLOAD_BYTES.min(free.len());
                [&mut payload.buffer[payload.filled..], &mut free[..most]]
            }
            _ => [&mut [], free],
        }
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.bytes.len() - self.end < INPUT_BYTES / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Says that the first `count` bytes of [`Self::spaces`] were filled.
    pub(crate) fn received(&mut self, count: usize) {
        let mut rest = count;
        if let Some(payload) = &mut self.payload {
            let now = rest.min(payload.buffer.len() - payload.filled);
            payload.filled += now;
            rest -= now;
        }
        assert!(rest <= self.bytes.len() - self.end, "no more was received than there was room for");
        self.end += rest;
        self.drop_skipped();
    }

    /// The bytes that have been received and not taken.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// A look at the structure that comes next, if all of it is here.
    pub(crate) fn peek<T: FromBytes + KnownLayout + Immutable + Unaligned + Copy>(&self) -> Option<T> {
        T::ref_from_prefix(self.bytes()).ok().map(|(value, _)| *value)
    }

    /// Takes `count` bytes that are here.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "only received bytes are consumed");
        self.start += count;
    }

    /// Drops the next `count` bytes, here or yet to come.
    pub(crate) fn skip(&mut self, count: u64) {
        self.skip += count;
        self.drop_skipped();
    }

    /// Whether bytes that have not come yet are to be dropped.
    pub(crate) fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    fn drop_skipped(&mut self) {
        let now = self.skip.min((self.end - self.start) as u64);
        self.skip -= now;
        self.start += now as usize;
    }

    /// Makes the next `len` bytes a payload of their own.
    pub(crate) fn begin_payload(&mut self, len: u32) {
        assert!(self.payload.is_none(), "one payload is received at a time");
        let mut buffer = Buffer::unspecified(len as usize);
        let filled = buffer.len().min(self.end - self.start);
        buffer[..filled].copy_from_slice(&self.bytes[self.start..self.start + filled]);
        self.start += filled;
        self.payload = Some(Payload { buffer, filled });
    }

    /// The payload, once all of it is here.
    pub(crate) fn take_payload(&mut self) -> Option<Buffer> {
        let complete = self.payload.as_ref().is_some_and(|payload| payload.filled == payload.buffer.len());
        if complete { self.payload.take().map(|payload| payload.buffer) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(input: &mut Input, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut count = 0;
            for space in input.spaces() {
                let now = space.len().min(bytes.len());
                space[..now].copy_from_slice(&bytes[..now]);
                bytes = &bytes[now..];
                count += now;
            }
            assert!(count > 0, "there is room");
            input.received(count);
        }
    }

    #[test]
    fn a_payload_is_whole_however_it_is_cut() {
        let sent: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        for cut in [0, 1, 4095, 50_000, 99_999] {
            let mut input = Input::new();
            feed(&mut input, b"head");
            feed(&mut input, &sent[..cut]);
            input.consume(4);
            input.begin_payload(100_000);
            assert!(input.take_payload().is_none());
            feed(&mut input, &sent[cut..]);
            feed(&mut input, b"next");
            let payload = input.take_payload().expect("all bytes are here");
            assert_eq!(payload[..], sent[..]);
            assert_eq!(input.bytes(), b"next");
        }
    }

    #[test]
    fn skipped_bytes_are_dropped_as_they_come() {
        let mut input = Input::new();
        feed(&mut input, b"abc");
        input.skip(1_000_003);
        feed(&mut input, &vec![0; 1_000_000]);
        assert!(!input.is_skipping());
        feed(&mut input, b"rest");
        assert_eq!(input.bytes(), b"rest");
    }
}
