//! `google.protobuf.Timestamp` with the conversions and the JSON form that the interface wants.

use serde::{Serialize, Serializer};

/// A point in time, as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds on top of them.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// The same in jiff's terms; `None` if a peer has sent what is no time.
    #[must_use]
    pub fn to_jiff(self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::new(self.seconds, self.nanos).ok()
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(time: jiff::Timestamp) -> Self {
        let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
        // Before 1970 jiff counts both down; the wire wants nanoseconds that count up.
        if nanos < 0 {
            seconds -= 1;
            nanos += 1_000_000_000;
        }
        Self { seconds, nanos }
    }
}

/// RFC 3339, or `null` for what is no time.
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_jiff().map(|time| time.to_string()).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn converts_there_and_back(seconds in -10_000_000_000i64..10_000_000_000, nanos in 0i32..1_000_000_000) {
            let time = Timestamp { seconds, nanos };
            prop_assert_eq!(Timestamp::from(time.to_jiff().unwrap()), time);
        }
    }

    #[test]
    fn is_rfc_3339_in_json() {
        let time = Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 };
        assert_eq!(serde_json::to_string(&time).unwrap(), r#""2023-11-14T22:13:20.005Z""#);
    }

    #[test]
    fn what_is_no_time_is_null() {
        let time = Timestamp { seconds: i64::MAX, nanos: 0 };
        assert_eq!(serde_json::to_string(&time).unwrap(), "null");
    }
}
