//! A device with one ring, in memory that is a file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use block::Disk;
use testkit::MemDev;
use vhost::vhost_user::VhostUserBackendReqHandlerMut;
use vhost::vhost_user::message::{VhostUserMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags};
use vhost_user::{Device, DeviceOptions, Queue};

pub(crate) const MEMORY_BYTES: u64 = 16 << 20;
pub(crate) const RING_SIZE: u16 = 16;
/// Where data may go.
pub(crate) const DATA: u64 = 0x10_0000;
/// Where headers may go.
pub(crate) const HEADER: u64 = 0x8000;
/// Where a status may go.
pub(crate) const STATUS: u64 = 0x9000;
/// Where an indirect table may go.
pub(crate) const INDIRECT: u64 = 0x4_0000;

pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
const USER_START: u64 = 0x7000_0000_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const IS_INDIRECT: u16 = 4;

pub(crate) const EVENT_IDX: u64 = 1 << 29;

/// A running ring and the memory that it is in.
pub(crate) struct Ring {
    pub(crate) memory: File,
    pub(crate) queue: Queue,
    available: u16,
}

impl Ring {
    pub(crate) fn new() -> Self {
        Self::with_features(0)
    }

    pub(crate) fn with_features(features: u64) -> Self {
        let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let memory = File::from(memory);
        memory.set_len(MEMORY_BYTES).unwrap();
        let mut device = Device::new(Disk::new(MemDev::new(1 << 20)), DeviceOptions::default());
        let features = features | 1 << 32 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        device.set_features(features).unwrap();
        let region = VhostUserMemoryRegion::new(0, MEMORY_BYTES, USER_START, 0);
        device.set_mem_table(&[region], vec![memory.try_clone().unwrap()], None).unwrap();
        device.set_vring_num(0, RING_SIZE.into()).unwrap();
        let [descriptors, used, available] = [DESCRIPTORS, USED, AVAILABLE].map(|at| USER_START + at);
        device.set_vring_addr(0, VhostUserVringAddrFlags::empty(), descriptors, used, available, 0).unwrap();
        device.set_vring_base(0, 0).unwrap();
        device.set_vring_kick(0, Some(File::open("/dev/null").unwrap())).unwrap();
        device.set_vring_enable(0, true).unwrap();
        let queue = device.start(0).unwrap().queue;
        Self { memory, queue, available: 0 }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Writes a table of descriptors, each `(address, length, flags, next)`, at `table`.
    pub(crate) fn set_table(&self, table: u64, descriptors: &[(u64, u32, u16, u16)]) {
        let bytes: Vec<u8> = descriptors
            .iter()
            .flat_map(|&(address, len, flags, next)| {
                let address_len = u128::from(address) | u128::from(len) << 64;
                (address_len | u128::from(flags) << 96 | u128::from(next) << 112).to_le_bytes()
            })
            .collect();
        self.write(table, &bytes);
    }

    /// Writes the header of a request.
    pub(crate) fn set_header(&self, at: u64, kind: u32, sector: u64) {
        self.write(at, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        self.write(AVAILABLE + 4 + 2 * u64::from(self.available % RING_SIZE), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.available.to_le_bytes());
    }
}
