//! What the device offers: feature bits and the configuration space (virtio 1.2, sections 5.2.3 and 5.2.4).

use block::{Discard, Disk};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::request::{ID_BYTES, SECTOR_BYTES};

/// The most sectors in one segment of a discard or write-zeroes request: 2 GiB.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// The most segments in one discard or write-zeroes request.
pub const DISCARD_SEGMENTS_MAX: u32 = 64;
/// The most queues that a device may have.
pub const QUEUE_COUNT_MAX: u16 = 256;
/// The most entries that a queue may have: what QEMU allows.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// The most data segments in one request: the smallest ring that guests commonly get (128 entries) less the header
/// and the status.
const SEGMENTS_MAX: u32 = 126;
/// Length of the configuration space up to the fields that the offered features define.
const CONFIG_BYTES: usize = 60;

/// How a disk is shown to guests.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Queues that the device has, from 1 to [`QUEUE_COUNT_MAX`]. A front end uses as many as it likes of them.
    pub queue_count: u16,
    /// The identification that guests see as the disk's serial number; what is longer than [`ID_BYTES`] is cut.
    pub id: String,
    /// Whether guests may only read, even where the disk is writable.
    pub read_only: bool,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        // QEMU asks for as many queues as the guest has CPUs and refuses a back end that has fewer; an unused queue
        // costs nothing.
        Self { queue_count: 64, id: String::new(), read_only: false }
    }
}

/// A disk as a virtio block device.
#[derive(Clone, Debug)]
pub(crate) struct BlockConfig {
    disk: Disk,
    options: DeviceOptions,
}

impl BlockConfig {
    pub(crate) fn new(disk: Disk, mut options: DeviceOptions) -> Self {
        options.queue_count = options.queue_count.clamp(1, QUEUE_COUNT_MAX);
        Self { disk, options }
    }

    pub(crate) fn queue_count(&self) -> u16 {
        self.options.queue_count
    }

    /// The identification string, padded with zeroes.
    pub(crate) fn id(&self) -> [u8; ID_BYTES] {
        let mut id = [0; ID_BYTES];
        let bytes = self.options.id.as_bytes();
        let len = bytes.len().min(ID_BYTES);
        id[..len].copy_from_slice(&bytes[..len]);
        id
    }

    /// The virtio and vhost features on offer.
    ///
    /// `VIRTIO_BLK_F_CONFIG_WCE` is not among them on purpose: a front end does not tell a restarted back end that the
    /// guest had turned write-back off, so such a guest would lose the durability that it relies on.
    pub(crate) fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_MQ,
        ];
        if self.read_only() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.push(VIRTIO_BLK_F_WRITE_ZEROES);
            // Guests that are offered discard rely on it to free space: it is offered only where it does something.
            bits.extend((self.disk.info().discard != Discard::Ignored).then_some(VIRTIO_BLK_F_DISCARD));
        }
        let vhost = VhostUserVirtioFeatures::LOG_ALL | VhostUserVirtioFeatures::PROTOCOL_FEATURES;
        bits.iter().fold(vhost.bits(), |all, bit| all | 1 << bit)
    }

    /// The protocol features on offer.
    pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    /// `size` bytes of the configuration space from `offset`; beyond its end it is zeroes.
    pub(crate) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = self.space();
        let byte = |at: u32| space.get(at as usize).copied().unwrap_or(0);
        (offset..offset.saturating_add(size)).map(byte).collect()
    }

    pub(crate) fn read_only(&self) -> bool {
        self.options.read_only || self.disk.info().read_only
    }

    fn space(&self) -> [u8; CONFIG_BYTES] {
        let info = self.disk.info();
        let block_bytes = info.block_bytes.max(SECTOR_BYTES as u32);
        let physical_bytes = info.physical_block_bytes.max(block_bytes);
        let discard_bytes = info.discard_bytes.max(block_bytes);
        let mut space = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.disk.size() / SECTOR_BYTES).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &block_bytes.to_le_bytes());
        put(24, &[(physical_bytes / block_bytes).ilog2() as u8]);
        put(26, &u16::try_from(physical_bytes / block_bytes).unwrap_or(u16::MAX).to_le_bytes());
        put(28, &(info.optimal_bytes / block_bytes).to_le_bytes());
        // Write-back: a cache that the guest flushes.
        put(32, &[1]);
        put(34, &self.options.queue_count.to_le_bytes());
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &DISCARD_SEGMENTS_MAX.to_le_bytes());
        put(44, &(discard_bytes / SECTOR_BYTES as u32).to_le_bytes());
        put(48, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(52, &DISCARD_SEGMENTS_MAX.to_le_bytes());
        // Zeroes may be holes where the guest allows it.
        put(56, &[1]);
        space
    }
}
