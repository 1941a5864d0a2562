//! The words of the interface's enums: the name of a value without the prefix that the proto gives it.

use serde::Serializer;

use super::v1;

/// The word of a value that says nothing.
const UNSPECIFIED: &str = "UNSPECIFIED";

/// An enum whose values have a word for tables and JSON.
pub trait Word: TryFrom<i32> + Copy + 'static {
    /// Every value, by number.
    const ALL: &'static [Self];

    /// The word, such as `POLICY_DENIED`.
    fn word(self) -> &'static str;

    /// The value with this word, in any case and with `-` for `_`.
    #[must_use]
    fn from_word(word: &str) -> Option<Self> {
        let same = |known: &str| {
            known.len() == word.len()
                && known.bytes().zip(word.bytes()).all(|(known, given)| {
                    known == given.to_ascii_uppercase() || (known == b'_' && given == b'-')
                })
        };
        Self::ALL.iter().copied().find(|value| same(value.word()))
    }
}

/// The word of a number on the wire; the number itself if a newer peer has sent what this build lacks.
#[must_use]
pub fn of<E: Word>(number: i32) -> String {
    E::try_from(number).map_or_else(|_unknown| number.to_string(), |value| value.word().to_owned())
}

/// Serialises a field that holds an enum by its word; a value that says nothing is `null`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<E: Word, S: Serializer>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    let word = of::<E>(*number);
    if word == UNSPECIFIED { serializer.serialize_none() } else { serializer.serialize_str(&word) }
}

macro_rules! words {
    ($($name:ident $prefix:literal [$($variant:ident),* $(,)?];)*) => {$(
        impl Word for v1::$name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn word(self) -> &'static str {
                let name = self.as_str_name();
                name.strip_prefix($prefix).unwrap_or(name)
            }
        }
    )*};
}

words! {
    Guard "GUARD_" [Unspecified, Policy, Encryption];
    Mode "MODE_" [Unspecified, Observe, Enforce];
    Severity "SEVERITY_" [Unspecified, Info, Warning, Error];
    AuthType "AUTH_TYPE_" [Disabled, Spire, TestAlwaysFail];
    Backend "BACKEND_" [Unspecified, Userspace, Kernel];
    Verdict "VERDICT_" [Unspecified, Forwarded, Dropped, Audit, Held];
    Direction "DIRECTION_" [Unspecified, Ingress, Egress];
    Hook "HOOK_" [
        Unspecified, FromPod, ToPod, FromWireguard, ToWireguard, FromUplink, ToUplink, FromHold, ToHold,
    ];
    SvidState "SVID_STATE_" [NotNeeded, Pending, Available, Expired, Withdrawn];
    AuthOutcome "AUTH_OUTCOME_" [Unspecified, Talks, Waits, Blocked];
    CheckState "CHECK_STATE_" [Unspecified, Ok, Waiting, Failed];
    DropReason "DROP_REASON_" [
        Unspecified, NoEndpoint, UnknownDestination, UnknownSource, Masqueraded, AuthImpossible,
        NoNodeSession, ReservedPort, MapError, HoldFull, HoldTimeout, NotHeld, SvidPending, AddressUnannounced, ServiceConflict,
        PolicyChanging, Spoofed, PolicyDenied, InvalidPacket, UnsupportedL3, Fragment, NoServiceBackend, PolicyDeny, AuthRequired, Unencrypted,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lack_the_prefix() {
        assert_eq!(v1::DropReason::PolicyDenied.word(), "POLICY_DENIED");
        assert_eq!(v1::AuthType::Spire.word(), "SPIRE");
    }

    #[test]
    fn people_may_write_words_as_they_like() {
        assert_eq!(v1::Verdict::from_word("dropped"), Some(v1::Verdict::Dropped));
        assert_eq!(v1::DropReason::from_word("policy-denied"), Some(v1::DropReason::PolicyDenied));
        assert_eq!(v1::DropReason::from_word("policy"), None);
        assert_eq!(v1::DropReason::from_word(""), None);
    }

    #[test]
    fn every_word_is_found_again() {
        for reason in v1::DropReason::ALL {
            assert_eq!(v1::DropReason::from_word(reason.word()), Some(*reason));
        }
    }

    #[test]
    fn a_value_that_says_nothing_is_null() {
        let flow = |reason: v1::DropReason| v1::Flow { reason: reason.into(), ..v1::Flow::default() };
        let json = |reason| serde_json::to_value(flow(reason)).unwrap()["reason"].clone();
        assert_eq!(json(v1::DropReason::Unspecified), serde_json::Value::Null);
        assert_eq!(json(v1::DropReason::Spoofed), "SPOOFED");
    }

    #[test]
    fn a_newer_peers_value_is_its_number() {
        assert_eq!(of::<v1::Verdict>(4), "AUDIT");
        assert_eq!(of::<v1::Verdict>(99), "99");
    }
}
