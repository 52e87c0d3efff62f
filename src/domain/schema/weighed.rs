//! Keywords that look at the whole of a value. What they cost grows with it, so they are taken over from the validator, and charged before
//! it is asked.

use super::compatibility::Canonical;
use super::cost::{UNITS_MAX, charge};
use super::{PATTERN_BYTES_MAX, explain, options};
use jsonschema::{Draft, Keyword, ValidationError, Validator};
use serde_json::{Map, Value};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

const EACH_DRAFT: [&str; 3] = ["maxLength", "minLength", "uniqueItems"];
/// In 2020-12 these say nothing of what is valid.
const DRAFT_7: [&str; 3] = ["contentEncoding", "contentMediaType", "format"];
/// Those that are judged together where they stand together.
const CONTENT: [&str; 2] = ["contentEncoding", "contentMediaType"];
/// So many bytes of a list in which each is compared with all others cost one unit.
const UNIQUE_BYTES_PER_UNIT: u64 = 128;
/// So many bytes of a value that is told of cost one unit.
pub(super) const COPIED_BYTES_PER_UNIT: u64 = 64;
/// What a value takes besides, in bytes.
pub(super) const VALUE_BYTES: u64 = 16;

/// The keywords of a draft.
pub(super) fn keywords(draft: Draft) -> impl Iterator<Item = &'static str> {
    let draft_7 = if draft == Draft::Draft7 { &DRAFT_7[..] } else { &[] };
    EACH_DRAFT.iter().chain(draft_7).copied()
}

/// The checks of a document's keywords, each with each of its values once.
#[derive(Default)]
pub(super) struct Weighed(Mutex<HashMap<String, Arc<Check>>>);

impl Weighed {
    /// Makes the check of a keyword that stands in `schema`.
    pub(super) fn keyword(
        &self,
        draft: Draft,
        keyword: &str,
        schema: &Map<String, Value>,
    ) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'static>> {
        let with = if CONTENT.contains(&keyword) { &CONTENT[..] } else { &[] };
        let stands = [keyword].into_iter().chain(with.iter().copied());
        let alone: Map<String, Value> =
            stands.filter_map(|name| schema.get(name).map(|value| (name.to_owned(), value.clone()))).collect();
        let alone = Value::Object(alone);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let check = match known.entry(alone.to_string()) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => Arc::clone(new.insert(Arc::new(Check::compile(draft, keyword, &alone)?))),
        };
        Ok(Box::new(Shared(check)))
    }
}

struct Shared(Arc<Check>);

enum Check {
    /// `uniqueItems`.
    Unique,
    /// What looks at texts: so many bytes cost one unit, and longer ones too much.
    Text { validator: Validator, bytes_per_unit: u64, bytes_max: usize },
}

impl Check {
    fn compile(draft: Draft, keyword: &str, alone: &Value) -> Result<Self, ValidationError<'static>> {
        let value = &alone[keyword];
        let (bytes_per_unit, bytes_max) = match keyword {
            "uniqueItems" if value == true => return Ok(Self::Unique),
            "minLength" | "maxLength" => (2 * 1024, usize::MAX),
            // Who reads an expression goes back and forth.
            "format" if value == "regex" => (4, PATTERN_BYTES_MAX),
            "format" => (256, usize::MAX),
            _ => (64, usize::MAX),
        };
        Ok(Self::Text { validator: options(draft).build(alone)?, bytes_per_unit, bytes_max })
    }

    fn is_valid(&self, instance: &Value) -> bool {
        match (self, instance) {
            (Self::Unique, Value::Array(elements)) => {
                charge(bytes(instance) / UNIQUE_BYTES_PER_UNIT);
                let mut seen = HashSet::with_capacity(elements.len());
                elements.iter().all(|element| seen.insert(Canonical::read(element)))
            }
            (Self::Text { validator, bytes_per_unit, bytes_max }, Value::String(text)) => {
                charge(if text.len() > *bytes_max { UNITS_MAX + 1 } else { text.len() as u64 / bytes_per_unit });
                validator.is_valid(instance)
            }
            _ => true,
        }
    }

    /// What is said of a value that is not valid.
    fn message(&self, instance: &Value) -> String {
        match self {
            Self::Unique => "the value has non-unique elements".to_owned(),
            Self::Text { validator, .. } => {
                validator.validate(instance).err().as_ref().map(explain).unwrap_or_default()
            }
        }
    }
}

impl<'i> Keyword<'i> for Shared {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if self.0.is_valid(instance) {
            return Ok(());
        }
        // The error keeps a copy of the value.
        charge(1 + bytes(instance) / COPIED_BYTES_PER_UNIT);
        Err(ValidationError::custom(self.0.message(instance)))
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        self.0.is_valid(instance)
    }
}

/// About how long a value is, whether of a document or of data.
pub(super) fn bytes(value: &Value) -> u64 {
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
    fn elements_are_compared_exactly_however_alike_they_are() {
        let document = r#"{"uniqueItems": true}"#;
        let fits = r#"[18446744073709551616, 18446744073709551617, "1", 1, {"a": 1}]"#;
        assert_eq!(schema(document).validate(fits.as_bytes()), Ok(()));
        for alike in ["[1e400, 10e399]", "[0, 0e99999999999999999999]", r#"[{"a": 1, "b": 2}, {"b": 2.0, "a": 1}]"#] {
            assert_eq!(violations(document, alike).len(), 1, "{alike}");
        }
        assert_eq!(schema(r#"{"uniqueItems": false}"#).validate(b"[1, 1]"), Ok(()));
        let begin = Instant::now();
        let alike = format!("[{}0]", "1e400,".repeat(40_000));
        assert_eq!(violations(document, &alike).len(), 1);
        let close: Vec<_> = (0..40_000).map(|n| format!("1{n:05}e400")).collect();
        assert_eq!(schema(document).validate(format!("[{}]", close.join(",")).as_bytes()), Ok(()));
        assert!(begin.elapsed() < CHECK_MAX, "{:?}", begin.elapsed());
    }

    #[test]
    fn long_values_that_are_compared_again_and_again_cost_something() {
        let list = format!("[{}0]", "1,".repeat(7_000));
        for keyword in [format!(r#""const": {list}"#), format!(r#""enum": [{list}]"#)] {
            let refer = vec![r##"{"$ref": "#/$defs/c"}"##; 800].join(",");
            let document = format!(r#"{{"$defs": {{"c": {{{keyword}}}}}, "allOf": [{refer}]}}"#);
            assert!(schema(&document).validate_briefly(list.as_bytes()).is_none(), "others do not wait");
            assert_eq!(schema(&document).validate(list.as_bytes()), Ok(()));
        }
    }

    #[test]
    fn what_a_drafts_own_schema_and_expressions_within_data_take_is_bounded() {
        let refer = vec![r#"{"$ref": "https://json-schema.org/draft/2020-12/schema"}"#; 800].join(",");
        let meta = schema(&format!(r#"{{"allOf": [{refer}]}}"#));
        let members = |count: usize| (0..count).map(|n| format!(r#""{n}":{{}}"#)).collect::<Vec<_>>().join(",");
        let begin = Instant::now();
        let data = |count: usize| format!(r#"{{"properties": {{{}}}}}"#, members(count));
        assert!(meta.validate_briefly(data(1_600).as_bytes()).is_none(), "others do not wait");
        let found = meta.validate(data(40_000).as_bytes()).expect_err("it is long");
        assert!(found[0].message.contains("costs too much"), "{found:?}");
        let latest = "https://json-schema.org/draft/2020-12/schema";
        let old = DRAFT_7;
        let refer = refer.replace(latest, old);
        let meta = schema(&format!(r#"{{"$schema": "{old}", "definitions": {{"x": true}}, "allOf": [{refer}]}}"#));
        assert_eq!(meta.validate(br#"{"type": "string"}"#), Ok(()));
        assert!(meta.validate(br#"{"type": 5}"#).is_err());
        let found = meta.validate(data(40_000).as_bytes()).expect_err("it is long");
        assert!(found[0].message.contains("costs too much"), "{found:?}");
        let expression = schema(&format!(r#"{{"$schema": "{DRAFT_7}", "format": "regex"}}"#));
        let groups = (0..60_000).map(|n| format!("(?<a{n}>x)")).collect::<Vec<_>>().concat();
        let found = expression.validate(format!("\"{groups}\"").as_bytes()).expect_err("it is long");
        assert!(found[0].message.contains("costs too much"), "{found:?}");
        assert_eq!(expression.validate(br#""^a+$""#), Ok(()));
        assert!(begin.elapsed() < CHECK_MAX, "{:?}", begin.elapsed());
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
