//! A handshake over a stream of tokio's traits: simulated ones ([`uktls_stack::sim`]) have no others.

use super::negotiate::{Complete, Handshake, Progress};
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that is asked once and says `WouldBlock` when it has nothing; its waker is set then.
struct Asked<'a, 'b, S> {
    stream: &'a mut S,
    cx: &'a mut Context<'b>,
}

impl<S: AsyncRead + Unpin> Read for Asked<'_, '_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        match Pin::new(&mut *self.stream).poll_read(self.cx, &mut buf) {
            Poll::Ready(outcome) => outcome.map(|()| buf.filled().len()),
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S: AsyncWrite + Unpin> Write for Asked<'_, '_, S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.stream).poll_write(self.cx, buf) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match Pin::new(&mut *self.stream).poll_flush(self.cx) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Handshake {
    /// Shakes hands to the end. Nothing behind the last handshake record is read, so the keys can be set on the socket next.
    ///
    /// # Errors
    /// What the stream says, or what is wrong with the peer's messages.
    pub async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        stream: &mut S,
    ) -> io::Result<Complete> {
        poll_fn(|cx| match self.step(&mut Asked { stream, cx }) {
            Ok(Progress::Done) => Poll::Ready(Ok(())),
            Ok(Progress::WantRead | Progress::WantWrite) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        })
        .await?;
        self.complete()
    }
}
