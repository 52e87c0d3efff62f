//! Durations and timestamps between proto and the standard types.

use super::FieldError;
use crate::proto::Timestamp;
use chrono::{DateTime, Utc};
use pbjson_types::Duration as ProtoDuration;
use std::time::Duration;

const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// Reads a duration that is not negative. Its bounds are the caller's to check.
///
/// Source: google/protobuf/duration.proto, which fixes the range of nanos and equal signs.
pub fn parse_duration(field: &str, value: &ProtoDuration) -> Result<Duration, FieldError> {
    let in_range = value.nanos > -NANOS_PER_SECOND && value.nanos < NANOS_PER_SECOND;
    let signs_agree = value.seconds == 0 || value.nanos == 0 || (value.seconds < 0) == (value.nanos < 0);
    if !in_range || !signs_agree {
        return Err(FieldError::new(field, "is not a valid duration"));
    }
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(FieldError::new(field, "must not be negative")),
    }
}

/// Reads a point in time, to the microsecond (rounded down).
///
/// Source: google/protobuf/timestamp.proto: years 1 to 9999, nanos 0 to 999,999,999.
pub fn parse_timestamp(field: &str, value: &Timestamp) -> Result<DateTime<Utc>, FieldError> {
    const YEARS_1_TO_9999: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    let wrong = || FieldError::new(field, "is not a valid timestamp of the years 1 to 9999");
    if !YEARS_1_TO_9999.contains(&value.seconds) || !(0..NANOS_PER_SECOND).contains(&value.nanos) {
        return Err(wrong());
    }
    let micros = value.seconds * 1_000_000 + i64::from(value.nanos / 1_000);
    DateTime::from_timestamp_micros(micros).ok_or_else(wrong)
}

/// A duration as proto; one too long for proto is cut to the longest.
pub fn duration_to_proto(value: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(NANOS_PER_SECOND - 1),
    }
}

/// A point in time as proto.
pub fn timestamp_to_proto(value: DateTime<Utc>) -> Timestamp {
    Timestamp {
        seconds: value.timestamp(),
        // A leap second counts as the second's last nanosecond, which proto can say.
        nanos: i32::try_from(value.timestamp_subsec_nanos()).unwrap_or_default().min(NANOS_PER_SECOND - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_neither_negative_nor_malformed() {
        let parse = |seconds, nanos| parse_duration("d", &ProtoDuration { seconds, nanos });
        assert_eq!(parse(1, 500_000_000), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse(0, 0), Ok(Duration::ZERO));
        for (seconds, nanos) in [(-1, 0), (0, -1), (-1, -5)] {
            assert_eq!(parse(seconds, nanos), Err(FieldError::new("d", "must not be negative")));
        }
        for (seconds, nanos) in [(1, -1), (-1, 1), (0, NANOS_PER_SECOND), (0, i32::MIN)] {
            assert_eq!(parse(seconds, nanos), Err(FieldError::new("d", "is not a valid duration")));
        }
        let longest = parse(i64::MAX, 999_999_999).expect("long, but valid");
        assert_eq!(duration_to_proto(longest), ProtoDuration { seconds: i64::MAX, nanos: 999_999_999 });
    }

    #[test]
    fn timestamps_keep_microseconds_and_stay_within_what_postgres_and_proto_hold() {
        let parse = |seconds, nanos| parse_timestamp("t", &Timestamp { seconds, nanos });
        let time = parse(1_700_000_000, 123_456_789).expect("a valid time");
        assert_eq!(timestamp_to_proto(time), Timestamp { seconds: 1_700_000_000, nanos: 123_456_000 });
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, NANOS_PER_SECOND), (253_402_300_800, 0)] {
            assert!(parse(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }
}
