//! `authctl encrypt status`: the head as `cilium encrypt status` has it, peers as in `wg show`.

use jiff::Timestamp;

use super::{
    cli::Global,
    client::Daemon,
    error::Error,
    output::{Origin, Output},
    status::{fields, guard},
    table::printable,
    time::relative,
};
use crate::api::v1::{Backend, Encryption, WireguardPeer};

pub(super) async fn run(global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let encryption = Daemon::connect(global).await?.encryption().await?;
    let now = Timestamp::now();
    output.print(Origin::Daemon, encryption, |encryption| table(encryption, now))
}

fn table(encryption: &Encryption, now: Timestamp) -> String {
    let backend = match encryption.backend() {
        Backend::Unspecified => "WireGuard",
        Backend::Userspace => "WireGuard (userspace)",
        Backend::Kernel => "WireGuard (kernel)",
    };
    let reachable = if encryption.reachable { "yes" } else { "NO: what follows is the last known" };
    let mut text = fields(&[
        ("Encryption", backend.to_owned()),
        ("Mode", guard(encryption.guard.as_ref(), now)),
        ("Interface", encryption.interface.clone()),
        ("Public key", encryption.public_key.clone()),
        ("Listening port", encryption.listen_port.to_string()),
        ("Answers", reachable.to_owned()),
        ("Number of peers", encryption.peers.len().to_string()),
    ]);
    for shown in &encryption.peers {
        text.push_str(&peer(shown, now));
    }
    text
}

fn peer(peer: &WireguardPeer, now: Timestamp) -> String {
    let handshake = match peer.latest_handshake {
        None => String::new(),
        latest => relative(latest, now),
    };
    let (received, sent) = (bytes(peer.received_bytes), bytes(peer.sent_bytes));
    let lines = [
        ("public key", peer.public_key.clone()),
        ("endpoint", peer.endpoint.clone()),
        ("allowed ips", peer.allowed_ips.join(", ")),
        ("latest handshake", handshake),
        ("transfer", format!("{received} received, {sent} sent")),
        ("node session", if peer.session_live { "live" } else { "DOWN" }.to_owned()),
    ];
    let mut text = format!("\npeer: {}\n", printable(&peer.node));
    for (name, value) in lines {
        let value = if value.is_empty() { "(none)" } else { &printable(&value) };
        text.push_str(&format!("  {name}: {value}\n"));
    }
    text
}

/// As `wg show` writes it: `848 B`, `1.20 KiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // In hundredths of the unit below, so that nothing is lost to floats.
    let mut hundredths = u128::from(count) * 100;
    let mut unit = "B";
    for larger in UNITS {
        if hundredths < 1024 * 100 {
            break;
        }
        hundredths /= 1024;
        unit = larger;
    }
    format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fixture::{self, NOW, golden, golden_json};

    #[test]
    fn encryption_reads_like_this() {
        golden("encrypt-status.txt", &table(&fixture::encryption(), NOW));
        golden_json("encrypt-status.json", fixture::encryption());
    }

    #[test]
    fn a_device_that_does_not_answer_is_told() {
        let encryption = Encryption { reachable: false, ..fixture::encryption() };
        assert!(table(&encryption, NOW).contains("NO: what follows is the last known"));
    }

    #[test]
    fn bytes_are_as_wg_writes_them() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_024), "1.00 KiB");
        assert_eq!(bytes(1_229), "1.20 KiB");
        assert_eq!(bytes(7_834_960), "7.47 MiB");
        assert_eq!(bytes(u64::MAX), "15.99 EiB");
    }
}
