//! Services and EndpointSlices, out of the fields in use.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::body::address;
use super::{Body, Mistake};
use crate::cluster::{Service, ServiceEndpoint, ServicePort, Slice, SlicePort, TargetPort};

/// How long a client keeps its backend where nothing says so, in seconds: the API server's default.
const AFFINITY: u32 = 10_800;
/// The most that the API server lets pass: a day.
const LONGEST_AFFINITY: u32 = 86_400;
/// Says that another proxy translates the service.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Names the service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Debug, serde::Deserialize)]
pub(super) struct ServiceManifest {
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: Option<BTreeMap<String, String>>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    load_balancer_source_ranges: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    port: u16,
    protocol: Option<String>,
    target_port: Option<PortOrName>,
    node_port: Option<u16>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum PortOrName {
    Port(u16),
    Name(String),
}

#[derive(Debug, serde::Deserialize)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Debug, serde::Deserialize)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct SliceManifest {
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<EndpointPort>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    conditions: Option<Conditions>,
    node_name: Option<String>,
    hints: Option<Hints>,
}

#[derive(Debug, Default, serde::Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hints {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Debug, serde::Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, serde::Deserialize)]
struct EndpointPort {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

/// A Service. Addresses that are words (`None`, a name) are none.
pub(super) fn service(labels: BTreeMap<String, String>, manifest: ServiceManifest) -> Result<Body, Mistake> {
    let spec = manifest.spec.unwrap_or_default();
    let is_headless = spec.cluster_ip.as_deref() == Some("None")
        || spec.cluster_ips.iter().flatten().any(|text| text == "None");
    let mut external: Vec<IpAddr> = addresses(spec.external_ips);
    // Whoever restricts a load balancer's clients has kube-proxy look at them; nor is a translation here what
    // a load balancer does that looks into connections itself.
    if spec.load_balancer_source_ranges.unwrap_or_default().is_empty() {
        let balancer = manifest.status.unwrap_or_default().load_balancer;
        let ingress = balancer.and_then(|balancer| balancer.ingress).unwrap_or_default();
        let proxied = |ingress: &Ingress| ingress.ip_mode.as_deref() == Some("Proxy");
        external.extend(ingress.into_iter().filter(|one| !proxied(one)).filter_map(|one| address(&one.ip?)));
    }
    let mut all = addresses(spec.cluster_ips);
    all.extend(spec.cluster_ip.and_then(|text| address(&text)));
    all.extend(&external);
    all.sort_unstable();
    all.dedup();
    let affinity = match spec.session_affinity.as_deref() {
        Some("ClientIP") => {
            let config = spec.session_affinity_config.and_then(|config| config.client_ip);
            let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(AFFINITY);
            if seconds == 0 || seconds > LONGEST_AFFINITY {
                let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                return Err(Mistake::new(field, format!("must be from 1 to {LONGEST_AFFINITY}")));
            }
            seconds
        }
        None | Some("None" | "") => 0,
        Some(other) => {
            let message = format!("\"{other}\": must be `ClientIP` or `None`");
            return Err(Mistake::new("spec.sessionAffinity", message));
        }
    };
    let service = Service {
        is_left_alone: is_headless
            || labels.contains_key(PROXY_NAME)
            || spec.kind.as_deref() == Some("ExternalName"),
        addresses: all,
        external: external.into_iter().collect(),
        ports: spec.ports.into_iter().flatten().filter_map(port).collect(),
        affinity,
        internal_local: is_local("spec.internalTrafficPolicy", spec.internal_traffic_policy)?,
        external_local: is_local("spec.externalTrafficPolicy", spec.external_traffic_policy)?,
        slices: Vec::new(),
    };
    let selector = spec.selector.filter(|selector| !selector.is_empty());
    Ok(Body::Service { labels, selector, service: Box::new(service) })
}

fn is_local(field: &str, policy: Option<String>) -> Result<bool, Mistake> {
    match policy.as_deref() {
        None | Some("Cluster" | "") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => Err(Mistake::new(field, format!("\"{other}\": must be `Cluster` or `Local`"))),
    }
}

fn addresses(texts: Option<Vec<String>>) -> Vec<IpAddr> {
    texts.into_iter().flatten().filter_map(|text| address(&text)).collect()
}

fn port(port: Port) -> Option<ServicePort> {
    let target = match port.target_port {
        None | Some(PortOrName::Port(0)) => TargetPort::Number(port.port),
        Some(PortOrName::Port(number)) => TargetPort::Number(number),
        Some(PortOrName::Name(name)) => TargetPort::Name(name),
    };
    Some(ServicePort {
        name: port.name.unwrap_or_default(),
        protocol: protocol(port.protocol.as_deref())?,
        port: port.port,
        target,
        node_port: port.node_port.unwrap_or_default(),
    })
}

fn protocol(name: Option<&str>) -> Option<u8> {
    policy::protocol::number(name.unwrap_or("TCP"))
}

/// An EndpointSlice. One that names no service stands behind none.
pub(super) fn slice(labels: &BTreeMap<String, String>, manifest: SliceManifest) -> Body {
    let endpoints: Vec<ServiceEndpoint> =
        manifest.endpoints.unwrap_or_default().into_iter().map(endpoint).collect();
    let ports = manifest.ports.unwrap_or_default().into_iter().filter_map(|port| {
        Some(SlicePort {
            name: port.name.unwrap_or_default(),
            protocol: protocol(port.protocol.as_deref())?,
            port: port.port?,
        })
    });
    Body::Endpoints {
        service: labels.get(SERVICE_NAME).cloned().unwrap_or_default(),
        addresses: endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect(),
        slice: Some(Slice { ports: ports.collect(), endpoints }),
    }
}

/// What is not said about readiness is as the API documents it.
fn endpoint(endpoint: Endpoint) -> ServiceEndpoint {
    let conditions = endpoint.conditions.unwrap_or_default();
    let is_ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.unwrap_or_default();
    let names = |hints: Option<Vec<Named>>| hints.into_iter().flatten().map(|hint| hint.name).collect();
    ServiceEndpoint {
        addresses: addresses(Some(endpoint.addresses)),
        node: endpoint.node_name.filter(|name| !name.is_empty()),
        is_ready,
        is_last_resort: conditions.terminating.unwrap_or_default() && conditions.serving.unwrap_or(is_ready),
        for_zones: names(hints.for_zones),
        for_nodes: names(hints.for_nodes),
    }
}
