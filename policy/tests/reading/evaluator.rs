//! What the words of the documentation say about a packet, read from the document itself: no code of the
//! parser, of selectors or of the compiler has a part in it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::cluster::{End, GROUPS, NAMES, NAMESPACES, OWN_NODE, SERVICES, ServiceFacts};
use crate::document::Document;

/// What a packet gets: the mode of authentication (a larger one is stricter) and whether it must be encrypted;
/// none if it is dropped. `tried` if that is only reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) passes: Option<(u8, bool)>,
    pub(crate) tried: bool,
}

/// A packet and the end of it whose policies are asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) local: End,
    pub(crate) remote: End,
    pub(crate) ingress: bool,
    pub(crate) protocol: u8,
    /// Its destination port, or the type of ICMP in the upper byte.
    pub(crate) port: u16,
}

/// Whom a rule is about, of whom there is only one here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    Nobody,
    /// Him by choice.
    Chosen,
    /// Everybody.
    Anybody,
}

/// What the policies at hand come to so far.
#[derive(Default)]
struct Tally {
    default_deny: bool,
    allowed: bool,
    denied: bool,
    encrypted: bool,
    /// Modes of authentication that rules name: the most specific rule counts.
    modes: Vec<((u8, bool), u8)>,
}

/// A field that is there and not null.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).filter(|value| !value.is_null())
}

fn items<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    field(value, name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    field(value, name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

impl Question {
    /// Policies in force have the last word; those which are tried are heard where these pass everything.
    pub(crate) fn verdict(&self, documents: &[Document]) -> Verdict {
        let is_tried = |document: &Document| {
            let annotation = document.value.pointer("/metadata/annotations/policy.authd.io~1audit");
            !document.is_spoilt
                && annotation.is_some_and(|word| ["enabled", "true"].contains(&word.as_str().unwrap()))
        };
        let in_force = self.read(documents.iter().filter(|document| !is_tried(document)));
        let all = self.read(documents.iter());
        let tried = in_force == Some((0, false)) && all.map(|(mode, _)| mode) != Some(0);
        let passes = if tried { all.map(|(mode, _)| (mode, false)) } else { in_force };
        Verdict { passes, tried }
    }

    fn read<'a>(&self, documents: impl Iterator<Item = &'a Document>) -> Option<(u8, bool)> {
        let mut tally = Tally::default();
        let from_host = self.ingress && matches!(self.remote, End::Node(node) if node.name == OWN_NODE);
        if from_host {
            // "Kubernetes: the node of a pod always reaches it."
            tally.allowed = true;
            tally.modes.push(((0, true), 0));
        }
        for document in documents {
            self.document(document, from_host, &mut tally);
        }
        if tally.denied || (tally.default_deny && !tally.allowed) {
            return None;
        }
        Some((tally.modes.into_iter().max().map_or(0, |(_, mode)| mode), tally.encrypted))
    }

    fn document(&self, document: &Document, from_host: bool, tally: &mut Tally) {
        let value = &document.value;
        let kind = text(value, "kind").unwrap();
        let metadata = field(value, "metadata").unwrap();
        let namespace = match kind {
            "CiliumClusterwideNetworkPolicy" => None,
            _ => Some(text(metadata, "namespace").unwrap_or("default")),
        };
        let one = field(value, "spec").map(|spec| (String::new(), spec));
        let more =
            items(value, "specs").iter().enumerate().map(|(place, spec)| (format!("specs[{place}]."), spec));
        for (before, spec) in one.into_iter().chain(more) {
            if !self.is_subject(spec, namespace) {
                continue;
            }
            let encrypted = metadata.pointer("/annotations/policy.authd.io~1encryption");
            let encrypted = encrypted.and_then(Value::as_str).unwrap_or_default();
            if document.is_spoilt {
                tally.denied = true;
            } else if kind == "NetworkPolicy" {
                self.network_policy(spec, namespace.unwrap(), encrypted, tally);
            } else {
                self.spec(spec, namespace, (&before, encrypted), from_host, tally);
            }
        }
    }

    /// "The endpointSelector always applies to pods in the namespace associated with the resource itself."
    fn is_subject(&self, spec: &Value, namespace: Option<&str>) -> bool {
        if let Some(pods) = field(spec, "podSelector") {
            return matches!(self.local, End::Pod(pod) if Some(pod.namespace) == namespace && of_kubernetes(pods, pod.labels));
        }
        if let End::Node(node) = self.local {
            let is_host = [("reserved", "host".to_owned(), String::new())];
            let labels = [of_object(node.labels), is_host.to_vec()].concat();
            return field(spec, "nodeSelector")
                .is_some_and(|nodes| selects_labels(nodes, &labels, |_| false));
        }
        let Some(selector) = field(spec, "endpointSelector") else { return false };
        let is_illegal = |key: &str| split(key) == ("k8s", NAMESPACE);
        match namespace {
            None => selects(selector, self.local, |_| false),
            Some(namespace) => {
                matches!(self.local, End::Pod(pod) if pod.namespace == namespace)
                    && selects(selector, self.local, is_illegal)
            }
        }
    }

    fn spec(
        &self,
        spec: &Value,
        namespace: Option<&str>,
        (before, encrypted): (&str, &str),
        from_host: bool,
        tally: &mut Tally,
    ) {
        let (allow, deny) = if self.ingress { ("ingress", "ingressDeny") } else { ("egress", "egressDeny") };
        let enabled =
            field(spec, "enableDefaultDeny").and_then(|fields| field(fields, allow)).and_then(Value::as_bool);
        let has_rules = !items(spec, allow).is_empty() || !items(spec, deny).is_empty();
        tally.default_deny |= enabled.unwrap_or(has_rules);
        let is_init = |source: &str, key: &str| (source, key) == ("reserved", "init");
        let is_for_init = field(spec, "endpointSelector").is_some_and(|subject| has_key(subject, is_init));
        let scope = Scope { namespace, is_for_init };
        for rule in items(spec, deny) {
            let whom = self.whom(rule, (true, Whom::Anybody), scope);
            tally.denied |= whom != Whom::Nobody && self.ports(rule, whom, None).is_some();
        }
        for (place, rule) in items(spec, allow).iter().enumerate() {
            tally.denied |= self.misses_a_requirement(rule, scope, from_host);
            // "Adding a layer-7 rule … will cause drops, even when default-deny is explicitly disabled."
            let of_anybody = self.whom(rule, (false, Whom::Anybody), scope);
            tally.denied |= enabled == Some(false)
                && of_anybody != Whom::Nobody
                && self.ports(rule, of_anybody, Some(Layer7::Restricts)).is_some();
            let whom = self.whom(rule, (false, Whom::Nobody), scope);
            let rank = self.ports(rule, whom, Some(Layer7::Absent));
            let Some(rank) = rank.filter(|_| whom != Whom::Nobody && !has_both(rule)) else { continue };
            tally.allowed = true;
            let names = [format!("{before}{allow}[{place}]"), format!("spec.{allow}[{place}]")];
            let is_named = encrypted
                .split(',')
                .any(|name| name == "required" || names.contains(&name.trim().to_owned()));
            tally.encrypted |= is_named
                || field(rule, "encryption").is_some_and(|field| text(field, "mode") == Some("required"));
            if let Some(mode) = field(rule, "authentication").and_then(|field| text(field, "mode"))
                && (rank.1 || !from_host)
            {
                let modes = ["disabled", "required", "test-always-fail"];
                let number = modes.iter().position(|known| *known == mode).unwrap();
                tally.modes.push((rank, u8::try_from(number).unwrap()));
            }
        }
    }

    /// Whether the rule requires something of all others that this one hasn't.
    fn misses_a_requirement(&self, rule: &Value, scope: Scope<'_>, from_host: bool) -> bool {
        let required = items(rule, if self.ingress { "fromRequires" } else { "toRequires" });
        let is_known = !matches!(self.remote, End::Stranger);
        !from_host && is_known && required.iter().any(|selector| !self.is_peer(selector, scope))
    }

    /// Whom the rule is about: "if a list is there but empty it selects nothing, one that is left out selects
    /// everything", and a rule without anything selects nothing.
    ///
    /// What isn't supported is about nobody in a rule that allows, and may be about anybody in one that denies.
    fn whom(&self, rule: &Value, (is_deny, unsupported): (bool, Whom), scope: Scope<'_>) -> Whom {
        let prefix = if self.ingress { "from" } else { "to" };
        let all =
            ["Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes", "Groups", "FQDNs", "Services", "Requires"];
        let lists =
            all.iter().filter_map(|name| Some((*name, field(rule, &format!("{prefix}{name}"))?.as_array()?)));
        let (empty, full): (Vec<_>, Vec<_>) = lists.partition(|(_, list)| list.is_empty());
        // Of those that allow, requirements are about others.
        let full: Vec<_> = full.into_iter().filter(|(name, _)| is_deny || *name != "Requires").collect();
        let has_requirements = !is_deny && !items(rule, &format!("{prefix}Requires")).is_empty();
        if !empty.is_empty() && !is_deny {
            return Whom::Nobody;
        }
        match full.as_slice() {
            [] if !empty.is_empty() || has_requirements => Whom::Nobody,
            [] if items(rule, "toPorts").is_empty() && items(rule, "icmps").is_empty() => Whom::Nobody,
            [] => Whom::Anybody,
            [("Groups" | "Requires", _)] | [_, _, ..] => unsupported,
            [("Entities", list)] if list.iter().any(|entity| entity == "all") => Whom::Anybody,
            [(name, list)] => {
                let is_meant = list.iter().any(|item| self.is_meant(name, item, is_deny, scope));
                if is_meant { Whom::Chosen } else { Whom::Nobody }
            }
        }
    }

    fn is_meant(&self, kind: &str, item: &Value, is_deny: bool, scope: Scope<'_>) -> bool {
        match kind {
            "Endpoints" => self.is_peer(item, scope) && self.is_of_cluster(item),
            "Entities" => self.is_entity(item.as_str().unwrap()),
            "CIDR" => self.is_outside_in(item.as_str().unwrap(), &[]),
            "CIDRSet" => self.is_in_set(item),
            "Nodes" => self.is_node(item, is_deny),
            "FQDNs" => self.has_name(item),
            "Services" => self.is_behind(item),
            other => panic!("what is {other}?"),
        }
    }

    /// "If the namespace isn't said, it is that of the policy"; policies of the cluster mean pods of any.
    fn is_peer(&self, selector: &Value, scope: Scope<'_>) -> bool {
        if !selects(selector, self.remote, |_| false) {
            return false;
        }
        let says = |test: fn(&str) -> bool| {
            has_key(selector, |source, key| matches!(source, "k8s" | "any") && test(key))
        };
        if has_key(selector, |source, _| source == "reserved") || says(|key| key == NAMESPACE) {
            return true;
        }
        let namespace = match self.remote {
            End::Pod(pod) => Some(pod.namespace),
            End::Node(_) | End::Outside(_) | End::Reserved(_) | End::Stranger => None,
        };
        match scope.namespace {
            None => scope.is_for_init || namespace.is_some(),
            Some(_) if says(|key| key.starts_with(OF_NAMESPACE)) => true,
            Some(own) => namespace == Some(own),
        }
    }

    /// "Policies automatically select endpoints from the local cluster only, unless one or multiple clusters are
    /// specifically targeted."
    fn is_of_cluster(&self, selector: &Value) -> bool {
        let is_told = |source: &str, key: &str| source == "reserved" || key == CLUSTER;
        has_key(selector, is_told) || self.is_in_own_cluster()
    }

    fn is_in_own_cluster(&self) -> bool {
        let own = match self.local {
            End::Pod(pod) => Some(pod.cluster),
            End::Node(_) | End::Outside(_) | End::Reserved(_) | End::Stranger => None,
        };
        matches!(self.remote, End::Pod(pod) if own.is_none_or(|own| own == pod.cluster))
    }

    fn is_entity(&self, entity: &str) -> bool {
        let is_reserved = |name: &str| matches!(self.remote, End::Reserved(names) if names.contains(&name));
        let of_cluster =
            |name: &str| ["unmanaged", "health", "init", "ingress", "kube-apiserver"].contains(&name);
        let in_cluster = match self.remote {
            End::Node(_) => true,
            End::Reserved(names) => names.iter().any(|name| of_cluster(name)),
            End::Pod(_) | End::Outside(_) | End::Stranger => false,
        };
        match entity {
            "none" => false,
            "host" => matches!(self.remote, End::Node(node) if node.name == OWN_NODE),
            "remote-node" => {
                matches!(self.remote, End::Node(node) if node.name != OWN_NODE) || is_reserved("remote-node")
            }
            "world" => matches!(self.remote, End::Outside(_)),
            "world-ipv4" => self.is_outside_in("0.0.0.0/0", &[]),
            "world-ipv6" => self.is_outside_in("::/0", &[]),
            "cluster" => in_cluster || self.is_in_own_cluster(),
            "cluster-mesh" => in_cluster || matches!(self.remote, End::Pod(_)),
            name => is_reserved(name),
        }
    }

    /// "Only connections destined for outside of the cluster … will be subject to CIDR rules."
    fn is_outside_in(&self, net: &str, except: &[Value]) -> bool {
        let End::Outside(address) = self.remote else { return false };
        is_in(address, net) && !except.iter().any(|except| is_in(address, except.as_str().unwrap()))
    }

    fn is_in_set(&self, item: &Value) -> bool {
        let except = items(item, "except");
        if let Some(net) = text(item, "cidr") {
            return self.is_outside_in(net, except);
        }
        GROUPS.iter().any(|(name, labels, nets)| {
            let is_meant = match field(item, "cidrGroupSelector") {
                Some(selector) => selects_labels(selector, &of_object(labels), |_| false),
                None => text(item, "cidrGroupRef") == Some(name),
            };
            is_meant && nets.iter().any(|net| self.is_outside_in(net, except))
        })
    }

    /// Nodes by their labels; of the API server's it isn't known which they are.
    fn is_node(&self, selector: &Value, is_deny: bool) -> bool {
        match self.remote {
            End::Node(node) => selects_labels(selector, &of_object(node.labels), |_| false),
            End::Reserved(names) if names.contains(&"kube-apiserver") => is_deny || keys(selector).is_empty(),
            End::Reserved(_) | End::Pod(_) | End::Outside(_) | End::Stranger => false,
        }
    }

    /// "`*` matches all characters of a label, `*` alone every name, `**.` any number of labels before."
    fn has_name(&self, item: &Value) -> bool {
        let End::Outside(address) = self.remote else { return false };
        let lower = |text: &str| text.trim_end_matches('.').to_lowercase();
        NAMES.iter().filter(|(_, addresses)| addresses.contains(&address)).any(|(name, _)| {
            match (text(item, "matchName"), text(item, "matchPattern")) {
                (Some(wanted), None) => lower(wanted) == *name,
                (None, Some("*")) => true,
                (None, Some(pattern)) => {
                    let pattern = lower(pattern);
                    let (pattern, free) = match pattern.strip_prefix("**.") {
                        Some(rest) => (rest.to_owned(), true),
                        None => (pattern, false),
                    };
                    let (wanted, labels): (Vec<&str>, Vec<&str>) =
                        (pattern.split('.').collect(), name.split('.').collect());
                    let more = labels.len().checked_sub(wanted.len());
                    more.is_some_and(|more| if free { more > 0 } else { more == 0 })
                        && wanted
                            .iter()
                            .rev()
                            .zip(labels.iter().rev())
                            .all(|(wanted, label)| is_like(wanted, label))
                }
                both => panic!("what is {both:?}?"),
            }
        })
    }

    fn is_behind(&self, item: &Value) -> bool {
        let by_name = field(item, "k8sService");
        let said = by_name.or(field(item, "k8sServiceSelector")).unwrap();
        let is_meant = |service: &&ServiceFacts| {
            let is_named = match by_name {
                Some(said) => text(said, "serviceName") == Some(service.name),
                None => {
                    selects_labels(field(said, "selector").unwrap(), &of_object(service.labels), |_| false)
                }
            };
            is_named && text(said, "namespace").is_none_or(|namespace| namespace == service.namespace)
        };
        SERVICES.iter().filter(is_meant).any(|service| match (service.pods, self.remote) {
            (Some(label), End::Pod(pod)) => pod.namespace == service.namespace && pod.labels.contains(&label),
            (None, End::Outside(address)) => service.addresses.contains(&address),
            _ => false,
        })
    }

    /// Whether the rule is about the packet's protocol and port, and how closely: bits of them, and whether it
    /// chooses the other end. A port's name is a port of the pod that has it. Of `toPorts` those of one kind count, or
    /// all.
    fn ports(&self, rule: &Value, whom: Whom, kind: Option<Layer7>) -> Option<(u8, bool)> {
        let chosen = whom == Whom::Chosen;
        let counts = |of: Layer7| kind.is_none_or(|kind| kind == of);
        let (blocks, types) = (items(rule, "toPorts"), items(rule, "icmps"));
        if blocks.is_empty() && types.is_empty() {
            return Some((0, chosen)).filter(|_| counts(Layer7::Absent));
        }
        let counted = blocks.iter().filter(|block| counts(Layer7::of(block)));
        let of_blocks = counted.flat_map(|block| items(block, "ports")).filter_map(|port| {
            let protocol = text(port, "protocol").unwrap_or("ANY").to_uppercase();
            let numbers: &[u8] = match &*protocol {
                "ANY" => &[6, 17, 132],
                "TCP" => &[6],
                "UDP" => &[17],
                "SCTP" => &[132],
                "ICMP" => &[1],
                "ICMPV6" => &[58],
                "GRE" => &[47],
                "VRRP" => &[112],
                other => panic!("what is {other}?"),
            };
            let is_range = !matches!(numbers, [1 | 58 | 47 | 112]);
            numbers.contains(&self.protocol).then(|| self.port(port, is_range, chosen)).flatten()
        });
        let types = types.iter().filter(|_| counts(Layer7::Absent));
        let of_types = types.flat_map(|one| items(one, "fields")).filter_map(|one| {
            let is_v6 = text(one, "family") == Some("IPv6");
            let is_meant = self.protocol == if is_v6 { 58 } else { 1 }
                && self.port >> 8 == icmp_type(field(one, "type")?, is_v6);
            is_meant.then_some((16, chosen))
        });
        of_blocks.chain(of_types).max()
    }

    fn port(&self, port: &Value, has_ports: bool, chosen: bool) -> Option<(u8, bool)> {
        let first = match field(port, "port") {
            None => 0,
            Some(Value::Number(number)) => u16::try_from(number.as_u64().unwrap()).unwrap(),
            Some(Value::String(text)) => match text.parse::<u16>() {
                Ok(number) => number,
                Err(_) => return self.has_port(text).then_some((24, chosen || !self.ingress)),
            },
            other => panic!("what is {other:?}?"),
        };
        if first == 0 {
            return Some((8, chosen));
        }
        if !has_ports {
            return (self.port >> 8 == first).then_some((16, chosen));
        }
        let last = field(port, "endPort")
            .and_then(Value::as_u64)
            .filter(|last| *last > 0)
            .map_or(u64::from(first), |last| last);
        let last = u16::try_from(last).unwrap();
        (first..=last).contains(&self.port).then(|| (bits_within(first, last, self.port), chosen))
    }

    /// Whether the pod at the destination gives its port this name.
    fn has_port(&self, name: &str) -> bool {
        let at = if self.ingress { self.local } else { self.remote };
        let End::Pod(pod) = at else { return false };
        let is_it = |(have, number, protocol): &(&str, u16, u8)| {
            have.eq_ignore_ascii_case(name) && (*number, *protocol) == (self.port, self.protocol)
        };
        pod.ports.iter().any(is_it)
    }

    /// "By default, if no policies exist in a namespace, then all ingress and egress traffic is allowed"; a policy
    /// is for ingress, and for egress if it has rules for that, unless it says its types.
    fn network_policy(&self, spec: &Value, namespace: &str, encrypted: &str, tally: &mut Tally) {
        let (types, name) = (items(spec, "policyTypes"), if self.ingress { "Ingress" } else { "Egress" });
        let is_in_force = if types.is_empty() {
            self.ingress || !items(spec, "egress").is_empty()
        } else {
            types.iter().any(|word| word == name)
        };
        if !is_in_force {
            return;
        }
        tally.default_deny = true;
        let (list, peers) = if self.ingress { ("ingress", "from") } else { ("egress", "to") };
        let allows = items(spec, list).iter().any(|rule| {
            let peers = items(rule, peers);
            let ports = items(rule, "ports");
            (peers.is_empty() || peers.iter().any(|peer| self.is_kubernetes_peer(peer, namespace)))
                && (ports.is_empty() || ports.iter().any(|port| self.is_kubernetes_port(port)))
        });
        tally.allowed |= allows;
        tally.encrypted |= allows && encrypted == "required";
    }

    fn is_kubernetes_peer(&self, peer: &Value, namespace: &str) -> bool {
        if let Some(block) = field(peer, "ipBlock") {
            let address = match self.remote {
                End::Pod(pod) => pod.address,
                End::Node(node) => node.address,
                End::Outside(address) => address,
                End::Reserved(_) | End::Stranger => return false,
            };
            let except = items(block, "except");
            return is_in(address, text(block, "cidr").unwrap())
                && !except.iter().any(|except| is_in(address, except.as_str().unwrap()));
        }
        let End::Pod(pod) = self.remote else { return false };
        let (_, of_namespace) = NAMESPACES.iter().find(|(name, _)| *name == pod.namespace).unwrap();
        self.is_in_own_cluster()
            && field(peer, "podSelector").is_none_or(|selector| of_kubernetes(selector, pod.labels))
            && match field(peer, "namespaceSelector") {
                Some(selector) => of_kubernetes(selector, of_namespace),
                None => pod.namespace == namespace,
            }
    }

    fn is_kubernetes_port(&self, port: &Value) -> bool {
        let protocol = match text(port, "protocol") {
            None | Some("TCP") => 6,
            Some("UDP") => 17,
            Some(_) => 132,
        };
        let is_port = match field(port, "port") {
            None => true,
            Some(Value::String(name)) if name.parse::<u16>().is_err() => {
                return protocol == self.protocol && self.has_port(name);
            }
            Some(first) => {
                let first = first.as_u64().unwrap_or_else(|| first.as_str().unwrap().parse().unwrap());
                let last = field(port, "endPort").and_then(Value::as_u64).unwrap_or(first);
                (first..=last).contains(&u64::from(self.port))
            }
        };
        protocol == self.protocol && is_port
    }
}

/// Where a rule stands.
#[derive(Clone, Copy)]
struct Scope<'a> {
    namespace: Option<&'a str>,
    is_for_init: bool,
}

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
const OF_NAMESPACE: &str = "io.cilium.k8s.namespace.labels";

/// What an element of `toPorts` has that isn't enforced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer7 {
    Absent,
    /// Something is restricted, but not what may pass in the end.
    Admits,
    Restricts,
}

impl Layer7 {
    fn of(block: &Value) -> Self {
        let is_full = |value: &Value| {
            value.as_object().is_none_or(|map| !map.is_empty())
                && value.as_array().is_none_or(|list| !list.is_empty())
        };
        let mut found = Self::Absent;
        for name in ["rules", "serverNames", "terminatingTLS", "originatingTLS", "listener"] {
            let Some(value) = field(block, name).filter(|value| is_full(value)) else { continue };
            let admits = |rule: &Value| {
                rule.as_object().unwrap().is_empty() || text(rule, "matchPattern") == Some("*")
            };
            let restricts = match name {
                "rules" => !value
                    .as_object()
                    .unwrap()
                    .values()
                    .any(|list| list.as_array().unwrap().iter().any(admits)),
                _ => name == "serverNames",
            };
            if restricts {
                return Self::Restricts;
            }
            found = Self::Admits;
        }
        found
    }
}

fn has_both(rule: &Value) -> bool {
    !items(rule, "toPorts").is_empty() && !items(rule, "icmps").is_empty()
}

fn is_in(address: &str, net: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    match net.parse::<IpNet>() {
        Ok(net) => net.contains(&address),
        Err(_) => net.parse() == Ok(address),
    }
}

/// Bits of protocol and port in the largest aligned block within a range that has the port.
fn bits_within(first: u16, last: u16, port: u16) -> u8 {
    let fits = |free: &u8| {
        let size = 1u32 << free;
        let start = u32::from(port) / size * size;
        start >= u32::from(first) && start + size - 1 <= u32::from(last)
    };
    24 - (0..=16).rev().find(fits).unwrap()
}

fn icmp_type(value: &Value, is_v6: bool) -> u16 {
    if let Some(number) = value.as_u64() {
        return u16::try_from(number).unwrap();
    }
    let text = value.as_str().unwrap();
    match (text, is_v6) {
        ("EchoReply", false) => 0,
        ("DestinationUnreachable", false) => 3,
        ("Echo" | "EchoRequest", false) => 8,
        ("TimeExceeded", false) => 11,
        ("PacketTooBig", true) => 2,
        ("TimeExceeded", true) => 3,
        ("EchoRequest", true) => 128,
        ("NeighborSolicitation", true) => 135,
        _ => text.parse().unwrap(),
    }
}

/// A label of the pattern against one of the name.
fn is_like(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, rest)) => label
            .strip_prefix(before)
            .is_some_and(|after| (0..=after.len()).any(|skipped| is_like(rest, &after[skipped..]))),
    }
}

/// Source and key, as Cilium's documentation writes them.
fn split(key: &str) -> (&str, &str) {
    if let Some(name) = key.strip_prefix("reserved.").or(key.strip_prefix('$')) {
        return ("reserved", name);
    }
    if let Some(name) = key.strip_prefix("k8s.").filter(|name| name.starts_with("io.")) {
        return ("k8s", name);
    }
    key.split_once(':').unwrap_or(("any", key))
}

/// A label: source, key, value.
type OneLabel = (&'static str, String, String);

fn of_object(labels: &[(&str, &str)]) -> Vec<OneLabel> {
    labels.iter().map(|(key, value)| ("k8s", (*key).to_owned(), (*value).to_owned())).collect()
}

fn labels(end: End) -> Vec<OneLabel> {
    let reserved =
        |names: &[&str]| names.iter().map(|name| ("reserved", (*name).to_owned(), String::new())).collect();
    match end {
        End::Pod(pod) => {
            let (_, of_namespace) = NAMESPACES.iter().find(|(name, _)| *name == pod.namespace).unwrap();
            let mut labels = of_object(pod.labels);
            labels.extend(
                of_namespace
                    .iter()
                    .map(|(key, value)| ("k8s", format!("{OF_NAMESPACE}.{key}"), (*value).to_owned())),
            );
            labels.extend(of_object(&[
                (NAMESPACE, pod.namespace),
                ("io.cilium.k8s.policy.serviceaccount", pod.account),
                (CLUSTER, pod.cluster),
            ]));
            labels
        }
        End::Node(node) => reserved(&[if node.name == OWN_NODE { "host" } else { "remote-node" }]),
        End::Outside(_) => reserved(&["world"]),
        End::Reserved(names) => reserved(names),
        End::Stranger => Vec::new(),
    }
}

/// A requirement on a label: key, operator, values.
fn requirements(selector: &Value) -> Vec<(String, String, Vec<String>)> {
    let equal = field(selector, "matchLabels").and_then(Value::as_object).into_iter().flatten();
    let equal =
        equal.map(|(key, value)| (key.clone(), "in".to_owned(), vec![value.as_str().unwrap().to_owned()]));
    let more = items(selector, "matchExpressions").iter().map(|one| {
        let values = items(one, "values").iter().map(|value| value.as_str().unwrap().to_owned()).collect();
        (text(one, "key").unwrap().to_owned(), text(one, "operator").unwrap().to_lowercase(), values)
    });
    equal.chain(more).collect()
}

fn keys(selector: &Value) -> Vec<String> {
    requirements(selector).into_iter().map(|(key, ..)| key).collect()
}

fn has_key(selector: &Value, test: impl Fn(&str, &str) -> bool) -> bool {
    keys(selector).iter().any(|key| {
        let (source, key) = split(key);
        test(source, key)
    })
}

/// Whether the selector means this end; of a stranger nothing is known, so none does.
fn selects(selector: &Value, end: End, ignored: impl Fn(&str) -> bool) -> bool {
    !matches!(end, End::Stranger) && selects_labels(selector, &labels(end), ignored)
}

/// Whether all that is required holds; what `matchLabels` says of an ignored key doesn't count.
fn selects_labels(selector: &Value, labels: &[OneLabel], ignored: impl Fn(&str) -> bool) -> bool {
    let of_labels = field(selector, "matchLabels").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    requirements(selector).into_iter().enumerate().all(|(place, (key, operator, values))| {
        let (source, name) = split(&key);
        let is_key = |(have, key, _): &&OneLabel| (source == "any" || source == *have) && key == name;
        (place < of_labels && ignored(&key))
            || holds(&operator, &values, labels.iter().filter(is_key).map(|(.., value)| value))
    })
}

fn of_kubernetes(selector: &Value, labels: &[(&str, &str)]) -> bool {
    requirements(selector).into_iter().all(|(key, operator, values)| {
        let found: Vec<String> =
            labels.iter().filter(|(have, _)| *have == key).map(|(_, value)| (*value).to_owned()).collect();
        holds(&operator, &values, found.iter())
    })
}

fn holds<'a>(operator: &str, values: &[String], mut found: impl Iterator<Item = &'a String>) -> bool {
    match operator {
        "in" => found.any(|value| values.contains(value)),
        "notin" => !found.any(|value| values.contains(value)),
        "exists" => found.next().is_some(),
        "doesnotexist" => found.next().is_none(),
        other => panic!("what is {other}?"),
    }
}
