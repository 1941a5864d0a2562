//! One log line for each change of a pair's state, with fields that don't change: `docs/operations.md` has them.

use auth_ebpf_abi::AuthKey;
use spiffe::SpiffeId;

use crate::auth::change::Change;
use crate::auth::record::Record;
use crate::clock::BootTime;
use crate::logging::AUDIT;

pub(super) fn write(change: &Change, now: BootTime) {
    match change {
        Change::Authenticated(record) => stands("pair_authenticated", record, now),
        Change::Renewed(record) => stands("pair_renewed", record, now),
        Change::Ended(key, cause) => {
            let AuthKey { local, remote, node, .. } = *key;
            let cause = cause.as_str();
            tracing::info!(target: AUDIT, event = "pair_ended", local, remote, node, cause, "authentication ended");
        }
        Change::Failing { key, failure, pause } => {
            let AuthKey { local, remote, node, .. } = *key;
            let (reason, retry_ms) = (failure.reason, millis(*pause));
            tracing::warn!(
                target: AUDIT, event = "pair_failing", local, remote, node, reason, retry_ms, "authentication failed"
            );
        }
        Change::Refused(key, refused) => {
            let AuthKey { local, remote, node, .. } = *key;
            let reason = refused.as_str();
            tracing::warn!(
                target: AUDIT, event = "pair_refused", local, remote, node, reason, "authentication by another node refused"
            );
        }
    }
}

fn stands(event: &'static str, record: &Record, now: BootTime) {
    let AuthKey { local, remote, node, .. } = record.key;
    let id = |id: &Option<SpiffeId>| id.as_ref().map(ToString::to_string).unwrap_or_default();
    tracing::info!(
        target: AUDIT,
        event,
        local,
        remote,
        node,
        local_spiffe_id = id(&record.local_spiffe),
        remote_spiffe_id = id(&record.remote_spiffe),
        why = record.why.as_str(),
        group = record.group,
        method = record.method.as_str(),
        epoch = record.epoch,
        expires_in_s = record.expires.since(now).as_secs(),
        handshake_us = u64::try_from(record.latency.as_micros()).unwrap_or(u64::MAX),
        "authenticated"
    );
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::tests::{FAILURE, key, spiffe};
    use crate::auth::{Cause, Method, Refused, Why};
    use crate::logging::lines::{Lines, fields};

    #[test]
    fn each_change_is_one_line_with_the_fields_that_the_operations_guide_has() {
        let record = Record {
            key: key(256, 300, 1),
            local_spiffe: Some(spiffe(256)),
            remote_spiffe: None,
            established: BootTime::ZERO,
            expires: BootTime(5_500_000_000),
            epoch: 7,
            group: "X25519MLKEM768",
            latency: Duration::from_micros(1500),
            method: Method::Session,
            why: Why::Accepted,
        };
        let changes = [
            Change::Authenticated(record.clone()),
            Change::Renewed(record),
            Change::Ended(key(256, 300, 1), Cause::Epoch),
            Change::Failing { key: key(256, 300, 1), failure: FAILURE, pause: Duration::from_millis(80) },
            Change::Refused(key(256, 300, 1), Refused::NoSvid),
        ];
        for change in changes {
            let lines = Lines::default();
            tracing::subscriber::with_default(lines.subscriber(), || write(&change, BootTime::ZERO));
            let lines = lines.audit();
            let [line] = lines.as_slice() else { panic!("{lines:?}") };
            assert_eq!((&line["local"], &line["node"]), (&256.into(), &1.into()));
            assert!(fields(line, line["event"].as_str().unwrap()).contains(&"remote"));
        }
    }
}
