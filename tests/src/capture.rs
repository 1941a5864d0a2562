//! What was on the wire: a capture of every frame between the nodes, sorted into classes.

mod pcap;

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::namespace::Namespace;
use crate::wait;

/// How long a frame that has been sent may take to the wire.
const SETTLE: Duration = Duration::from_millis(100);
/// How long frames may take from the wire into the file.
const WRITTEN: Duration = Duration::from_secs(20);

/// More than any frame has, and no more: the kernel's buffer has room for as many as would fit at this length.
const LONGEST: &str = "65600";

/// A running `tcpdump` that writes whole frames.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Capture {
    /// Starts on an interface; once this returns, every frame is seen.
    ///
    /// # Errors
    /// When `tcpdump` does not start.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/run/lab/{interface}-{number}.pcap"));
        let file = namespace.outside(&path);
        let mut command = namespace.command("tcpdump");
        command
            .args(["-i", interface, "-n", "-U", "--immediate-mode", "-s", LONGEST, "-B", "65536"])
            .args(["-Z", "root", "-w", "-"])
            .stdout(File::create(&file).context("create the capture's file")?)
            .stderr(Stdio::piped());
        let mut child = namespace.spawn(command)?;
        let mut stderr = BufReader::new(child.stderr.take().context("no pipe from tcpdump")?);
        let mut said = String::new();
        while !said.contains("listening on") {
            if stderr.read_line(&mut said)? == 0 {
                bail!("tcpdump ended: {said}");
            }
        }
        Ok(Self { child, stderr, file })
    }

    /// The frames so far.
    ///
    /// # Errors
    /// When the file is no capture.
    pub fn frames(&mut self) -> Result<Frames> {
        self.settle()?;
        Frames::parse(&fs::read(&self.file)?)
    }

    /// Ends the capture and returns its frames.
    ///
    /// # Errors
    /// When the kernel dropped frames from the capture: then it proves nothing.
    pub fn stop(mut self) -> Result<Frames> {
        self.settle()?;
        self.signal(Signal::SIGINT)?;
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        self.child.wait()?;
        let dropped = said.lines().find_map(|line| line.strip_suffix(" packets dropped by kernel"));
        match dropped.map(str::trim) {
            Some("0") => Frames::parse(&fs::read(&self.file)?),
            Some(count) => Err(anyhow!("the kernel dropped {count} frames from the capture")),
            None => Err(anyhow!("tcpdump did not say whether it lost frames: {said}")),
        }
    }

    /// Waits until what was on the wire is in the file: at its end tcpdump leaves what it has not read yet.
    fn settle(&mut self) -> Result<()> {
        wait::pause(SETTLE);
        let written = wait::until(WRITTEN, || match self.lags() {
            Ok(true) => None,
            Ok(false) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        written.context("tcpdump does not write what it has been given")?.0
    }

    /// Whether the kernel has counted frames for it that it has not written yet.
    fn lags(&mut self) -> Result<bool> {
        self.signal(Signal::SIGUSR1)?;
        let mut said = String::new();
        while !said.contains("received by filter") {
            if self.stderr.read_line(&mut said)? == 0 {
                bail!("tcpdump ended: {said}");
            }
        }
        // "tcpdump: 1 packet captured, 2 packets received by filter, 0 packets dropped by kernel"
        let numbers = said.split(' ').filter_map(|word| word.parse::<u64>().ok()).collect::<Vec<_>>();
        let [captured, received, dropped] = numbers[..] else { bail!("tcpdump counts otherwise: {said}") };
        Ok(captured + dropped < received)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("signal tcpdump")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What may be on the wire.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The nodes' addresses.
    pub nodes: Vec<IpAddr>,
    /// WireGuard's UDP port on every node.
    pub wireguard: u16,
    /// The TCP port of handshakes on every node.
    pub handshake: u16,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// WireGuard between two nodes.
    WireGuard,
    /// TCP from or to the handshakes' port, between two nodes.
    Handshake,
    /// ARP, neighbour discovery and group membership: the link's own affairs.
    Link,
    /// Everything else.
    Other,
}

/// How many frames there are of each class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// [`Class::WireGuard`].
    pub wireguard: usize,
    /// [`Class::Handshake`].
    pub handshake: usize,
    /// [`Class::Link`].
    pub link: usize,
    /// [`Class::Other`].
    pub other: usize,
    /// The first few of the others, in words.
    pub examples: Vec<String>,
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wireguard, handshake, link, other, examples } = self;
        write!(formatter, "{wireguard} WireGuard, {handshake} handshake, {link} link, {other} other")?;
        if !examples.is_empty() {
            write!(formatter, " ({})", examples.join("; "))?;
        }
        Ok(())
    }
}

/// A frame and when it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Wall-clock time.
    pub time: SystemTime,
    /// All its bytes.
    pub bytes: Vec<u8>,
}

/// Frames in the order of their times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames(Vec<Frame>);

impl Frames {
    fn parse(file: &[u8]) -> Result<Self> {
        pcap::parse(file).map(Self)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those seen between two times.
    #[must_use]
    pub fn between(&self, from: SystemTime, to: SystemTime) -> Self {
        Self(self.0.iter().filter(|frame| (from..=to).contains(&frame.time)).cloned().collect())
    }

    /// How many of them contain these bytes anywhere.
    #[must_use]
    pub fn containing(&self, needle: &[u8]) -> usize {
        let has = |frame: &&Frame| frame.bytes.windows(needle.len().max(1)).any(|window| window == needle);
        self.0.iter().filter(has).count()
    }

    /// How many there are of each class.
    #[must_use]
    pub fn count(&self, expected: &Expected) -> Counts {
        let mut counts = Counts::default();
        for frame in &self.0 {
            match classify(&frame.bytes, expected) {
                Class::WireGuard => counts.wireguard += 1,
                Class::Handshake => counts.handshake += 1,
                Class::Link => counts.link += 1,
                Class::Other => {
                    counts.other += 1;
                    if counts.examples.len() < 5 {
                        counts.examples.push(describe(&frame.bytes));
                    }
                }
            }
        }
        counts
    }
}

/// The class of a frame. What cannot be parsed is something else. Checksums are not looked at: on a
/// veth they are often left to hardware that isn't there.
#[must_use]
pub fn classify(frame: &[u8], expected: &Expected) -> Class {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return Class::Other };
    if matches!(packet.net, Some(NetSlice::Arp(_))) {
        return Class::Link;
    }
    if let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport {
        // Group membership 130 to 132 and 143, neighbour discovery 133 to 137.
        return if matches!(icmp.type_u8(), 130..=137 | 143) { Class::Link } else { Class::Other };
    }
    let Some((source, destination)) = addresses(&packet) else { return Class::Other };
    if !expected.nodes.contains(&source) || !expected.nodes.contains(&destination) {
        return Class::Other;
    }
    match &packet.transport {
        Some(TransportSlice::Udp(udp))
            if udp.source_port() == expected.wireguard && udp.destination_port() == expected.wireguard =>
        {
            Class::WireGuard
        }
        Some(TransportSlice::Tcp(tcp))
            if tcp.source_port() == expected.handshake || tcp.destination_port() == expected.handshake =>
        {
            Class::Handshake
        }
        _ => Class::Other,
    }
}

fn addresses(packet: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Ipv6(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Arp(_) => None,
    }
}

/// A frame in words.
fn describe(frame: &[u8]) -> String {
    let length = frame.len();
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return format!("unparsable frame of {length} bytes");
    };
    let Some((source, destination)) = addresses(&packet) else {
        return format!("frame of {length} bytes that is no IP");
    };
    let transport = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => format!("TCP {} > {}", tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => format!("UDP {} > {}", udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => format!("ICMP type {}", icmp.type_u8()),
        Some(TransportSlice::Icmpv6(icmp)) => format!("ICMPv6 type {}", icmp.type_u8()),
        _ => "other protocol".to_owned(),
    };
    format!("{source} > {destination} {transport}, {length} bytes")
}

#[cfg(test)]
mod tests;
