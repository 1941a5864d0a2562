//! Envoy with its SPIFFE validator between two of our TLS endpoints: server to one, client of the other. It is no
//! oracle, since it accepts much that it should not.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use authd_tests::{binaries, skip, wait};
use serde_json::{Value, json};
use spire_adapter::Groups;

use crate::endpoint::{self, Endpoint, NAME, reason};
use crate::matrix::{Authorities, Row};
use crate::openssl::{Files, write_pem};

const PATIENCE: Duration = Duration::from_secs(30);

struct Envoy {
    child: Child,
    /// Where it takes TLS, and where plain TCP. Both go on by TLS to the same place.
    tls: String,
    plain: String,
}

impl Envoy {
    /// Presents a row in both roles, and forwards to `upstream`.
    fn start(row: &Row, endpoint: &Endpoint, upstream: &TcpListener, directory: &Path) -> Self {
        let files = Files::write(row, endpoint, directory);
        let chain = directory.join("chain.pem");
        write_pem(&chain, row.chain.iter());
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [tls, plain] = free.map(|listener| listener.local_addr().unwrap().port());
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
        let config = json!({"static_resources": {
            "listeners": [listener(tls, Some(&downstream)), listener(plain, None)],
            "clusters": [{
                "name": "ours",
                "transport_socket": socket(&upstream_tls),
                "load_assignment": {"cluster_name": "ours", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": address(upstream.local_addr().unwrap().port()),
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
        Self { child, tls: format!("127.0.0.1:{tls}"), plain: format!("127.0.0.1:{plain}") }
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

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn socket(context: &Value) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn listener(port: u16, tls: Option<&Value>) -> Value {
    let mut chain = json!({"filters": [{
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "test",
            "cluster": "ours",
        },
    }]});
    if let Some(tls) = tls {
        chain["transport_socket"] = socket(tls);
    }
    json!({"address": address(port), "filter_chains": [chain]})
}

#[test]
fn envoy_stands_between_two_of_us() {
    if !skip::envoy_available("envoy_stands_between_two_of_us") {
        return;
    }
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let endpoint = Endpoint::new(&authorities, &rows);
    let directory = tempfile::tempdir().unwrap();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (good, groups) = (&rows[0], Groups::default());
    let envoy = Envoy::start(good, &endpoint, &upstream, directory.path());
    let client = endpoint.client(good, groups).unwrap();
    let address = envoy.tls.clone();
    let dialled = std::thread::spawn(move || endpoint::dial(&address, client));
    let server = endpoint.server(good, groups).unwrap();
    let accepted = endpoint::accept(&upstream, server, || false).unwrap().unwrap();
    for met in [accepted, dialled.join().unwrap().unwrap()] {
        assert_eq!((met.group.as_str(), met.peer.as_str()), ("X25519MLKEM768", "spiffe://a.test/ns/shop"));
    }
    // It does look at what we present: accepted, nobody would answer.
    let forged = rows.iter().find(|row| row.name == "12 other CA of the same name").unwrap();
    let stranger = Endpoint::presenting(forged, &authorities).client(good, groups).unwrap();
    let refused = endpoint::dial(&envoy.tls, stranger).unwrap_err().to_string();
    assert!(refused.contains("fatal alert") || refused.contains("end of file"), "{refused}");
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
        let mut plain = TcpStream::connect(&envoy.plain).unwrap();
        plain.write_all(b"x").unwrap();
        let server = endpoint.server(row, groups).unwrap();
        let refused = endpoint::accept(&upstream, server, || false).unwrap().unwrap_err();
        assert_eq!(Some(reason(&refused).as_str()), row.expected, "{name} as server");
        let refused = endpoint::dial(&envoy.tls, endpoint.client(row, groups).unwrap()).unwrap_err();
        assert_eq!(Some(reason(&refused).as_str()), row.expected, "{name} as client");
    }
}
