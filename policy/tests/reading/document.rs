//! Policies in all the ways in which they may be written, made from a tape of random bytes: where the tape ends
//! follows the plainest, so that a failing test shrinks.

use serde_json::{Map, Value, json};

/// A policy as its author wrote it.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    /// Whether it has something that isn't known or can't be.
    pub(crate) is_spoilt: bool,
}

/// Documents of at most this many policies.
pub(crate) fn documents(bytes: &[u8], most: usize) -> Vec<Document> {
    let mut tape = Tape(bytes.iter());
    (0..=tape.below(most)).map(|index| tape.document(index)).collect()
}

struct Tape<'a>(std::slice::Iter<'a, u8>);

/// Written out, `null` or left out.
fn set(map: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    map.extend(value.map(|value| (name.to_owned(), value)));
}

impl Tape<'_> {
    fn below(&mut self, count: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % count
    }

    /// One time in this many.
    fn once_in(&mut self, count: usize) -> bool {
        self.below(count) + 1 == count
    }

    fn pick<T: Clone>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())].clone()
    }

    fn list(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> Value) -> Value {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }

    /// Mostly left out; now and then null.
    fn seldom(&mut self, make: impl FnOnce(&mut Self) -> Value) -> Option<Value> {
        match self.below(8) {
            6 => Some(Value::Null),
            7 => Some(make(self)),
            _ => None,
        }
    }

    /// Often there.
    fn often(&mut self, make: impl FnOnce(&mut Self) -> Value) -> Option<Value> {
        match self.below(8) {
            0..=2 => None,
            3 => Some(Value::Null),
            _ => Some(make(self)),
        }
    }

    fn document(&mut self, index: usize) -> Document {
        let (kind, namespace) = self.pick(&[
            ("CiliumNetworkPolicy", Some("x")),
            ("CiliumClusterwideNetworkPolicy", None),
            ("NetworkPolicy", Some("x")),
            ("CiliumNetworkPolicy", Some("y")),
            ("CiliumNetworkPolicy", None),
            ("CiliumClusterwideNetworkPolicy", Some("x")),
            ("NetworkPolicy", Some("y")),
            ("NetworkPolicy", None),
        ]);
        let version = if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "cilium.io/v2" };
        let mut metadata = Map::new();
        set(&mut metadata, "name", Some(json!(format!("p{index}"))));
        set(&mut metadata, "namespace", namespace.map(Value::from));
        let mut value = json!({"apiVersion": version, "kind": kind});
        let is_spoilt = self.once_in(24);
        if kind == "NetworkPolicy" {
            value["spec"] = self.network_policy();
        } else if self.once_in(5) {
            value["specs"] =
                (0..=self.below(2)).map(|_| self.spec(kind == "CiliumClusterwideNetworkPolicy")).collect();
            if self.once_in(2) {
                value["spec"] = Value::Null;
            }
        } else {
            value["spec"] = self.spec(kind == "CiliumClusterwideNetworkPolicy");
        }
        let annotations = self.annotations(&value);
        set(&mut metadata, "annotations", annotations);
        value["metadata"] = Value::Object(metadata);
        if is_spoilt {
            self.spoil(&mut value);
        }
        Document { value, is_spoilt }
    }

    fn annotations(&mut self, value: &Value) -> Option<Value> {
        let rules = |spec: &Value, before: &str| {
            let of_list = |list: &'static str| {
                let len = spec.get(list).and_then(Value::as_array).map_or(0, Vec::len);
                let name = move |index| format!("{list}[{index}]");
                (0..len).map(name).collect::<Vec<_>>()
            };
            ["ingress", "egress"]
                .into_iter()
                .flat_map(of_list)
                .map(|name| format!("{before}{name}"))
                .collect()
        };
        let mut names: Vec<String> = value.get("spec").map_or(Vec::new(), |spec| rules(spec, ""));
        for (place, spec) in value.get("specs").and_then(Value::as_array).into_iter().flatten().enumerate() {
            names.extend(rules(spec, &format!("specs[{place}].")));
        }
        let mut annotations = json!({"example.com/policy.authd.io": "x"});
        match self.below(12) {
            8 => annotations["policy.authd.io/encryption"] = json!("required"),
            9 if value["kind"] != "NetworkPolicy" && !names.is_empty() => {
                let name = names[self.below(names.len())].clone();
                annotations["policy.authd.io/encryption"] = json!(format!("{}, {name}", names[0]));
            }
            10 | 11 => {
                annotations["policy.authd.io/audit"] =
                    json!(self.pick(&["enabled", "true", "disabled", "false"]));
            }
            _ => {}
        }
        self.often(|_| annotations)
    }

    /// Puts something into it that can't be understood.
    fn spoil(&mut self, value: &mut Value) {
        let place = if value.get("specs").is_some() { "/specs/0" } else { "/spec" };
        let spec = value.pointer_mut(place).unwrap();
        let list = |spec: &mut Value, rule| spec["ingress"] = json!([{}, rule]);
        match self.below(6) {
            0 => spec["ingres"] = json!([{}]),
            1 => list(spec, json!({"fromEntity": ["world"], "from": 1})),
            2 => spec["egress"] = json!({}),
            3 => {
                list(spec, json!({"ports": [{"port": "http!"}], "toPorts": [{"ports": [{"port": "65536"}]}]}))
            }
            4 => spec["ingress"] = json!([null]),
            _ => list(spec, json!({"toPorts": [{"ports": [{"port": "80", "protocol": "TPC"}]}]})),
        }
    }

    fn spec(&mut self, is_clusterwide: bool) -> Value {
        let mut spec = Map::new();
        let subject = match (self.below(6), is_clusterwide) {
            (5, false) => {
                json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": self.pick(&["x", "y"])}})
            }
            (5, true) => {
                json!({"matchLabels": {self.pick(&["reserved:ingress", "reserved.init", "$health"]): ""}})
            }
            (3 | 4, _) => json!({}),
            _ => self.selector(),
        };
        let of_nodes = is_clusterwide && self.once_in(4);
        if of_nodes {
            set(&mut spec, "nodeSelector", Some(self.plain_selector(&["a", "k8s:b", "zone"])));
        } else {
            set(&mut spec, "endpointSelector", Some(subject));
        }
        for (list, prefix, is_deny) in [
            ("ingress", "from", false),
            ("egress", "to", false),
            ("ingressDeny", "from", true),
            ("egressDeny", "to", true),
        ] {
            let rules = |tape: &mut Self| tape.list(3, |tape| tape.rule(prefix, is_deny));
            let rules = if is_deny { self.seldom(rules) } else { self.often(rules) };
            set(&mut spec, list, rules);
        }
        let default_deny = self.seldom(|tape| {
            let mut fields = Map::new();
            for name in ["ingress", "egress"] {
                let value = tape.pick(&[Some(json!(true)), Some(json!(false)), Some(Value::Null), None]);
                set(&mut fields, name, value);
            }
            Value::Object(fields)
        });
        set(&mut spec, "enableDefaultDeny", default_deny);
        set(&mut spec, "description", self.seldom(|_| json!("why")));
        set(&mut spec, "labels", self.seldom(|_| json!([{"key": "a", "value": "b", "source": "k8s"}])));
        set(&mut spec, "log", self.seldom(|_| json!({"value": "text"})));
        Value::Object(spec)
    }

    fn rule(&mut self, prefix: &str, is_deny: bool) -> Value {
        let mut rule = Map::new();
        let kinds = if self.once_in(12) { 2 } else { usize::from(!self.once_in(4)) };
        for _ in 0..kinds {
            let (name, peers) = self.peers(prefix == "to", is_deny);
            let peers = if self.once_in(16) { Value::Null } else { peers };
            rule.insert(format!("{prefix}{name}"), peers);
        }
        let mut has_content = false;
        match self.below(8) {
            0..=3 => {
                let ports = self.list(2, |tape| {
                    let mut block = Map::new();
                    set(&mut block, "ports", tape.often(|tape| tape.list(3, Self::port)));
                    let content = if is_deny { None } else { tape.seldom(Self::content) };
                    has_content |= content.is_some();
                    block.extend(
                        content.and_then(|content| content.as_object().cloned()).into_iter().flatten(),
                    );
                    Value::Object(block)
                });
                set(&mut rule, "toPorts", Some(ports));
                if self.once_in(16) {
                    set(&mut rule, "icmps", Some(json!([{"fields": [{"type": 8}]}])));
                }
            }
            4 => {
                let fields = |tape: &mut Self| json!({"fields": tape.list(2, Self::icmp)});
                set(&mut rule, "icmps", Some(self.list(2, fields)));
                set(&mut rule, "toPorts", self.seldom(|_| json!([])));
            }
            _ => set(&mut rule, "toPorts", self.seldom(|_| json!([]))),
        }
        if !is_deny {
            let mode =
                |tape: &mut Self| json!({"mode": tape.pick(&["required", "disabled", "test-always-fail"])});
            set(&mut rule, "authentication", self.often(mode));
            set(
                &mut rule,
                "encryption",
                self.seldom(|tape| json!({"mode": tape.pick(&["required", "default"])})),
            );
            if !has_content {
                let required = self.seldom(|tape| tape.list(2, Self::selector)).filter(|_| self.once_in(2));
                set(&mut rule, &format!("{prefix}Requires"), required);
            }
        }
        Value::Object(rule)
    }

    /// What is in packets, and how it is looked at.
    fn content(&mut self) -> Value {
        self.pick(&[
            json!({"rules": {"http": [{"path": "/public", "method": "GET"}]}}),
            json!({"rules": {"http": [{}]}}),
            json!({"rules": {"dns": [{"matchPattern": "*"}]}}),
            json!({"rules": {"dns": [{"matchName": "a.example"}]}}),
            json!({"rules": {}, "serverNames": []}),
            json!({"serverNames": ["a.example"]}),
            json!({"terminatingTLS": {"secret": {"name": "s"}}}),
            json!({"listener": {"name": "l", "envoyConfig": {"name": "e"}}}),
        ])
    }

    fn key(&mut self) -> &'static str {
        self.pick(&[
            "a",
            "k8s:a",
            "any:a",
            "b",
            "k8s:b",
            "app",
            "io.kubernetes.pod.namespace",
            "k8s:io.kubernetes.pod.namespace",
            "k8s.io.kubernetes.pod.namespace",
            "any:io.kubernetes.pod.namespace",
            "io.cilium.k8s.namespace.labels.team",
            "k8s:io.cilium.k8s.namespace.labels.kind",
            "io.cilium.k8s.policy.serviceaccount",
            "k8s:io.cilium.k8s.policy.cluster",
            "reserved:host",
            "reserved.remote-node",
            "$world",
            "reserved:ingress",
            "kube-apiserver",
        ])
    }

    fn value_of(&mut self, key: &str) -> &'static str {
        let own = key.rsplit([':', '.', '$']).next();
        match own {
            Some("namespace") => self.pick(&["x", "y", "default"]),
            Some("serviceaccount") => self.pick(&["default", "web"]),
            Some("cluster") => self.pick(&["near", "far"]),
            Some("app") => "web",
            Some("host" | "remote-node" | "world" | "ingress" | "kube-apiserver") => "",
            _ => self.pick(&["0", "1"]),
        }
    }

    fn selector(&mut self) -> Value {
        let mut selector = Map::new();
        let labels = self.often(|tape| {
            let mut labels = Map::new();
            for _ in 0..tape.below(3) {
                let key = tape.key();
                labels.insert(key.to_owned(), json!(tape.value_of(key)));
            }
            Value::Object(labels)
        });
        set(&mut selector, "matchLabels", labels);
        set(&mut selector, "matchExpressions", self.seldom(|tape| tape.list(2, Self::expression)));
        Value::Object(selector)
    }

    fn expression(&mut self) -> Value {
        let key = self.key();
        self.expression_about(key)
    }

    fn expression_about(&mut self, key: &str) -> Value {
        let operator =
            self.pick(&["In", "NotIn", "Exists", "DoesNotExist", "in", "notin", "exists", "doesnotexist"]);
        let mut expression = Map::new();
        set(&mut expression, "key", Some(json!(key)));
        set(&mut expression, "operator", Some(json!(operator)));
        let values = if operator.to_lowercase().contains("in") {
            Some((0..=self.below(2)).map(|_| json!(self.value_of(key))).collect())
        } else {
            self.pick(&[None, Some(Value::Null), Some(json!([]))])
        };
        set(&mut expression, "values", values);
        Value::Object(expression)
    }

    fn peers(&mut self, is_egress: bool, is_deny: bool) -> (&'static str, Value) {
        const ENTITIES: [&str; 14] = [
            "world",
            "all",
            "cluster",
            "host",
            "remote-node",
            "none",
            "kube-apiserver",
            "world-ipv4",
            "world-ipv6",
            "init",
            "ingress",
            "health",
            "unmanaged",
            "cluster-mesh",
        ];
        const NETS: [&str; 12] = [
            "192.0.2.0/29",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.0.200/32",
            "192.0.2.7",
            "0.0.0.0/0",
            "::/0",
            "fd00::/8",
            "2001:db8::1",
            "10.2.3.4/16",
            "10.2.1.5/32",
            "8.8.8.8",
        ];
        match self.below(if is_egress { 14 } else { 11 }) {
            0..=3 => ("Endpoints", self.list(2, Self::selector)),
            4 | 5 => ("Entities", self.list(2, |tape| json!(tape.pick(&ENTITIES)))),
            6 => ("CIDR", self.list(2, |tape| json!(tape.pick(&NETS)))),
            7 | 8 => ("CIDRSet", self.list(2, Self::cidr_set)),
            9 => ("Nodes", self.list(2, |tape| tape.plain_selector(&["a", "k8s:b", "any:zone"]))),
            10 => ("Groups", self.list(1, |_| json!({"aws": {"region": "us-west-2"}}))),
            13 if !is_deny => ("FQDNs", self.list(2, Self::name)),
            _ => ("Services", self.list(2, Self::service)),
        }
    }

    fn cidr_set(&mut self) -> Value {
        let (net, inside): (Value, &[&str]) = self.pick(&[
            (json!({"cidr": "10.0.0.0/8"}), ["10.1.0.0/16", "10.2.1.0/24", "10.2.9.9"].as_slice()),
            (json!({"cidr": "0.0.0.0/0"}), ["10.0.0.0/8", "192.0.2.4/30", "8.8.8.8/32"].as_slice()),
            (json!({"cidr": "fd00::/8", "cidrGroupRef": null}), ["fd00:2::/32", "fd00:1::1/128"].as_slice()),
            (json!({"cidrGroupRef": "g"}), ["10.2.1.0/24", "198.51.100.0/25"].as_slice()),
            (json!({"cidrGroupRef": "nothing", "cidr": ""}), ["10.2.1.0/24"].as_slice()),
            (
                json!({"cidrGroupSelector": {"matchLabels": {"k8s:kind": "group"}}}),
                ["10.2.0.0/16"].as_slice(),
            ),
            (json!({"cidrGroupSelector": {"matchLabels": {"a": "1"}}}), ["fd00:2::/64"].as_slice()),
            (json!({"cidrGroupSelector": {}}), ["10.2.9.0/24"].as_slice()),
        ]);
        let mut set_ = net.as_object().unwrap().clone();
        set(&mut set_, "except", self.often(|tape| tape.list(2, |tape| json!(tape.pick(inside)))));
        Value::Object(set_)
    }

    fn name(&mut self) -> Value {
        self.pick(&[
            json!({"matchName": "a.example"}),
            json!({"matchName": "B.a.Example.", "matchPattern": null}),
            json!({"matchPattern": "*.example"}),
            json!({"matchPattern": "**.example", "matchName": ""}),
            json!({"matchPattern": "*"}),
            json!({"matchPattern": "*.a.ex*le"}),
            json!({"matchPattern": "C.T*"}),
        ])
    }

    fn service(&mut self) -> Value {
        self.pick(
            &[
                json!({"k8sService": {"serviceName": "web", "namespace": "x"}}),
                json!({"k8sService": {"serviceName": "web"}}),
                json!({"k8sService": {"serviceName": "ext", "namespace": ""}}),
                json!({"k8sServiceSelector": {"selector": {"matchLabels": {"kind": "svc"}}, "namespace": "y"}}),
                json!({"k8sServiceSelector": {"selector": {"matchExpressions": [{"key": "k8s:kind", "operator": "Exists"}]}}}),
                json!({"k8sService": null, "k8sServiceSelector": {"selector": {"matchLabels": {"any:kind": "ext"}}}}),
            ],
        )
    }

    fn port(&mut self) -> Value {
        let mut port = Map::new();
        let protocol = self.pick(&[
            Some("TCP"),
            None,
            Some("ANY"),
            Some("UDP"),
            Some("tcp"),
            Some("Any"),
            Some(""),
            Some("SCTP"),
            Some("ICMP"),
            Some("ICMPv6"),
            Some("GRE"),
            Some("vrrp"),
        ]);
        set(&mut port, "protocol", protocol.map(Value::from));
        match protocol {
            Some("GRE" | "vrrp") => {
                set(&mut port, "port", self.often(|tape| tape.pick(&[json!("0"), json!(0)])))
            }
            Some("ICMP" | "ICMPv6") => {
                set(&mut port, "port", self.often(|tape| json!(tape.pick(&["0", "8", "128"]))))
            }
            _ => {
                let number = self.pick(&[80u16, 81, 78, 0, 76, 53, 443, 65535]);
                let word = match self.below(6) {
                    0..=3 => json!(number.to_string()),
                    4 => json!(number),
                    _ => json!(self.pick(&["http", "dns", "Http", "none"])),
                };
                // The end of a range beside a name is ignored.
                let has_end = number != 0 || word.as_str().is_some_and(|word| word.parse::<u16>().is_err());
                let end = self.often(|tape| json!(tape.pick(&[0, number.saturating_add(7), number, 65535])));
                set(&mut port, "port", Some(word));
                set(&mut port, "endPort", end.filter(|_| has_end));
            }
        }
        Value::Object(port)
    }

    fn icmp(&mut self) -> Value {
        self.pick(&[
            json!({"type": 8}),
            json!({"family": "IPv4", "type": "EchoRequest"}),
            json!({"type": "8", "family": null}),
            json!({"type": "EchoReply", "family": ""}),
            json!({"type": "TimeExceeded"}),
            json!({"family": "IPv6", "type": "EchoRequest"}),
            json!({"family": "IPv6", "type": "TimeExceeded"}),
            json!({"family": "IPv6", "type": 8}),
            json!({"family": "IPv6", "type": "135"}),
        ])
    }

    /// A selector of Kubernetes, about these keys.
    fn plain_selector(&mut self, keys: &[&str]) -> Value {
        let mut selector = Map::new();
        let labels = self.often(|tape| {
            let labels =
                (0..tape.below(3)).map(|_| (tape.pick(keys).to_owned(), json!(tape.pick(&["0", "1"]))));
            Value::Object(labels.collect())
        });
        set(&mut selector, "matchLabels", labels);
        let expressions = self.seldom(|tape| {
            tape.list(2, |tape| {
                let key = tape.pick(keys);
                tape.expression_about(key)
            })
        });
        set(&mut selector, "matchExpressions", expressions);
        Value::Object(selector)
    }

    fn network_policy(&mut self) -> Value {
        let mut spec = Map::new();
        set(&mut spec, "podSelector", Some(self.plain_selector(&["a", "b", "app"])));
        let types = self.pick(&[
            None,
            Some(["Ingress"].as_slice()),
            Some(["Egress", "Ingress"].as_slice()),
            Some(["Egress"].as_slice()),
            Some([].as_slice()),
        ]);
        set(&mut spec, "policyTypes", types.map(Value::from));
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            let rule = |tape: &mut Self| {
                let mut rule = Map::new();
                set(&mut rule, peers, tape.often(|tape| tape.list(2, Self::kubernetes_peer)));
                set(&mut rule, "ports", tape.often(|tape| tape.list(2, Self::kubernetes_port)));
                Value::Object(rule)
            };
            let rules = self.often(|tape| tape.list(3, rule));
            set(&mut spec, list, rules);
        }
        Value::Object(spec)
    }

    fn kubernetes_peer(&mut self) -> Value {
        let mut peer = Map::new();
        if self.once_in(3) {
            let (net, inside) = self.pick(&[
                ("10.1.0.0/24", ["10.1.0.2/32", "10.1.0.128/25", "10.1.0.250/31"]),
                ("0.0.0.0/0", ["10.0.0.0/8", "192.0.2.0/29", "8.8.8.8/32"]),
                ("::/0", ["fd00:1::/64", "fd00:2::/32", "2001:db8::/32"]),
            ]);
            let mut block = json!({"cidr": net});
            if let Some(except) = self.often(|tape| tape.list(2, |tape| json!(tape.pick(&inside)))) {
                block["except"] = except;
            }
            return json!({"ipBlock": block, "podSelector": null});
        }
        let which = self.below(3);
        set(&mut peer, "podSelector", (which != 1).then(|| self.plain_selector(&["a", "b", "app"])));
        set(&mut peer, "namespaceSelector", (which != 0).then(|| self.plain_selector(&["team", "kind"])));
        Value::Object(peer)
    }

    fn kubernetes_port(&mut self) -> Value {
        let mut port = Map::new();
        let protocol = self.pick(&[
            Some(json!("TCP")),
            None,
            Some(json!("UDP")),
            Some(json!("SCTP")),
            Some(Value::Null),
        ]);
        set(&mut port, "protocol", protocol);
        let number = self.pick(&[80u16, 81, 78, 53]);
        match self.below(5) {
            0 => set(&mut port, "port", None),
            1 => set(&mut port, "port", Some(json!(self.pick(&["http", "dns"])))),
            2 => set(&mut port, "port", Some(json!(number))),
            _ => {
                set(&mut port, "port", Some(json!(number)));
                set(&mut port, "endPort", self.often(|tape| json!(number + tape.pick(&[0, 1, 7]))));
            }
        }
        Value::Object(port)
    }
}
