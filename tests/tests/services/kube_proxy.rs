//! The real kube-proxy on a node, beside authd. What it asks of the Kubernetes API is answered from the
//! cluster directory: lists that never change.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context, Result};
use authd_tests::{Process, StarWars, binaries};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);
/// The resources that it watches, with their kind and version.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("/api/v1/services", "Service", "v1"),
    ("/api/v1/nodes", "Node", "v1"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "ServiceCIDR", "networking.k8s.io/v1"),
];

/// Starts kube-proxy on a node, with what the cluster directory says now.
pub(crate) fn start(scene: &StarWars, node: &str) -> Result<Process> {
    let objects = objects(scene)?;
    let at = scene.node(node)?;
    let listener = at.tcp_listen(API)?;
    thread::spawn(move || serve(listener, objects));
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": format!("http://{API}")}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": ""}}],
    });
    let kubeconfig_path = scene.lab.inside("kubeconfig");
    let json = "application/json";
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig_path, "contentType": json, "acceptContentTypes": json},
        "clusterCIDR": "10.244.0.0/16,fd00:10:244::/48",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // A list's answer, not a stream that begins with one.
        "featureGates": {"WatchListClient": false},
        "hostnameOverride": node,
        "oomScoreAdj": 0,
    });
    std::fs::write(scene.lab.outside("kubeconfig"), kubeconfig.to_string())?;
    std::fs::write(scene.lab.outside("kube-proxy.json"), config.to_string())?;
    let mut command = at.command(binaries::peer("kube-proxy")?);
    command.arg("--config").arg(scene.lab.inside("kube-proxy.json"));
    Process::start(&scene.lab, at, "kube-proxy", command)
}

/// What the cluster directory says, by kind, with what an API server would have filled in.
fn objects(scene: &StarWars) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut objects: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for file in std::fs::read_dir(scene.lab.outside("cluster"))? {
        let text = std::fs::read_to_string(file?.path())?;
        for document in text.split("---\n").filter(|document| !document.trim().is_empty()) {
            let mut object: Value = serde_saphyr::from_str(document)?;
            let Some(kind) = object.get("kind").and_then(Value::as_str).map(ToOwned::to_owned) else {
                continue;
            };
            for ports in ["/spec/ports", "/ports"] {
                let ports = object.pointer_mut(ports).and_then(Value::as_array_mut);
                for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
                    port.entry("protocol").or_insert_with(|| "TCP".into());
                }
            }
            objects.entry(kind).or_default().push(object);
        }
    }
    Ok(objects)
}

/// Answers until the test ends. Should it not come to that, kube-proxy says so.
fn serve(listener: TcpListener, objects: BTreeMap<String, Vec<Value>>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = Router::new().fallback(answer).with_state(objects);
        axum::serve(listener, router).await.context("serve the API")
    })
}

async fn answer(State(objects): State<BTreeMap<String, Vec<Value>>>, uri: Uri) -> Response {
    let json =
        |value: &Value| ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response();
    let path = uri.path();
    let named = |(resource, kind, _): &(&'static str, &'static str, &'static str)| {
        let name = path.strip_prefix(resource)?.strip_prefix('/')?;
        objects.get(*kind)?.iter().find(|object| object.pointer("/metadata/name") == Some(&name.into()))
    };
    if let Some(object) = RESOURCES.iter().find_map(named) {
        return json(object);
    }
    let Some((_, kind, version)) = RESOURCES.iter().find(|(resource, ..)| *resource == path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if uri.query().is_some_and(|query| query.contains("watch=true") || query.contains("watch=1")) {
        // Nothing changes.
        return std::future::pending().await;
    }
    let items = objects.get(*kind).cloned().unwrap_or_default();
    let list = json!({
        "apiVersion": version, "kind": format!("{kind}List"),
        "metadata": {"resourceVersion": "1"}, "items": items,
    });
    json(&list)
}
