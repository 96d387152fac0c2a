//! What `godwit vm run` tells while it runs: JSON, one object per line on standard output, or sentences on standard
//! error.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::report::Form;

/// Something that happened to the machine. Field names are part of the interface.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Event<'a> {
    /// A disk server listens.
    DiskServed { disk: &'a str, path: &'a Path, attach: &'static str, socket: &'a Path, pid: u32 },
    /// The guest runs.
    Started {
        pid: u32,
        accel: &'static str,
        /// Why it is not KVM.
        #[serde(skip_serializing_if = "Option::is_none")]
        accel_reason: Option<&'a str>,
        /// Where a QMP monitor listens.
        qmp: &'a Path,
        /// Where the console listens, if it is a socket.
        #[serde(skip_serializing_if = "Option::is_none")]
        console: Option<&'a Path>,
    },
    /// A disk server ended though the guest runs; it is started again.
    DiskServerEnded { disk: &'a str, pid: u32, status: &'a str },
    /// The guest was asked to power off, or QEMU to quit.
    Stopping { why: &'a str },
    /// QEMU has ended.
    Stopped { status: &'a str, success: bool },
}

impl Event<'_> {
    pub(super) fn report(&self, form: Form) -> anyhow::Result<()> {
        match form {
            Form::Json => {
                let mut out = std::io::stdout().lock();
                serde_json::to_writer(&mut out, self)?;
                writeln!(out)?;
                out.flush()?;
            }
            Form::Text => self.tell(),
        }
        Ok(())
    }

    fn tell(&self) {
        match self {
            Self::DiskServed { disk, path, attach, socket, pid } => {
                let (path, socket) = (path.display(), socket.display());
                tracing::info!("{disk}: {path} is served over {attach} on {socket} by process {pid}");
            }
            Self::Started { pid, accel, accel_reason, qmp, console } => {
                if let Some(why) = accel_reason {
                    tracing::info!("kvm does not run guests here: {why}");
                }
                eprintln!(
                    "godwit: the guest runs in process {pid} ({accel}); QMP listens on {}",
                    qmp.display()
                );
                if let Some(console) = console {
                    eprintln!("godwit: the console listens on {}", console.display());
                }
            }
            Self::DiskServerEnded { disk, pid, status } => {
                eprintln!("godwit: the server of {disk}, process {pid}, ended ({status}); starting it again");
            }
            Self::Stopping { why } => eprintln!("godwit: {why}"),
            Self::Stopped { status, success: true } => tracing::info!("qemu ended: {status}"),
            Self::Stopped { status, success: false } => eprintln!("godwit: qemu ended: {status}"),
        }
    }
}
