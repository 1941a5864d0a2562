//! A cluster, its policies and who reaches whom, each as a few lines of text.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};

use policy::{
    AuthType, CidrGroup, Identity, IdentityNumber, IdentitySet, Input, Label, LabelSet, NamedPort, Node,
    Nodes, Pod, Policy, PolicySet, RESERVED, Requirement, Selector, Service, Source, Surroundings,
    TraceVerdict, Traffic, canonical_name, protocol, reserved, trace_with_nodes,
};

/// A cluster and its policies.
pub(crate) struct Scene {
    identities: IdentitySet,
    surroundings: Surroundings,
    policies: PolicySet,
    pods: BTreeMap<String, IdentityNumber>,
}

impl Scene {
    /// `cluster` has a line for each thing: `namespace/pod label=value sa:ACCOUNT cluster:NAME ip:ADDRESS
    /// port:NAME=80/TCP`, `namespace: label=value`, `service namespace/name label=value selects:label=value
    /// ip:ADDRESS`, `group name label=value net:PREFIX`, `node name label=value`, `name NAME ip:ADDRESS`.
    /// `policies` are YAML documents.
    pub(crate) fn new(cluster: &str, policies: &str) -> Self {
        let mut scene = Self {
            identities: IdentitySet::new(),
            surroundings: Surroundings::default(),
            policies: PolicySet::new(),
            pods: BTreeMap::new(),
        };
        let lines = || cluster.lines().map(Line::parse).filter(|line| !line.words.is_empty());
        let of_namespaces: BTreeMap<&str, Vec<(&str, &str)>> = lines()
            .filter_map(|line| Some((line.words.first()?.strip_suffix(':')?, line.labels.clone())))
            .collect();
        for line in lines() {
            scene.add(&line, &of_namespaces);
        }
        for document in policies.split("\n---\n") {
            let value =
                serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}"));
            scene.policies.insert(Policy::from_value(&value).unwrap_or_else(|error| panic!("{error}")));
        }
        scene
    }

    fn add(&mut self, line: &Line<'_>, of_namespaces: &BTreeMap<&str, Vec<(&str, &str)>>) {
        match line.words.as_slice() {
            ["service", name] => {
                let (namespace, name) = name.split_once('/').unwrap();
                let pods = (!line.selects.is_empty()).then(|| selector(namespace, &line.selects));
                let service = Service { labels: labels(&line.labels), pods, addresses: line.addresses() };
                self.surroundings.services.insert((namespace.into(), name.into()), service);
            }
            ["group", name] => {
                let nets = line.nets.iter().map(|net| net.parse().unwrap()).collect();
                let group = CidrGroup { labels: labels(&line.labels), nets };
                self.surroundings.cidr_groups.insert((*name).into(), group);
            }
            ["node", name] => {
                let of_node = [line.labels.as_slice(), &[(policy::CLUSTER_KEY, "default")]].concat();
                let node = Node { labels: labels(&of_node), addresses: line.addresses() };
                self.surroundings.nodes.insert((*name).into(), node);
            }
            ["name", name] => {
                self.surroundings.names.insert(canonical_name(name), line.addresses());
            }
            [namespace] if namespace.ends_with(':') => {}
            [pod] => self.add_pod(pod, line, of_namespaces),
            words => panic!("what is {words:?}?"),
        }
    }

    fn add_pod(
        &mut self,
        full_name: &str,
        line: &Line<'_>,
        of_namespaces: &BTreeMap<&str, Vec<(&str, &str)>>,
    ) {
        let (namespace, _) = full_name.split_once('/').unwrap();
        let cluster = line.cluster.unwrap_or("default");
        let pod = Pod { cluster, namespace, service_account: line.account.unwrap_or("default") };
        let mut of_namespace = vec![("kubernetes.io/metadata.name", namespace)];
        of_namespace.extend(of_namespaces.get(namespace).into_iter().flatten());
        let labels = pod.labels(line.labels.iter().copied(), of_namespace).unwrap();
        let known = self.identities.by_labels(&labels).map(Identity::number);
        let number = known.unwrap_or_else(|| {
            let number = 256 + u32::try_from(self.identities.iter().count() - RESERVED.len()).unwrap();
            self.identities.insert(Identity::new(number, labels).unwrap()).unwrap();
            number
        });
        self.pods.insert(full_name.to_owned(), number);
        self.surroundings.addresses.entry(number).or_default().extend(line.addresses());
        for port in &line.ports {
            let (name, port) = port.split_once('=').unwrap();
            let (port, protocol) = port.split_once('/').unwrap();
            let name = NamedPort::new(name, protocol::number(protocol).unwrap());
            let ports = self.surroundings.named_ports.entry(number).or_default();
            ports.entry(name).or_default().insert(port.parse().unwrap());
        }
    }

    /// Checks lines of `from -> to ports verdict`, each but the verdict one or several with commas between. An end is a
    /// pod, `ip:ADDRESS`, `entity:NAME`, or `node:NAME` as its own host and as others see it.
    #[track_caller]
    pub(crate) fn check(&self, table: &str) {
        for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [from, "->", to, ports, verdict] = words.as_slice() else { panic!("what is `{line}`?") };
            for (from, to) in from.split(',').flat_map(|from| to.split(',').map(move |to| (from, to))) {
                for port in ports.split(',') {
                    assert_eq!(self.ask(from, to, port), *verdict, "{from} -> {to} {port}");
                }
            }
        }
    }

    /// The conditions of the policies, by kind and field.
    pub(crate) fn conditions(&self) -> Vec<String> {
        let conditions = self.policies.conditions(&self.identities, &self.surroundings);
        let all = conditions.into_values().flatten();
        all.map(|condition| format!("{} {}", condition.kind.as_str(), condition.path)).collect()
    }

    fn ask(&self, from: &str, to: &str, port: &str) -> &'static str {
        let (number, protocol) = port.split_once('/').unwrap();
        let (number, protocol) = (number.parse::<u16>().unwrap(), protocol::number(protocol).unwrap());
        let port = if protocol::is_icmp(protocol) { number << 8 } else { number };
        let traffic = Traffic { from: self.end(from), to: self.end(to), protocol, port };
        let Self { identities, surroundings, policies, .. } = self;
        let node = |name: &str| Some(&self.surroundings.nodes.get(name.strip_prefix("node:")?)?.labels);
        let nodes = Nodes { from: node(from), to: node(to) };
        let trace = trace_with_nodes(Input { policies, identities, surroundings }, traffic, nodes);
        match (trace.verdict, trace.authentication.0) {
            (TraceVerdict::Denied, _) => "denied",
            (TraceVerdict::Allowed, AuthType::Disabled) => "allowed",
            (TraceVerdict::Allowed, AuthType::Spire) => "required",
            (TraceVerdict::Allowed, AuthType::AlwaysFail) => "fails",
        }
    }

    fn end(&self, name: &str) -> IdentityNumber {
        let local = || self.policies.local_identities(&self.surroundings);
        match name.split_once(':') {
            Some(("ip", address)) => local().identity_of(address.parse().unwrap()),
            Some(("node", name)) => local().identity_of_node(name),
            Some(("entity", "world")) => {
                local().by_net().get(&policy::ALL_V4).copied().unwrap_or(reserved::WORLD)
            }
            Some(("entity", name)) => {
                let found = RESERVED.iter().find(|(_, names)| names.first() == Some(&name));
                found.unwrap_or_else(|| panic!("no entity {name}")).0
            }
            _ => {
                let is_meant = |full: &&String| *full == name || full.ends_with(&format!("/{name}"));
                let mut found = self.pods.keys().filter(is_meant);
                let pod = found.next().unwrap_or_else(|| panic!("no pod {name}"));
                assert_eq!(found.next(), None, "{name} is more than one");
                self.pods.get(pod).copied().unwrap()
            }
        }
    }
}

/// A line of a cluster.
#[derive(Default)]
struct Line<'a> {
    words: Vec<&'a str>,
    labels: Vec<(&'a str, &'a str)>,
    selects: Vec<(&'a str, &'a str)>,
    account: Option<&'a str>,
    cluster: Option<&'a str>,
    ips: Vec<&'a str>,
    nets: Vec<&'a str>,
    ports: Vec<&'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        let mut line = Self::default();
        for word in text.split_whitespace() {
            match (word.split_once(':'), word.split_once('=')) {
                (Some(("sa", account)), _) => line.account = Some(account),
                (Some(("cluster", name)), _) => line.cluster = Some(name),
                (Some(("ip", address)), _) => line.ips.push(address),
                (Some(("net", net)), _) => line.nets.push(net),
                (Some(("port", port)), _) => line.ports.push(port),
                (Some(("selects", label)), _) => line.selects.push(label.split_once('=').unwrap()),
                (_, Some(label)) => line.labels.push(label),
                (_, None) => line.words.push(word),
            }
        }
        line
    }

    fn addresses(&self) -> BTreeSet<std::net::IpAddr> {
        self.ips.iter().map(|address| address.parse().unwrap()).collect()
    }
}

fn labels(labels: &[(&str, &str)]) -> LabelSet {
    let labels = labels.iter().map(|(key, value)| Label::new(Source::K8s, *key, *value).unwrap());
    LabelSet::from_labels(labels).unwrap()
}

fn selector(namespace: &str, of_pods: &[(&str, &str)]) -> Selector {
    let all = of_pods.iter().copied().chain([(policy::NAMESPACE_KEY, namespace)]);
    let equals = |(key, value)| {
        let label = Label::new(Source::K8s, key, value).unwrap();
        Requirement::equals(label.label_key().clone(), value)
    };
    Selector { requirements: all.map(equals).collect() }
}
