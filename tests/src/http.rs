//! A small HTTP/1.1 client that shows what higher ones hide: one connection, kept, over which requests
//! are sent and answers awaited separately.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab::namespace::Namespace;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// A connection kept open over many requests.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    host: String,
    received: Vec<u8>,
    /// How long connecting took.
    pub connect_time: Duration,
}

impl Connection {
    /// Connects from a namespace.
    ///
    /// # Errors
    /// When there is no connection within `limit`.
    pub fn open(from: &Namespace, to: SocketAddr, limit: Duration) -> Result<Self> {
        let start = Instant::now();
        let stream = from.tcp_connect(to, limit)?;
        let connect_time = start.elapsed();
        stream.set_nodelay(true)?;
        Ok(Self { stream, host: to.to_string(), received: Vec::new(), connect_time })
    }

    /// Sends a request and awaits its answer.
    ///
    /// # Errors
    /// When the connection breaks or the answer does not come in time.
    pub fn request(&mut self, method: &str, path: &str, body: &str, limit: Duration) -> Result<Response> {
        self.send(method, path, body)?;
        self.receive(limit)?.with_context(|| format!("no answer to {method} {path} within {limit:?}"))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn send(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let host = &self.host;
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{body}");
        self.stream.write_all(request.as_bytes()).context("send the request")
    }

    /// Awaits an answer; none if it does not come in time, and then it may still come.
    ///
    /// # Errors
    /// When the connection breaks or what comes is no HTTP.
    pub fn receive(&mut self, limit: Duration) -> Result<Option<Response>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some((response, length)) = parse(&self.received)? {
                self.received.drain(..length);
                return Ok(Some(response));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("{} closed the connection", self.host),
                Ok(count) => self.received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("await the answer"),
            }
        }
    }
}

/// One `GET` on a connection of its own.
///
/// # Errors
/// When there is no answer within `limit`.
pub fn get(from: &Namespace, to: SocketAddr, path: &str, limit: Duration) -> Result<Response> {
    Connection::open(from, to, limit)?.request("GET", path, "", limit)
}

/// The first answer in what has been received and its length; none as long as it is not complete.
fn parse(received: &[u8]) -> Result<Option<(Response, usize)>> {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let (head, rest) = received.split_at(end + 4);
    let head = std::str::from_utf8(head).context("the head of the answer")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("status line")?;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.trim().parse::<usize>().context("content-length")?),
            "transfer-encoding" => bail!("a chunked answer, which this client does not read"),
            _ => {}
        }
    }
    let length = length.context("an answer without content-length")?;
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let body = String::from_utf8_lossy(body).into_owned();
    Ok(Some((Response { status: status.parse().context("status")?, body }, end + 4 + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nShip landed\n";

    #[test]
    fn an_answer_is_complete_with_its_last_byte() {
        for length in 0..ANSWER.len() {
            assert_eq!(parse(&ANSWER[..length]).unwrap(), None);
        }
        let (response, length) = parse(ANSWER).unwrap().unwrap();
        assert_eq!(response, Response { status: 200, body: "Ship landed\n".into() });
        assert_eq!(length, ANSWER.len());
    }

    #[test]
    fn the_next_answer_stays() {
        let two = [ANSWER, ANSWER].concat();
        assert_eq!(parse(&two).unwrap().unwrap().1, ANSWER.len());
    }

    #[test]
    fn what_is_no_http_is_an_error() {
        assert!(parse(b"hello\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
