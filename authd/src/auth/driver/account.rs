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
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::auth::tests::{FAILURE, key, spiffe};
    use crate::auth::{Cause, Method, Refused, Why};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn line(change: &Change) -> serde_json::Value {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone());
        tracing::subscriber::with_default(lines.finish(), || write(change, BootTime::ZERO));
        let bytes = written.0.lock().unwrap().clone();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Whoever reads these lines by a program relies on them.
    #[test]
    fn each_change_is_one_line_with_the_fields_that_the_operations_guide_has() {
        let guide = include_str!("../../../../docs/operations.md");
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
            let line = line(&change);
            let line = line.as_object().unwrap();
            assert_eq!(
                (&line["target"], &line["local"], &line["node"]),
                (&AUDIT.into(), &256.into(), &1.into())
            );
            let event = line["event"].as_str().unwrap();
            let row = guide.lines().find(|row| row.starts_with("| ") && row.contains(&format!("`{event}`")));
            let row = row.unwrap_or_else(|| panic!("no row of {event}"));
            for field in
                line.keys().filter(|it| !["timestamp", "level", "message", "target"].contains(&it.as_str()))
            {
                assert!(field == "event" || row.contains(&format!("`{field}`")), "{event}: {field}");
            }
        }
    }
}
