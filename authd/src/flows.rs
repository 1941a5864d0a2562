//! Flows: what the programs decided, with the names that people know, kept for a while and sent on.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use auth_ebpf_abi::{AuthType, Direction, DropReason, Event, Hook, IdentityNumber, Verdict};
use tokio::sync::{broadcast, watch};

use crate::{
    api::{Flows as Subscription, Timestamp, v1},
    clock::{BootTime, Clock},
    cluster::Cluster,
};

/// Flows that are kept for `authctl observe --last`.
const KEPT: usize = 4096;
/// Flows that an observer may lag behind before it loses some.
const LAG: usize = 1024;

/// The names that a flow's numbers have at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Interface by index.
    pub interfaces: BTreeMap<u32, String>,
    /// Rule by cookie.
    pub rules: BTreeMap<u32, String>,
    /// What policies say for logs (`log.value`), by the cookies of their rules.
    pub logs: BTreeMap<u32, String>,
}

/// Turns events into flows, keeps the last ones and sends all of them to whoever observes.
pub struct Flows {
    node: String,
    cluster: watch::Receiver<Arc<Cluster>>,
    names: watch::Receiver<Arc<Names>>,
    clock: Arc<dyn Clock>,
    kept: Mutex<VecDeque<Arc<v1::Flow>>>,
    sender: broadcast::Sender<Arc<v1::Flow>>,
}

impl Flows {
    /// Flows of `node`.
    #[must_use]
    pub fn new(
        node: String,
        cluster: watch::Receiver<Arc<Cluster>>,
        names: watch::Receiver<Arc<Names>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let kept = Mutex::new(VecDeque::with_capacity(KEPT));
        Self { node, cluster, names, clock, kept, sender: broadcast::Sender::new(LAG) }
    }

    /// Takes a verdict from the kernel.
    pub fn publish(&self, event: &Event) {
        let flow = Arc::new(self.name(event));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&flow));
        // Sent under the lock, so that a subscriber neither misses a flow nor gets it twice. No receiver
        // is no error.
        drop(self.sender.send(flow));
    }

    /// The last `last` flows, the oldest first, and all that follow.
    #[must_use]
    pub fn subscribe(&self, last: usize) -> Subscription {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = kept.len().saturating_sub(last);
        (kept.iter().skip(skipped).map(Arc::clone).collect(), self.sender.subscribe())
    }

    fn name(&self, event: &Event) -> v1::Flow {
        let cluster = self.cluster.borrow();
        let names = self.names.borrow();
        let direction = Direction::from_number(event.direction);
        // The event has identities as the endpoint sees them, a flow as the packet has them.
        let (source, destination) = match direction {
            Some(Direction::Egress) => (event.local, event.remote),
            Some(Direction::Ingress) | None => (event.remote, event.local),
        };
        let remote_node = cluster.node_by_number(event.node).filter(|_| event.node != 0);
        let end = |address: auth_ebpf_abi::Address, port, identity| {
            flow_end(&cluster, address.to_ip(), u16::from_be_bytes(port), identity)
        };
        v1::Flow {
            time: Some(wall_time(&*self.clock, BootTime(event.time))),
            verdict: Verdict::from_number(event.verdict).map_or(v1::Verdict::Unspecified, Into::into).into(),
            reason: DropReason::from_number(event.reason)
                .map_or(v1::DropReason::Unspecified, Into::into)
                .into(),
            hook: Hook::from_number(event.hook).map_or(v1::Hook::Unspecified, Into::into).into(),
            direction: direction.map_or(v1::Direction::Unspecified, Into::into).into(),
            interface: names.interfaces.get(&event.ifindex).cloned().unwrap_or_default(),
            source: Some(end(event.source, event.source_port, source)),
            destination: Some(end(event.destination, event.destination_port, destination)),
            protocol: event.protocol.into(),
            length: event.length,
            node: self.node.clone(),
            remote_node: remote_node.map(|node| node.name.clone()).unwrap_or_default(),
            auth_type: AuthType::from_number(event.auth_type)
                .map_or(v1::AuthType::Disabled, Into::into)
                .into(),
            encrypted: event.encrypted == 1,
            reply: event.reply == 1,
            rule: names.rules.get(&event.cookie).cloned().unwrap_or_default(),
            log: names.logs.get(&event.cookie).cloned().unwrap_or_default(),
            service: service(&cluster, event),
        }
    }
}

/// The service by which a packet came to its destination: its name where the address is its own, else the
/// address.
fn service(cluster: &Cluster, event: &Event) -> String {
    if event.service.is_unspecified() {
        return String::new();
    }
    let (address, port) = (event.service.to_ip(), u16::from_be_bytes(event.service_port));
    match cluster.services.iter().find(|(_, service)| service.addresses.contains(&address)) {
        Some(((namespace, name), _)) => format!("{namespace}/{name}:{port}"),
        None => std::net::SocketAddr::new(address, port).to_string(),
    }
}

fn flow_end(cluster: &Cluster, address: IpAddr, port: u16, identity: IdentityNumber) -> v1::FlowEnd {
    let pod = cluster.pods.iter().find(|pod| pod.addresses.contains(&address));
    let labels = cluster.identities.get(identity).map(|identity| identity.labels());
    v1::FlowEnd {
        address: address.to_string(),
        port: port.into(),
        identity,
        pod: pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default(),
        labels: labels.into_iter().flatten().map(ToString::to_string).collect(),
    }
}

/// The wall clock's time at `boot`, as the clock goes now.
#[must_use]
pub fn wall_time(clock: &dyn Clock, boot: BootTime) -> Timestamp {
    let (now, wall) = (clock.now(), clock.wall());
    let then = if boot > now { wall.checked_add(boot.since(now)) } else { wall.checked_sub(now.since(boot)) };
    to_timestamp(then.unwrap_or(SystemTime::UNIX_EPOCH))
}

/// A time of the wall clock, as the interface has it.
#[must_use]
pub fn to_timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use auth_ebpf_abi::Address;

    use super::*;
    use crate::clock::BootClock;

    fn flows() -> Flows {
        let (_, cluster) = watch::channel(Arc::default());
        let (_, names) = watch::channel(Arc::new(Names {
            interfaces: BTreeMap::from([(7, "lxc-a".to_owned())]),
            rules: BTreeMap::from([(3, "CiliumNetworkPolicy default/rule1".to_owned())]),
            logs: BTreeMap::from([(3, "landings".to_owned()), (4, "another's".to_owned())]),
        }));
        Flows::new("n1".into(), cluster, names, Arc::new(BootClock))
    }

    fn event() -> Event {
        Event {
            source: Address::from_v4([10, 0, 0, 1]),
            destination: Address::from_v4([10, 0, 0, 2]),
            destination_port: 80_u16.to_be_bytes(),
            local: 256,
            remote: 257,
            ifindex: 7,
            cookie: 3,
            verdict: Verdict::Dropped as u8,
            reason: DropReason::AuthRequired as u8,
            hook: Hook::ToPod as u8,
            protocol: 6,
            ..Event::default()
        }
    }

    #[tokio::test]
    async fn names_and_sends_what_the_kernel_says() {
        let flows = flows();
        let (before, mut receiver) = flows.subscribe(10);
        assert!(before.is_empty());
        flows.publish(&event());
        let flow = receiver.recv().await.unwrap();
        assert_eq!(flow.reason(), v1::DropReason::AuthRequired);
        assert_eq!(flow.interface, "lxc-a");
        assert_eq!(
            (flow.rule.as_str(), flow.log.as_str()),
            ("CiliumNetworkPolicy default/rule1", "landings")
        );
        let (source, destination) = (flow.source.as_ref().unwrap(), flow.destination.as_ref().unwrap());
        assert_eq!(
            (source.identity, destination.identity),
            (257, 256),
            "ingress: the remote end is the source"
        );
        assert_eq!((source.address.as_str(), destination.port), ("10.0.0.1", 80));
    }

    #[test]
    fn a_service_goes_by_its_name_where_it_has_the_address() {
        let mut cluster = Cluster::default();
        let address = "10.96.0.1".parse().unwrap();
        let service = crate::cluster::Service { addresses: vec![address], ..Default::default() };
        cluster.services.insert(("default".to_owned(), "deathstar".to_owned()), service);
        let by = |address: IpAddr| {
            let event = Event { service: address.into(), service_port: 80_u16.to_be_bytes(), ..event() };
            super::service(&cluster, &event)
        };
        assert_eq!(by(address), "default/deathstar:80");
        assert_eq!(by("fd00::1".parse().unwrap()), "[fd00::1]:80");
        assert_eq!(super::service(&cluster, &event()), "");
    }

    #[tokio::test]
    async fn keeps_a_bounded_number() {
        let flows = flows();
        for _ in 0..KEPT + 5 {
            flows.publish(&event());
        }
        assert_eq!(flows.subscribe(usize::MAX).0.len(), KEPT);
        assert_eq!(flows.subscribe(3).0.len(), 3);
    }
}
