//! virtio-blk requests in a ring that a guest wrote.
//!
//! What must hold: whatever is in the guest's memory, taking requests off the ring ends, with requests or with an error
//! that stops the queue; each request can be carried out and answered once; then nothing is in flight, and the used
//! ring holds as many entries as there were answers.

use std::fs::File;
use std::os::unix::fs::FileExt;

use block::Disk;
use testkit::{MemDev, block_on};
use vhost::vhost_user::VhostUserBackendReqHandlerMut;
use vhost::vhost_user::message::{VhostUserMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags};
use vhost_user::{Device, DeviceOptions, Queue, Status, Target};

use crate::Seed;

const DISK_BYTES: u64 = 1 << 20;
const MEMORY_BYTES: u64 = 256 << 10;
const RING_SIZE: u16 = 16;
const DESCRIPTOR_BYTES: usize = 16;
/// Guest addresses of the ring's parts, and of the memory that requests are about.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x4000;
/// Parts of an input after the first byte: the descriptor table, the available ring, then memory from [`DATA`].
const TABLE_BYTES: usize = RING_SIZE as usize * DESCRIPTOR_BYTES;
const AVAILABLE_BYTES: usize = 6 + 2 * RING_SIZE as usize;
/// Where the front end says that the memory is in its own address space.
const USER_START: u64 = 0x7000_0000_0000;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// The first byte chooses features; the rest is what the guest wrote.
pub(crate) fn run(input: &[u8]) {
    let Some((&choice, guest)) = input.split_first() else { return };
    let memory = memory_of(guest);
    let options = DeviceOptions::default();
    let disk = Disk::new(MemDev::new(DISK_BYTES));
    let mut queue = queue(&memory, disk.clone(), &options, choice);
    let target = Target::new(disk, &options, choice & 2 != 0);
    let mut answers: u16 = 0;
    // A queue never has more in flight than its ring holds, so that this ends.
    while let Ok(Some(request)) = queue.take() {
        let status = match request.operation {
            Ok(operation) => block_on(target.execute(operation)),
            Err(status) => status,
        };
        assert!(matches!(status, Status::Ok | Status::IoError | Status::Unsupported));
        // The guest may have put its ring where there is no memory, or requests where its ring is.
        if queue.answer(&request.reply_to, status).is_err() {
            return;
        }
        answers += 1;
        assert!(answers <= RING_SIZE, "a guest that is not running offers no more than it has offered");
        let _ = queue.wants_notification();
    }
    assert_eq!(queue.in_flight_count(), 0, "what was answered is not in flight");
}

/// The guest's memory with what it wrote.
fn memory_of(guest: &[u8]) -> File {
    let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC);
    let memory = File::from(memory.expect("the host has memory"));
    memory.set_len(MEMORY_BYTES).expect("the host has memory");
    let (table, rest) = guest.split_at(guest.len().min(TABLE_BYTES));
    let (available, data) = rest.split_at(rest.len().min(AVAILABLE_BYTES));
    let data = &data[..data.len().min((MEMORY_BYTES - DATA) as usize)];
    for (at, bytes) in [(DESCRIPTORS, table), (AVAILABLE, available), (DATA, data)] {
        memory.write_all_at(bytes, at).expect("the host has memory");
    }
    memory
}

fn queue(memory: &File, disk: Disk, options: &DeviceOptions, choice: u8) -> Queue {
    let mut device = Device::new(disk, options.clone());
    let event_idx = if choice & 1 != 0 { EVENT_IDX } else { 0 };
    let features = event_idx | VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    device.set_features(features).expect("the device has these features");
    let region = VhostUserMemoryRegion::new(0, MEMORY_BYTES, USER_START, 0);
    let file = memory.try_clone().expect("the host has descriptors");
    device.set_mem_table(&[region], vec![file], None).expect("the memory is there");
    device.set_vring_num(0, RING_SIZE.into()).expect("the size is a power of two");
    let [descriptors, used, available] = [DESCRIPTORS, USED, AVAILABLE].map(|at| USER_START + at);
    let flags = VhostUserVringAddrFlags::empty();
    device.set_vring_addr(0, flags, descriptors, used, available, 0).expect("the ring is in memory");
    device.set_vring_base(0, 0).expect("the queue does not run");
    let kick = File::open("/dev/null").expect("every host has it");
    device.set_vring_kick(0, Some(kick)).expect("the queue does not run");
    device.set_vring_enable(0, true).expect("the queue is there");
    device.start(0).expect("the ring is sound").queue
}

/// One request of each kind, and all of them in one ring.
pub(crate) fn seeds() -> Vec<Seed> {
    // Virtio 1.2, 5.2.6: type, and the length of the data, with whether the device writes it.
    let kinds: [(&str, u32, u32, u16); 6] = [
        ("read", 0, 4096, WRITE),
        ("write", 1, 4096, 0),
        ("flush", 4, 0, 0),
        ("id", 8, 20, WRITE),
        ("discard", 11, 16, 0),
        ("zeroes", 13, 32, 0),
    ];
    kinds.iter().map(|&(name, kind, len, flags)| (name, seed(kind, len, flags))).collect()
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn seed(kind: u32, len: u32, flags: u16) -> Vec<u8> {
    let (header, status, data) = (DATA, DATA + 64, DATA + 128);
    let mut chain = vec![(header, 16, NEXT, 1_u16)];
    if len > 0 {
        chain.push((data, len, flags | NEXT, 2));
    }
    chain.push((status, 1, WRITE, 0));
    let mut table: Vec<u8> = chain
        .iter()
        .flat_map(|&(start, len, flags, next)| {
            [
                &u64::to_le_bytes(start)[..],
                &u32::to_le_bytes(len),
                &u16::to_le_bytes(flags),
                &next.to_le_bytes(),
            ]
            .concat()
        })
        .collect();
    table.resize(TABLE_BYTES, 0);
    let mut available = [0_u16.to_le_bytes(), 1_u16.to_le_bytes(), 0_u16.to_le_bytes()].concat();
    available.resize(AVAILABLE_BYTES, 0);
    let mut memory = [&kind.to_le_bytes()[..], &0_u32.to_le_bytes(), &8_u64.to_le_bytes()].concat();
    memory.resize(128, 0);
    // A range of eight sectors, for discards and zeroes; data for the others.
    memory.extend([&8_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat());
    [&[0][..], &table, &available, &memory].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_a_request() {
        for (name, seed) in seeds() {
            let memory = memory_of(&seed[1..]);
            let disk = Disk::new(MemDev::new(DISK_BYTES));
            let mut queue = queue(&memory, disk, &DeviceOptions::default(), seed[0]);
            let request = queue.take().expect("the chain is sound").expect("one was offered");
            assert!(request.operation.is_ok(), "{name}: {request:?}");
        }
    }
}
