//! A front end that sets up one ring by hand, in memory that it reads and writes as a file.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Entries of the ring.
pub(crate) const RING_SIZE: u16 = 32;
/// Where the data of request `n` is, in guest memory.
pub(crate) const fn data_at(request: u16) -> u64 {
    0x2_0000 + 0x1000 * request as u64
}
/// Where the status of request `n` is.
pub(crate) const fn status_at(request: u16) -> u64 {
    0x1_8000 + request as u64
}

/// Guest memory, in bytes.
pub(crate) const MEMORY_BYTES: u64 = 1 << 20;
const USER_START: u64 = 0x7000_0000_0000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
/// Where the used ring is in guest memory.
pub(crate) const USED: u64 = 0x3000;
const HEADERS: u64 = 0x1_0000;

/// virtio-blk request types.
pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;

/// A guest's memory and its driver's state; it outlives connections.
pub(crate) struct Guest {
    pub(crate) memory: File,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) error: EventFd,
    available: u16,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY_BYTES).unwrap();
        Self {
            memory,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            error: EventFd::new(0).unwrap(),
            available: 0,
        }
    }

    /// Makes request `head` available: `kind`, on 512 bytes at `sector`. Uses descriptors `3 * head` and on.
    pub(crate) fn submit(&mut self, head: u16, kind: u32, sector: u64) {
        let header = HEADERS + 0x20 * u64::from(head);
        self.write(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.write(status_at(head), &[0xff]);
        let data_flags = if kind == READ { NEXT | WRITABLE } else { NEXT };
        let first = 3 * head;
        self.set_descriptor(first, header, 16, NEXT, first + 1);
        self.set_descriptor(first + 1, data_at(head), 512, data_flags, first + 2);
        self.set_descriptor(first + 2, status_at(head), 1, WRITABLE, 0);
        self.make_available(first);
    }

    /// Puts `head` into the available ring and kicks.
    pub(crate) fn make_available(&mut self, head: u16) {
        let entry = AVAILABLE + 4 + 2 * u64::from(self.available % RING_SIZE);
        self.write(entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.available.to_le_bytes());
        self.kick.write(1).unwrap();
    }

    pub(crate) fn set_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let bytes =
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.write(DESCRIPTORS + 16 * u64::from(index), &bytes.concat());
    }

    /// The heads in the used ring, in order, each as the number that [`Self::submit`] was given.
    pub(crate) fn used(&self) -> Vec<u16> {
        let count = u16::from_le_bytes(self.read(USED + 2));
        let entry = |at: u16| u32::from_le_bytes(self.read(USED + 4 + 8 * u64::from(at % RING_SIZE)));
        (0..count).map(|at| (entry(at) / 3) as u16).collect()
    }

    /// Waits until `count` requests are in the used ring.
    pub(crate) fn wait_for_used(&self, count: usize) -> Vec<u16> {
        loop {
            let used = self.used();
            if used.len() >= count {
                return used;
            }
            self.call.read().unwrap();
        }
    }

    pub(crate) fn status(&self, head: u16) -> u8 {
        self.read::<1>(status_at(head))[0]
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
}

/// An in-flight region as a front end keeps it over connections.
pub(crate) type Inflight = (VhostUserInflight, File);

/// One connection to the server.
pub(crate) struct FrontEnd {
    pub(crate) link: Frontend,
}

impl FrontEnd {
    /// Connects and negotiates; with the dirty log switched on if `log` is a file for it.
    pub(crate) fn connect(socket: &Path, log: Option<&File>) -> Self {
        let mut link = Frontend::connect(socket, 8).unwrap();
        link.set_owner().unwrap();
        let offered = link.get_features().unwrap();
        let mut wanted = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 32 | 1 << 9;
        if log.is_some() {
            wanted |= VhostUserVirtioFeatures::LOG_ALL.bits();
        }
        assert_eq!(offered & wanted, wanted, "everything that the tests need is on offer");
        link.set_features(wanted).unwrap();
        let protocol = link.get_protocol_features().unwrap();
        link.set_protocol_features(
            protocol
                & (VhostUserProtocolFeatures::REPLY_ACK
                    | VhostUserProtocolFeatures::INFLIGHT_SHMFD
                    | VhostUserProtocolFeatures::LOG_SHMFD
                    | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                    | VhostUserProtocolFeatures::MQ),
        )
        .unwrap();
        link.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if let Some(log) = log {
            let region = VhostUserDirtyLogRegion {
                mmap_size: log.metadata().unwrap().len(),
                mmap_offset: 0,
                mmap_handle: log.as_raw_fd(),
            };
            link.set_log_base(0, Some(region)).unwrap();
        }
        Self { link }
    }

    /// Asks the server for a fresh in-flight region.
    pub(crate) fn new_inflight(&mut self) -> Inflight {
        self.link.get_inflight_fd(&VhostUserInflight::new(0, 0, 1, RING_SIZE)).unwrap()
    }

    pub(crate) fn set_inflight(&mut self, (shape, file): &Inflight) {
        self.link.set_inflight_fd(shape, file.as_raw_fd()).unwrap();
    }

    /// Shares the guest's memory and starts ring 0 at `base`.
    pub(crate) fn start(&mut self, guest: &Guest, base: u16) {
        self.link.set_mem_table(&[memory_region(guest)]).unwrap();
        self.start_ring(guest, base);
    }

    /// Starts ring 0 at `base`.
    pub(crate) fn start_ring(&mut self, guest: &Guest, base: u16) {
        self.link.set_vring_num(0, RING_SIZE).unwrap();
        self.link.set_vring_base(0, base).unwrap();
        let config = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: 1,
            desc_table_addr: USER_START + DESCRIPTORS,
            used_ring_addr: USER_START + USED,
            avail_ring_addr: USER_START + AVAILABLE,
            log_addr: Some(USED),
        };
        self.link.set_vring_addr(0, &config).unwrap();
        self.link.set_vring_kick(0, &guest.kick).unwrap();
        self.link.set_vring_call(0, &guest.call).unwrap();
        self.link.set_vring_err(0, &guest.error).unwrap();
        self.link.set_vring_enable(0, true).unwrap();
    }
}

/// The guest's memory as a region.
pub(crate) fn memory_region(guest: &Guest) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES,
        userspace_addr: USER_START,
        mmap_offset: 0,
        mmap_handle: guest.memory.as_raw_fd(),
    }
}
