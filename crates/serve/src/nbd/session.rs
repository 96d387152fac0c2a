//! One connection: the task that owns its socket, and the tasks of its requests.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use block::Disk;
use nbd::{Connection, Event, Exports, Pending, Request, Violation};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::execute::{Answer, carry_out};
use super::transport::{Plain, Tls, Transport, shut_down};

/// How long a client may take from the connection to the transmission phase.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to receive its last replies once it has said goodbye or the server was told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How many stretches of memory one call sends: header and payload of 32 replies.
const SLICES_MAX: usize = 64;

/// So many bytes of replies are sent before further requests are looked at, so that the client is not idle meanwhile.
const SEND_EARLY_BYTES: usize = 64 << 10;

/// How many requests a session takes before the other tasks of the thread have their turn. Requests that need not wait
/// are carried out as they are taken.
const REQUESTS_PER_TURN: usize = 64;

/// The state of one connection, shared by its own task and those of its requests.
pub(super) struct Session {
    /// Tells the connections of a server apart in its log.
    number: u64,
    connection: RefCell<Connection>,
    exports: Arc<Exports>,
    disk: RefCell<Option<Disk>>,
    /// Wakes the session's own task.
    waker: RefCell<Waker>,
    tasks: Cell<usize>,
    stopping: Cell<bool>,
    /// A request's task ended without a reply, which only a bug can do; the client would wait for ever.
    broken: Cell<bool>,
}

/// Why a session ended, other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the client broke the protocol")]
    Violation(#[from] Violation),
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the client did not finish the handshake in {} s", HANDSHAKE_TIMEOUT.as_secs())]
    HandshakeTimeout,
    #[error("the client did not take its last replies in {} s", DRAIN_TIMEOUT.as_secs())]
    DrainTimeout,
    #[error("TLS was asked for and is not set up")]
    NoTls,
    #[error("a request ended without a reply")]
    Broken,
}

/// Where a session has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    StartTls,
    Transmission,
    /// The client is gone, has said goodbye, or the server is stopping: nothing more is received.
    Over,
}

/// Whether there is more to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// All that has arrived.
    All,
    /// As much as one turn may; the rest waits.
    Turn,
    /// Something that changes how the session goes on.
    Until(Progress),
}

impl Session {
    pub(super) fn new(number: u64, exports: Arc<Exports>) -> Rc<Self> {
        Rc::new(Self {
            number,
            connection: RefCell::new(Connection::new(exports.clone())),
            exports,
            disk: RefCell::new(None),
            waker: RefCell::new(Waker::noop().clone()),
            tasks: Cell::new(0),
            stopping: Cell::new(false),
            broken: Cell::new(false),
        })
    }

    /// Nothing more is to be received; the requests in flight are carried out and answered.
    pub(super) fn stop(&self) {
        self.stopping.set(true);
        self.wake();
    }

    fn wake(&self) {
        self.waker.borrow().wake_by_ref();
    }

    /// Runs the connection to its end, and returns when none of its requests is at work any more.
    pub(super) async fn run<S: Plain>(self: Rc<Self>, stream: S, tls: Option<TlsAcceptor>) {
        let conn = self.number;
        debug!(conn, "a client has connected");
        let result = self.clone().talk(stream, tls).await;
        // Style rule 1 of the data plane: a session that ends waits for its requests, even if nobody hears of them.
        poll_fn(|cx| self.poll_idle(cx)).await;
        match result {
            Ok(()) => debug!(conn, "the connection is closed"),
            Err(SessionError::Broken) => warn!(conn, error = %SessionError::Broken, "closed the connection"),
            Err(error) => debug!(conn, error = &error as &dyn std::error::Error, "closed the connection"),
        }
    }

    async fn talk<S: Plain>(self: Rc<Self>, stream: S, tls: Option<TlsAcceptor>) -> Result<(), SessionError> {
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        match within(deadline, self.progress(&stream)).await? {
            Progress::StartTls => {
                let acceptor = tls.ok_or(SessionError::NoTls)?;
                // The client begins with TLS once it has our reply.
                within(deadline, async { Ok(poll_fn(|cx| self.poll_drain(cx, &stream)).await?) }).await?;
                let stream = within(deadline, async { Ok(acceptor.accept(stream).await?) }).await?;
                self.connection.borrow_mut().tls_started();
                let stream = Tls::new(stream);
                let progress = within(deadline, self.progress(&stream)).await?;
                self.transmit(&stream, progress).await
            }
            progress => self.transmit(&stream, progress).await,
        }
    }

    async fn transmit(
        self: &Rc<Self>,
        stream: &impl Transport,
        progress: Progress,
    ) -> Result<(), SessionError> {
        if progress == Progress::Transmission {
            self.progress(stream).await?;
        }
        poll_fn(|cx| self.poll_idle(cx)).await;
        let drained = timeout(DRAIN_TIMEOUT, async {
            poll_fn(|cx| self.poll_drain(cx, stream)).await?;
            shut_down(stream).await
        });
        Ok(drained.await.map_err(|_| SessionError::DrainTimeout)??)
    }

    /// Sends, receives and starts requests until something changes.
    async fn progress(self: &Rc<Self>, stream: &impl Transport) -> Result<Progress, SessionError> {
        poll_fn(|cx| self.poll_progress(cx, stream)).await
    }

    fn poll_progress(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        stream: &impl Transport,
    ) -> Poll<Result<Progress, SessionError>> {
        self.register(cx);
        loop {
            // Replies go first: they make room for requests.
            let flushed = self.poll_drain(cx, stream)?;
            if self.broken.get() {
                return Poll::Ready(Err(SessionError::Broken));
            }
            match self.take_events(cx, stream)? {
                Taken::Until(progress) => return Poll::Ready(Ok(progress)),
                Taken::All if self.stopping.get() => return Poll::Ready(Ok(Progress::Over)),
                Taken::All => {}
                Taken::Turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            if self.connection.borrow().has_output() && flushed.is_ready() {
                continue;
            }
            let mut connection = self.connection.borrow_mut();
            if !connection.wants_input() {
                return Poll::Pending;
            }
            match stream.poll_receive(cx, connection.spaces())? {
                Poll::Ready(0) => return Poll::Ready(Ok(Progress::Over)),
                Poll::Ready(count) => connection.received(count),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Starts requests that have arrived.
    fn take_events(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        stream: &impl Transport,
    ) -> Result<Taken, SessionError> {
        let mut blocked = false;
        for _ in 0..REQUESTS_PER_TURN {
            let event = self.connection.borrow_mut().next_event()?;
            match event {
                None => return Ok(Taken::All),
                Some(Event::StartTls) => return Ok(Taken::Until(Progress::StartTls)),
                Some(Event::Transmission(index)) => {
                    self.choose(index);
                    return Ok(Taken::Until(Progress::Transmission));
                }
                Some(Event::Request(request)) => self.start(request),
                Some(Event::Disconnect) => return Ok(Taken::Until(Progress::Over)),
            }
            if !blocked && self.connection.borrow().output_len() >= SEND_EARLY_BYTES {
                blocked = self.poll_drain(cx, stream)?.is_pending();
            }
        }
        Ok(Taken::Turn)
    }

    fn choose(&self, index: usize) {
        let export = &self.exports.list()[index];
        debug!(conn = self.number, export = export.name, "a client has entered the transmission phase");
        *self.disk.borrow_mut() = Some(export.disk.clone());
    }

    /// Carries out a request: at once if it need not wait, and as a task of its own otherwise.
    fn start(self: &Rc<Self>, request: Request) {
        let disk = self.disk.borrow().clone().expect("requests come after an export was chosen");
        let session = self.clone();
        let mut work = Box::pin(async move {
            let result = carry_out(&disk, request.command).await;
            session.answer(request.pending, result);
        });
        // The task polls it again, and is what is woken then.
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            let claim = Claim::new(self);
            tokio::task::spawn_local(async move {
                work.await;
                drop(claim);
            });
        }
    }

    fn answer(&self, pending: Pending, result: block::Result<Answer>) {
        let mut connection = self.connection.borrow_mut();
        match result {
            Ok(Answer::Done) => connection.reply_done(pending),
            Ok(Answer::Data(data)) => connection.reply_data(pending, data),
            Ok(Answer::Extents(extents)) => connection.reply_extents(pending, &extents),
            Err(error) => {
                debug!(conn = self.number, error = error.chain(), "a request failed");
                connection.reply_error(pending, &error);
            }
        }
    }

    fn register(&self, cx: &mut Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.will_wake(cx.waker()) {
            waker.clone_from(cx.waker());
        }
    }

    /// Ready when no request is at work.
    fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.register(cx);
        if self.tasks.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when all output has left.
    fn poll_drain(&self, cx: &mut Context<'_>, stream: &impl Transport) -> Poll<io::Result<()>> {
        let mut connection = self.connection.borrow_mut();
        while connection.has_output() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = connection.output(&mut slices);
            let Poll::Ready(sent) = stream.poll_send(cx, &slices[..count])? else { return Poll::Pending };
            connection.sent(sent);
        }
        stream.poll_flush(cx)
    }
}

/// Runs a part of the handshake.
async fn within<T>(
    deadline: Instant,
    part: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    timeout_at(deadline, part).await.map_err(|_| SessionError::HandshakeTimeout)?
}

/// A request at work: wakes the session when it ends, however it ends.
struct Claim {
    session: Rc<Session>,
}

impl Claim {
    fn new(session: &Rc<Session>) -> Self {
        session.tasks.update(|tasks| tasks + 1);
        Self { session: session.clone() }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.session.broken.set(true);
        }
        self.session.tasks.update(|tasks| tasks - 1);
        self.session.wake();
    }
}
