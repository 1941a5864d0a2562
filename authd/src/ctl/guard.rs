//! `authctl off` and `authctl on`: the way out, by the pinned `config` map alone, so that it works with
//! daemon, API server and SPIRE dead. A live daemon is told, for its audit; in place of a dead one, the
//! routes into the tunnel are lifted here when encryption goes off.

use auth_ebpf_abi::Setting;
use serde::Serialize;

use super::{
    cli::{Global, GuardArg, OffArgs, OnArgs},
    client::Daemon,
    error::Error,
    output::{Origin, Output},
    pinned,
    table::printable,
    time::{Clock, relative},
};
use crate::api::{
    v1::{Guard, GuardState, Mode, RecordOverrideRequest},
    word::{self, Word},
};

/// What has been done; in JSON with the API's words.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Override {
    guard: &'static str,
    /// The guard's state from now on.
    #[serde(flatten)]
    state: GuardState,
    /// Until when it was off before.
    was_off_until: Option<crate::api::Timestamp>,
    reason: String,
    /// Whether a daemon has it in its audit.
    recorded: bool,
}

pub(super) async fn off(args: &OffArgs, global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let clock = Clock::read()?;
    let nanos = u64::try_from(args.duration.as_nanos()).unwrap_or(u64::MAX);
    set(args.guard, clock.boot_nanos.saturating_add(nanos), &args.reason, &clock, global, output).await
}

pub(super) async fn on(args: &OnArgs, global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    set(args.guard, 0, &args.reason, &Clock::read()?, global, output).await
}

async fn set(
    which: GuardArg,
    off_until: u64,
    reason: &str,
    clock: &Clock,
    global: &Global,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let (guard, mode, slot) = settings(which);
    let maps = pinned::open(&global.pin_dir)?;
    let config = maps.config();
    let before = pinned::guard(config.get(mode)?, config.get(slot)?, clock);
    config.set(slot, off_until)?;
    let state = pinned::guard(config.get(mode)?, config.get(slot)?, clock);

    let note =
        RecordOverrideRequest { guard: guard.into(), off_until: state.off_until, reason: reason.to_owned() };
    let recorded = record(note, global).await;
    if let Err(error) = &recorded {
        output.note(&format!("done, but in no audit: {error}"))?;
        // A live daemon lifts them itself, and puts them back at the end.
        if which == GuardArg::Encryption && off_until != 0 {
            let cleared = wg_mesh::steering::clear().await?.removed;
            output
                .note(&format!("{cleared} routes and rules into the tunnel removed; authd puts them back"))?;
        }
    }
    let done = Override {
        guard: guard.word(),
        state,
        was_off_until: before.off_until,
        reason: reason.to_owned(),
        recorded: recorded.is_ok(),
    };
    output.print(Origin::PinnedMaps, done, |done| text(done, clock))
}

fn settings(which: GuardArg) -> (Guard, Setting, Setting) {
    match which {
        GuardArg::Policy => (Guard::Policy, Setting::PolicyMode, Setting::PolicyOffUntil),
        GuardArg::Encryption => (Guard::Encryption, Setting::EncryptionMode, Setting::EncryptionOffUntil),
    }
}

async fn record(note: RecordOverrideRequest, global: &Global) -> Result<(), Error> {
    Daemon::connect(global).await?.record_override(note).await
}

fn text(done: &Override, clock: &Clock) -> String {
    let guard = done.guard.to_ascii_lowercase();
    let mode = word::of::<Mode>(done.state.mode).to_ascii_lowercase();
    let now = clock.wall;
    let text = match (done.state.off_until, done.was_off_until) {
        (Some(until), before) => {
            let absolute = until.to_jiff().map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            let mut text = format!(
                "{guard} is off until {} ({}), then {mode}: what it would drop passes, and is counted",
                absolute.unwrap_or_default(),
                relative(Some(until), now)
            );
            if before.is_some() {
                text.push_str(&format!("; it was off already, ending {}", relative(before, now)));
            }
            text
        }
        (None, Some(before)) => {
            format!("{guard} is on again: {mode}; off would have ended {}", relative(Some(before), now))
        }
        (None, None) => format!("{guard} was not off: {mode}"),
    };
    format!("{}\n", printable(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fixture::{NOW, at, golden};
    use crate::ctl::output::{Sourced, json};

    const CLOCK: Clock = Clock { wall: NOW, boot_nanos: 0 };

    fn done(off: Option<i64>, before: Option<i64>) -> Override {
        Override {
            guard: Guard::Policy.word(),
            state: GuardState { mode: Mode::Enforce.into(), off_until: off.and_then(at) },
            was_off_until: before.and_then(at),
            reason: "SPIRE is down".to_owned(),
            recorded: true,
        }
    }

    #[test]
    fn what_was_done_reads_like_this() {
        let cases = [(Some(1_800), None), (Some(1_800), Some(60)), (None, Some(60)), (None, None)];
        let text: String = cases.map(|(off, before)| text(&done(off, before), &CLOCK)).concat();
        golden("off-on.txt", &text);
        let body = done(Some(1_800), None);
        golden("off.json", &json(&Sourced { source: Origin::PinnedMaps, body }).unwrap());
    }

    #[test]
    fn each_guard_has_its_slots() {
        let (guard, mode, slot) = settings(GuardArg::Encryption);
        assert_eq!(guard, Guard::Encryption);
        assert_eq!((mode, slot), (Setting::EncryptionMode, Setting::EncryptionOffUntil));
        assert_eq!(settings(GuardArg::Policy).2, Setting::PolicyOffUntil);
    }
}
