use std::io::Write;

use super::*;

fn minimal() -> Settings {
    Settings { node_name: Some("n1".into()), trust_domain: Some("example.org".into()), ..Settings::default() }
}

fn error_of(settings: Settings) -> String {
    Config::from_settings(settings).unwrap_err().to_string()
}

#[test]
fn defaults_are_those_that_users_know() {
    let config = Config::from_settings(minimal()).unwrap();
    assert_eq!(config.handshake_port.get(), 4250);
    assert_eq!(config.encryption.port.get(), 51871);
    assert_eq!(config.policy_mode, Mode::Enforce);
    assert_eq!(config.encryption.mode, Mode::Enforce);
    assert_eq!(config.encryption.svid_grace, Duration::from_secs(86_400));
}

#[test]
fn flags_win_over_the_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "trust-domain: file.example\nnode-name: from-file\nhandshake-port: 4999").unwrap();
    let flags = Settings { node_name: Some("from-flag".into()), ..Settings::default() };
    let config = Config::load(Some(file.path()), flags).unwrap();
    assert_eq!(config.node_name, "from-flag");
    assert_eq!(config.spire.trust_domain.to_string(), "file.example");
    assert_eq!(config.handshake_port.get(), 4999);
}

#[test]
fn an_unknown_key_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "trust-domain: a.example\npolicy-moed: observe").unwrap();
    let error = Config::load(Some(file.path()), Settings::default()).unwrap_err().to_string();
    assert!(error.contains("policy-moed"), "{error}");
}

#[test]
fn a_missing_file_names_the_flag() {
    let error = Config::load(Some(Path::new("/nonexistent/authd.yaml")), minimal()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/authd.yaml") && error.contains("--config"), "{error}");
}

#[test]
fn a_missing_trust_domain_says_how_to_set_it() {
    let error = error_of(Settings { trust_domain: None, ..minimal() });
    assert!(error.contains("--trust-domain") && error.contains("AUTHD_TRUST_DOMAIN"), "{error}");
}

#[test]
fn bad_values_name_their_key() {
    for (settings, key) in [
        (Settings { trust_domain: Some("Not A Domain".into()), ..minimal() }, "trust-domain"),
        (Settings { node_name: Some("UPPER".into()), ..minimal() }, "node-name"),
        (Settings { policy_mode: Some("off".into()), ..minimal() }, "policy-mode"),
        (Settings { encryption_mode: Some("".into()), ..minimal() }, "encryption-mode"),
        (Settings { same_node_encryption: Some("on".into()), ..minimal() }, "same-node-encryption"),
        (Settings { same_node_forwarding: Some("bridge".into()), ..minimal() }, "same-node-forwarding"),
        (Settings { cluster_name: Some("Not A Name".into()), ..minimal() }, "cluster-name"),
        (Settings { http_address: Some("localhost".into()), ..minimal() }, "http-address"),
        (Settings { handshake_port: Some(0), ..minimal() }, "handshake-port"),
        (Settings { wireguard_interface: Some("a/b".into()), ..minimal() }, "wireguard-interface"),
        (Settings { uplinks: Some(vec!["eth0".into(), "".into()]), ..minimal() }, "uplinks"),
        (Settings { cluster_cidrs: Some(vec!["10.0.0.1/8".into()]), ..minimal() }, "cluster-cidrs"),
        (Settings { outside_ranges: Some(vec!["198.18.0.0/17".into()]), ..minimal() }, "outside-ranges"),
        (
            Settings { outside_ranges: Some(vec!["none".into(), "fd00::/64".into()]), ..minimal() },
            "outside-ranges",
        ),
        (
            Settings { outside_ranges: Some(vec!["fd00::/64".into(), "fd01::/64".into()]), ..minimal() },
            "outside-ranges",
        ),
        (Settings { cluster_cidrs: Some(vec!["198.16.0.0/12".into()]), ..minimal() }, "outside-ranges"),
        (Settings { svid_grace: Some("soon".into()), ..minimal() }, "svid-grace"),
        (Settings { svid_grace: Some("-1h".into()), ..minimal() }, "svid-grace"),
        (Settings { key_exchange: Some("rsa".into()), ..minimal() }, "key-exchange"),
        (Settings { pair_proof: Some("none".into()), ..minimal() }, "pair-proof"),
        (Settings { log_format: Some("xml".into()), ..minimal() }, "log-format"),
        (Settings { workload_socket: Some("relative.sock".into()), ..minimal() }, "workload-socket"),
        (Settings { spiffe_id_template: Some("/spire/{id}".into()), ..minimal() }, "spiffe-id-template"),
        (Settings { spiffe_id_template: Some("/ns/{namespace}".into()), ..minimal() }, "spiffe-id-template"),
        (Settings { svid_source: Some("spire".into()), ..minimal() }, "svid-source"),
        (Settings { broker_socket: Some("b.sock".into()), ..minimal() }, "broker-socket"),
        (Settings { cluster_name: Some("a.b".into()), ..minimal() }, "cluster-name"),
    ] {
        let error = error_of(settings);
        assert!(error.starts_with(key), "{key}: {error}");
    }
}

#[test]
fn outside_ranges_are_those_that_are_named_or_none() {
    let nets = |ranges: Option<&[&str]>| {
        let outside_ranges = ranges.map(|ranges| ranges.iter().map(|range| (*range).into()).collect());
        let config = Config::from_settings(Settings { outside_ranges, ..minimal() }).unwrap();
        config.encryption.outside.nets().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(nets(None), ["198.18.0.0/16", "fd41:7574:6864:6f75::/112"]);
    assert!(nets(Some(&["none"])).is_empty());
    assert_eq!(nets(Some(&["fd00::/64"])), ["fd00::/64"]);
    assert_eq!(nets(Some(&["fd00::/64", "100.64.0.0/15"])), ["fd00::/64", "100.64.0.0/15"]);
}

#[test]
fn socket_paths_may_be_uris() {
    for text in ["unix:/run/a.sock", "unix:///run/a.sock", "/run/a.sock"] {
        let config =
            Config::from_settings(Settings { admin_socket: Some(text.into()), ..minimal() }).unwrap();
        assert_eq!(config.spire.admin_socket, Path::new("/run/a.sock"));
    }
}

#[test]
fn durations() {
    assert_eq!(parse_duration("30m"), Some(Duration::from_secs(1800)));
    assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
    assert_eq!(parse_duration("30"), None);
}
