//! A front end's connection: lets its messages in and keeps the queues that they describe running.

use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;

use block::Disk;
use vhost_user::{Connection, DeviceOptions, Disturbed, Incoming, Target};

use super::queue::RunningQueue;
use super::watch::Watched;

/// How a session ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The front end has closed the connection.
    FrontEndLeft,
    /// The server is to stop.
    Shutdown,
}

/// Serves `disk` to the front end on `stream` until it leaves or `shutdown` resolves.
///
/// # Errors
/// What the front end did wrong. Its queues have ended by then.
pub(super) async fn run(
    stream: UnixStream,
    disk: &Disk,
    options: &DeviceOptions,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> io::Result<End> {
    let socket = Watched::socket(&stream)?;
    let connection = Connection::new(stream, disk.clone(), options.clone())?;
    let queues = (0..connection.device().queue_count()).map(|_| None).collect();
    let mut session = Session { disk, options, connection, queues };
    let end = session.serve(&socket, shutdown).await;
    if matches!(end, Ok(End::Shutdown)) {
        session.stop(Disturbed::All).await;
    } else {
        session.abandon().await;
    }
    end
}

struct Session<'a> {
    disk: &'a Disk,
    options: &'a DeviceOptions,
    connection: Connection,
    queues: Vec<Option<RunningQueue>>,
}

impl Session<'_> {
    async fn serve(
        &mut self,
        socket: &Watched,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<End> {
        let mut closed = false;
        loop {
            match self.connection.incoming()? {
                Incoming::Nothing if closed => {
                    return Err(io::Error::other("the front end has left in the middle of a message"));
                }
                Incoming::Closed => return Ok(End::FrontEndLeft),
                Incoming::Message(disturbed) => {
                    self.stop(disturbed).await;
                    self.connection.handle().map_err(io::Error::other)?;
                    self.update()?;
                }
                Incoming::Nothing => {
                    tokio::select! {
                        biased;
                        () = shutdown.as_mut() => return Ok(End::Shutdown),
                        edge = socket.edge() => closed = edge?,
                    }
                }
            }
        }
    }

    /// Stops the queues that a message is about to disturb; what they have in flight is answered first.
    async fn stop(&mut self, disturbed: Disturbed) {
        let indices = match disturbed {
            Disturbed::None => 0..0,
            Disturbed::One(index) => index..index.saturating_add(1).min(self.queues.len()),
            Disturbed::All => 0..self.queues.len(),
        };
        for index in indices {
            if let Some(queue) = self.queues[index].take() {
                let device = &self.connection;
                queue.drain(|queue, kick| device.device().stopped(index, queue, kick)).await;
            }
        }
    }

    async fn abandon(&mut self) {
        for queue in self.queues.iter_mut().filter_map(Option::take) {
            queue.abandon().await;
        }
    }

    /// Brings the queues in line with what the last message has made of the device.
    fn update(&mut self) -> io::Result<()> {
        let mut device = self.connection.device();
        for (index, running) in self.queues.iter_mut().enumerate() {
            if let Some(running) = running {
                running.update(device.events(index), |queue| device.refresh(queue));
                continue;
            }
            if !device.can_start(index) {
                continue;
            }
            match device.start(index) {
                Ok(started) => {
                    let target = Target::new(self.disk.clone(), self.options, started.durable_writes);
                    *running = Some(RunningQueue::start(index, started, device.events(index), target)?);
                }
                Err(error) => {
                    let error = super::chain(&error);
                    tracing::error!(queue = index, %error, "the queue cannot start until it is set up again");
                    super::queue::signal(device.events(index).error.as_deref());
                }
            }
        }
        Ok(())
    }
}
