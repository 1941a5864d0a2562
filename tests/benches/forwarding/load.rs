//! The load: request and response over one connection, over a connection each, and in bulk.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use authd_tests::Namespace;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

/// The first byte of a connection says what the server does with the others.
const ECHO: u8 = b'e';
const SINK: u8 = b's';
const BULK: usize = 128 * 1024;
const TIMEOUT: Duration = Duration::from_secs(5);

/// What one path carried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Requests answered a second, on one connection.
    pub(crate) requests: f64,
    /// Connections opened, used once and closed a second.
    pub(crate) connections: f64,
    /// Bits a second in one connection.
    pub(crate) bits: f64,
}

/// Serves one connection after the other.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    namespace: Namespace,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = namespace.tcp_listen(address)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            // Anywhere is as right, only less steady.
            drop(stay_at(Place::Last));
            serve(&listener, &stopped);
        });
        Ok(Self { stop, address, namespace: namespace.clone(), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it.
        drop(self.namespace.tcp_connect(self.address, TIMEOUT));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while let Ok((stream, _)) = listener.accept() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A connection that ends badly is the client's to report.
        drop(answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    let mut buffer = vec![0; BULK];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        if mode == [ECHO] {
            stream.write_all(buffer.get(..read).unwrap_or_default())?;
        }
    }
}

/// Runs all three, `each` so long.
pub(crate) fn run(target: SocketAddr, each: Duration) -> Result<Figures> {
    stay_at(Place::First)?;
    Ok(Figures {
        requests: requests(target, each).context("requests")?,
        connections: connections(target, each).context("connections")?,
        bits: bulk(target, each).context("bulk")?,
    })
}

/// Which of the machine's cores.
enum Place {
    First,
    Last,
}

/// Client and server keep a core each: where the scheduler moves them makes more difference than any rule.
fn stay_at(place: Place) -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    let core = match place {
        Place::First => cores.next(),
        Place::Last => cores.next_back(),
    };
    let mut only = CpuSet::new();
    only.set(core.context("no core to run on")?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
}

fn connect(target: SocketAddr, mode: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&[mode])?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

/// How often `work` can be done in a second.
fn rate(each: Duration, mut work: impl FnMut() -> Result<f64>) -> Result<f64> {
    let start = Instant::now();
    let mut done = 0.0;
    while start.elapsed() < each {
        done += work()?;
    }
    Ok(done / start.elapsed().as_secs_f64())
}

fn requests(target: SocketAddr, each: Duration) -> Result<f64> {
    let mut stream = connect(target, ECHO)?;
    rate(each, || {
        exchange(&mut stream)?;
        Ok(1.0)
    })
}

fn connections(target: SocketAddr, each: Duration) -> Result<f64> {
    rate(each, || {
        let mut stream = connect(target, ECHO)?;
        exchange(&mut stream)?;
        // A reset leaves no port waiting, of which there are few.
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream.as_fd(), sockopt::Linger, &at_once)?;
        Ok(1.0)
    })
}

fn bulk(target: SocketAddr, each: Duration) -> Result<f64> {
    let mut stream = connect(target, SINK)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let block = vec![0; BULK];
    rate(each, || match stream.write(&block) {
        Ok(written) => Ok(8.0 * f64::from(u32::try_from(written)?)),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0.0),
        Err(error) => Err(error.into()),
    })
}
