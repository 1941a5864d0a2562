//! Servers that say who they are, and clients that ask.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use authd_tests::{Namespace, wait};

use authd_tests::star_wars::PATIENCE;

/// How long one datagram may take to be answered.
const ANSWER: Duration = Duration::from_secs(3);
/// How often a server looks whether it is over.
const BREATH: Duration = Duration::from_millis(50);
/// Asks for the name; everything else is given back.
const WHO: &[u8] = b"who\n";
/// Asks for the caller's address, as the server sees it.
const WHENCE: &[u8] = b"whence\n";

/// A server over TCP and UDP of a pod. It ends when this is dropped.
pub(crate) struct Ship {
    over: Arc<AtomicBool>,
}

impl Drop for Ship {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Ship {
    pub(crate) fn launch(pod: &Namespace, name: &'static str, port: u16) -> Result<Self> {
        let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let (listener, socket) = (pod.tcp_listen(at)?, pod.udp_bind(at)?);
        let over = Arc::new(AtomicBool::new(false));
        socket.set_read_timeout(Some(BREATH))?;
        listener.set_nonblocking(true)?;
        let ended = Arc::clone(&over);
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(thread::spawn(move || serve(stream, name))),
                    Err(_) => wait::pause(Duration::from_millis(2)),
                }
            }
        });
        let ended = Arc::clone(&over);
        thread::spawn(move || {
            let mut datagram = vec![0; 1 << 16];
            while !ended.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
                let Some(said) = datagram.get(..length) else { continue };
                let answer = if said == WHO { name.as_bytes() } else { said };
                drop(socket.send_to(answer, from));
            }
        });
        Ok(Self { over })
    }
}

/// Answers until the other end has done.
fn serve(stream: TcpStream, name: &str) -> Result<()> {
    stream.set_nonblocking(false)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line == WHO {
            writer.write_all(format!("{name}\n").as_bytes())?;
        } else if line == WHENCE {
            let caller = writer.peer_addr()?.ip().to_canonical();
            writer.write_all(format!("{caller}\n").as_bytes())?;
        } else {
            writer.write_all(&line)?;
        }
    }
}

/// A connection.
pub(crate) struct Call {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Call {
    pub(crate) fn open(from: &Namespace, to: SocketAddr) -> Result<Self> {
        Self::open_within(from, to, PATIENCE)
    }

    pub(crate) fn open_within(from: &Namespace, to: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = from.tcp_connect(to, limit.min(Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { writer: stream.try_clone()?, reader: BufReader::new(stream) })
    }

    /// Who is there.
    pub(crate) fn ask(&mut self) -> Result<String> {
        self.say(WHO)
    }

    /// Under which address the call has come.
    pub(crate) fn whence(&mut self) -> Result<IpAddr> {
        Ok(self.say(WHENCE)?.parse()?)
    }

    fn say(&mut self, line: &[u8]) -> Result<String> {
        self.writer.write_all(line)?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    /// Sends as many bytes, and gets them back as they were.
    pub(crate) fn exchange(&mut self, bytes: usize) -> Result<()> {
        let line: Vec<u8> = (0..1021_u32).map(|at| b'a' + u8::try_from(at % 26).unwrap_or(0)).collect();
        let line = [line.as_slice(), b"\n"].concat();
        let sent = line.repeat(bytes / line.len());
        let mut writer = self.writer.try_clone()?;
        let (outgoing, length) = (sent.clone(), sent.len());
        let sender = thread::spawn(move || writer.write_all(&outgoing));
        let mut back = vec![0; length];
        self.reader.read_exact(&mut back)?;
        ensure!(sender.join().is_ok_and(|sent| sent.is_ok()), "not everything was sent");
        ensure!(back == sent, "what came back is not what was sent");
        Ok(())
    }
}

/// A socket for datagrams that takes answers only from where it sends to.
pub(crate) struct Datagrams {
    socket: UdpSocket,
}

impl Datagrams {
    pub(crate) fn open(from: &Namespace, to: SocketAddr) -> Result<Self> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from.udp_bind(any.parse()?)?;
        from.run(|| socket.connect(to))??;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(Self { socket })
    }

    /// Who is there.
    pub(crate) fn ask(&self) -> Result<String> {
        let mut name = [0; 64];
        self.socket.send(WHO)?;
        let length = self.socket.recv(&mut name)?;
        Ok(String::from_utf8_lossy(name.get(..length).unwrap_or_default()).into_owned())
    }

    /// Sends datagrams of these sizes until each has come back as it was.
    pub(crate) fn echo_all(&self, sizes: &[usize]) -> Result<()> {
        sizes.iter().try_for_each(|size| {
            let back = wait::until(PATIENCE, || self.echo(*size).ok());
            back.map(drop).with_context(|| format!("{size} bytes don't come back"))
        })
    }

    /// Sends a datagram of this size, and gets it back as it was.
    pub(crate) fn echo(&self, size: usize) -> Result<()> {
        let sent: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
        let mut back = vec![0; size + 1];
        self.socket.send(&sent)?;
        let length = self.socket.recv(&mut back)?;
        ensure!(back.get(..length) == Some(sent.as_slice()), "what came back is not what was sent");
        Ok(())
    }
}
