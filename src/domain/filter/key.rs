//! Ordering keys: the value of an expression over an event, as something small to compare by.
//!
//! Must never make two values that differ one key, nor keep the value itself: a key may be what a payload holds of a person.

use super::{EvaluationError, Filter, FilterContext};
use aws_lc_rs::digest::{SHA256, digest};
use cel::common::types::{CelBool, CelInt, CelNull, CelString, CelUInt};
use uuid::Uuid;

/// Events of one subscription with the same key are delivered one after the other. A digest of the key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderingKey(pub Uuid);

impl OrderingKey {
    /// The key of a value: its kind and its bytes.
    fn of(kind: u8, value: &[u8]) -> Self {
        let digest = digest(&SHA256, &[&[kind], value].concat());
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_ref()[..16]);
        Self(Uuid::from_bytes(key))
    }
}

impl Filter {
    /// The expression's value over one event as an ordering key; none where it is null.
    ///
    /// Errors: what [`Filter::matches`] refuses, and a value that is neither string, integer nor boolean.
    pub fn ordering_key(&self, context: &FilterContext<'_>) -> Result<Option<OrderingKey>, EvaluationError> {
        self.evaluate(context, |value| {
            if let Some(text) = value.downcast_ref::<CelString>() {
                Ok(Some(OrderingKey::of(b's', text.inner().as_bytes())))
            } else if let Some(number) = value.downcast_ref::<CelInt>() {
                Ok(Some(OrderingKey::of(b'i', &number.inner().to_be_bytes())))
            } else if let Some(number) = value.downcast_ref::<CelUInt>() {
                Ok(Some(OrderingKey::of(b'u', &number.inner().to_be_bytes())))
            } else if let Some(truth) = value.downcast_ref::<CelBool>() {
                Ok(Some(OrderingKey::of(b'b', &[u8::from(*truth.inner())])))
            } else if value.downcast_ref::<CelNull>().is_some() {
                Ok(None)
            } else {
                Err(EvaluationError("the key is neither a string, an integer, a boolean nor null".to_owned()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{Data, Event, Lineage};
    use crate::domain::event_type::EventTypeName;
    use crate::domain::ids::EventId;
    use chrono::DateTime;

    fn key(expression: &str, data: &'static str) -> Result<Option<OrderingKey>, EvaluationError> {
        let id = EventId(Uuid::from_u128(1));
        let event = Event {
            id,
            event_type: EventTypeName::parse("CUSTOM_T").expect("a name"),
            schema_version: 0,
            source: "/test".to_owned(),
            subject: None,
            time: DateTime::UNIX_EPOCH,
            content_type: None,
            extensions: Vec::new(),
            data: Data::Text(data.into()),
            lineage: Lineage::root(id),
        };
        Filter::stored(expression).ordering_key(&FilterContext::new(&event))
    }

    #[test]
    fn equal_values_have_one_key_and_other_values_or_kinds_another() {
        let of = |data| key("data.user", data).expect("a key").expect("not null");
        assert_eq!(of(r#"{"user":"7"}"#), of(r#"{"user":"7","more":1}"#));
        let all = [of(r#"{"user":"7"}"#), of(r#"{"user":7}"#), of(r#"{"user":"8"}"#), of(r#"{"user":true}"#)];
        let distinct: std::collections::HashSet<_> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn null_is_no_key_and_what_cannot_be_compared_is_an_error() {
        assert_eq!(key("data.user", r#"{"user":null}"#), Ok(None));
        for data in [r#"{"other":1}"#, r#"{"user":[1]}"#, r#"{"user":{}}"#, r#"{"user":1.5}"#, "not JSON"] {
            assert!(key("data.user", data).is_err(), "{data}");
        }
    }

    #[test]
    fn what_can_never_be_an_ordering_key_is_refused_with_its_column() {
        let cases = [
            ("[data.k]", 1),
            ("{'a': 1}", 1),
            ("1.5", 1),
            ("null", 1),
            ("event", 1),
            ("event.time", 6),
            ("string", 1),
            ("timestamp(data.at)", 10),
            ("duration('1s') + data.more", 9),
            ("data.k * 1.5", 10),
            ("data.a ? 1.5 : [1]", 16),
            ("1 && data.a", 1),
            ("1.5 ? 'a' : 'b'", 1),
        ];
        for (source, column) in cases {
            let error = Filter::parse_key(source).expect_err(source);
            assert!(error.message.contains("never a string, an integer or a boolean"), "{source}: {error}");
            assert_eq!(error.column, column, "{source}: {error}");
        }
        for source in ["data.items.map(x, x)", "data.items.filter(x, x > 1)"] {
            Filter::parse_key(source).expect_err(source);
        }
        let fine = [
            "data.k",
            "data['k']",
            "event.subject",
            "event.source + data.k",
            "'one for all'",
            "data.amount % 8",
            "-data.k",
            "size(data.items)",
            "string(event.time)",
            "event.time.getHours()",
            "data.a > 1",
            "has(data.k) ? data.k : null",
            "data.items.exists(x, x > 1)",
            "data.items.exists_one(x, x > 1)",
            "dyn(1.5)",
            "true",
            "7u",
        ];
        for source in fine {
            Filter::parse_key(source).unwrap_or_else(|error| panic!("{source}: {error}"));
        }
    }
}
