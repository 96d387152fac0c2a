//! What a guest reads is what it wrote, on every queue and with every kind of request.

use std::collections::HashMap;
use std::time::Duration;

use block::{DevInfo, Discard, Disk};
use serve::vhost_user::DeviceOptions;
use testkit::MemDev;
use vhost_user_client::{Client, Command, Shape};
use virtio_driver::VirtioBlkFeatureFlags;

use crate::server::{Place, Server};

const DISK_BYTES: u64 = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);

fn serve(place: &Place, info: DevInfo, options: DeviceOptions) -> Server {
    Server::start(&place.socket, Disk::new(MemDev::with_info(DISK_BYTES, info)), options)
}

fn connect(place: &Place, shape: Shape) -> Client {
    Client::connect(&place.socket, shape).unwrap()
}

#[test]
fn each_kind_of_request_does_what_it_says() {
    let place = Place::new();
    let _server = serve(&place, MemDev::INFO, DeviceOptions::default());
    let mut client = connect(&place, Shape::default());
    let read = |client: &mut Client, offset| {
        client.fill(0, &[0xee; 4096]);
        client.run(Command::Read { offset, len: 4096 }).unwrap();
        client.bytes(0, 4096)
    };
    client.fill(0, &[7; 4096]);
    client.run(Command::Write { offset: 8192, len: 4096 }).unwrap();
    client.run(Command::Write { offset: 12288, len: 4096 }).unwrap();
    client.run(Command::Flush).unwrap();
    assert_eq!(read(&mut client, 4096), [0; 4096]);
    assert_eq!(read(&mut client, 8192), [7; 4096]);
    client.run(Command::Discard { offset: 8192, len: 4096 }).unwrap();
    assert_eq!(read(&mut client, 8192), [0; 4096], "this disk's discarded ranges read as zeroes");
    client.run(Command::WriteZeroes { offset: 12288, len: 512, unmap: true }).unwrap();
    client.run(Command::WriteZeroes { offset: 15872, len: 512, unmap: false }).unwrap();
    let expected = [vec![0; 512], vec![7; 3072], vec![0; 512]].concat();
    assert_eq!(read(&mut client, 12288), expected);
}

#[test]
fn the_configuration_describes_the_disk() {
    let place = Place::new();
    let info = DevInfo {
        block_bytes: 4096,
        physical_block_bytes: 16384,
        discard_bytes: 1 << 20,
        discard: Discard::Unspecified,
        ..MemDev::INFO
    };
    let options = DeviceOptions { queue_count: 3, ..DeviceOptions::default() };
    let _server = serve(&place, info, options);
    let client = connect(&place, Shape::default());
    let config = client.config().unwrap();
    assert_eq!(u64::from(config.capacity), DISK_BYTES / 512);
    assert_eq!(u32::from(config.blk_size), 4096);
    assert_eq!(config.physical_block_exp, 2);
    assert_eq!(u16::from(config.num_queues), 3);
    assert_eq!(u32::from(config.discard_sector_alignment), 2048);
    let features = VirtioBlkFeatureFlags::from_bits_truncate(client.features());
    assert!(features.contains(VirtioBlkFeatureFlags::DISCARD | VirtioBlkFeatureFlags::WRITE_ZEROES));
    assert!(!features.contains(VirtioBlkFeatureFlags::RO));
}

#[test]
fn a_disk_that_ignores_discards_does_not_offer_them() {
    let place = Place::new();
    let info = DevInfo { discard: Discard::Ignored, ..MemDev::INFO };
    let _server = serve(&place, info, DeviceOptions::default());
    let client = connect(&place, Shape::default());
    let features = VirtioBlkFeatureFlags::from_bits_truncate(client.features());
    assert!(!features.contains(VirtioBlkFeatureFlags::DISCARD));
}

#[test]
fn a_read_only_export_of_a_writable_disk_refuses_changes() {
    let place = Place::new();
    let _server = serve(&place, MemDev::INFO, DeviceOptions { read_only: true, ..DeviceOptions::default() });
    let mut client = connect(&place, Shape::default());
    assert!(VirtioBlkFeatureFlags::from_bits_truncate(client.features()).contains(VirtioBlkFeatureFlags::RO));
    assert!(client.run(Command::Write { offset: 0, len: 512 }).is_err());
    assert!(client.run(Command::WriteZeroes { offset: 0, len: 512, unmap: false }).is_err());
    assert!(client.run(Command::Discard { offset: 0, len: 512 }).is_err());
    client.run(Command::Read { offset: 0, len: 512 }).unwrap();
    assert_eq!(client.bytes(0, 512), [0; 512]);
}

#[test]
fn what_the_disk_refuses_is_an_error_and_the_queue_goes_on() {
    let place = Place::new();
    let _server = serve(&place, MemDev::INFO, DeviceOptions::default());
    let mut client = connect(&place, Shape::default());
    assert!(client.run(Command::Read { offset: DISK_BYTES, len: 512 }).is_err());
    assert!(client.run(Command::Read { offset: DISK_BYTES - 512, len: 1024 }).is_err());
    assert!(client.run(Command::Write { offset: !511, len: 512 }).is_err());
    assert!(client.run(Command::Discard { offset: DISK_BYTES - 512, len: 1024 }).is_err());
    client.run(Command::Read { offset: DISK_BYTES - 512, len: 512 }).unwrap();
}

#[test]
fn memory_that_is_not_aligned_as_the_disk_needs_it_is_copied() {
    let place = Place::new();
    // A disk that refuses all but aligned memory, and buffers of which only the first is aligned.
    let info = DevInfo { memory_align: 512, ..MemDev::INFO };
    let _server = serve(&place, info, DeviceOptions::default());
    let len = 3 * 1024 * 1024 + 512;
    let shape = Shape { buffer_bytes: len + 8, buffer_count: 2, ..Shape::default() };
    let mut client = connect(&place, shape);
    let bytes: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
    client.fill(1, &bytes);
    for command in [Command::Write { offset: 512, len }, Command::Read { offset: 512, len }] {
        client.submit(0, command, 1).unwrap();
        client.kick(0).unwrap();
        let mut done = Vec::new();
        client.wait(0, TIMEOUT, &mut done).unwrap();
        assert_eq!(done[0].result, 0);
        assert!(client.bytes(1, len) == bytes);
        if matches!(command, Command::Write { .. }) {
            client.fill(1, &vec![0; len]);
        }
    }
}

/// Random writes and reads on several queues at once, each on its own part of the disk, against a map of what was
/// written.
fn random_traffic(queue_count: usize, event_idx: bool) {
    const DEPTH: usize = 24;
    const BLOCK: usize = 4096;
    const PER_QUEUE: u64 = 256;
    let place = Place::new();
    let _server = serve(&place, MemDev::INFO, DeviceOptions::default());
    let buffer_count = queue_count * DEPTH;
    let mut client = connect(&place, Shape { queue_count, buffer_count, event_idx, ..Shape::default() });
    let mut written: HashMap<u64, u8> = HashMap::new();
    let mut pending: HashMap<usize, (u64, Option<u8>)> = HashMap::new();
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..60 {
        for queue in 0..queue_count {
            let mut busy = std::collections::HashSet::new();
            for buffer in queue * DEPTH..(queue + 1) * DEPTH {
                let block = queue as u64 * PER_QUEUE + next() % PER_QUEUE;
                // Requests in flight together have no order, so each block has one at a time.
                if !busy.insert(block) {
                    continue;
                }
                let offset = block * BLOCK as u64;
                let value = (next() % 2 == 0).then_some((next() % 255) as u8);
                client.fill(buffer, &[value.unwrap_or(0xff); BLOCK]);
                let command = match value {
                    Some(_) => Command::Write { offset, len: BLOCK },
                    None => Command::Read { offset, len: BLOCK },
                };
                client.submit(queue, command, buffer).unwrap();
                pending.insert(buffer, (block, value));
            }
            client.kick(queue).unwrap();
        }
        for queue in 0..queue_count {
            let mine = |buffer: &usize| buffer / DEPTH == queue;
            while pending.keys().any(mine) {
                let mut done = Vec::new();
                client.wait(queue, TIMEOUT, &mut done).unwrap();
                for end in done {
                    assert_eq!(end.result, 0, "round {round}");
                    let (block, value) = pending.remove(&end.buffer).expect("each request ends once");
                    if let Some(value) = value {
                        written.insert(block, value);
                    } else {
                        let expected = written.get(&block).copied().unwrap_or(0);
                        assert_eq!(client.bytes(end.buffer, BLOCK), [expected; BLOCK], "block {block}");
                    }
                }
            }
        }
    }
    assert!(written.len() > 100, "the traffic was real");
}

#[test]
fn random_traffic_on_one_queue_reads_what_was_written() {
    random_traffic(1, true);
}

#[test]
fn random_traffic_on_four_queues_reads_what_was_written() {
    random_traffic(4, true);
}

#[test]
fn random_traffic_without_event_index_reads_what_was_written() {
    random_traffic(2, false);
}
