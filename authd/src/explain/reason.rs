//! Why handshakes fail, in sentences, by the word of metrics and logs.

/// What the word means, and what to do about it.
pub(super) fn words(reason: &str) -> (&'static str, &'static str) {
    match reason {
        "no_svid" => (
            "one of the two identities has no valid SVID on its node",
            "`authctl svid list` on both nodes; register the identity for the SPIRE agent of each node that runs it",
        ),
        "no_session" => (
            "the other node knows no live session with this one",
            "`authctl status` on both nodes: the session must be live at both ends",
        ),
        "unknown_node" | "unknown_identity" => (
            "the cluster state of one of the nodes does not have the other identity on the other node",
            "compare `authctl identities list` on both nodes: do they read the same cluster state?",
        ),
        "not_desired" => (
            "the other node's policies do not ask for it, or its cluster state is another",
            "compare `authctl policy get` on both nodes: do they read the same cluster state?",
        ),
        "not_announced" => (
            "the other node does not vouch for its identity",
            "`authctl svid list` on the other node: was the SVID withdrawn?",
        ),
        "connect" | "timeout" => (
            "the other node's handshake port does not answer",
            "let the handshake port (4250/tcp by default) through between the nodes; is authd running there?",
        ),
        "certificate" => (
            "a certificate was refused",
            "`authctl bundle list` on both nodes: do they trust the same anchors, and do their clocks agree?",
        ),
        "tls" | "protocol" => (
            "the two ends agree on no TLS: post-quantum key exchange at one and not at the other, or something in \
             between",
            "compare versions and `--key-exchange` of both nodes",
        ),
        "wrong_identity" | "not_bound" | "not_proven" => (
            "whoever answered is not who it must be",
            "that may be an attack, or two nodes with one address: see the logs of both nodes",
        ),
        "svid_changed" => ("an SVID was renewed while the pair was proven", "it is tried again by itself"),
        "too_large" => (
            "an SVID's chain is too long",
            "`authctl svid check` on it: a chain of more than a few certificates is a fault of the authority",
        ),
        "version" => (
            "the other node takes handshakes alone, or speaks another version",
            "compare versions and `--pair-proof` of both nodes",
        ),
        "overtaken" => ("an SVID was lost while the handshake ran", "it is tried again by itself"),
        "full" | "busy" => (
            "the other node has no room for it now",
            "it is tried again by itself; if it goes on, see `authd_handshakes_waiting` there",
        ),
        _ => ("it failed", "the log of this node has more, at `--log-level info,authd::peer=debug`"),
    }
}
