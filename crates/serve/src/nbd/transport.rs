//! Streams as a session sees them: vectored, polled, with one owner.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A connected stream. Each call registers the task for a wake-up if it gives `Pending`.
pub(super) trait Transport {
    /// Receives into `spaces`, in order; 0 at the end of the stream.
    fn poll_receive(&self, cx: &mut Context<'_>, spaces: [&mut [u8]; 2]) -> Poll<io::Result<usize>>;

    /// Sends from `slices`, in order.
    fn poll_send(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Waits until everything that was taken by [`Self::poll_send`] has left this process.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Says goodbye, where the stream has a way to do so.
    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// A socket without TLS.
pub(super) trait Plain: AsyncRead + AsyncWrite + Unpin {
    fn try_receive(&self, spaces: &mut [IoSliceMut<'_>]) -> io::Result<usize>;
    fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn forget_ready(&self, interest: Interest);
}

macro_rules! plain {
    ($stream:ty) => {
        impl Plain for $stream {
            fn try_receive(&self, spaces: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                self.try_read_vectored(spaces)
            }

            fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                self.try_write_vectored(slices)
            }

            fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                if interest.is_readable() { self.poll_read_ready(cx) } else { self.poll_write_ready(cx) }
            }

            fn forget_ready(&self, interest: Interest) {
                // The call says that the socket would block, which is all it is made for.
                let _ = self.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            }
        }
    };
}

plain!(UnixStream);
plain!(TcpStream);

impl<S: Plain> Transport for S {
    fn poll_receive(&self, cx: &mut Context<'_>, spaces: [&mut [u8]; 2]) -> Poll<io::Result<usize>> {
        let wanted: usize = spaces.iter().map(|space| space.len()).sum();
        let mut spaces = spaces.map(IoSliceMut::new);
        let spaces = if spaces[0].is_empty() { &mut spaces[1..] } else { &mut spaces[..] };
        loop {
            ready!(self.poll_ready(Interest::READABLE, cx))?;
            match self.try_receive(spaces) {
                Ok(count) => {
                    // epoll(7): with a stream, less than was asked for means that the socket is drained, so that the
                    // next edge will be told. This saves the call that would only say so.
                    if count > 0 && count < wanted {
                        self.forget_ready(Interest::READABLE);
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        loop {
            ready!(self.poll_ready(Interest::WRITABLE, cx))?;
            match self.try_send(slices) {
                Ok(count) => {
                    // As for receiving: the socket is full.
                    if count < wanted {
                        self.forget_ready(Interest::WRITABLE);
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A socket with TLS.
pub(super) struct Tls<S>(RefCell<TlsStream<S>>);

impl<S> Tls<S> {
    pub(super) fn new(stream: TlsStream<S>) -> Self {
        Self(RefCell::new(stream))
    }
}

impl<S: Plain> Transport for Tls<S> {
    fn poll_receive(&self, cx: &mut Context<'_>, [first, second]: [&mut [u8]; 2]) -> Poll<io::Result<usize>> {
        let mut space = ReadBuf::new(if first.is_empty() { second } else { first });
        ready!(Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, &mut space))?;
        Poll::Ready(Ok(space.filled().len()))
    }

    fn poll_send(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(cx, slices)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }
}

/// Says goodbye on `transport`.
pub(super) async fn shut_down(transport: &impl Transport) -> io::Result<()> {
    poll_fn(|cx| transport.poll_shutdown(cx)).await
}
