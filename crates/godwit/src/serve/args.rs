//! What `godwit serve` is told.

use std::path::PathBuf;

use anyhow::ensure;
use clap::{Args, ValueEnum};
use graph::{ChainOptions, ParentMismatch};
use image::vhdx::Access;
use serve::nbd::{Address, NbdUri};
use serve::vhost_user::DeviceOptions;

use crate::disk;

const EXAMPLES: &str = "\
Examples:
  A disk for programs on this host, over NBD:
    godwit serve web.vhdx --nbd nbd+unix:///?socket=/run/web.sock
    nbdinfo nbd+unix:///?socket=/run/web.sock

  A disk for a guest, over vhost-user-blk, and for a backup of it at the same time:
    godwit serve web.vhdx --vhost-user-blk /run/web.vhost --nbd nbd://127.0.0.1:10809/web

  A disk for one run of a client that starts its server (socket activation, also by systemd):
    nbdinfo [ godwit serve --read-only web.vhdx ]

The first line on standard output says that clients can connect. SIGINT or SIGTERM ends the server: requests that it has
taken are answered, everything is made durable, and the disk is closed.";

/// Serves one disk over NBD and vhost-user-blk, at once if need be, until it is interrupted.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    /// The image, or a block device. Its ancestors are opened with it.
    pub(super) path: PathBuf,

    /// The format; otherwise the name decides: .raw and .img are raw, .vhdx and .avhdx VHDX.
    #[arg(short, long)]
    format: Option<disk::Format>,

    /// Let nobody change the disk.
    #[arg(short, long)]
    pub(super) read_only: bool,

    /// Serve NBD at this URI: nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH; nbds for TLS. A path alone is a
    /// Unix socket. Can be given several times.
    #[arg(long, value_name = "URI", value_parser = parse_nbd)]
    nbd: Vec<NbdUri>,

    /// The name of the NBD export where the URI has none.
    #[arg(long, value_name = "NAME")]
    nbd_export: Option<String>,

    /// Serve vhost-user-blk on this Unix socket.
    #[arg(long, value_name = "SOCKET")]
    pub(super) vhost_user_blk: Option<PathBuf>,

    /// How the host reads and writes the files.
    #[arg(long, value_enum, default_value_t = Cache::Buffered)]
    cache: Cache,

    /// Serve the disk although a parent is not the one that its child was made on. The content may be neither the old
    /// nor the new disk.
    #[arg(long, requires = "read_only")]
    allow_parent_mismatch: bool,

    /// Where server-cert.pem and server-key.pem are, for nbds URIs; and ca-cert.pem, if clients are verified.
    #[arg(long, value_name = "DIR")]
    pub(super) tls_certificates: Option<PathBuf>,

    /// Let in only clients with a certificate of the authority in ca-cert.pem.
    #[arg(long, requires = "tls_certificates")]
    pub(super) tls_verify_clients: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// Past the host's page cache (O_DIRECT).
    Direct,
    /// Through the host's page cache.
    Buffered,
}

impl ServeArgs {
    /// Whether there is anything to do, with so many sockets that were handed over.
    pub(super) fn check(&self, sockets: usize) -> anyhow::Result<()> {
        ensure!(
            !self.nbd.is_empty() || self.vhost_user_blk.is_some() || sockets > 0,
            "say where to serve the disk: --nbd URI, --vhost-user-blk SOCKET, or both"
        );
        Ok(())
    }

    pub(super) fn chain_options(&self) -> ChainOptions {
        let format = self.format.map(|format| match format {
            disk::Format::Raw => graph::Format::Raw,
            disk::Format::Vhdx => graph::Format::Vhdx,
        });
        ChainOptions {
            access: if self.read_only { Access::ReadOnly } else { Access::ReadWrite },
            format,
            cache: match self.cache {
                Cache::Direct => hostio::Cache::Direct,
                Cache::Buffered => hostio::Cache::Buffered,
            },
            parent_mismatch: if self.allow_parent_mismatch {
                ParentMismatch::AllowReadOnly
            } else {
                ParentMismatch::Refuse
            },
            ..ChainOptions::default()
        }
    }

    /// The URIs to listen on, each with the name of its export.
    pub(super) fn nbd_uris(&self) -> impl Iterator<Item = NbdUri> {
        self.nbd.iter().cloned().map(|mut uri| {
            if uri.export.is_empty() {
                self.nbd_export().clone_into(&mut uri.export);
            }
            uri
        })
    }

    /// The name of the NBD export where no URI says another.
    pub(super) fn nbd_export(&self) -> &str {
        self.nbd_export.as_deref().unwrap_or_default()
    }

    pub(super) fn device_options(&self) -> DeviceOptions {
        let id = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        DeviceOptions { id, read_only: self.read_only, ..DeviceOptions::default() }
    }
}

fn parse_nbd(text: &str) -> Result<NbdUri, serve::nbd::UriError> {
    if text.starts_with(['/', '.']) {
        return Ok(NbdUri { address: Address::Unix(text.into()), export: String::new(), tls: false });
    }
    text.parse()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn parse(line: &[&str]) -> Result<ServeArgs, clap::Error> {
        Line::try_parse_from([&["serve"], line].concat()).map(|line| line.args)
    }

    #[test]
    fn every_uri_gets_the_name_of_the_export_unless_it_has_one() {
        let line = ["a.raw", "--nbd", "/run/a.sock", "--nbd", "nbd://h/x", "--nbd-export", "disk"];
        let uris: Vec<_> = parse(&line).unwrap().nbd_uris().map(|uri| uri.to_string()).collect();
        assert_eq!(uris, ["nbd+unix:///disk?socket=/run/a.sock", "nbd://h:10809/x"]);
    }

    #[test]
    fn a_disk_that_may_be_corrupt_is_never_served_for_writing() {
        assert!(parse(&["a.vhdx", "--nbd", "/s", "--allow-parent-mismatch"]).is_err());
        let args = parse(&["a.vhdx", "--nbd", "/s", "--allow-parent-mismatch", "--read-only"]).unwrap();
        let options = args.chain_options();
        assert_eq!(
            (options.access, options.parent_mismatch),
            (Access::ReadOnly, ParentMismatch::AllowReadOnly)
        );
    }

    #[test]
    fn a_server_has_to_be_told_where_to_serve() {
        assert!(parse(&["a.raw"]).unwrap().check(0).is_err());
        assert!(parse(&["a.raw"]).unwrap().check(1).is_ok());
        assert!(parse(&["a.raw", "--vhost-user-blk", "/s"]).unwrap().check(0).is_ok());
    }
}
