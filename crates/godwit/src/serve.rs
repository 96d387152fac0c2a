//! `godwit serve`: one disk for others, in the foreground, until it is told to end.

mod activation;
mod args;
mod event;
mod sd_notify;
mod stop;

use std::io;
use std::os::fd::OwnedFd;

use anyhow::Context as _;
use block::Disk;
use graph::{Chain, open_chain};
use serve::shard::{Shard, ShardTask};
use serve::{nbd, vhost_user};

pub(crate) use self::args::ServeArgs;
use self::event::Event;
use self::stop::{Stop, StopHandle, Stopped};
use crate::exit::Exit;
use crate::report::Form;

/// A front end at work on the shard.
type Serving = ShardTask<io::Result<()>>;

pub(crate) fn run(args: ServeArgs, form: Form) -> anyhow::Result<Exit> {
    let sockets = activation::sockets()?;
    args.check(sockets.len())?;
    // From here on a signal is kept for us instead of ending the process.
    let stop = Stop::on_signals()?;
    let shard = Shard::start("disk").context("start the thread that serves the disk")?;
    let chain = open(&args, &shard)?;
    let served = serve(&args, sockets, &chain, &shard, stop, form);
    let closed = close(&chain.disk, &shard);
    // An error while serving matters more than one that follows from it.
    let served = served?;
    closed.with_context(|| format!("close {}", args.path.display()))?;
    // The thread has nothing left to do; if it panicked, a task has told so.
    let _ = shard.shutdown();
    Event::Stopped.print(form);
    served.context("serve the disk")?;
    Ok(Exit::Done)
}

fn open(args: &ServeArgs, shard: &Shard) -> anyhow::Result<Chain> {
    let (path, options) = (args.path.clone(), args.chain_options());
    Ok(shard.spawn(move || async move { open_chain(&path, &options).await }).wait()??)
}

/// Serves until a signal comes or a front end fails; gives what the front ends ended with.
fn serve(
    args: &ServeArgs,
    sockets: Vec<OwnedFd>,
    chain: &Chain,
    shard: &Shard,
    stop: Stop,
    form: Form,
) -> anyhow::Result<io::Result<()>> {
    let listeners = nbd_listeners(args, sockets, chain)?;
    let vhost_user_blk = match &args.vhost_user_blk {
        Some(path) => {
            let listener = vhost_user::Listener::bind(path);
            Some(listener.with_context(|| format!("listen on {}", path.display()))?)
        }
        None => None,
    };
    let ready = Event::ready(args, chain, listeners.iter().map(nbd::Listener::uri));
    let mut serving = Vec::new();
    if !listeners.is_empty() {
        serving.push(start_nbd(listeners, shard, stop.handle()));
    }
    if let Some(listener) = vhost_user_blk {
        serving.push(start_vhost_user_blk(listener, args, &chain.disk, shard, stop.handle()));
    }
    ready.print(form);
    sd_notify::tell("READY=1\nSTATUS=Serving");
    let (stopped, ended) = stop.wait(serving);
    if let Stopped::Signal(name) = stopped {
        Event::Stopping { signal: name }.print(form);
    }
    Ok(ended)
}

/// Listeners on the URIs that were given, and on the sockets that were handed over.
fn nbd_listeners(
    args: &ServeArgs,
    sockets: Vec<OwnedFd>,
    chain: &Chain,
) -> anyhow::Result<Vec<nbd::Listener>> {
    let tls = match &args.tls_certificates {
        Some(directory) => Some(nbd::TlsIdentity::load(directory, args.tls_verify_clients)?),
        None => None,
    };
    let description = args.path.file_name().unwrap_or_default().to_string_lossy();
    let mut listeners = Vec::new();
    for uri in args.nbd_uris() {
        listeners.push(nbd::Listener::bind(&uri, &chain.disk, &description, tls.as_ref())?);
    }
    for socket in sockets {
        listeners.push(nbd::Listener::inherited(socket, args.nbd_export(), &chain.disk, &description)?);
    }
    Ok(listeners)
}

fn start_nbd(listeners: Vec<nbd::Listener>, shard: &Shard, stop: StopHandle) -> Serving {
    shard.spawn(move || nbd::serve(listeners, stop.stopped()))
}

fn start_vhost_user_blk(
    listener: vhost_user::Listener,
    args: &ServeArgs,
    disk: &Disk,
    shard: &Shard,
    stop: StopHandle,
) -> Serving {
    let options = args.device_options();
    let disk = disk.clone();
    shard.spawn(move || listener.serve(disk, options, stop.stopped()))
}

/// Makes everything durable and gives the files back.
fn close(disk: &Disk, shard: &Shard) -> anyhow::Result<()> {
    let disk = disk.clone();
    Ok(shard.spawn(move || async move { disk.close().await }).wait()??)
}
