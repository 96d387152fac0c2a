//! What `godwit serve` says on standard output: lines for people, or one JSON document per line.

use std::io::{self, Write};

use graph::Chain;
use serde::Serialize;
use serve::nbd::NbdUri;

use super::ServeArgs;
use crate::report::Form;

/// Something that whoever started the server wants to know.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Event {
    /// Clients can connect.
    Ready(Ready),
    /// A signal came; no more clients are let in.
    Stopping {
        /// The signal's name.
        signal: &'static str,
    },
    /// Everything is durable, and the disk is closed.
    Stopped,
}

#[derive(Debug, Serialize)]
pub(super) struct Ready {
    filename: String,
    format: &'static str,
    /// Size in bytes.
    virtual_size: u64,
    read_only: bool,
    /// Files that the disk depends on, itself included.
    layers: usize,
    nbd: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vhost_user_blk: Option<String>,
    pid: u32,
}

impl Event {
    pub(super) fn ready<'a>(args: &ServeArgs, chain: &Chain, nbd: impl Iterator<Item = &'a NbdUri>) -> Self {
        Self::Ready(Ready {
            filename: args.path.display().to_string(),
            format: chain.layers.first().map_or("raw", |layer| layer.format.name()),
            virtual_size: chain.disk.size(),
            read_only: chain.disk.info().read_only,
            layers: chain.layers.len(),
            nbd: nbd.map(ToString::to_string).collect(),
            vhost_user_blk: args.vhost_user_blk.as_ref().map(|path| path.display().to_string()),
            pid: std::process::id(),
        })
    }

    /// Prints the event. Whoever does not read any more, or has gone, is no reason to stop serving.
    pub(super) fn print(&self, form: Form) {
        let mut out = io::stdout().lock();
        let _ = match form {
            Form::Text => self.write_text(&mut out),
            Form::Json => self.write_json(&mut out),
        };
        let _ = out.flush();
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Ready(ready) => ready.write_text(out),
            Self::Stopping { signal } => writeln!(out, "{signal}: closing the disk"),
            Self::Stopped => writeln!(out, "closed"),
        }
    }
}

impl Ready {
    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let access = if self.read_only { ", read-only" } else { "" };
        let places = self.nbd.iter().map(String::as_str);
        let places: Vec<_> = places.chain(self.vhost_user_blk.as_deref()).collect();
        writeln!(out, "serving {} ({}{access}) on {}", self.filename, self.format, places.join(" and "))
    }
}
