//! Envoy with its SPIFFE validator as peer of our TLS endpoints, in both roles. It is no oracle, since it accepts
//! much that it should not.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use authd_tests::{binaries, skip, wait};
use serde_json::{Value, json};
use spire_adapter::Groups;

use crate::endpoint::{self, Endpoint, NAME, reason};
use crate::matrix::{Authorities, Row};
use crate::openssl::{Files, write_pem};

const PATIENCE: Duration = Duration::from_secs(30);
const TLS: u16 = 8443;
const PLAIN: u16 = 8080;

static STARTED: AtomicU8 = AtomicU8::new(1);

struct Envoy {
    child: Child,
    /// Where it takes TLS, and echoes.
    tls: String,
    /// Where it takes plain TCP, and forwards it by TLS.
    plain: String,
}

impl Envoy {
    /// Presents a row in both roles, and forwards to `upstream`.
    fn start(row: &Row, endpoint: &Endpoint, upstream: &TcpListener, directory: &Path) -> Self {
        let files = Files::write(row, endpoint, directory);
        let chain = directory.join("chain.pem");
        write_pem(&chain, row.chain.iter());
        // It cannot be told to take a free port: so an address of its own, where all are free.
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let host = format!("127.80.{}.{number}", std::process::id() % 256);
        let common = json!({
            "alpn_protocols": ["test/1"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
                "ecdh_curves": ["X25519MLKEM768"],
            },
            "tls_certificates": [{
                "certificate_chain": {"filename": chain},
                "private_key": {"filename": files.key},
            }],
            "validation_context": {"custom_validator_config": {
                "name": "envoy.tls.cert_validator.spiffe",
                "typed_config": {
                    "@type": kind("SPIFFECertValidatorConfig"),
                    "trust_domains": [{"name": "a.test", "trust_bundle": {"filename": files.anchors}}],
                },
            }},
        });
        let downstream = json!({
            "@type": kind("DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": common,
        });
        let upstream_tls =
            json!({"@type": kind("UpstreamTlsContext"), "sni": NAME, "common_tls_context": common});
        let forward = json!({"stat_prefix": "test", "cluster": "ours"});
        let config = json!({"static_resources": {
            "listeners": [
                listener(&host, TLS, "echo.v3.Echo", json!({}), Some(&downstream)),
                listener(&host, PLAIN, "tcp_proxy.v3.TcpProxy", forward, None),
            ],
            "clusters": [{
                "name": "ours",
                "transport_socket": socket(&upstream_tls),
                "load_assignment": {"cluster_name": "ours", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": address("127.0.0.1", upstream.local_addr().unwrap().port()),
                }}]}]},
            }],
        }});
        let path = directory.join("envoy.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(binaries::peer("envoy").unwrap());
        let log = directory.join("envoy.log");
        command.args(["--disable-hot-restart", "--concurrency", "1", "-c"]).arg(path);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        // Who connects to see whether it listens has it connect to us.
        let read = || std::fs::read_to_string(&log).unwrap_or_default();
        let listens = wait::until(PATIENCE, || {
            assert_eq!(child.try_wait().unwrap(), None, "{}: {}", row.name, read());
            read().contains("starting workers").then_some(())
        });
        assert!(listens.is_some(), "{}", read());
        Self { child, tls: format!("{host}:{TLS}"), plain: format!("{host}:{PLAIN}") }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn kind(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{name}")
}

fn address(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

fn socket(context: &Value) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn listener(host: &str, port: u16, filter: &str, mut config: Value, tls: Option<&Value>) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.network.{filter}"));
    let mut chain = json!({"filters": [{"name": filter, "typed_config": config}]});
    if let Some(tls) = tls {
        chain["transport_socket"] = socket(tls);
    }
    json!({"address": address(host, port), "filter_chains": [chain]})
}

impl Envoy {
    /// Has it connect to `upstream`.
    fn connect(&self) -> TcpStream {
        let mut stream = TcpStream::connect(&self.plain).unwrap();
        stream.write_all(b"x").unwrap();
        stream
    }
}

#[test]
fn envoy_meets_us_in_both_roles() {
    if !skip::envoy_available("envoy_meets_us_in_both_roles") {
        return;
    }
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let endpoint = Endpoint::new(&authorities, &rows);
    let directory = tempfile::tempdir().unwrap();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (good, groups) = (&rows[0], Groups::default());
    let envoy = Envoy::start(good, &endpoint, &upstream, directory.path());
    let _connected = envoy.connect();
    let accepted = endpoint::accept(&upstream, endpoint.server(good, groups).unwrap(), || false);
    let dialled = endpoint::dial(&envoy.tls, endpoint.client(good, groups).unwrap());
    for met in [accepted.unwrap().unwrap(), dialled.unwrap()] {
        assert_eq!((met.group.as_str(), met.peer.as_str()), ("X25519MLKEM768", "spiffe://a.test/ns/shop"));
    }
    // It does look at what we present.
    let forged = rows.iter().find(|row| row.name == "12 other CA of the same name").unwrap();
    let stranger = Endpoint::presenting(forged, &authorities).client(good, groups).unwrap();
    endpoint::dial(&envoy.tls, stranger).unwrap_err();
}

#[test]
fn what_envoy_presents_is_judged_by_us() {
    if !skip::envoy_available("what_envoy_presents_is_judged_by_us") {
        return;
    }
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let endpoint = Endpoint::new(&authorities, &rows);
    let groups = Groups::default();
    // All of them but the last it would have accepted from us.
    for name in ["13 two URIs", "24 no basic constraints", "32 dot dot", "73 its ID has a path", "50 expired"]
    {
        let row = rows.iter().find(|row| row.name == name).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let envoy = Envoy::start(row, &endpoint, &upstream, directory.path());
        let _connected = envoy.connect();
        let server = endpoint.server(row, groups).unwrap();
        let refused = endpoint::accept(&upstream, server, || false).unwrap().unwrap_err();
        assert_eq!(Some(reason(&refused).as_str()), row.expected, "{name} as server");
        let refused = endpoint::dial(&envoy.tls, endpoint.client(row, groups).unwrap()).unwrap_err();
        assert_eq!(Some(reason(&refused).as_str()), row.expected, "{name} as client");
    }
}
