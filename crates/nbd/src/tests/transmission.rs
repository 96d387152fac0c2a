//! The transmission phase: commands, replies, and limits.

use block::{DevInfo, Disk};
use testkit::{MemDev, block_on};

use super::client::{Client, extended_request, request};
use crate::wire::*;
use crate::{Errno, Violation, limits};

const DISK_BYTES: u64 = 1 << 20;
const STRUCTURED: Option<u32> = Some(OPT_STRUCTURED_REPLY);
const EXTENDED: Option<u32> = Some(OPT_EXTENDED_HEADERS);

fn disk() -> Disk {
    Disk::new(MemDev::new(DISK_BYTES))
}

fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    [request(CMD_WRITE, 0, cookie, offset, data.len() as u32), data.to_vec()].concat()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn what_is_written_is_read_back_with_every_framing() {
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 253) as u8 + 1).collect();
    let data = &data[..199_680];
    for option in [None, STRUCTURED] {
        let mut client = Client::transmitting(&disk(), option);
        client.send(&write(1, 512, data)).unwrap();
        assert_eq!(client.simple(), (0, 1));
        client.send(&request(CMD_READ, 0, 2, 512, data.len() as u32)).unwrap();
        if option.is_none() {
            assert_eq!(client.simple(), (0, 2));
            assert_eq!(client.take(data.len()), data);
        } else {
            let chunk = client.chunk();
            assert_eq!((chunk.done, chunk.kind, chunk.cookie), (true, REPLY_OFFSET_DATA, 2));
            assert_eq!(chunk.payload[..8], 512u64.to_be_bytes());
            assert_eq!(chunk.payload[8..], *data);
        }
        assert!(client.received.is_empty());
    }
}

#[test]
fn extended_headers_frame_every_reply() {
    let mut client = Client::transmitting(&disk(), EXTENDED);
    let header = extended_request(CMD_WRITE, CMD_FLAG_PAYLOAD_LEN | CMD_FLAG_FUA, 1, 1024, 512);
    client.send(&[header, vec![7; 512]].concat()).unwrap();
    let chunk = client.chunk();
    assert_eq!((chunk.done, chunk.kind, chunk.cookie, chunk.payload.len()), (true, REPLY_NONE, 1, 0));
    client.send(&extended_request(CMD_READ, 0, 2, 1024, 512)).unwrap();
    assert_eq!(client.chunk().payload[8..], [7; 512]);
    client.send(&extended_request(CMD_BLOCK_STATUS, 0, 3, 0, DISK_BYTES)).unwrap();
    let chunks = client.chunks();
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[0].kind, REPLY_BLOCK_STATUS_EXT);
    // Identifier 1, two extents: 4 KiB of data, the rest a hole; 64-bit lengths and flags.
    assert_eq!(words(&chunks[0].payload), [1, 2, 0, 4096, 0, 0, 0, (DISK_BYTES - 4096) as u32, 0, 3]);
    // A payload where none belongs is skipped, and the next request is understood.
    let stray = extended_request(CMD_FLUSH, CMD_FLAG_PAYLOAD_LEN, 4, 0, 100);
    client.send(&[stray, vec![0xaa; 100], extended_request(CMD_FLUSH, 0, 5, 0, 0)].concat()).unwrap();
    assert_eq!(client.chunk().error().0, Errno::Inval.code());
    assert_eq!(client.chunk().cookie, 5);
}

#[test]
fn zeroes_inside_a_read_go_as_holes_unless_it_must_not_fragment() {
    let disk = disk();
    block_on(disk.write_all(128 << 10, &[9; 512])).unwrap();
    let mut client = Client::transmitting(&disk, STRUCTURED);
    client.send(&request(CMD_READ, 0, 1, 0, 256 << 10)).unwrap();
    let chunks = client.chunks();
    let kinds: Vec<_> = chunks.iter().map(|chunk| chunk.kind).collect();
    assert_eq!(kinds, [REPLY_OFFSET_HOLE, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE]);
    assert_eq!(words(&chunks[0].payload), [0, 0, 128 << 10]);
    assert_eq!(chunks[1].payload.len(), 8 + (64 << 10));
    assert_eq!(words(&chunks[2].payload), [0, 192 << 10, 64 << 10]);

    client.send(&request(CMD_READ, CMD_FLAG_DF, 2, 0, 256 << 10)).unwrap();
    let chunks = client.chunks();
    assert_eq!((chunks.len(), chunks[0].kind), (1, REPLY_OFFSET_DATA));
    assert_eq!(chunks[0].payload.len(), 8 + (256 << 10));

    client.send(&request(CMD_READ, CMD_FLAG_DF, 3, 0, 4096)).unwrap();
    assert_eq!(client.chunk().kind, REPLY_OFFSET_HOLE, "one hole is one content chunk");
}

#[test]
fn block_status_answers_for_every_selected_context() {
    let disk = disk();
    block_on(disk.write_all(8192, &[9; 4096])).unwrap();
    let mut client = Client::transmitting(&disk, STRUCTURED);
    client.send(&request(CMD_BLOCK_STATUS, 0, 1, 4096, 16384)).unwrap();
    let chunks = client.chunks();
    assert_eq!(chunks.len(), 2);
    assert_eq!(words(&chunks[0].payload), [1, 4096, 3, 4096, 0, 8192, 3]);
    let states = words(&chunks[1].payload);
    assert_eq!((states[0], states[1], states[3], states[4] & 0xff), (2, 4096, 4096, 6));

    client.send(&request(CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 2, 4096, 16384)).unwrap();
    for chunk in client.chunks() {
        assert_eq!(words(&chunk.payload)[1..2], [4096]);
        assert_eq!(chunk.payload.len(), 12);
    }
    client.send(&request(CMD_BLOCK_STATUS, 0, 3, 0, 0)).unwrap();
    assert_eq!(client.chunk().error().0, Errno::Inval.code());
}

#[test]
fn block_status_without_a_context_is_invalid() {
    let mut client = Client::transmitting(&disk(), None);
    client.send(&request(CMD_BLOCK_STATUS, 0, 1, 0, 512)).unwrap();
    assert_eq!(client.simple(), (Errno::Inval.code(), 1));
}

#[test]
fn trim_and_zeroes_change_what_is_read() {
    let disk = disk();
    block_on(disk.write_all(0, &[9; 16384])).unwrap();
    let mut client = Client::transmitting(&disk, None);
    client.send(&request(CMD_TRIM, CMD_FLAG_FUA, 1, 0, 4096)).unwrap();
    client.send(&request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 2, 4096, 4096)).unwrap();
    client.send(&request(CMD_FLUSH, 0, 3, 0, 0)).unwrap();
    client.send(&request(CMD_CACHE, 0, 4, 0, 4096)).unwrap();
    for cookie in 1..=4 {
        assert_eq!(client.simple(), (0, cookie));
    }
    assert_eq!(block_on(disk.read_vec(0, 8192)).unwrap(), [0; 8192]);
    assert_eq!(block_on(disk.read_vec(8192, 4096)).unwrap(), [9; 4096]);
}

#[test]
fn what_lies_beyond_the_end_gets_the_number_that_its_command_has_for_it() {
    for option in [None, STRUCTURED] {
        let mut client = Client::transmitting(&disk(), option);
        let mut errno = |kind: u16, offset: u64| {
            let mut bytes = request(kind, 0, 1, offset, 4096);
            if kind == CMD_WRITE {
                bytes.extend([1; 4096]);
            }
            client.send(&bytes).unwrap();
            if option.is_none() { client.simple().0 } else { client.chunk().error().0 }
        };
        for offset in [DISK_BYTES - 2048, DISK_BYTES, u64::MAX - 4095, !511] {
            assert_eq!(errno(CMD_WRITE, offset), Errno::NoSpc.code());
            assert_eq!(errno(CMD_WRITE_ZEROES, offset), Errno::NoSpc.code());
            assert_eq!(errno(CMD_READ, offset), Errno::Inval.code());
            assert_eq!(errno(CMD_TRIM, offset), Errno::Inval.code());
        }
        assert_eq!(errno(CMD_READ, 5), Errno::Inval.code(), "not a multiple of the block");
    }
}

#[test]
fn a_refused_write_is_skipped_with_its_payload() {
    let info = DevInfo { read_only: true, ..MemDev::INFO };
    let mut client = Client::transmitting(&Disk::new(MemDev::with_info(DISK_BYTES, info)), STRUCTURED);
    let bytes = write(1, 0, &[1; 300_000]);
    client.send(&bytes[..bytes.len() - 1]).unwrap();
    assert!(client.received.is_empty(), "there is no reply to half a request");
    client.send(&bytes[bytes.len() - 1..]).unwrap();
    let chunk = client.chunk();
    assert_eq!((chunk.error(), chunk.cookie), ((Errno::Perm.code(), "the export is read-only"), 1));
    client.send(&request(CMD_FLUSH, 0, 2, 0, 0)).unwrap();
    assert_eq!(client.simple(), (0, 2));
}

#[test]
fn unknown_commands_and_flags_are_invalid_and_the_connection_goes_on() {
    let mut client = Client::transmitting(&disk(), None);
    client.send(&request(99, 0, 1, 0, 1 << 31)).unwrap();
    client.send(&request(CMD_READ, CMD_FLAG_DF, 2, 0, 512)).unwrap();
    client.send(&request(CMD_READ, 0, 3, 0, limits::PAYLOAD_BYTES_MAX + 512)).unwrap();
    for cookie in 1..=3 {
        assert_eq!(client.simple(), (Errno::Inval.code(), cookie));
    }
}

#[test]
fn a_request_without_its_magic_number_ends_the_connection() {
    let mut client = Client::transmitting(&disk(), None);
    assert_eq!(client.send(&[0x55; 28]), Err(Violation::RequestMagic(0x5555_5555)));
    assert!(!client.connection.wants_input());
}

#[test]
fn nothing_is_taken_after_disconnect() {
    let mut client = Client::transmitting(&disk(), None);
    let bytes = [request(CMD_DISC, 0, 1, 0, 0), request(CMD_FLUSH, 0, 2, 0, 0)].concat();
    client.send(&bytes).unwrap();
    assert!(client.disconnected && !client.connection.wants_input() && client.received.is_empty());
}

#[test]
fn requests_in_flight_are_bounded_until_their_replies_are_out() {
    let mut client = Client::transmitting(&disk(), None);
    client.held = Some(Vec::new());
    let one = request(CMD_FLUSH, 0, 1, 0, 0);
    let many = one.repeat(limits::REQUESTS_IN_FLIGHT_MAX + 10);
    client.send(&many).unwrap();
    let held = |client: &Client| client.held.as_ref().map(Vec::len);
    assert_eq!(held(&client), Some(limits::REQUESTS_IN_FLIGHT_MAX));
    assert!(!client.connection.wants_input());
    // Carried out, but the replies are not taken: still no room.
    client.carry_out_held();
    client.send(&[]).unwrap();
    assert_eq!(held(&client), Some(0));
    client.drain();
    client.send(&[]).unwrap();
    assert_eq!(held(&client), Some(10));
    assert!(client.connection.wants_input());
}

#[test]
fn bytes_in_flight_are_bounded() {
    let mut client = Client::transmitting(&disk(), None);
    client.held = Some(Vec::new());
    let read = request(CMD_READ, 0, 1, 0, limits::PAYLOAD_BYTES_MAX - 512);
    client.send(&read.repeat(5)).unwrap();
    // The second one is the one that may go beyond the limit.
    assert_eq!(client.held.as_ref().map(Vec::len), Some(2));
    assert!(!client.connection.wants_input());
}

#[test]
fn refused_requests_count_too_until_their_replies_are_out() {
    let mut client = Client::transmitting(&disk(), None);
    client.held = Some(Vec::new());
    let many = request(99, 0, 1, 0, 0).repeat(limits::REQUESTS_IN_FLIGHT_MAX * 3);
    client.send(&many).unwrap();
    assert!(!client.connection.wants_input());
    client.drain();
    assert_eq!(client.received.len(), limits::REQUESTS_IN_FLIGHT_MAX * 16);
}

#[test]
fn no_extent_list_is_longer_than_its_limit() {
    let disk = Disk::new(MemDev::new(256 << 20));
    let count = limits::EXTENTS_MAX as u64;
    block_on(async {
        for index in 0..count {
            disk.write_all(index * 8192, &[1; 512]).await.unwrap();
        }
    });
    let mut client = Client::transmitting(&disk, STRUCTURED);
    client.send(&request(CMD_BLOCK_STATUS, 0, 1, 0, 256 << 20)).unwrap();
    for chunk in client.chunks() {
        assert_eq!(chunk.payload.len(), 4 + 8 * limits::EXTENTS_MAX);
    }
}
