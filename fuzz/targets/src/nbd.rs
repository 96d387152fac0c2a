//! The NBD server's side: whatever a client sends is answered or ends the connection.
//!
//! What must hold: the connection never asks for bytes and has no room for them; every request is answered exactly
//! once; when all of its output was sent, nothing is in flight but a write whose payload is incomplete; a client that
//! is done is not listened to.

use std::io::IoSlice;
use std::sync::Arc;

use block::{BlockError, Buffer, DevInfo, Disk, ErrorKind};
use nbd::{Command, Connection, Event, Export, Exports, Request, Security};
use testkit::{MemDev, block_on};

use crate::Seed;

/// Size of the exported disk.
const DISK_BYTES: u64 = 1 << 20;
/// What one input may have moved before requests that move data are refused, so that a short input stays short.
const MOVED_BYTES_MAX: u64 = 64 << 20;
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT";

/// The first byte says what kind of disk is exported and in what pieces the rest arrives.
pub(crate) fn run(input: &[u8]) {
    if let Some((&choice, bytes)) = input.split_first() {
        play(choice, bytes);
    }
}

fn play(choice: u8, bytes: &[u8]) -> Session {
    let disk = disk(choice);
    let connection = Connection::new(exports(disk.clone(), choice));
    let mut session = Session { connection, disk, moved: 0, sent: vec![] };
    session.send_all();
    assert!(session.sent.starts_with(GREETING), "a server greets first");
    let piece = if choice & 4 == 0 { bytes.len().max(1) } else { usize::from(choice >> 3) + 1 };
    for piece in bytes.chunks(piece) {
        if !session.receive(piece) {
            break;
        }
    }
    session.send_all();
    let in_flight = session.connection.requests_in_flight();
    assert!(
        in_flight <= 1,
        "{in_flight} requests are in flight though all were answered and their replies sent"
    );
    session
}

fn disk(choice: u8) -> Disk {
    let strict = MemDev::new(DISK_BYTES);
    let info = DevInfo { read_only: choice & 1 != 0, ..*Disk::new(strict).info() };
    Disk::new(MemDev::with_info(DISK_BYTES, info))
}

fn exports(disk: Disk, choice: u8) -> Arc<Exports> {
    let export =
        |name: &str| Export { name: name.to_owned(), description: "d".to_owned(), disk: disk.clone() };
    let security = if choice & 2 == 0 { Security::Plain } else { Security::TlsRequired };
    Arc::new(Exports::new(vec![export("a"), export("b")], security).expect("the names differ and are short"))
}

struct Session {
    connection: Connection,
    disk: Disk,
    moved: u64,
    sent: Vec<u8>,
}

impl Session {
    /// Takes `bytes` in; `false` when the connection wants no more.
    fn receive(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if !self.connection.wants_input() {
                return false;
            }
            let count = self.connection.feed(bytes);
            assert!(count > 0, "a connection that wants input has room for it");
            bytes = &bytes[count..];
            if !self.take_events() {
                return false;
            }
        }
        true
    }

    fn take_events(&mut self) -> bool {
        loop {
            match self.connection.next_event() {
                Ok(None) if !self.connection.has_output() => return true,
                Ok(None) => self.send_all(),
                Ok(Some(Event::StartTls)) => {
                    self.send_all();
                    self.connection.tls_started();
                }
                Ok(Some(Event::Transmission(export))) => {
                    assert!(export < 2, "only what is exported can be chosen");
                    assert!(self.connection.export().is_some());
                }
                Ok(Some(Event::Request(request))) => self.carry_out(request),
                Ok(Some(Event::Disconnect)) | Err(_) => {
                    assert!(!self.connection.wants_input(), "nothing is read from a client that is done");
                    return false;
                }
            }
        }
    }

    fn carry_out(&mut self, request: Request) {
        let Request { command, pending } = request;
        let disk = self.disk.clone();
        let done = match command {
            Command::Read { offset, len } => {
                self.moved += u64::from(len);
                if self.moved > MOVED_BYTES_MAX {
                    let refusal = BlockError::new(ErrorKind::NoSpace, "the input has moved enough");
                    return self.connection.reply_error(pending, &refusal);
                }
                let into = Buffer::unspecified(len as usize).into_sg();
                let read = block_on(disk.read(offset, into.clone()));
                return match read {
                    Ok(()) => {
                        let data = Buffer::reclaim(into).expect("the device has given the memory back");
                        self.connection.reply_data(pending, data);
                    }
                    Err(error) => self.connection.reply_error(pending, &error),
                };
            }
            Command::BlockStatus { range, first_only: _ } => {
                let mut extents = Vec::new();
                let told = block_on(disk.block_status(range, &mut extents));
                return match told {
                    Ok(()) => self.connection.reply_extents(pending, &extents),
                    Err(error) => self.connection.reply_error(pending, &error),
                };
            }
            Command::Write { offset, payload, flags } => {
                block_on(disk.write(offset, payload.into_sg(), flags))
            }
            Command::WriteZeroes { range, flags } => block_on(disk.write_zeroes(range, flags)),
            Command::Trim { range, fua: _ } => block_on(disk.discard(range)),
            Command::Cache { range: _ } => Ok(()),
            Command::Flush => block_on(disk.flush()),
        };
        match done {
            Ok(()) => self.connection.reply_done(pending),
            Err(error) => self.connection.reply_error(pending, &error),
        }
    }

    /// Sends everything, an odd number of bytes at a time, and keeps the beginning for the checks.
    fn send_all(&mut self) {
        while self.connection.has_output() {
            let mut slices = [IoSlice::new(&[]); 4];
            let count = self.connection.output(&mut slices);
            let total: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            assert!(total > 0, "output that there is can be sent");
            if self.sent.len() < GREETING.len() {
                self.sent.extend(slices[..count].iter().flat_map(|slice| slice.iter()));
            }
            self.connection.sent(total.div_ceil(3).max(total.min(4096)));
        }
    }
}

/// Whole sessions: every handshake that a client of ours or QEMU's makes, and every command.
pub(crate) fn seeds() -> Vec<Seed> {
    let go = |option: &[u8]| [&[0][..], &3_u32.to_be_bytes(), option].concat();
    let info = |name: &str| {
        let data = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), &[0, 0]].concat();
        option(7, &data)
    };
    let contexts = |name: &str| {
        let query = b"base:allocation";
        let state = b"godwit:state";
        let data = [
            &(name.len() as u32).to_be_bytes()[..],
            name.as_bytes(),
            &2_u32.to_be_bytes(),
            &(query.len() as u32).to_be_bytes(),
            query,
            &(state.len() as u32).to_be_bytes(),
            state,
        ];
        option(10, &data.concat())
    };
    let commands = [
        command(1, 0, 0, 4096, &[7; 4096]),
        command(0, 0, 0, 8192, &[]),
        command(4, 0, 4096, 4096, &[]),
        command(6, 2, 8192, 4096, &[]),
        command(7, 0, 0, 1 << 20, &[]),
        command(3, 0, 0, 0, &[]),
        command(5, 0, 0, 512, &[]),
        command(0, 0, 1 << 20, 512, &[]),
        command(2, 0, 0, 0, &[]),
    ]
    .concat();
    vec![
        ("export-name", go(&[option(1, b"a"), commands.clone()].concat())),
        ("list-abort", go(&[option(3, &[]), option(2, &[])].concat())),
        ("structured", go(&[option(8, &[]), contexts("b"), info("b"), commands.clone()].concat())),
        ("extended", go(&[option(11, &[]), info(""), command(1, 0, 0, 4, &[])].concat())),
        ("tls", [&[2 | 4][..], &3_u32.to_be_bytes(), &option(3, &[]), &option(5, &[]), &info("a")].concat()),
        ("pieces", [&[4 | 5 << 3][..], &3_u32.to_be_bytes(), &info("a"), &commands].concat()),
    ]
}

/// proto.md, "Newstyle negotiation": an option.
fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

/// proto.md, "Request message": a compact request.
fn command(kind: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Vec<u8> {
    let header = [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &1_u64.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    [&header.concat(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_reach_the_transmission_phase() {
        for (name, seed) in seeds().iter().filter(|(name, _)| *name != "list-abort") {
            let session = play(seed[0], &seed[1..]);
            assert!(session.connection.export().is_some(), "{name}");
        }
    }
}
