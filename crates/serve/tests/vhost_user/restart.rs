//! What survives when the server dies, the front end leaves, or a queue is stopped in the middle of its work.

use std::fs::File;
use std::sync::Arc;

use block::Disk;
use serve::vhost_user::DeviceOptions;
use testkit::{HeldDev, HoldAt, MemDev, RequestKind, block_on};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::front_end::{
    FrontEnd, Guest, Inflight, MEMORY_BYTES, READ, USED, WRITE, data_at, memory_region, status_at,
};
use crate::server::{Place, Server, held_disk};

const SECTORS: u64 = 64;

fn hold_writes(held: &HeldDev, at: HoldAt) {
    held.hold(at, |request| request.kind == RequestKind::Write);
}

fn fill(guest: &Guest, request: u16, byte: u8) {
    guest.write(data_at(request), &[byte; 512]);
}

fn sector(mem: &Arc<MemDev>, sector: u64) -> u8 {
    let disk = Disk::from_arc(mem.clone());
    block_on(disk.read_vec(sector * 512, 512)).unwrap()[0]
}

/// A front end whose ring runs with an in-flight region, over `disk`.
fn start(place: &Place, guest: &Guest, disk: Disk) -> (Server, FrontEnd, Inflight) {
    let server = Server::start(&place.socket, disk, DeviceOptions::default());
    let mut front_end = FrontEnd::connect(&place.socket, None);
    let inflight = front_end.new_inflight();
    front_end.set_inflight(&inflight);
    front_end.start(guest, 0);
    (server, front_end, inflight)
}

/// Reconnects as QEMU does after the server died: all that it knows is the used ring.
fn restart(place: &Place, guest: &Guest, inflight: &Inflight, disk: Disk) -> (Server, FrontEnd) {
    let server = Server::start(&place.socket, disk, DeviceOptions::default());
    let mut front_end = FrontEnd::connect(&place.socket, None);
    front_end.set_inflight(inflight);
    front_end.start(guest, guest.used().len() as u16);
    (server, front_end)
}

#[test]
fn a_killed_server_loses_no_request_and_repeats_none_that_was_answered() {
    let place = Place::new();
    let mut guest = Guest::new();
    let (mem, held, disk) = held_disk(SECTORS * 512);
    hold_writes(&held, HoldAt::Start);
    let (server, front_end, inflight) = start(&place, &guest, disk);
    for request in 0..4 {
        fill(&guest, request, 0x10 + request as u8);
        guest.submit(request, WRITE, u64::from(request));
    }
    let waiting = block_on(held.wait_for(4));
    // The third is answered; the others are in flight when the server dies.
    held.release(waiting[2]);
    assert_eq!(guest.wait_for_used(1), [2]);
    server.kill();
    drop(front_end);
    // The driver goes on while there is no server, also on the sector that was written and answered.
    fill(&guest, 5, 0x55);
    guest.submit(5, WRITE, 2);

    let held = Arc::new(HeldDev::new(Disk::from_arc(mem.clone())));
    hold_writes(&held, HoldAt::Start);
    let (_server, _front_end) = restart(&place, &guest, &inflight, Disk::from_arc(held.clone()));
    let waiting = block_on(held.wait_for(4));
    let sectors: Vec<u64> = waiting.iter().map(|held| held.request.range.start() / 512).collect();
    assert_eq!(sectors, [0, 1, 3, 2], "those in flight come first, in their order, and then the new one");
    held.release_all();
    let mut used = guest.wait_for_used(5);
    used.sort_unstable();
    assert_eq!(used, [0, 1, 2, 3, 5], "each request is answered once");
    assert_eq!((0..4).map(|at| sector(&mem, at)).collect::<Vec<_>>(), [0x10, 0x11, 0x55, 0x13]);
    assert!([0, 1, 2, 3, 5].iter().all(|&request| guest.status(request) == 0));
}

#[test]
fn a_server_killed_again_and_again_answers_everything_in_the_end() {
    let place = Place::new();
    let mut guest = Guest::new();
    let (mem, held, disk) = held_disk(SECTORS * 512);
    hold_writes(&held, HoldAt::Completion);
    let (mut server, mut front_end, inflight) = start(&place, &guest, disk);
    let mut held = held;
    for request in 0..8 {
        fill(&guest, request, 0x20 + request as u8);
        guest.submit(request, WRITE, u64::from(request));
        // All that is not answered waits at the end of its way, and one of it is let go before the server dies.
        let answered = usize::from(request);
        let waiting = block_on(held.wait_for(1));
        held.release(waiting[usize::from(request) % waiting.len()]);
        guest.wait_for_used(answered + 1);
        server.kill();
        drop(front_end);
        held = Arc::new(HeldDev::new(Disk::from_arc(mem.clone())));
        hold_writes(&held, HoldAt::Completion);
        (server, front_end) = restart(&place, &guest, &inflight, Disk::from_arc(held.clone()));
    }
    assert_eq!(guest.used(), (0..8).collect::<Vec<_>>());
    assert_eq!((0..8).map(|at| sector(&mem, at)).collect::<Vec<_>>(), (0x20..0x28).collect::<Vec<_>>());
}

#[test]
fn the_next_front_end_is_let_in_when_what_the_last_one_left_behind_is_over() {
    let place = Place::new();
    let mut guest = Guest::new();
    let (_mem, held, disk) = held_disk(SECTORS * 512);
    hold_writes(&held, HoldAt::Start);
    let _server = Server::start(&place.socket, disk, DeviceOptions::default());
    let mut front_end = FrontEnd::connect(&place.socket, None);
    front_end.start(&guest, 0);
    guest.submit(0, WRITE, 0);
    let left = block_on(held.wait_for(1));
    drop(front_end);
    let socket = place.socket.clone();
    let next = std::thread::spawn(move || FrontEnd::connect(&socket, None));
    held.hold_no_more();
    held.release(left[0]);
    // Whether the request was answered depends on what the server saw first. If it was not, it is done again, from
    // the used index on; either way it is answered once.
    let mut front_end = next.join().unwrap();
    front_end.start(&guest, guest.used().len() as u16);
    guest.submit(1, WRITE, 1);
    assert_eq!(guest.wait_for_used(2), [0, 1]);
}

#[test]
fn a_server_that_is_stopped_answers_what_is_in_flight_first() {
    let place = Place::new();
    let mut guest = Guest::new();
    let (mem, held, disk) = held_disk(SECTORS * 512);
    hold_writes(&held, HoldAt::Start);
    let (server, _front_end, _inflight) = start(&place, &guest, disk);
    fill(&guest, 1, 0x77);
    guest.submit(1, WRITE, 9);
    block_on(held.wait_for(1));
    let stopping = std::thread::spawn(move || server.stop());
    assert!(guest.used().is_empty());
    held.release_all();
    stopping.join().unwrap();
    assert_eq!(guest.used(), [1]);
    assert_eq!(sector(&mem, 9), 0x77);
}

#[test]
fn stopping_a_queue_waits_for_its_requests_and_tells_where_to_go_on() {
    let place = Place::new();
    let mut guest = Guest::new();
    let (_mem, held, disk) = held_disk(SECTORS * 512);
    hold_writes(&held, HoldAt::Start);
    let (_server, mut front_end, _inflight) = start(&place, &guest, disk);
    guest.submit(0, WRITE, 0);
    guest.submit(1, WRITE, 1);
    block_on(held.wait_for(2));
    let link = front_end.link.clone();
    let stopping = std::thread::spawn(move || link.get_vring_base(0).unwrap());
    assert!(guest.used().is_empty());
    held.release_all();
    assert_eq!(stopping.join().unwrap(), 2);
    assert_eq!(guest.used().len(), 2, "the answer comes after the requests'");
    // A request that is made available while the queue is stopped is taken when it starts again, without a kick.
    guest.submit(2, WRITE, 2);
    guest.kick.read().unwrap();
    held.hold_no_more();
    front_end.start_ring(&guest, 2);
    assert_eq!(guest.wait_for_used(3).len(), 3);
}

#[test]
fn memory_that_is_taken_away_stays_mapped_for_the_requests_that_use_it() {
    let place = Place::new();
    let mut guest = Guest::new();
    let (mem, held, disk) = held_disk(SECTORS * 512);
    block_on(Disk::from_arc(mem.clone()).write_all(512, &[0x42; 512])).unwrap();
    held.hold(HoldAt::Start, |request| request.kind == RequestKind::Read);
    let (_server, mut front_end, _inflight) = start(&place, &guest, disk);
    guest.submit(0, READ, 1);
    block_on(held.wait_for(1));
    front_end.link.remove_mem_region(&memory_region(&guest)).unwrap();
    front_end.link.add_mem_region(&memory_region(&guest)).unwrap();
    held.release_all();
    guest.wait_for_used(1);
    assert_eq!((guest.status(0), guest.read::<512>(data_at(0))), (0, [0x42; 512]));
}

#[test]
fn what_is_written_to_the_guests_memory_is_in_the_dirty_log() {
    let place = Place::new();
    let mut guest = Guest::new();
    let log = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    log.set_len(4096).unwrap();
    let disk = Disk::new(MemDev::new(SECTORS * 512));
    let _server = Server::start(&place.socket, disk, DeviceOptions::default());
    let mut front_end = FrontEnd::connect(&place.socket, Some(&log));
    front_end.start(&guest, 0);
    guest.submit(3, READ, 1);
    guest.submit(4, WRITE, 2);
    guest.wait_for_used(2);
    // The last mark comes after the used index, and before the queue has stopped.
    front_end.link.get_vring_base(0).unwrap();
    let dirty = dirty_pages(&log);
    assert_eq!(dirty, [USED / 4096, status_at(3) / 4096, data_at(3) / 4096]);
}

fn dirty_pages(log: &File) -> Vec<u64> {
    use std::os::unix::fs::FileExt;
    let mut bits = [0; (MEMORY_BYTES / 4096 / 8) as usize];
    log.read_exact_at(&mut bits, 0).unwrap();
    let is_dirty = |page: &u64| bits[(page / 8) as usize] >> (page % 8) & 1 == 1;
    (0..bits.len() as u64 * 8).filter(is_dirty).collect()
}
