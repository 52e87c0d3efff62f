//! `google.protobuf.Timestamp`, whose JSON form ends in `Z`.
//!
//! Stands in the generated code for that of `pbjson-types`, which writes `+00:00`: proto JSON knows only `Z`, and some clients read
//! nothing else. Source: google/protobuf/timestamp.proto, "JSON Mapping".

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;

/// A point in time: seconds since 1970 in UTC, and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        // A leap second counts as the second's last nanosecond.
        let nanos = i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default().min(999_999_999);
        Self { seconds: time.timestamp(), nanos }
    }
}

impl TryFrom<Timestamp> for DateTime<Utc> {
    type Error = &'static str;

    fn try_from(time: Timestamp) -> Result<Self, Self::Error> {
        let nanos = u32::try_from(time.nanos).map_err(|_| "negative nanoseconds")?;
        Self::from_timestamp(time.seconds, nanos).ok_or("out of range")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = DateTime::<Utc>::try_from(*self).map_err(S::Error::custom)?;
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(D::Error::custom)?;
        Ok(time.to_utc().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_ends_in_z_and_has_0_3_6_or_9_digits() {
        let cases = [
            (0, "2023-11-14T22:13:20Z"),
            (500_000_000, "2023-11-14T22:13:20.500Z"),
            (123_456_000, "2023-11-14T22:13:20.123456Z"),
            (1, "2023-11-14T22:13:20.000000001Z"),
        ];
        for (nanos, text) in cases {
            let time = Timestamp { seconds: 1_700_000_000, nanos };
            let json = serde_json::to_string(&time).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), time);
        }
        let elsewhere: Timestamp = serde_json::from_str("\"2023-11-14T23:13:20+01:00\"").unwrap();
        assert_eq!(elsewhere.seconds, 1_700_000_000);
        assert!(serde_json::from_str::<Timestamp>("\"yesterday\"").is_err());
        assert!(serde_json::to_string(&Timestamp { seconds: i64::MAX, nanos: 0 }).is_err());
    }
}
