//! The bytes of a connection: a write that does not get on ends it, and what is given up leaves nothing in the kernel.
//!
//! Owns no bound on reads: heads and bodies have theirs.

use std::io;
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// A connection whose peer must read what it asked for.
pub struct Stream {
    tcp: TcpStream,
    patience: Duration,
    /// Runs while the kernel takes nothing more.
    stalls: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    /// Gives up when nothing could be written for so long.
    pub fn new(tcp: TcpStream, patience: Duration) -> Self {
        Self {
            tcp,
            patience,
            stalls: None,
        }
    }

    /// Closes it with a reset: the kernel does not keep for minutes what the peer will not read.
    pub fn abandon(self) {
        reset(&self.tcp);
    }

    fn bounded(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalls = None;
            return written;
        }
        let patience = self.patience;
        let stalls = self.stalls.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalls.as_mut().poll(context));
        reset(&self.tcp);
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

/// Takes effect when it is closed. Where it cannot be set, the peer has gone already.
fn reset(tcp: &TcpStream) {
    let _set = tcp.set_zero_linger().is_ok();
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(context, slices);
        self.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const MUCH: usize = 64 << 20;

    async fn pair(patience: Duration) -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (ours, _) = listener.accept().await.unwrap();
        (Stream::new(ours, patience), peer.unwrap())
    }

    #[tokio::test]
    async fn a_peer_that_never_reads_is_given_up_and_sees_a_reset() {
        let (mut ours, mut peer) = pair(Duration::from_millis(200)).await;
        let written = ours.write_all(&vec![0; MUCH]).await;
        assert_eq!(written.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(ours);
        let mut all = Vec::new();
        let read = peer.read_to_end(&mut all).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_peer_that_reads_gets_all_of_it() {
        let (mut ours, mut peer) = pair(Duration::from_secs(60)).await;
        let much = vec![0; MUCH];
        let writes = async {
            ours.write_all(&much).await.unwrap();
            ours.shutdown().await.unwrap();
        };
        let mut all = Vec::new();
        let (read, ()) = tokio::join!(peer.read_to_end(&mut all), writes);
        assert_eq!(read.unwrap(), MUCH);
    }
}
