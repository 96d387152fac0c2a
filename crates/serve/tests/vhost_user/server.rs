//! A server on a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use block::Disk;
use serve::vhost_user::{DeviceOptions, Listener};
use tempfile::TempDir;
use testkit::{HeldDev, MemDev};
use tokio::sync::oneshot;

/// A running server, stopped in an orderly way when it is dropped.
pub(crate) struct Server {
    orders: Option<oneshot::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Stop,
    Die,
}

impl Server {
    /// Serves `disk` at `socket`.
    pub(crate) fn start(socket: &Path, disk: Disk, options: DeviceOptions) -> Self {
        let (orders, order) = oneshot::channel();
        let listener = Listener::bind(socket).unwrap();
        let thread = std::thread::spawn(move || run(listener, disk, options, order));
        Self { orders: Some(orders), thread: Some(thread) }
    }

    /// Ends the server as a kill would: whatever it was doing is dropped, and no answer is given any more.
    pub(crate) fn kill(mut self) {
        self.end(Order::Die);
    }

    /// Lets the server finish what it is doing, and stop.
    pub(crate) fn stop(mut self) {
        self.end(Order::Stop);
    }

    fn end(&mut self, order: Order) {
        let Some(orders) = self.orders.take() else { return };
        let _ = orders.send(order);
        let thread = self.thread.take().expect("it is joined once");
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end(Order::Stop);
        }
    }
}

fn run(listener: Listener, disk: Disk, options: DeviceOptions, order: oneshot::Receiver<Order>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    runtime.block_on(async {
        let (stop, stopped) = oneshot::channel::<()>();
        let die = async {
            match order.await {
                Ok(Order::Die) => {}
                Ok(Order::Stop) | Err(_) => {
                    let _ = stop.send(());
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = die => {}
            served = listener.serve(disk, options, async { drop(stopped.await) }) => served.unwrap(),
        }
    });
    // Dropping the runtime drops the queues' tasks with their requests.
}

/// A folder with a socket's path in it.
pub(crate) struct Place {
    _folder: TempDir,
    pub(crate) socket: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("disk.sock");
        Self { _folder: folder, socket }
    }
}

/// A RAM disk behind a layer that can hold its requests.
pub(crate) fn held_disk(size: u64) -> (Arc<MemDev>, Arc<HeldDev>, Disk) {
    let mem = Arc::new(MemDev::new(size));
    let held = Arc::new(HeldDev::new(Disk::from_arc(mem.clone())));
    let disk = Disk::from_arc(held.clone());
    (mem, held, disk)
}
