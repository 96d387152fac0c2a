//! What the host tells of a file when it is opened.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use block::{DevInfo, Discard, SgList};
use rustix::fs::{AtFlags, FallocateFlags, SeekFrom, Stat, StatxFlags, fallocate, major, minor};

use super::access::How;
use super::open::{Access, Cache, Inline, OpenOptions};
use crate::sys::{self, Direction};

/// The alignment that O_DIRECT asks for where the kernel does not tell: enough for every disk we know.
const DIRECT_ALIGN_MAX: u32 = 4096;
/// What a disk writes atomically where nothing is known of it.
const SECTOR_BYTES: u32 = 512;
/// The request size that suits the page cache.
const PAGE_BYTES: u32 = 4096;

/// `statx` is asked for the alignment of direct access (kernel 6.1).
const STATX_DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);

/// The facts of a file that its device's `info` does not hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) is_block_device: bool,
    /// A file that is memory, whose calls never wait.
    pub(super) is_memory: bool,
    pub(super) can_punch: bool,
    pub(super) can_zero_range: bool,
    /// Whether discards, and zeroes that may unmap, free space.
    pub(super) gives_space_back: bool,
}

/// All that is found out about a file.
pub(super) struct Found {
    pub(super) size: u64,
    pub(super) info: DevInfo,
    pub(super) geometry: Geometry,
    pub(super) how: How,
}

/// Looks at a regular file.
pub(super) fn of_regular_file(
    file: impl AsFd + Copy,
    stat: &Stat,
    options: &OpenOptions,
) -> io::Result<Found> {
    let size = stat.st_size as u64;
    let system = rustix::fs::fstatfs(file)?;
    let changes = match changes_known_of(system.f_type as u64) {
        Some(changes) => changes,
        None if options.access == Access::ReadWrite => Changes::probed(file, size)?,
        None => Changes { punch: false, zero_range: false },
    };
    let is_memory = is_memory(system.f_type as u64) && options.inline == Inline::Auto;
    let direct = match options.cache {
        Cache::Direct => Some(DirectAlign::of(file, size)),
        Cache::Buffered => None,
    };
    let geometry = Geometry {
        is_block_device: false,
        is_memory,
        can_punch: changes.punch,
        can_zero_range: changes.zero_range,
        gives_space_back: changes.punch && options.discard,
    };
    let block_bytes = direct.map_or(1, |align| align.offset_bytes);
    let info = DevInfo {
        block_bytes,
        physical_block_bytes: block_bytes.max(SECTOR_BYTES),
        optimal_bytes: block_bytes.max(PAGE_BYTES),
        read_only: options.access == Access::ReadOnly,
        discard: if geometry.gives_space_back { Discard::Zeroes } else { Discard::Ignored },
        discard_bytes: block_bytes.max(power_of_two(system.f_bsize as u64, PAGE_BYTES)),
        native_fua: true,
        fast_zeroes: changes.punch || changes.zero_range,
        memory_align: direct.map_or(1, |align| align.memory_bytes),
    };
    Ok(Found { size, info, geometry, how: how(is_memory, direct, options.inline) })
}

/// Looks at a block device.
pub(super) fn of_block_device(
    file: impl AsFd + Copy,
    stat: &Stat,
    options: &OpenOptions,
) -> io::Result<Found> {
    let size = rustix::fs::seek(file, SeekFrom::End(0))?;
    let block_bytes = rustix::fs::ioctl_blksszget(file)?;
    let physical_block_bytes = rustix::fs::ioctl_blkpbszget(file)?.max(block_bytes);
    let queue = Queue::of(stat);
    // A device with a zeroing command of its own punches with it, and then what was discarded is zeroes. A device
    // that only has discard may return anything afterwards, which the contract does not allow, so it is not used.
    let zeroes_fast = queue.limit("write_zeroes_max_bytes") > 0;
    let geometry = Geometry {
        is_block_device: true,
        is_memory: false,
        can_punch: zeroes_fast,
        can_zero_range: zeroes_fast,
        gives_space_back: zeroes_fast && options.discard,
    };
    let direct = match options.cache {
        Cache::Direct => Some(DirectAlign::of(file, size).at_least(block_bytes)),
        Cache::Buffered => None,
    };
    let optimal_bytes = power_of_two(queue.limit("optimal_io_size"), physical_block_bytes.max(PAGE_BYTES));
    let discard_bytes = power_of_two(queue.limit("discard_granularity"), block_bytes).max(block_bytes);
    let info = DevInfo {
        block_bytes: direct.map_or(block_bytes, |align| align.offset_bytes),
        physical_block_bytes,
        optimal_bytes,
        read_only: options.access == Access::ReadOnly,
        discard: if geometry.gives_space_back { Discard::Zeroes } else { Discard::Ignored },
        discard_bytes,
        native_fua: true,
        fast_zeroes: zeroes_fast,
        memory_align: direct.map_or(1, |align| align.memory_bytes),
    };
    Ok(Found { size, info, geometry, how: how(false, direct, options.inline) })
}

fn how(is_memory: bool, direct: Option<DirectAlign>, inline: Inline) -> How {
    match (direct, inline) {
        _ if is_memory => How::Memory,
        (Some(align), _) => How::Direct { memory_align: align.memory_bytes as usize },
        (None, Inline::Auto) => How::Cached,
        (None, Inline::Never) => How::Queued,
    }
}

/// `value` where it is a power of two that fits, else `otherwise`.
fn power_of_two(value: u64, otherwise: u32) -> u32 {
    u32::try_from(value).ok().filter(|value| value.is_power_of_two()).unwrap_or(otherwise)
}

/// What `fallocate` can do on a file system.
#[derive(Clone, Copy)]
struct Changes {
    punch: bool,
    zero_range: bool,
}

impl Changes {
    /// Tries beyond the end of the file, where nothing is there to change but the time stamp.
    fn probed(file: impl AsFd + Copy, size: u64) -> io::Result<Self> {
        let at = size.next_multiple_of(u64::from(DIRECT_ALIGN_MAX));
        let can = |mode: FallocateFlags| match fallocate(
            file,
            mode | FallocateFlags::KEEP_SIZE,
            at,
            u64::from(DIRECT_ALIGN_MAX),
        ) {
            Ok(()) => Ok(true),
            Err(error) if is_no(error) => Ok(false),
            Err(error) => Err(io::Error::from(error)),
        };
        let punch = can(FallocateFlags::PUNCH_HOLE)?;
        let zero_range = can(FallocateFlags::ZERO_RANGE)?;
        if zero_range && punch {
            // The zeroes may have been allocated beyond the end.
            can(FallocateFlags::PUNCH_HOLE)?;
        }
        Ok(Self { punch, zero_range })
    }
}

fn is_no(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::FBIG)
}

/// File systems whose abilities are known, by the magic number of `statfs`, so that no probe touches their files.
fn changes_known_of(magic: u64) -> Option<Changes> {
    match magic {
        EXT4 | XFS | BTRFS | F2FS => Some(Changes { punch: true, zero_range: true }),
        TMPFS => Some(Changes { punch: true, zero_range: false }),
        RAMFS => Some(Changes { punch: false, zero_range: false }),
        _ => None,
    }
}

fn is_memory(magic: u64) -> bool {
    matches!(magic, TMPFS | RAMFS)
}

const EXT4: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;
const BTRFS: u64 = 0x9123_683E;
const F2FS: u64 = 0xF2F5_2010;
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58F6;

/// What O_DIRECT asks of requests.
#[derive(Clone, Copy)]
struct DirectAlign {
    offset_bytes: u32,
    memory_bytes: u32,
}

impl DirectAlign {
    /// What the kernel tells, or what a read shows, or what always works.
    fn of(file: impl AsFd + Copy, size: u64) -> Self {
        Self::told(file).unwrap_or_else(|| Self::tried(file, size))
    }

    fn told(file: impl AsFd + Copy) -> Option<Self> {
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, STATX_DIOALIGN).ok()?;
        let (offset_bytes, memory_bytes) = (stat.stx_dio_offset_align, stat.stx_dio_mem_align);
        let told = offset_bytes.is_power_of_two() && memory_bytes.is_power_of_two();
        told.then(|| Self { offset_bytes: offset_bytes.max(SECTOR_BYTES), memory_bytes })
    }

    fn tried(file: impl AsFd + Copy, size: u64) -> Self {
        let works = |align: u32| {
            let memory = SgList::unspecified(2 * align as usize).slice(u64::from(align), u64::from(align));
            sys::transfer(file.as_fd(), Direction::Read, 0, &memory, 0).is_ok_and(|read| read > 0)
        };
        let sectors = size >= u64::from(SECTOR_BYTES) && works(SECTOR_BYTES);
        let align = if sectors { SECTOR_BYTES } else { DIRECT_ALIGN_MAX };
        Self { offset_bytes: align, memory_bytes: align }
    }

    fn at_least(self, block_bytes: u32) -> Self {
        Self { offset_bytes: self.offset_bytes.max(block_bytes), ..self }
    }
}

/// A block device's queue, as sysfs shows it.
struct Queue(Option<PathBuf>);

impl Queue {
    fn of(stat: &Stat) -> Self {
        let device = format!("/sys/dev/block/{}:{}", major(stat.st_rdev), minor(stat.st_rdev));
        // A partition has no queue of its own; its disk's is one level up.
        let places = [format!("{device}/queue"), format!("{device}/../queue")];
        Self(places.into_iter().map(PathBuf::from).find(|place| place.is_dir()))
    }

    /// A limit by name; 0 where it is not known.
    fn limit(&self, name: &str) -> u64 {
        let text = self.0.as_ref().and_then(|queue| std::fs::read_to_string(queue.join(name)).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }
}
