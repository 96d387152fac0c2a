//! Clients that break the rules or do not keep up.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use block::Disk;
use serve::nbd::CONNECTIONS_MAX;
use testkit::{MemDev, block_on};

use super::server::{Serving, exists};

const DISK_BYTES: u64 = 16 << 20;
/// Longer than anything takes here, so that a test that waits in vain fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

fn disk() -> Disk {
    Disk::new(MemDev::new(DISK_BYTES))
}

fn connect(serving: &Serving) -> UnixStream {
    let stream = UnixStream::connect(serving.socket()).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream
}

fn take(stream: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("the server answers");
    bytes
}

/// A client in the transmission phase, by EXPORT_NAME and with simple replies.
fn transmitting(serving: &Serving) -> UnixStream {
    let mut stream = connect(serving);
    assert_eq!(take(&mut stream, 18)[..8], *b"NBDMAGIC");
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    assert_eq!(take(&mut stream, 10)[..8], DISK_BYTES.to_be_bytes());
    stream
}

fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn is_closed(stream: &mut UnixStream) -> bool {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// A read and its reply, to show that the server is well.
fn reads(stream: &mut UnixStream) -> bool {
    stream.write_all(&request(0, 42, 0, 512)).unwrap();
    let reply = take(stream, 16 + 512);
    reply[..8] == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0] && reply[8..16] == 42u64.to_be_bytes()
}

#[test]
fn garbage_is_answered_by_the_end_of_the_connection_and_of_no_other() {
    let serving = Serving::unix(&disk());
    let mut good = transmitting(&serving);
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 100],
        &[0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6],
    ] {
        let mut stream = connect(&serving);
        take(&mut stream, 18);
        stream.write_all(garbage).unwrap();
        assert!(is_closed(&mut stream), "{garbage:?}");
    }
    let mut stream = transmitting(&serving);
    stream.write_all(&[0xaa; 28]).unwrap();
    assert!(is_closed(&mut stream));
    assert!(reads(&mut good));
}

#[test]
fn half_a_write_is_no_write() {
    let disk = disk();
    let serving = Serving::unix(&disk);
    for len in [0, 10, 28, 28 + 4096, 28 + (1 << 20) - 1] {
        let mut stream = transmitting(&serving);
        let mut bytes = request(1, 1, 0, 1 << 20);
        bytes.resize(28 + (1 << 20), 7);
        stream.write_all(&bytes[..len]).unwrap();
    }
    assert!(reads(&mut transmitting(&serving)));
    drop(serving);
    assert_eq!(block_on(disk.read_vec(0, 1 << 20)).unwrap(), vec![0; 1 << 20]);
}

#[test]
fn a_client_that_does_not_take_its_replies_is_not_read_any_further() {
    let serving = Serving::unix(&disk());
    let mut slow = transmitting(&serving);
    slow.set_nonblocking(true).unwrap();
    let batch = request(0, 1, 0, 1 << 20).repeat(1000);
    // As long as the server reads, this many requests would make it hold a gigabyte for each batch.
    let mut sent = 0;
    let mut other = transmitting(&serving);
    loop {
        match slow.write(&batch) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
        assert!(reads(&mut other), "others are served meanwhile");
    }
    // Only what fits in the buffers of sockets and session has been taken: not even one byte for each byte asked for.
    assert!(sent < 4 << 20, "{sent} bytes of requests were taken");
    assert!(reads(&mut other));
    // It still gets all its replies, once it reads.
    slow.set_nonblocking(false).unwrap();
    for _ in 0..sent / 28 {
        take(&mut slow, 16 + (1 << 20));
    }
}

#[test]
fn connections_beyond_the_limit_wait_for_a_place() {
    let serving = Serving::unix(&disk());
    let mut held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| transmitting(&serving)).collect();
    let mut waiting = connect(&serving);
    waiting.set_nonblocking(true).unwrap();
    assert!(reads(&mut held[0]), "the server has had its turn");
    let error = waiting.read(&mut [0; 18]).expect_err("there is no greeting yet");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    waiting.set_nonblocking(false).unwrap();
    drop(held.pop());
    assert_eq!(take(&mut waiting, 18)[..8], *b"NBDMAGIC");
}

#[test]
fn a_stopped_server_answers_what_it_has_taken_and_removes_its_socket() {
    let disk = disk();
    let mut serving = Serving::unix(&disk);
    let mut stream = transmitting(&serving);
    let idle = connect(&serving);
    let mut bytes = request(1, 7, 4096, 4096);
    bytes.resize(28 + 4096, 9);
    stream.write_all(&bytes).unwrap();
    assert_eq!(take(&mut stream, 16)[4..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    serving.stop();
    assert!(is_closed(&mut stream));
    assert!(!exists(&serving.socket()));
    drop(idle);
    assert_eq!(block_on(disk.read_vec(4096, 4096)).unwrap(), [9; 4096]);
}

#[test]
fn a_socket_that_a_killed_server_left_is_taken_over_and_a_live_one_is_not() {
    let serving = Serving::unix(&disk());
    let uri = serving.uri().parse().unwrap();
    let error = serve::nbd::Listener::bind(&uri, &disk(), "", None).expect_err("somebody answers there");
    let serve::nbd::ListenError::Bind { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), ErrorKind::AddrInUse);

    let stale = serving.path("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("it can be bound"));
    assert!(exists(&stale));
    let uri = format!("nbd+unix:///?socket={}", stale.display()).parse().unwrap();
    let listener = serve::nbd::Listener::bind(&uri, &disk(), "", None).expect("nobody answers there");
    drop(listener);
    assert!(!exists(&stale));
}
