//! OpenSSL as peer of our TLS endpoints, and what `openssl verify` makes of the same certificates.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use authd_tests::skip;
use pem::Pem;
use rustls::pki_types::CertificateDer;
use spire_adapter::Groups;

use crate::endpoint::{self, ALPN, Endpoint, LABEL, NAME, reason};
use crate::matrix::{Authorities, Row};
use crate::verdicts::Differences;

pub(crate) fn write_pem<'a>(path: &Path, certificates: impl Iterator<Item = &'a CertificateDer<'static>>) {
    let pems: Vec<_> = certificates.map(|der| Pem::new("CERTIFICATE", der.to_vec())).collect();
    std::fs::write(path, pem::encode_many(&pems)).unwrap();
}

/// A row's certificates as programs want them.
pub(crate) struct Files {
    leaf: PathBuf,
    rest: Option<PathBuf>,
    pub(crate) key: PathBuf,
    pub(crate) anchors: PathBuf,
}

impl Files {
    pub(crate) fn write(row: &Row, endpoint: &Endpoint, directory: &Path) -> Self {
        let (leaf, key) = (directory.join("leaf.pem"), directory.join("key.pem"));
        write_pem(&leaf, row.chain.iter().take(1));
        let rest = (row.chain.len() > 1).then(|| {
            let path = directory.join("rest.pem");
            write_pem(&path, row.chain.iter().skip(1));
            path
        });
        std::fs::write(&key, row.key.serialize_pem()).unwrap();
        let anchors = directory.join("anchors.pem");
        // Of the leaf's trust domain alone: OpenSSL knows no such thing.
        let own = spire_adapter::peer_svid(&row.chain)
            .ok()
            .and_then(|peer| endpoint.bundles.get(peer.spiffe_id.trust_domain()))
            .unwrap_or_else(|| endpoint.bundles.iter().next().unwrap());
        write_pem(&anchors, own.certificates());
        Self { leaf, rest, key, anchors }
    }

    fn arguments(&self, command: &mut Command) {
        command.arg("-cert").arg(&self.leaf).arg("-key").arg(&self.key);
        if let Some(rest) = &self.rest {
            command.arg("-cert_chain").arg(rest);
        }
        // Whatever it is told to present.
        command.args(["-cipher", "DEFAULT@SECLEVEL=0"]);
    }
}

/// The good row, our end, which presents it as well, and what OpenSSL presents it by.
pub(crate) struct Good {
    pub(crate) row: Row,
    pub(crate) endpoint: Endpoint,
    pub(crate) files: Files,
    pub(crate) directory: tempfile::TempDir,
}

impl Good {
    pub(crate) fn new() -> Self {
        let authorities = Authorities::new();
        let mut rows = authorities.rows();
        let endpoint = Endpoint::new(&authorities, &rows);
        let directory = tempfile::tempdir().unwrap();
        let row = rows.swap_remove(0);
        let files = Files::write(&row, &endpoint, directory.path());
        Self { row, endpoint, files, directory }
    }
}

/// An `openssl s_client` or `s_server` that says a byte as soon as it may.
pub(crate) struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut running = Self { child, output };
        running.say();
        running
    }

    /// Where an `s_server` listens; `None` if it never does.
    pub(crate) fn address(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some(address) = line.trim().strip_prefix("ACCEPT ") {
                return Some(address.to_owned());
            }
            line.clear();
        }
        None
    }

    /// Says another byte, unless it has ended already.
    pub(crate) fn say(&mut self) {
        drop(self.child.stdin.as_mut().unwrap().write_all(b"x\n"));
    }

    /// Has it end when it has said what it had to say.
    pub(crate) fn hang_up(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Whether it is gone, having done nothing.
    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// All that it said.
    pub(crate) fn output(mut self) -> String {
        let mut output = String::new();
        self.output.read_to_string(&mut output).unwrap();
        let errors = self.child.stderr.as_mut().unwrap();
        errors.read_to_string(&mut output).unwrap();
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn openssl(subcommand: &str) -> Command {
    // Ended with this test, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "openssl", subcommand]);
    command
}

pub(crate) fn s_client(files: &Files, address: &str) -> Command {
    let mut command = openssl("s_client");
    command.args(["-connect", address, "-servername", NAME, "-alpn"]);
    command.arg(std::str::from_utf8(ALPN).unwrap());
    command.args(["-keymatexport", LABEL, "-keymatexportlen", "32"]);
    files.arguments(&mut command);
    command
}

pub(crate) fn s_server(files: &Files) -> Command {
    let mut command = openssl("s_server");
    command.args(["-accept", "127.0.0.1:0", "-naccept", "1", "-Verify", "5", "-alpn"]);
    command.arg(std::str::from_utf8(ALPN).unwrap());
    command.args(["-keymatexport", LABEL, "-keymatexportlen", "32"]);
    files.arguments(&mut command);
    command
}

/// Both in one run, since it is the rows that take the time.
#[test]
fn openssl_presents_every_certificate_in_both_roles() {
    if !skip::openssl_available("openssl_presents_every_certificate_in_both_roles") {
        return;
    }
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let endpoint = Endpoint::new(&authorities, &rows);
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (mut wrong, mut tried) = (Vec::new(), 0);
    // OpenSSL does not present what is not its key's, and cannot read rcgen's keys of this kind.
    for row in rows.iter().filter(|row| row.has_its_key() && row.name != "57 Ed25519") {
        let files = Files::write(row, &endpoint, directory.path());
        let (Some(as_server), Some(as_client)) =
            (endpoint.server(row, Groups::Any), endpoint.client(row, Groups::Any))
        else {
            assert_eq!(row.expected, Some("unknown_trust_domain"));
            continue;
        };
        let mut client = Running::start(&mut s_client(&files, &address));
        let accepted = endpoint::accept(&listener, as_server, || client.ended());
        let mut server = Running::start(&mut s_server(&files));
        let dialled = server.address().map(|address| endpoint::dial(&address, as_client));
        for (role, met) in [("server", accepted), ("client", dialled)] {
            let found = met.map(|met| met.err().map(|error| reason(&error)));
            if found.as_ref().map(|reason| reason.as_deref()) != Some(row.expected) {
                wrong.push(format!("{} as {role}: {found:?} instead of {:?}", row.name, row.expected));
            }
            tried += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(tried > 180, "{tried}");
}

#[test]
fn openssl_verifies_us_and_exports_the_same_keys() {
    if !skip::openssl_available("openssl_verifies_us_and_exports_the_same_keys") {
        return;
    }
    let Good { row: good, endpoint, files, .. } = &Good::new();
    let strictly = |mut command: Command| {
        command.arg("-CAfile").arg(&files.anchors).args(["-verify_return_error", "-verify", "5"]);
        command
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();

    let mut client = Running::start(&mut strictly(s_client(files, &address)));
    let server = endpoint.server(good, Groups::Any).unwrap();
    let met = endpoint::accept(&listener, server, || client.ended()).unwrap().unwrap();
    let said = client.output();
    assert_eq!(met.peer, "spiffe://a.test/ns/shop");
    assert!(said.contains("Verify return code: 0 (ok)") && said.contains("New, TLSv1.3"), "{said}");
    assert!(said.to_lowercase().contains(&met.exporter), "{} in {said}", met.exporter);
    assert!(!said.contains("New Session Ticket"), "nothing to resume with: {said}");

    let mut server = Running::start(&mut strictly(s_server(files)));
    let address = server.address().unwrap();
    let met = endpoint::dial(&address, endpoint.client(good, Groups::Any).unwrap()).unwrap();
    assert_eq!(met.peer, "spiffe://a.test/ns/shop");
    let said = server.output();
    assert!(said.contains("verify return:1") && !said.contains("verify error"), "{said}");
}

#[test]
fn openssl_meets_us_by_the_key_exchanges_that_are_allowed() {
    if !skip::openssl_available("openssl_meets_us_by_the_key_exchanges_that_are_allowed") {
        return;
    }
    let Good { row: good, endpoint, files, .. } = &Good::new();
    // It came with OpenSSL 3.5.
    let known = String::from_utf8(openssl("list").arg("-kem-algorithms").output().unwrap().stdout).unwrap();
    let post_quantum = known.contains("X25519MLKEM768");
    for groups in [Groups::PostQuantum, Groups::Any] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut client = Running::start(&mut s_client(files, &address));
        let server = endpoint.server(good, groups).unwrap();
        let accepted = endpoint::accept(&listener, server, || client.ended()).unwrap();
        let mut server = Running::start(&mut s_server(files));
        let address = server.address().unwrap();
        let dialled = endpoint::dial(&address, endpoint.client(good, groups).unwrap());
        for met in [accepted, dialled] {
            match (groups, post_quantum) {
                (_, true) => assert_eq!(met.unwrap().group, "X25519MLKEM768"),
                (Groups::Any, false) => assert_eq!(met.unwrap().group, "X25519"),
                (Groups::PostQuantum, false) => {
                    let error = met.unwrap_err().to_string();
                    assert!(
                        error.contains("NoKxGroupsInCommon") || error.contains("HandshakeFailure"),
                        "{error}"
                    );
                }
            }
        }
    }
}

#[test]
fn older_tls_and_no_certificate_are_refused() {
    if !skip::openssl_available("older_tls_and_no_certificate_are_refused") {
        return;
    }
    let Good { row: good, endpoint, files, .. } = &Good::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = || endpoint.server(good, Groups::Any).unwrap();

    let mut client = Running::start(s_client(files, &address).arg("-tls1_2"));
    let refused = endpoint::accept(&listener, server(), || client.ended()).unwrap().unwrap_err().to_string();
    assert!(refused.contains("SupportedVersionsExtensionRequired") || refused.contains("Tls13"), "{refused}");
    let mut tls12 = Running::start(s_server(files).arg("-tls1_2"));
    let address12 = tls12.address().unwrap();
    let refused =
        endpoint::dial(&address12, endpoint.client(good, Groups::Any).unwrap()).unwrap_err().to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");

    let mut anonymous = openssl("s_client");
    let mut anonymous = Running::start(anonymous.args(["-connect", &address, "-alpn", "test/1"]));
    let refused = endpoint::accept(&listener, server(), || anonymous.ended()).unwrap().unwrap_err();
    assert!(refused.to_string().contains("sent no certificates"), "{refused}");
}

const NO_SPIFFE: &str = "it knows nothing of SPIFFE";
const LAX: &str = "it does not ask for that without -x509_strict, or not at all";
const OURS: &str = "stricter than the standards";
const CLOCK: &str = "it makes no allowance for clocks";

/// OpenSSL knows RFC 5280 and nothing of SPIFFE.
const OPENSSL: Differences = Differences {
    unknown_to_them: &[
        ("unknown_trust_domain", NO_SPIFFE),
        ("several_uri_sans", NO_SPIFFE),
        ("no_uri_san", NO_SPIFFE),
        ("spiffe_id_invalid", NO_SPIFFE),
        ("spiffe_id_not_canonical", NO_SPIFFE),
        ("spiffe_id_too_long", NO_SPIFFE),
        ("spiffe_id_without_path", NO_SPIFFE),
        ("issuer_spiffe_id_with_path", NO_SPIFFE),
        ("issuer_spiffe_id_invalid", NO_SPIFFE),
        ("issuer_of_other_trust_domain", NO_SPIFFE),
        ("leaf_is_ca", NO_SPIFFE),
        ("leaf_with_cert_sign", NO_SPIFFE),
        ("leaf_with_crl_sign", NO_SPIFFE),
        ("digital_signature_missing", "keyAgreement serves a server, too"),
        ("basic_constraints_missing", NO_SPIFFE),
        ("key_usage_missing", NO_SPIFFE),
        ("key_usage_not_critical", NO_SPIFFE),
        ("san_not_critical", LAX),
        ("unexpected_peer", "nobody told it whom to expect"),
        ("key_type_not_allowed", OURS),
        ("lifetime_too_long", OURS),
        ("too_many_certificates", OURS),
        ("chain_too_large", OURS),
    ],
    refused_all_the_same: &[("04 a CA as leaf", "its key usage is not for TLS")],
    only_we_refuse: &[
        ("43 not even UTF-8", "an IA5String is bytes to it"),
        ("72 no key usage", LAX),
        ("76 URI constraint, satisfied: not supported", "webpki supports no URI constraints"),
        ("91 another leaf in the chain", "not on the way to the anchor"),
    ],
    only_they_refuse: &[
        ("51 ahead by less than the tolerance", CLOCK),
        ("81 ahead by less than the tolerance", CLOCK),
        ("70 two intermediates of one name", "it tries but the first"),
    ],
};

#[test]
fn openssl_verify_differs_only_where_it_should() {
    if !skip::openssl_available("openssl_verify_differs_only_where_it_should") {
        return;
    }
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let endpoint = Endpoint::new(&authorities, &rows);
    let directory = tempfile::tempdir().unwrap();
    let verdicts: Vec<_> =
        rows.iter().map(|row| (row, verify(&Files::write(row, &endpoint, directory.path())))).collect();
    OPENSSL.check(&verdicts);
}

/// By its purposes as server and as client.
fn verify(files: &Files) -> Result<(), String> {
    for purpose in ["sslserver", "sslclient"] {
        let mut command = openssl("verify");
        command.args(["-purpose", purpose, "-CAfile"]).arg(&files.anchors);
        if let Some(rest) = &files.rest {
            command.arg("-untrusted").arg(rest);
        }
        let output = command.arg(&files.leaf).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    Ok(())
}
