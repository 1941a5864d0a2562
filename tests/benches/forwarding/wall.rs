//! The walls: authd's datapath, iptables and nftables, each with `n` rules of which the last one allows; and
//! programs that do nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use auth_ebpf::{Baseline, Datapath, Mechanism, Options};
use auth_ebpf_abi::{
    Address, AddressEntry, AuthEntry, AuthKey, AuthType, Direction, EndpointEntry, PolicyEntry, PolicyKey,
    identity,
};
use authd_tests::Pod;
use authd_tests::lab::node::Family;

use crate::{PORT, Site};

const CLIENT: u32 = 300;
const SERVER: u32 = 301;
/// The first identity, and the first address, of the rules that are about somebody else.
const OTHERS: u32 = 1_000;
const OTHER_ADDRESSES: u32 = u32::from_be_bytes([172, 16, 0, 0]);
const TCP: u8 = 6;
/// Of the pods' interfaces, as the kernel makes them.
const MTU: u32 = 1500;

/// Who decides, and by how many rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wall {
    pub(crate) kind: Kind,
    pub(crate) rules: usize,
}

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Programs that do nothing, where ours would be: what of their cost is the hooks' own.
    Nothing,
    /// Our programs; the rule that allows requires authentication, which is there.
    Authd,
    /// The same, with `--same-node-forwarding direct`.
    AuthdDirect,
    /// A chain of rules.
    Iptables,
    /// The same behind a rule that lets established connections pass.
    IptablesConntrack,
    /// A chain of rules.
    Nftables,
    /// One rule with a set.
    NftablesSet,
}

impl Kind {
    /// Those that decide.
    const DECIDING: [Self; 6] = [
        Self::Authd,
        Self::AuthdDirect,
        Self::Iptables,
        Self::IptablesConntrack,
        Self::Nftables,
        Self::NftablesSet,
    ];

    /// Whether it is ours.
    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Authd | Self::AuthdDirect)
    }

    /// Whether it can leave the pods' interfaces and come back within milliseconds.
    pub(crate) const fn steps_aside(self) -> bool {
        matches!(self, Self::Nothing) || self.is_ours()
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "programs that do nothing",
            Self::Authd => "authd",
            Self::AuthdDirect => "authd, direct",
            Self::Iptables => "iptables",
            Self::IptablesConntrack => "iptables with conntrack",
            Self::Nftables => "nftables",
            Self::NftablesSet => "nftables with a set",
        }
    }
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} rules", self.kind.as_str(), self.rules)
    }
}

/// Programs until they are lowered, which can leave their interfaces and come back while their maps stay.
pub(crate) struct Programs<'a> {
    datapath: Datapath,
    pins: PathBuf,
    site: &'a Site,
    kind: Kind,
    /// Those that do nothing, while they are attached.
    baselines: Vec<Baseline>,
}

/// Rules of somebody else's until they are lowered, and the command that takes them away.
pub(crate) struct Rules<'a> {
    site: &'a Site,
    undo: &'static [&'static str],
}

impl Wall {
    /// Those that decide in every size, and before them those that do nothing, where the kernel has TCX.
    pub(crate) fn all(sizes: &[usize]) -> Result<Vec<Self>> {
        let nothing = Mechanism::detect()? == Mechanism::Tcx;
        let nothing = nothing.then_some(Self { kind: Kind::Nothing, rules: 0 });
        let walls = sizes.iter().flat_map(|rules| Kind::DECIDING.map(|kind| Self { kind, rules: *rules }));
        Ok(nothing.into_iter().chain(walls).collect())
    }

    /// Raises what is made of rules.
    pub(crate) fn rules<'a>(&self, site: &'a Site) -> Result<Rules<'a>> {
        match self.kind {
            Kind::Nothing | Kind::Authd | Kind::AuthdDirect => bail!("{self} are programs"),
            Kind::Iptables => self.iptables(site, ""),
            Kind::IptablesConntrack => {
                self.iptables(site, "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n")
            }
            Kind::Nftables => self.nftables(site, &self.nftables_chain(site)?),
            Kind::NftablesSet => self.nftables(site, &self.nftables_set(site)?),
        }
    }

    /// Raises what is made of programs.
    pub(crate) fn programs<'a>(&self, site: &'a Site) -> Result<Programs<'a>> {
        let pins = site.node.outside(Path::new("/sys/fs/bpf/bench"));
        let datapath = Datapath::open(&Options { pin_dir: pins.clone() })?;
        fill(&datapath, site, self)?;
        let mut programs = Programs { datapath, pins, site, kind: self.kind, baselines: vec![] };
        programs.attach()?;
        Ok(programs)
    }

    fn iptables<'a>(&self, site: &'a Site, first: &str) -> Result<Rules<'a>> {
        let (client, server) = (site.client.address(Family::V4)?, site.server.address(Family::V4)?);
        let mut rules = format!("*filter\n:FORWARD DROP [0:0]\n{first}");
        for address in self.sources(client) {
            writeln!(rules, "-A FORWARD -s {address}/32 -p tcp -m tcp --dport {PORT} -j ACCEPT")?;
        }
        // Answers, for which nobody asks the connection.
        writeln!(rules, "-A FORWARD -s {server}/32 -p tcp -m tcp --sport {PORT} -j ACCEPT\nCOMMIT")?;
        site.node.exec_with_input(["iptables-restore"], &rules)?;
        Ok(Rules { site, undo: &["iptables-restore"] })
    }

    fn nftables<'a>(&self, site: &'a Site, rules: &str) -> Result<Rules<'a>> {
        site.node.exec_with_input(["nft", "-f", "-"], rules)?;
        Ok(Rules { site, undo: &["nft", "delete", "table", "ip", "bench"] })
    }

    fn nftables_chain(&self, site: &Site) -> Result<String> {
        let (client, server) = (site.client.address(Family::V4)?, site.server.address(Family::V4)?);
        let mut rules =
            "table ip bench {\nchain f {\ntype filter hook forward priority 0; policy drop;\n".to_owned();
        for address in self.sources(client) {
            writeln!(rules, "ip saddr {address} tcp dport {PORT} accept")?;
        }
        writeln!(rules, "ip saddr {server} tcp sport {PORT} accept\n}}\n}}")?;
        Ok(rules)
    }

    fn nftables_set(&self, site: &Site) -> Result<String> {
        let (client, server) = (site.client.address(Family::V4)?, site.server.address(Family::V4)?);
        let elements: Vec<String> =
            self.sources(client).map(|address| format!("{address} . {PORT}")).collect();
        Ok(format!(
            "table ip bench {{\nset s {{\ntype ipv4_addr . inet_service\nelements = {{ {} }}\n}}\n\
             chain f {{\ntype filter hook forward priority 0; policy drop;\n\
             ip saddr . tcp dport @s accept\nip saddr {server} tcp sport {PORT} accept\n}}\n}}\n",
            elements.join(", ")
        ))
    }

    /// The sources of the rules; the client comes last.
    fn sources(&self, client: IpAddr) -> impl Iterator<Item = IpAddr> {
        let others = u32::try_from(self.rules.saturating_sub(1)).unwrap_or(u32::MAX);
        (0..others)
            .map(|number| IpAddr::V4(Ipv4Addr::from_bits(OTHER_ADDRESSES + number)))
            .chain(std::iter::once(client))
    }
}

impl Programs<'_> {
    pub(crate) fn attach(&mut self) -> Result<()> {
        let Self { datapath, site, baselines, .. } = self;
        if self.kind == Kind::Nothing {
            return site.at_each_hook(|hook, interface| {
                baselines.push(datapath.attach_baseline(hook, interface)?);
                Ok(())
            });
        }
        site.at_each_hook(|hook, interface| Ok(datapath.attach(hook, interface).map(drop)?))
    }

    pub(crate) fn detach(&mut self) -> Result<()> {
        self.baselines.clear();
        let Self { datapath, site, .. } = self;
        site.at_each_hook(|hook, interface| Ok(datapath.detach(hook, interface)?))
    }

    pub(crate) fn lower(mut self) -> Result<()> {
        self.detach()?;
        drop(self.datapath);
        fs::remove_dir_all(&self.pins).with_context(|| format!("unpin {}", self.pins.display()))
    }
}

impl Rules<'_> {
    pub(crate) fn lower(self) -> Result<()> {
        // Nothing to read but for `iptables-restore`, which empties its table.
        let rules = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
        self.site.node.exec_with_input(self.undo.iter().copied(), rules).map(drop)
    }
}

/// Puts two pods and the rules between them into the maps.
fn fill(datapath: &Datapath, site: &Site, wall: &Wall) -> Result<()> {
    let maps = datapath.maps();
    let direct_mtu = if wall.kind == Kind::AuthdDirect { MTU } else { 0 };
    for (pod, number) in [(&site.client, CLIENT), (&site.server, SERVER)] {
        let address = Address::from(pod.address(Family::V4)?);
        maps.addresses().insert(&address, &AddressEntry { identity: number, node: 0, flags: 0 })?;
        let ifindex = ifindex(site, pod)?;
        let endpoint =
            EndpointEntry { identity: number, ifindex, epoch: 1, direct_mtu, ..EndpointEntry::default() };
        maps.endpoints().insert(&address, &endpoint)?;
    }
    let forever = u64::MAX;
    for (local, remote) in [(CLIENT, SERVER), (SERVER, CLIENT)] {
        let key = AuthKey { local, remote, auth_type: AuthType::Spire as u8, ..AuthKey::default() };
        maps.auth().insert(&key, &AuthEntry { expires: forever, ..AuthEntry::default() })?;
    }
    let mut policy = BTreeMap::new();
    let allow = PolicyEntry { precedence: 1, cookie: 1, ..PolicyEntry::default() };
    let anything = PolicyKey { local: CLIENT, direction: Direction::Egress as u8, ..PolicyKey::default() };
    policy.insert((anything, PolicyKey::prefix_len(None)), allow);
    let authenticated =
        PolicyEntry { auth_type: AuthType::Spire as u8, auth_explicit: 1, port_prefix: 24, ..allow };
    let others = u32::try_from(wall.rules.saturating_sub(1))?;
    for remote in (0..others).map(|number| OTHERS + number).chain([CLIENT]) {
        let key = PolicyKey {
            local: SERVER,
            remote,
            direction: Direction::Ingress as u8,
            protocol: TCP,
            port: PORT.to_be_bytes(),
        };
        policy.insert((key, PolicyKey::prefix_len(Some(16))), authenticated);
    }
    debug_assert!(!identity::is_reserved(OTHERS + others));
    maps.change_policy(policy.iter().map(|(key, entry)| (*key, Some(*entry))))?;
    Ok(())
}

fn ifindex(site: &Site, pod: &Pod) -> Result<u32> {
    let name = pod.interface();
    let index = site.node.run(|| nix::net::if_::if_nametoindex(name))?;
    index.with_context(|| format!("find {name}"))
}
