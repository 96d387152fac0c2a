//! What a virtual machine is made of, and the command line that makes it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Accel, Version};

/// A virtual machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name, in QEMU's process title and window.
    pub name: String,
    /// The board.
    pub kind: MachineKind,
    /// What runs its instructions.
    pub accel: Accel,
    /// The number of its processors, at least one.
    pub cpus: u32,
    /// Its memory.
    pub memory: Memory,
    /// A kernel that QEMU loads itself; without one the firmware boots from the first disk.
    pub boot: Option<Boot>,
    /// Its disks, in order.
    pub disks: Vec<Disk>,
    /// Its first serial port.
    pub console: Console,
    /// Where a QMP monitor for others listens, beside our own.
    pub qmp: Option<PathBuf>,
    /// Arguments that are added at the end.
    pub extra: Vec<OsString>,
}

/// The board that QEMU emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// A PC with PCI Express.
    Q35,
    /// A small board without PCI: virtio over memory-mapped I/O, found through ACPI. When translated (QEMU 7.2), about
    /// every other boot of a Debian 12 kernel spins before its first message, with no disk attached, too.
    Microvm,
}

impl MachineKind {
    /// The argument of QEMU's `-machine`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        }
    }

    /// How the names of its virtio devices end.
    fn device_suffix(self) -> &'static str {
        match self {
            Self::Q35 => "-pci",
            Self::Microvm => "",
        }
    }

    fn virtio_blk(self) -> &'static str {
        match self {
            Self::Q35 => "virtio-blk-pci",
            Self::Microvm => "virtio-blk-device",
        }
    }
}

/// The guest's memory: a file on a memory file system that other processes map, too. Disk servers reach the guest's
/// buffers through it, and it is the one kind of memory that every QEMU leaves out of its own migration stream under
/// `x-ignore-shared` (from 8.1 on, `memory-backend-file` is required, and `memory-backend-memfd` is sent).
#[derive(Clone, Debug)]
pub struct Memory {
    /// Its size.
    pub bytes: u64,
    /// A directory on a tmpfs or hugetlbfs, in which QEMU makes a file without a name; or a file, which stays.
    pub path: PathBuf,
}

impl Memory {
    /// Memory of `bytes` on the tmpfs that every Linux has.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, path: "/dev/shm".into() }
    }

    /// Says when there is less memory to be had than the guest may come to use: the kernel would kill QEMU in the
    /// middle of its run, with the bus error of a full file system.
    ///
    /// # Errors
    /// With both sizes.
    pub fn check_room(&self) -> Result<(), MachineError> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|error| MachineError::Memory { path: self.path.clone(), source: error.into() })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < self.bytes {
            return Err(MachineError::NoRoom { path: self.path.clone(), free, wanted: self.bytes });
        }
        Ok(())
    }
}

/// A kernel to boot directly.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// The first file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
}

/// A disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Names it in QEMU; letters, digits, `-`, `_`.
    pub id: String,
    /// How it is reached.
    pub attachment: Attachment,
    /// Whether the guest sees it as write-protected. Over vhost-user-blk that is for its server to say.
    pub read_only: bool,
}

/// How QEMU reaches a disk that another process serves.
#[derive(Clone, Debug)]
pub enum Attachment {
    /// The server reads and writes guest memory itself. QEMU connects when it starts, so the server must listen by
    /// then, and again within a second whenever the server was gone.
    VhostUserBlk {
        /// Where the server listens.
        socket: PathBuf,
        /// Request queues; as many as processors is a good number.
        queues: u16,
    },
    /// QEMU is an NBD client. Requests wait a while for a server that is gone.
    Nbd {
        /// Where the server listens.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
}

/// How long requests wait for an NBD server to come back before the guest sees an error.
const NBD_RECONNECT_S: u32 = 300;
/// How often a lost vhost-user server is tried for.
const VHOST_USER_RECONNECT_S: u32 = 1;

/// Where the first serial port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// Nowhere.
    None,
    /// To our standard input and output.
    Stdio,
    /// Into a file.
    File(PathBuf),
    /// To who connects to a Unix socket, and into a file if one is named.
    Socket {
        /// Where QEMU listens.
        path: PathBuf,
        /// Also keeps all output.
        log: Option<PathBuf>,
    },
}

/// Why a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The place for its memory cannot be examined.
    #[error("memory in {}", path.display())]
    Memory {
        /// The place.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The place for its memory is too small.
    #[error(
        "{} has room for {} MiB but the machine has {} MiB of memory; give it less, or enlarge the file system",
        path.display(), free >> 20, wanted >> 20
    )]
    NoRoom {
        /// The place.
        path: PathBuf,
        /// What is free, in bytes.
        free: u64,
        /// The memory's size, in bytes.
        wanted: u64,
    },
    /// A name has characters that QEMU gives a meaning.
    #[error("{0:?} cannot name a disk: only letters, digits, - and _ can be in it")]
    Id(String),
}

impl Machine {
    /// The command line without the program's name. `monitor` is the number of a connected socket for our monitor.
    ///
    /// # Errors
    /// `Id` if a disk's name cannot be one.
    pub fn arguments(&self, version: Version, monitor: i32) -> Result<Vec<OsString>, MachineError> {
        let mut args = Arguments::default();
        args.add("-name", [OsStr::new("guest="), &escape(OsStr::new(&self.name))]);
        for plain in ["-nodefaults", "-no-user-config"] {
            args.0.push(plain.into());
        }
        args.add("-display", ["none"]);
        args.add("-machine", [self.kind.name(), ",memory-backend=ram"]);
        args.add("-accel", [self.accel.name()]);
        args.add("-cpu", [self.accel.cpu_model()]);
        args.add("-smp", [self.cpus.to_string()]);
        self.memory_arguments(&mut args);
        if let Some(boot) = &self.boot {
            args.add("-kernel", [&boot.kernel]);
            if let Some(initrd) = &boot.initrd {
                args.add("-initrd", [initrd]);
            }
            args.add("-append", [&boot.append]);
        }
        if self.kind == MachineKind::Microvm {
            // The transport is the one of before virtio 1.0 by default, which vhost-user servers refuse.
            args.add("-global", ["virtio-mmio.force-legacy=false"]);
        }
        for disk in &self.disks {
            self.disk_arguments(disk, version, &mut args)?;
        }
        self.console_arguments(&mut args);
        args.add("-chardev", [format!("socket,id=monitor,fd={monitor}")]);
        args.add("-mon", ["chardev=monitor,mode=control"]);
        if let Some(path) = &self.qmp {
            args.add(
                "-chardev",
                [OsStr::new("socket,id=qmp,server=on,wait=off,path="), &escape(path.as_os_str())],
            );
            args.add("-mon", ["chardev=qmp,mode=control"]);
        }
        args.0.extend(self.extra.iter().cloned());
        Ok(args.0)
    }

    fn memory_arguments(&self, args: &mut Arguments) {
        let bytes = self.memory.bytes;
        args.add("-m", [format!("{bytes}B")]);
        let path = escape(self.memory.path.as_os_str());
        args.add(
            "-object",
            [
                OsStr::new(&format!("memory-backend-file,id=ram,size={bytes}B,share=on,mem-path=")),
                path.as_os_str(),
            ],
        );
    }

    fn disk_arguments(
        &self,
        disk: &Disk,
        version: Version,
        args: &mut Arguments,
    ) -> Result<(), MachineError> {
        let id = &disk.id;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if id.is_empty() || !id.chars().all(plain) {
            return Err(MachineError::Id(id.clone()));
        }
        match &disk.attachment {
            Attachment::VhostUserBlk { socket, queues } => {
                let reconnect = match version >= Version::RECONNECT_MS {
                    true => format!("reconnect-ms={}", VHOST_USER_RECONNECT_S * 1000),
                    false => format!("reconnect={VHOST_USER_RECONNECT_S}"),
                };
                let chardev = format!("socket,id={id}-server,{reconnect},path=");
                args.add("-chardev", [OsStr::new(&chardev), &escape(socket.as_os_str())]);
                let device = format!("vhost-user-blk{}", self.kind.device_suffix());
                args.add("-device", [format!("{device},id={id},chardev={id}-server,num-queues={queues}")]);
            }
            Attachment::Nbd { socket, export } => {
                let read_only = if disk.read_only { "on" } else { "off" };
                let node = format!(
                    "driver=nbd,node-name={id}-node,read-only={read_only},discard=unmap,\
                     reconnect-delay={NBD_RECONNECT_S},server.type=unix,server.path="
                );
                let export = escape(OsStr::new(export));
                args.add(
                    "-blockdev",
                    [OsStr::new(&node), &escape(socket.as_os_str()), OsStr::new(",export="), &export],
                );
                args.add("-device", [format!("{},id={id},drive={id}-node", self.kind.virtio_blk())]);
            }
        }
        Ok(())
    }

    fn console_arguments(&self, args: &mut Arguments) {
        match &self.console {
            Console::None => return,
            // Ctrl-C stays with the terminal: it is ours to act on.
            Console::Stdio => args.add("-chardev", ["stdio,id=console,signal=on"]),
            Console::File(path) => {
                args.add("-chardev", [OsStr::new("file,id=console,path="), &escape(path.as_os_str())]);
            }
            Console::Socket { path, log } => {
                let mut chardev = OsString::from("socket,id=console,server=on,wait=off,path=");
                chardev.push(escape(path.as_os_str()));
                if let Some(log) = log {
                    chardev.push(",logfile=");
                    chardev.push(escape(log.as_os_str()));
                }
                args.add("-chardev", [chardev]);
            }
        }
        args.add("-serial", ["chardev:console"]);
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add<P: AsRef<OsStr>>(&mut self, option: &str, parts: impl IntoIterator<Item = P>) {
        let mut value = OsString::new();
        for part in parts {
            value.push(part);
        }
        self.0.extend([option.into(), value]);
    }
}

/// A value inside QEMU's `key=value,...` lists: a comma is doubled.
fn escape(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        escaped.push(byte);
        if byte == b',' {
            escaped.push(byte);
        }
    }
    OsString::from_vec(escaped)
}

/// Finds the program that emulates this architecture.
pub(crate) fn default_binary() -> &'static Path {
    Path::new("qemu-system-x86_64")
}

#[cfg(test)]
mod tests;
