//! Keywords that look at the whole of a text or a list. What they cost grows with it, so they are taken over from the validator,
//! and charged before it is asked.

use super::cost::charge;
use super::{explain, options};
use jsonschema::{Draft, Keyword, ValidationError, Validator};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How a keyword is charged.
#[derive(Clone, Copy)]
pub(super) struct Weight {
    pub keyword: &'static str,
    /// So many bytes of a text, or of a list, cost one unit.
    bytes_per_unit: u64,
}

const fn weight(keyword: &'static str, bytes_per_unit: u64) -> Weight {
    Weight { keyword, bytes_per_unit }
}

/// The only one that looks at lists.
const UNIQUE: &str = "uniqueItems";
const EACH_DRAFT: [Weight; 3] = [weight("maxLength", 2 * 1024), weight("minLength", 2 * 1024), weight(UNIQUE, 512)];
/// In 2020-12 these say nothing of what is valid.
const DRAFT_7: [Weight; 3] = [weight("contentEncoding", 64), weight("contentMediaType", 64), weight("format", 256)];
/// Those that are judged together where they stand together.
const CONTENT: [&str; 2] = ["contentEncoding", "contentMediaType"];
/// What a value takes besides, in bytes.
const VALUE_BYTES: u64 = 16;

/// The keywords of a draft.
pub(super) fn keywords(draft: Draft) -> impl Iterator<Item = Weight> {
    let draft_7 = if draft == Draft::Draft7 { &DRAFT_7[..] } else { &[] };
    EACH_DRAFT.iter().chain(draft_7).copied()
}

/// The validators of a document's keywords, each with each of its values once.
#[derive(Default)]
pub(super) struct Alone(Mutex<HashMap<String, Arc<Validator>>>);

impl Alone {
    /// Makes the check of a keyword that stands in `schema`.
    pub(super) fn keyword(
        &self,
        draft: Draft,
        weight: Weight,
        schema: &Map<String, Value>,
    ) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'static>> {
        let with = if CONTENT.contains(&weight.keyword) { &CONTENT[..] } else { &[] };
        let stands = [weight.keyword].into_iter().chain(with.iter().copied());
        let alone: Map<String, Value> =
            stands.filter_map(|name| schema.get(name).map(|value| (name.to_owned(), value.clone()))).collect();
        let alone = Value::Object(alone);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let validator = match known.get(&alone.to_string()) {
            Some(validator) => Arc::clone(validator),
            None => {
                let validator = Arc::new(options(draft).build(&alone)?);
                known.insert(alone.to_string(), Arc::clone(&validator));
                validator
            }
        };
        Ok(Box::new(Weighed { validator, weight }))
    }
}

struct Weighed {
    validator: Arc<Validator>,
    weight: Weight,
}

impl Weighed {
    fn charge(&self, instance: &Value) {
        let looks_at = match instance {
            Value::String(_) => self.weight.keyword != UNIQUE,
            Value::Array(_) => self.weight.keyword == UNIQUE,
            _ => false,
        };
        if looks_at {
            charge(bytes(instance) / self.weight.bytes_per_unit);
        }
    }
}

impl<'i> Keyword<'i> for Weighed {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        self.charge(instance);
        self.validator.validate(instance).map_err(|error| ValidationError::custom(explain(&error)))
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        self.charge(instance);
        self.validator.is_valid(instance)
    }
}

/// About how long a value is.
fn bytes(value: &Value) -> u64 {
    let within = match value {
        Value::String(text) => text.len() as u64,
        Value::Array(elements) => elements.iter().map(bytes).sum(),
        Value::Object(members) => members.iter().map(|(name, member)| name.len() as u64 + bytes(member)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    VALUE_BYTES + within
}

#[cfg(test)]
mod tests {
    use crate::domain::schema::Schema;
    use crate::domain::schema::tests::{CHECK_MAX, schema, violations};
    use std::time::Instant;

    const DRAFT_7: &str = "http://json-schema.org/draft-07/schema#";

    fn many(keyword: &str) -> Schema {
        let all = vec![format!("{{{keyword}}}"); 900].join(",");
        schema(&format!(r#"{{"$schema": "{DRAFT_7}", "allOf": [{all}]}}"#))
    }

    #[test]
    fn keywords_that_look_at_all_of_a_value_again_and_again_cost_too_much() {
        let list = |bytes: usize| format!("[{}]", (0..bytes / 7).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
        let text = |bytes: usize| format!("\"{}\"", "a".repeat(bytes));
        let json = |bytes: usize| format!("\"[{}1]\"", "1,".repeat(bytes / 2));
        let rows: [(&str, &dyn Fn(usize) -> String); 7] = [
            (r#""uniqueItems": true"#, &list),
            (r#""contentMediaType": "application/json""#, &json),
            (r#""contentEncoding": "base64""#, &text),
            (r#""format": "uri-template""#, &text),
            (r#""format": "date-time""#, &text),
            (r#""minLength": 1"#, &text),
            (r#""maxLength": 1000000"#, &text),
        ];
        for (keyword, data) in rows {
            let schema = many(keyword);
            assert!(schema.validate_briefly(data(30_000).as_bytes()).is_none(), "others do not wait for {keyword}");
            let begin = Instant::now();
            let found = schema.validate(data(980_000).as_bytes()).expect_err("it is long");
            assert!(found[0].message.contains("costs too much"), "{keyword}: {found:?}");
            assert!(begin.elapsed() < CHECK_MAX, "{keyword}: {:?}", begin.elapsed());
        }
        let few = r#"{"properties": {"t": {"minLength": 1, "maxLength": 1000000}, "l": {"uniqueItems": true}}}"#;
        let data = format!(r#"{{"t": {}, "l": {}}}"#, text(500_000), list(400_000));
        assert_eq!(schema(few).validate(data.as_bytes()), Ok(()), "once is fine");
    }

    #[test]
    fn what_is_charged_is_judged_as_the_drafts_have_it() {
        let content = format!(
            r#"{{"$schema": "{DRAFT_7}", "contentEncoding": "base64", "contentMediaType": "application/json"}}"#
        );
        assert_eq!(schema(&content).validate(br#""eyJhIjoxfQ==""#), Ok(()));
        let found = violations(&content, r#""e30hunter2=""#);
        assert!(!found.is_empty() && found.iter().all(|(_, _, message)| !message.contains("hunter2")), "{found:?}");
        let latest = content.replace(DRAFT_7, "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema(&latest).validate(br#""{""#), Ok(()), "it asserts nothing there");
        let told = violations(r#"{"properties": {"a": {"uniqueItems": true}}}"#, r#"{"a": [1, 1.0]}"#);
        let [(at, by, message)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((at.as_str(), by.as_str()), ("/a", "/properties/a/uniqueItems"));
        assert!(message.contains("non-unique"), "{message}");
        let told = violations(r#"{"items": {"minLength": 3}}"#, r#"["abc", "ab"]"#);
        assert_eq!(told[0].2, "the value is shorter than 3 characters");
    }

    #[test]
    fn numbers_that_nobody_could_read_are_refused_in_documents_and_in_data() {
        let number = |digits: usize| "9".repeat(digits);
        let of = |digits: usize| format!(r#"{{"items": {{"minimum": {}}}}}"#, number(digits));
        let error = Schema::parse(&of(129)).expect_err("it is long");
        assert!(error.message.contains("more than 128 characters"), "{error}");
        let schema = schema(&of(128));
        assert_eq!(schema.validate(format!("[{}]", number(128)).as_bytes()), Ok(()));
        for data in
            [format!("[{}]", number(129)), format!("1e{}", number(200)), format!(r#"{{"a": 0.{}}}"#, number(200))]
        {
            let found = schema.validate(data.as_bytes()).expect_err("it is long");
            assert!(found[0].message.contains("more than 128 characters"), "{found:?}");
        }
    }
}
