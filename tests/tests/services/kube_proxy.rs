//! The real kube-proxy on a node, beside authd. What it asks of the Kubernetes API is answered from the
//! cluster directory: lists, and what has changed since them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use authd_tests::{Process, StarWars, binaries};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use serde_json::{Value, json};
use tokio::sync::watch;

const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);
/// The resources that it watches, with their kind and version.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("/api/v1/services", "Service", "v1"),
    ("/api/v1/nodes", "Node", "v1"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "ServiceCIDR", "networking.k8s.io/v1"),
];

/// By kind.
type Objects = BTreeMap<String, Vec<Value>>;
/// What the cluster directory has said so far; the version of each is its number, counted from 1.
type History = Vec<Arc<Objects>>;

/// A kube-proxy that is running.
pub(crate) struct KubeProxy {
    pub(crate) process: Process,
    history: watch::Sender<History>,
}

impl KubeProxy {
    /// Has it hear what the cluster directory says now.
    pub(crate) fn tell(&self, scene: &StarWars) -> Result<()> {
        let objects = Arc::new(objects(scene)?);
        self.history.send_modify(|history| history.push(objects));
        Ok(())
    }
}

/// Starts kube-proxy on a node, with what the cluster directory says now.
pub(crate) fn start(scene: &StarWars, node: &str) -> Result<KubeProxy> {
    let (history, versions) = watch::channel(vec![Arc::new(objects(scene)?)]);
    let at = scene.node(node)?;
    let listener = at.tcp_listen(API)?;
    thread::spawn(move || serve(listener, versions));
    let (kubeconfig_file, config_file) = (format!("kubeconfig-{node}"), format!("kube-proxy-{node}.json"));
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": format!("http://{API}")}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": ""}}],
    });
    let kubeconfig_path = scene.lab.inside(&kubeconfig_file);
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
    std::fs::write(scene.lab.outside(&kubeconfig_file), kubeconfig.to_string())?;
    std::fs::write(scene.lab.outside(&config_file), config.to_string())?;
    let mut command = at.command(binaries::peer("kube-proxy")?);
    command.arg("--config").arg(scene.lab.inside(&config_file));
    let process = Process::start(&scene.lab, at, &format!("kube-proxy-{node}"), command)?;
    Ok(KubeProxy { process, history })
}

/// What the cluster directory says, by kind, with what an API server would have filled in.
fn objects(scene: &StarWars) -> Result<Objects> {
    let mut objects = Objects::new();
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
fn serve(listener: TcpListener, history: watch::Receiver<History>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = Router::new().fallback(answer).with_state(history);
        axum::serve(listener, router).await.context("serve the API")
    })
}

async fn answer(State(history): State<watch::Receiver<History>>, uri: Uri) -> Response {
    let as_json = [(header::CONTENT_TYPE, "application/json")];
    let (version, objects) = {
        let history = history.borrow();
        (history.len(), history.last().cloned().unwrap_or_default())
    };
    let path = uri.path();
    let named = |(resource, kind, _): &(&'static str, &'static str, &'static str)| {
        let name = path.strip_prefix(resource)?.strip_prefix('/')?;
        objects.get(*kind)?.iter().find(|object| object.pointer("/metadata/name") == Some(&name.into()))
    };
    if let Some(object) = RESOURCES.iter().find_map(named) {
        return (as_json, object.to_string()).into_response();
    }
    let Some((_, kind, api)) = RESOURCES.iter().find(|(resource, ..)| *resource == path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let option = |name: &str| {
        let options = uri.query()?.split('&').filter_map(|option| option.split_once('='));
        options.filter(|(option, _)| *option == name).map(|(_, value)| value).next()
    };
    if option("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        let known = option("resourceVersion").and_then(|it| it.parse().ok()).unwrap_or(version);
        return (as_json, Body::from_stream(changes(kind, known, history))).into_response();
    }
    let list = json!({
        "apiVersion": api, "kind": format!("{kind}List"),
        "metadata": {"resourceVersion": version.to_string()},
        "items": objects.get(*kind).cloned().unwrap_or_default(),
    });
    (as_json, list.to_string()).into_response()
}

/// The events about objects of this kind from a version on, a line each.
fn changes(
    kind: &'static str,
    known: usize,
    history: watch::Receiver<History>,
) -> impl Stream<Item = Result<String, Infallible>> {
    stream::unfold((known, history), move |(mut known, mut history)| async move {
        loop {
            let versions = history.wait_for(|history| history.len() > known).await.ok()?.clone();
            let at = |version: usize| versions.get(version.checked_sub(1)?)?.get(kind);
            let lines = events(at(known), at(known + 1), known + 1);
            known += 1;
            if !lines.is_empty() {
                return Some((Ok(lines), (known, history)));
            }
        }
    })
}

fn events(before: Option<&Vec<Value>>, now: Option<&Vec<Value>>, version: usize) -> String {
    let by_name = |objects: Option<&'_ Vec<Value>>| -> BTreeMap<String, Value> {
        let name = |object: &Value| {
            let of = |field| object.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
            of("/metadata/namespace") + "/" + &of("/metadata/name")
        };
        objects.into_iter().flatten().map(|object| (name(object), object.clone())).collect()
    };
    let (before, now) = (by_name(before), by_name(now));
    let gone = before.iter().filter(|(name, _)| !now.contains_key(*name));
    let gone = gone.map(|(_, object)| ("DELETED", object));
    let there = now.iter().filter_map(|(name, object)| match before.get(name) {
        None => Some(("ADDED", object)),
        Some(known) => (known != object).then_some(("MODIFIED", object)),
    });
    let line = |(kind, object): (&str, &Value)| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), version.to_string().into());
        }
        format!("{}\n", json!({"type": kind, "object": object}))
    };
    gone.chain(there).map(line).collect()
}
