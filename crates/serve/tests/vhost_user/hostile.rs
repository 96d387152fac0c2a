//! Front ends and drivers that break the rules harm themselves alone.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use block::Disk;
use serve::vhost_user::{DeviceOptions, Listener};
use testkit::MemDev;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_user_client::{Client, Command, Shape};

use crate::front_end::{FrontEnd, Guest, MEMORY_BYTES, READ, RING_SIZE, status_at};
use crate::server::{Place, Server};

fn serve(place: &Place) -> Server {
    Server::start(&place.socket, Disk::new(MemDev::new(1 << 20)), DeviceOptions::default())
}

/// Whether the server still serves a front end that behaves.
fn assert_serves(place: &Place) {
    let mut client = Client::connect(&place.socket, Shape::default()).unwrap();
    client.run(Command::Read { offset: 0, len: 4096 }).unwrap();
}

/// Sends `bytes` and waits until the server has hung up.
fn send_and_wait_for_the_end(place: &Place, bytes: &[u8]) {
    let mut stream = UnixStream::connect(&place.socket).unwrap();
    stream.write_all(bytes).unwrap();
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut rest);
}

fn message(request: u32, size: u32, body: &[u8]) -> Vec<u8> {
    [&request.to_ne_bytes()[..], &1_u32.to_ne_bytes(), &size.to_ne_bytes(), body].concat()
}

#[test]
fn messages_that_make_no_sense_end_the_connection_and_the_next_one_is_served() {
    let place = Place::new();
    let _server = serve(&place);
    for bytes in [
        message(0, 0, &[]),
        message(9999, 0, &[]),
        message(1, u32::MAX, &[]),
        message(1, 8, &[0; 8]),
        message(5, 8, &[0xff; 8]),
        message(8, 8, &[0xff; 8]),
        message(11, 8, &[0xff; 8]),
        vec![0xff; 64],
    ] {
        send_and_wait_for_the_end(&place, &bytes);
    }
    assert_serves(&place);
}

#[test]
fn a_front_end_that_leaves_in_the_middle_of_a_message_is_forgotten() {
    let place = Place::new();
    let _server = serve(&place);
    let whole = message(8, 8, &[0; 8]);
    for len in 0..whole.len() {
        let mut stream = UnixStream::connect(&place.socket).unwrap();
        stream.write_all(&whole[..len]).unwrap();
    }
    assert_serves(&place);
}

#[test]
fn a_front_end_that_sends_bytes_one_by_one_is_served() {
    let place = Place::new();
    let _server = serve(&place);
    let mut stream = UnixStream::connect(&place.socket).unwrap();
    // GET_FEATURES.
    for byte in message(1, 0, &[]) {
        stream.write_all(&[byte]).unwrap();
    }
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], 1_u32.to_ne_bytes());
}

#[test]
fn a_front_end_that_does_not_read_its_replies_is_disconnected() {
    let place = Place::new();
    let _server = serve(&place);
    let mut stream = UnixStream::connect(&place.socket).unwrap();
    let question = message(1, 0, &[]);
    // More questions than the socket can hold answers to; the server hangs up before.
    let ended = (0..1_000_000).any(|_| stream.write_all(&question).is_err());
    assert!(ended, "the server took a million questions whose answers nobody reads");
    drop(stream);
    assert_serves(&place);
}

#[test]
fn a_live_socket_is_not_taken_over_and_a_dead_one_is() {
    let place = Place::new();
    let other = UnixListener::bind(&place.socket).unwrap();
    assert_eq!(Listener::bind(&place.socket).err().unwrap().kind(), std::io::ErrorKind::AddrInUse);
    drop(other);
    let _server = serve(&place);
    assert_serves(&place);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let place = Place::new();
    std::fs::write(&place.socket, b"precious").unwrap();
    assert_eq!(Listener::bind(&place.socket).err().unwrap().kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&place.socket).unwrap(), b"precious");
}

/// Sets a ring up, lets `break_rule` break a rule, and has the front end see the queue out of service: it stops, and
/// the rest of the server goes on.
fn check_broken_queue(break_rule: impl FnOnce(&mut Guest)) {
    let place = Place::new();
    let _server = serve(&place);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::connect(&place.socket, None);
    front_end.start(&guest, 0);
    guest.submit(0, READ, 0);
    guest.wait_for_used(1);
    break_rule(&mut guest);
    guest.error.read().expect("the front end is told");
    front_end.link.get_vring_base(0).unwrap();
    assert_eq!(guest.used(), [0], "nothing is answered that cannot be");
    drop(front_end);
    assert_serves(&place);
}

#[test]
fn a_chain_that_loops_takes_the_queue_out_of_service() {
    check_broken_queue(|guest| {
        guest.set_descriptor(3, 0x1_0000, 16, 1, 4);
        guest.set_descriptor(4, 0x1_0000, 16, 1, 3);
        guest.make_available(3);
    });
}

#[test]
fn a_head_beyond_the_ring_takes_the_queue_out_of_service() {
    check_broken_queue(|guest| guest.make_available(RING_SIZE));
}

#[test]
fn a_status_outside_of_memory_takes_the_queue_out_of_service() {
    check_broken_queue(|guest| {
        guest.set_descriptor(3, 0x1_0000, 16, 1, 4);
        guest.set_descriptor(4, MEMORY_BYTES, 1, 2, 0);
        guest.make_available(3);
    });
}

#[test]
fn more_available_entries_than_the_ring_has_take_the_queue_out_of_service() {
    check_broken_queue(|guest| {
        guest.write(0x2002, &(RING_SIZE + 2).to_le_bytes());
        guest.kick.write(1).unwrap();
    });
}

#[test]
fn data_outside_of_memory_is_an_error_of_that_request() {
    let place = Place::new();
    let _server = serve(&place);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::connect(&place.socket, None);
    front_end.start(&guest, 0);
    guest.submit(0, READ, 0);
    guest.wait_for_used(1);
    guest.write(0x1_0020, &[0; 16]);
    guest.set_descriptor(3, 0x1_0020, 16, 1, 4);
    guest.set_descriptor(4, MEMORY_BYTES - 256, 512, 3, 5);
    guest.set_descriptor(5, status_at(1), 1, 2, 0);
    guest.make_available(3);
    assert_eq!(guest.wait_for_used(2), [0, 1]);
    assert_eq!(guest.status(1), 1);
    guest.submit(2, READ, 0);
    guest.wait_for_used(3);
    assert_eq!(guest.status(2), 0);
}

#[test]
fn a_ring_that_is_not_in_memory_does_not_start_and_can_be_set_up_again() {
    let place = Place::new();
    let _server = serve(&place);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::connect(&place.socket, None);
    front_end.start(&guest, 0);
    front_end.link.get_vring_base(0).unwrap();
    front_end.link.remove_mem_region(&crate::front_end::memory_region(&guest)).unwrap();
    front_end.link.set_vring_kick(0, &guest.kick).unwrap();
    guest.error.read().expect("the front end is told");
    front_end.link.add_mem_region(&crate::front_end::memory_region(&guest)).unwrap();
    front_end.start_ring(&guest, 0);
    guest.submit(0, READ, 0);
    guest.wait_for_used(1);
}
