//! The device: what the front end's messages make of it, and which of its queues are to run.
//!
//! It does nothing by itself. Whoever drives the connection looks after each message which queues can start, and stops
//! those that a message is about to disturb before it lets the message in (see [`crate::Connection`]).

use std::fs::File;
use std::sync::Arc;

use block::Disk;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vhost::{VhostUserMemoryRegionBase, vhost_user};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use crate::config::{BlockConfig, DeviceOptions, QUEUE_SIZE_MAX};
use crate::error::QueueError;
use crate::inflight::{InflightRegion, Shape};
use crate::log::DirtyLog;
use crate::memory::{GuestMemory, MEMORY_REGIONS_MAX, RegionSpec};
use crate::queue::{Environment, Queue, RingSpec};
use crate::request::ID_BYTES;

/// A vhost-user-blk device as one front end has set it up.
pub struct Device {
    config: BlockConfig,
    features: u64,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    inflight: Option<InflightRegion>,
    vrings: Vec<Vring>,
}

/// A queue that has just been started, with what its owner needs to drive it.
pub struct StartedQueue {
    /// The queue.
    pub queue: Queue,
    /// An eventfd that becomes readable when the driver has made requests available.
    pub kick: File,
    /// Whether writes must be durable when they are answered, because the driver knows no flush.
    pub durable_writes: bool,
}

/// Eventfds that are written to tell of a queue.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// Tells the driver of answers.
    pub call: Option<Arc<File>>,
    /// Tells the front end that the queue is out of service.
    pub error: Option<Arc<File>>,
}

#[derive(Default)]
struct Vring {
    spec: RingSpec,
    kick: Option<File>,
    call: Option<Arc<File>>,
    error: Option<Arc<File>>,
    enabled: bool,
    running: bool,
}

impl Device {
    /// A device for `disk`, which no front end has set up yet. Messages come in through
    /// [`VhostUserBackendReqHandlerMut`], from [`crate::Connection`] or from a test.
    pub fn new(disk: Disk, options: DeviceOptions) -> Self {
        let config = BlockConfig::new(disk, options);
        let vrings = std::iter::repeat_with(Vring::default).take(config.queue_count().into()).collect();
        Self { config, features: 0, memory: Arc::default(), log: None, inflight: None, vrings }
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> usize {
        self.vrings.len()
    }

    /// Whether guests may only read.
    pub fn read_only(&self) -> bool {
        self.config.read_only()
    }

    /// What the guest sees as the disk's serial number.
    pub fn id(&self) -> [u8; ID_BYTES] {
        self.config.id()
    }

    /// Whether queue `index` is set up and enabled, and does not run.
    pub fn can_start(&self, index: usize) -> bool {
        let vring = &self.vrings[index];
        vring.enabled && !vring.running && vring.kick.is_some()
    }

    /// Starts queue `index`, which [`Self::can_start`].
    ///
    /// # Errors
    /// What is wrong with the ring; the queue then stays down until the front end sets it up again.
    pub fn start(&mut self, index: usize) -> std::result::Result<StartedQueue, QueueError> {
        let environment = self.environment();
        let event_idx = self.has_feature(VIRTIO_RING_F_EVENT_IDX);
        let durable_writes = !self.has_feature(VIRTIO_BLK_F_FLUSH);
        let inflight = self.inflight.as_ref().map(|region| region.queue(index)).transpose();
        let vring = &mut self.vrings[index];
        let kick = vring.kick.take().expect("only a queue with a kick descriptor can start");
        let inflight = inflight.map_err(QueueError::Inflight)?;
        let queue = Queue::start(RingSpec { event_idx, ..vring.spec }, environment, inflight)?;
        vring.running = true;
        Ok(StartedQueue { queue, kick, durable_writes })
    }

    /// Takes note that queue `index` no longer runs. `queue` has nothing in flight, unless the front end is gone.
    pub fn stopped(&mut self, index: usize, queue: &Queue, kick: File) {
        let vring = &mut self.vrings[index];
        vring.spec.base = queue.base();
        vring.kick = Some(kick);
        vring.running = false;
    }

    /// Gives a running queue the memory and the log that hold since the last message.
    pub fn refresh(&self, queue: &mut Queue) {
        queue.set_environment(self.environment());
    }

    /// The descriptors to signal for queue `index`; the front end may change them at any time.
    pub fn events(&self, index: usize) -> Events {
        let vring = &self.vrings[index];
        Events { call: vring.call.clone(), error: vring.error.clone() }
    }

    fn environment(&self) -> Environment {
        let logging = self.features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        Environment { memory: self.memory.clone(), log: self.log.as_ref().filter(|_| logging).cloned() }
    }

    fn has_feature(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    /// The vring `index` while it does not run, to change how it will.
    fn idle_vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vring(index)?;
        if vring.running {
            return Err(Error::InvalidOperation("the queue is running"));
        }
        Ok(vring)
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // The specification has retired this message and lets back ends ignore it.
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        for vring in &mut self.vrings {
            *vring = Vring::default();
        }
        (self.features, self.log, self.inflight) = (0, None, None);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.config.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.config.features() != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.features = features;
        // Vhost-user, "Ring states": without the protocol features a ring is enabled from the start.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.vrings.iter_mut().for_each(|vring| vring.enabled = true);
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut memory = GuestMemory::default();
        for (region, file) in regions.iter().zip(files) {
            memory = memory.with_region(region_spec(region), file).map_err(refuse)?;
        }
        self.memory = Arc::new(memory);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= QUEUE_SIZE_MAX);
        self.idle_vring(index)?.spec.size = size.ok_or(Error::InvalidParam)?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let guest = |user| self.memory.guest_address(user).map(|address| address.0).map_err(refuse);
        let (descriptors, used, available) = (guest(descriptor)?, guest(used)?, guest(available)?);
        let spec = &mut self.idle_vring(index)?.spec;
        let log_used_at = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        *spec = RingSpec { descriptors, used, available, log_used_at, ..*spec };
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.idle_vring(index)?.spec.base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let vring = self.idle_vring(index)?;
        vring.kick = None;
        Ok(VhostUserVringState::new(index, vring.spec.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        // Without a descriptor the front end asks for polling, which costs a CPU for ever.
        let kick = fd.ok_or(Error::InvalidOperation("polling without a kick descriptor is not supported"))?;
        self.idle_vring(index.into())?.kick = Some(kick);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index.into())?.call = fd.map(Arc::new);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index.into())?.error = fd.map(Arc::new);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(BlockConfig::protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !BlockConfig::protocol_features().bits() != 0 {
            return Err(Error::FeatureMismatch);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.config.read(offset, size))
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], flags: VhostUserConfigFlags) -> Result<()> {
        // A migration's destination repeats the whole space; a guest has nothing that it may write.
        if flags.contains(VhostUserConfigFlags::LIVE_MIGRATION) {
            return Ok(());
        }
        Err(Error::InvalidOperation("no field of the configuration space can be written"))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("the device is no display"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("the device has no shared objects"))
    }

    fn get_inflight_fd(&mut self, inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queue_count, queue_size) = (inflight.num_queues, inflight.queue_size);
        let (file, len) = InflightRegion::create(Shape { queue_count, queue_size }).map_err(refuse)?;
        Ok((VhostUserInflight::new(len, 0, queue_count, queue_size), file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let shape = Shape { queue_count: inflight.num_queues, queue_size: inflight.queue_size };
        let region = InflightRegion::open(shape, file, inflight.mmap_offset, inflight.mmap_size);
        self.inflight = Some(region.map_err(refuse)?);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEMORY_REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.memory = Arc::new(self.memory.with_region(region_spec(region), fd).map_err(refuse)?);
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory = Arc::new(self.memory.without_region(region_spec(region)).map_err(refuse)?);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("the device has no state of its own to transfer"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("the device has no state of its own to transfer"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("the device has no shared memory regions"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::open(file, log.mmap_offset, log.mmap_size).map_err(refuse)?;
        self.log = Some(Arc::new(log));
        Ok(())
    }
}

fn region_spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest_start: region.guest_phys_addr,
        user_start: region.user_addr,
        len: region.memory_size,
        file_offset: region.mmap_offset,
    }
}

fn refuse(error: impl std::error::Error + Send + Sync + 'static) -> vhost_user::Error {
    Error::ReqHandlerError(std::io::Error::other(error))
}
