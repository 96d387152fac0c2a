//! Serves a host file as vhost-user-blk until it is told to end with Ctrl-C: `vhost_user_blk FILE SOCKET`.

use std::error::Error;
use std::path::PathBuf;

use block::Disk;
use hostio::{HostFile, OpenOptions};
use serve::shard::Shard;
use serve::vhost_user::{DeviceOptions, Listener};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(file), Some(socket)) = (arguments.next(), arguments.next()) else {
        return Err("usage: vhost_user_blk FILE SOCKET".into());
    };
    let disk = Disk::new(HostFile::open(&file, &OpenOptions::read_write())?);
    let listener = Listener::bind(&socket)?;
    let shard = Shard::start("disk")?;
    let options = DeviceOptions { id: "example".into(), ..DeviceOptions::default() };
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    let served = shard.spawn(move || async move {
        let served = listener.serve(disk.clone(), options, interrupted).await;
        (served, disk.close().await)
    });
    let (served, closed) = served.wait()?;
    served?;
    Ok(closed?)
}
