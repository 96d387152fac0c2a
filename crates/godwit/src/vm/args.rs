//! What `godwit vm run` is told.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use qemu::{Accel, Console, MachineKind};

use crate::disk::size::Size;

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// A disk of the machine; the first is what it boots from.
    ///
    /// PATH may be followed by `,format=FORMAT`, `,read-only` and `,attach=vhost-user-blk` or `,attach=nbd`. A comma in
    /// PATH is written twice.
    #[arg(long = "disk", value_name = "PATH[,OPTION...]", required = true)]
    pub(super) disks: Vec<DiskArg>,

    /// Memory of the guest.
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(super) memory: Size,

    /// Processors of the guest.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=255))]
    pub(super) cpus: u16,

    /// A Linux kernel to boot; without it the firmware boots from the first disk.
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,

    /// The kernel's first file system.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(super) initrd: Option<PathBuf>,

    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "console=ttyS0")]
    pub(super) append: String,

    /// How disks are attached that do not say it themselves.
    #[arg(long, value_enum, default_value_t = Attach::VhostUserBlk)]
    pub(super) attach: Attach,

    /// What runs the guest's instructions; `auto` tries KVM with a tiny guest first.
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto")]
    pub(super) accel: AccelArg,

    /// The board.
    #[arg(long, value_enum, default_value_t = Board::Q35)]
    pub(super) machine: Board,

    /// Where the serial console leads: `stdio`, `none`, `unix:PATH` (a socket), or a file. By default it is this
    /// terminal, or with --json a socket that the `started` event names.
    #[arg(long, value_name = "WHERE")]
    pub(super) console: Option<ConsoleArg>,

    /// Also keep everything the console of `unix:PATH` says in this file.
    #[arg(long, value_name = "FILE")]
    pub(super) console_log: Option<PathBuf>,

    /// The QEMU to use.
    #[arg(long, value_name = "PROGRAM", env = "GODWIT_QEMU", default_value = "qemu-system-x86_64")]
    pub(super) qemu: PathBuf,

    /// Seconds that the guest has to power off when asked, before QEMU is told to quit.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(super) stop_timeout: Duration,

    /// More arguments for QEMU.
    #[arg(last = true, value_name = "QEMU ARGUMENTS")]
    pub(super) extra: Vec<OsString>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|error| format!("{error}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Attach {
    /// The disk server works on the guest's memory.
    VhostUserBlk,
    /// QEMU is an NBD client of the disk server.
    Nbd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Board {
    /// A PC with PCI Express.
    Q35,
    /// A board without PCI.
    Microvm,
}

impl From<Board> for MachineKind {
    fn from(board: Board) -> Self {
        match board {
            Board::Q35 => Self::Q35,
            Board::Microvm => Self::Microvm,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccelArg {
    Auto,
    Given(Accel),
}

impl FromStr for AccelArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Given) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConsoleArg {
    None,
    Stdio,
    Socket(PathBuf),
    File(PathBuf),
}

impl FromStr for ConsoleArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("unix:")) {
            ("", _) | (_, Some("")) => Err("a path is missing".into()),
            ("none", _) => Ok(Self::None),
            ("stdio", _) => Ok(Self::Stdio),
            (_, Some(path)) => Ok(Self::Socket(path.into())),
            (path, None) => Ok(Self::File(path.into())),
        }
    }
}

impl ConsoleArg {
    pub(super) fn to_console(&self, log: Option<&PathBuf>) -> Console {
        match self {
            Self::None => Console::None,
            Self::Stdio => Console::Stdio,
            Self::File(path) => Console::File(path.clone()),
            Self::Socket(path) => Console::Socket { path: path.clone(), log: log.cloned() },
        }
    }
}

/// `PATH[,format=FORMAT][,read-only][,attach=HOW]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskArg {
    pub(super) path: PathBuf,
    pub(super) format: Option<String>,
    pub(super) read_only: bool,
    pub(super) attach: Option<Attach>,
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut fields = split_at_single_commas(text).into_iter();
        let path = fields.next().filter(|path| !path.is_empty()).ok_or("a path is missing")?;
        let mut disk = Self { path: path.into(), format: None, read_only: false, attach: None };
        for field in fields {
            match field.split_once('=').unwrap_or((&field, "")) {
                ("read-only", "") => disk.read_only = true,
                ("format", format) if !format.is_empty() => disk.format = Some(format.into()),
                ("attach", how) => {
                    disk.attach = Some(<Attach as clap::ValueEnum>::from_str(how, false)?);
                }
                _ => {
                    return Err(format!(
                        "{field:?} is no option of a disk; there are format=FORMAT, read-only and \
                         attach=vhost-user-blk|nbd (a comma in a path is written twice)"
                    ));
                }
            }
        }
        Ok(disk)
    }
}

fn split_at_single_commas(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == ',' && chars.next_if_eq(&',').is_none() {
            fields.push(String::new());
        } else {
            fields.last_mut().expect("there is always a last field").push(char);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_path_with_options() {
        let disk: DiskArg = "/a,,b.vhdx,read-only,format=vhdx,attach=nbd".parse().unwrap();
        let expected = DiskArg {
            path: "/a,b.vhdx".into(),
            format: Some("vhdx".into()),
            read_only: true,
            attach: Some(Attach::Nbd),
        };
        assert_eq!(disk, expected);
        assert_eq!("x".parse::<DiskArg>().unwrap().path, PathBuf::from("x"));
    }

    #[test]
    fn what_is_no_disk_option_is_refused() {
        for text in ["", ",read-only", "a,readonly", "a,", "a,format=", "a,attach=scsi", "a,read-only=off"] {
            assert!(text.parse::<DiskArg>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn consoles_are_told_apart() {
        assert_eq!("none".parse(), Ok(ConsoleArg::None));
        assert_eq!("stdio".parse(), Ok(ConsoleArg::Stdio));
        assert_eq!("unix:/s".parse(), Ok(ConsoleArg::Socket("/s".into())));
        assert_eq!("/f".parse(), Ok(ConsoleArg::File("/f".into())));
        assert!("unix:".parse::<ConsoleArg>().is_err());
    }
}
