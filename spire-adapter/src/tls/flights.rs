//! A stream for dialogues, on which all that is said before an answer leaves at once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How much is held back at most.
const LIMIT: usize = 16 * 1024;

/// Holds back what is written until something is read, or the stream is shut down or dropped: the end of a TLS
/// handshake leaves with the first words after it, in one packet instead of two. Flushing alone sends nothing, so it
/// suits only who reads on or shuts down once he has spoken.
#[derive(Debug)]
pub struct Flights<S: AsyncWrite + Unpin> {
    stream: S,
    held: Vec<u8>,
}

impl<S: AsyncWrite + Unpin> Flights<S> {
    /// Over a stream on which nothing waits for more (`TCP_NODELAY`).
    pub const fn new(stream: S) -> Self {
        Self { stream, held: Vec::new() }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..sent.min(self.held.len()));
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room; nothing is taken in while there is none.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.len() < LIMIT { Poll::Ready(Ok(())) } else { self.poll_send(context) }
    }
}

impl Flights<TcpStream> {
    /// What is said from now on is the last: it leaves with the end of the stream, in one packet instead of two.
    pub fn conclude(&self) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_tcp_cork(&self.stream, true)?)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Flights<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // An answer may come although not everything could be sent yet.
        if let Poll::Ready(Err(error)) = self.poll_send(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flights<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(context))?;
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(context))?;
        let before = self.held.len();
        for slice in slices {
            self.held.extend_from_slice(slice);
        }
        Poll::Ready(Ok(self.held.len().saturating_sub(before)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What ends a handshake, such as an alert, is sent if it can be without waiting.
impl<S: AsyncWrite + Unpin> Drop for Flights<S> {
    fn drop(&mut self) {
        let _sent_or_not = self.poll_send(&mut Context::from_waker(Waker::noop()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What was sent, write by write, of at most so many bytes each.
    #[derive(Clone)]
    struct Wire(Arc<Mutex<Vec<Vec<u8>>>>, usize);

    impl Wire {
        fn new(at_a_time: usize) -> Self {
            Self(Arc::default(), at_a_time)
        }

        fn sent(&self) -> Vec<Vec<u8>> {
            self.0.lock().unwrap().clone()
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let length = bytes.len().min(self.1);
            self.0.lock().unwrap().push(bytes[..length].to_vec());
            Poll::Ready(Ok(length))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.lock().unwrap().push(b"end".to_vec());
            Poll::Ready(Ok(()))
        }
    }

    /// Nothing more comes.
    impl AsyncRead for Wire {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn say(stream: &mut Flights<Wire>) {
        stream.write_all(b"one ").await.unwrap();
        stream.flush().await.unwrap();
        let vectored = stream.write_vectored(&[IoSlice::new(b"two "), IoSlice::new(b"three")]).await.unwrap();
        assert_eq!(vectored, 9);
    }

    #[tokio::test]
    async fn what_is_said_leaves_in_one_when_an_answer_is_waited_for() {
        let wire = Wire::new(100);
        let mut stream = Flights::new(wire.clone());
        say(&mut stream).await;
        assert!(wire.sent().is_empty());
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(wire.sent(), [b"one two three"]);
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(wire.sent().len(), 1, "once");
    }

    #[tokio::test]
    async fn it_leaves_before_the_end_and_when_it_is_dropped() {
        let wire = Wire::new(100);
        let mut stream = Flights::new(wire.clone());
        say(&mut stream).await;
        stream.shutdown().await.unwrap();
        drop(stream);
        assert_eq!(wire.sent(), [b"one two three".as_slice(), b"end"]);
        let wire = Wire::new(100);
        let mut stream = Flights::new(wire.clone());
        say(&mut stream).await;
        drop(stream);
        assert_eq!(wire.sent(), [b"one two three"]);
    }

    #[tokio::test]
    async fn a_stream_that_takes_little_at_a_time_gets_all_in_its_order() {
        let wire = Wire::new(5);
        let mut stream = Flights::new(wire.clone());
        say(&mut stream).await;
        stream.shutdown().await.unwrap();
        assert_eq!(wire.sent().concat(), b"one two threeend");
        let stuck = Wire::new(0);
        let mut stream = Flights::new(stuck);
        say(&mut stream).await;
        assert_eq!(stream.shutdown().await.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }

    #[tokio::test]
    async fn no_more_than_a_flight_is_held() {
        let wire = Wire::new(usize::MAX);
        let mut stream = Flights::new(wire.clone());
        for _ in 0..100 {
            stream.write_all(&[7; 1000]).await.unwrap();
            assert!(stream.held.len() < LIMIT + 1000);
        }
        stream.shutdown().await.unwrap();
        assert_eq!(wire.sent().concat().len(), 100_003);
    }

    /// How long the kernel holds the last packet back at most.
    const CORKED: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn the_last_words_leave_with_the_end_of_the_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Where the kernel has had time to send them anyway, there was nothing to see.
        for _ in 0..100 {
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            near.set_nodelay(true).unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            let mut near = Flights::new(near);
            near.conclude().unwrap();
            near.write_all(b"last").await.unwrap();
            let began = Instant::now();
            std::future::poll_fn(|context| near.poll_send(context)).await.unwrap();
            tokio::time::sleep(CORKED / 8).await;
            let early = far.try_read(&mut [0; 4]).map_err(|error| error.kind());
            let judged = began.elapsed() < CORKED / 2;
            near.shutdown().await.unwrap();
            if judged {
                assert_eq!(early, Err(io::ErrorKind::WouldBlock), "before the end");
                let mut said = Vec::new();
                far.read_to_end(&mut said).await.unwrap();
                assert_eq!(said, b"last");
                return;
            }
        }
        panic!("never quick enough");
    }
}
