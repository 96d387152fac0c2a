//! Who is measured, on which format, and with which command line.

use std::path::Path;
use std::process::Command;

/// A program that serves disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Godwit,
    Nbdkit,
    Qemu,
}

/// The format of the image that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Vhdx,
    Qcow2,
}

/// One line of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contender {
    pub(crate) program: Program,
    pub(crate) format: Format,
}

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Nbd,
    VhostUser,
}

/// How a server reads and writes its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Through the host's page cache.
    Buffered,
    /// Past it (`O_DIRECT`).
    Direct,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::VhostUser => "vhost-user",
        }
    }
}

impl Contender {
    pub(crate) const fn new(program: Program, format: Format) -> Self {
        Self { program, format }
    }

    pub(crate) fn name(self) -> String {
        let program = match self.program {
            Program::Godwit => "godwit",
            Program::Nbdkit => "nbdkit",
            Program::Qemu => "qemu",
        };
        format!("{program} {}", self.format.name())
    }

    pub(crate) fn is_ours(self) -> bool {
        self.program == Program::Godwit
    }

    /// Whether it can serve like this: nbdkit knows no vhost-user, and its file plugin no `O_DIRECT`.
    pub(crate) fn can(self, transport: Transport, cache: Cache) -> bool {
        self.program != Program::Nbdkit || (transport == Transport::Nbd && cache == Cache::Buffered)
    }
}

/// What the command line of a server says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving<'a> {
    pub(crate) contender: Contender,
    pub(crate) transport: Transport,
    pub(crate) cache: Cache,
    pub(crate) image: &'a Path,
    pub(crate) socket: &'a Path,
}

impl Serving<'_> {
    /// The command that serves the image in the foreground; `qemu_aio` is QEMU's word for how it does its I/O.
    pub(crate) fn command(&self, godwit: &Path, qemu_aio: &str) -> Command {
        match self.contender.program {
            Program::Godwit => self.godwit(godwit),
            Program::Nbdkit => self.nbdkit(),
            Program::Qemu => self.qemu(qemu_aio),
        }
    }

    fn godwit(&self, godwit: &Path) -> Command {
        let mut command = Command::new(godwit);
        command.arg("serve").arg(self.image).args(["--format", self.contender.format.name()]);
        command.args(["--cache", if self.cache == Cache::Direct { "direct" } else { "buffered" }]);
        match self.transport {
            Transport::Nbd => command.arg("--nbd"),
            Transport::VhostUser => command.arg("--vhost-user-blk"),
        };
        command.arg(self.socket);
        command
    }

    fn nbdkit(&self) -> Command {
        let mut command = Command::new("nbdkit");
        command.arg("--foreground").arg("--unix").arg(self.socket).arg("file").arg(self.image);
        command
    }

    fn qemu(&self, aio: &str) -> Command {
        let (image, socket) = (self.image.display(), self.socket.display());
        let direct = if self.cache == Cache::Direct { "on" } else { "off" };
        let mut command = Command::new("qemu-storage-daemon");
        if self.transport == Transport::VhostUser {
            command.args(["--object", "iothread,id=thread"]);
        }
        command.arg("--blockdev").arg(format!(
            "driver=file,node-name=file,filename={image},aio={aio},cache.direct={direct},discard=unmap"
        ));
        command.arg("--blockdev").arg(format!(
            "driver={},node-name=disk,file=file,cache.direct={direct},discard=unmap",
            self.contender.format.name()
        ));
        match self.transport {
            Transport::Nbd => command
                .arg("--nbd-server")
                .arg(format!("addr.type=unix,addr.path={socket}"))
                .args(["--export", "nbd,id=export,node-name=disk,writable=on"]),
            Transport::VhostUser => command.arg("--export").arg(format!(
                "vhost-user-blk,id=export,node-name=disk,writable=on,iothread=thread,addr.type=unix,addr.path={socket}"
            )),
        };
        command
    }

    /// The NBD URI of the disk.
    pub(crate) fn nbd_uri(&self) -> String {
        let export = if self.contender.program == Program::Qemu { "disk" } else { "" };
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}
