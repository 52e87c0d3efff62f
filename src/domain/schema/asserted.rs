//! Keywords of draft 7 that say what a text must be: `format`, `contentEncoding` and `contentMediaType`. Each looks at one text alone, so a
//! validator of its own judges it, once what that costs is charged.

use super::PATTERN_BYTES_MAX;
use super::cost::{UNITS_MAX, charge};
use super::told::explain;
use jsonschema::{Draft, Validator};
use serde_json::{Map, Value};

/// Those that are judged together where they stand together.
const CONTENT: [&str; 2] = ["contentEncoding", "contentMediaType"];
/// The texts that say something; all others say nothing.
const KNOWN: [(&str, &[&str]); 3] = [
    ("contentEncoding", &["base64", "base64url", "base32", "base32hex", "base16"]),
    ("contentMediaType", &["application/json"]),
    (
        "format",
        &[
            "date",
            "date-time",
            "email",
            "hostname",
            "idn-email",
            "idn-hostname",
            "ipv4",
            "ipv6",
            "iri",
            "iri-reference",
            "json-pointer",
            "regex",
            "relative-json-pointer",
            "time",
            "uri",
            "uri-reference",
            "uri-template",
        ],
    ),
];
/// What stands for each of these others, of which a document may have thousands.
const OTHER: &str = "other";
/// About what one takes in memory, bytes.
pub(super) const MEMORY_BYTES: usize = 4 * 1024;

/// What judges texts.
pub(super) struct Asserted {
    validator: Validator,
    /// What a byte costs, in units: so many for so many bytes.
    units: u64,
    per_bytes: u64,
    /// A longer text costs too much.
    bytes_max: usize,
}

/// The keywords of `schema` that are judged here.
pub(super) fn keywords(draft: Draft, schema: &Map<String, Value>) -> impl Iterator<Item = &'static str> {
    // In 2020-12 they say nothing of what is valid.
    let all = if draft == Draft::Draft7 { &KNOWN[..] } else { &[] };
    all.iter().map(|(keyword, _)| *keyword).filter(|keyword| schema.contains_key(*keyword))
}

fn known(keyword: &str, value: &Value) -> &'static str {
    let known = KNOWN.iter().find(|(name, _)| *name == keyword).map_or(&[][..], |(_, known)| known);
    known.iter().find(|text| value == **text).copied().unwrap_or(OTHER)
}

impl Asserted {
    /// What a keyword says in `schema`, as a text that is the same for all that say the same, and what makes its validator: none for what is
    /// not of its shape.
    pub fn of(
        draft: Draft,
        keyword: &'static str,
        schema: &Map<String, Value>,
    ) -> (String, impl FnOnce() -> Option<Self>) {
        let with = if CONTENT.contains(&keyword) { &CONTENT[..] } else { &[keyword] };
        let stands =
            with.iter().filter_map(|name| Some(((*name).to_owned(), Value::from(known(name, schema.get(*name)?)))));
        let alone = Value::Object(stands.collect());
        let text = alone.to_string();
        let make = move || {
            let (units, per_bytes, bytes_max) = match (keyword, alone[keyword].as_str()) {
                // Who reads an expression goes back and forth.
                ("format", Some("regex")) => (5, 1, PATTERN_BYTES_MAX),
                ("format", Some("idn-email" | "idn-hostname")) => (1, 1, usize::MAX),
                ("format", _) => (1, 12, usize::MAX),
                _ => (1, 3, usize::MAX),
            };
            let options = jsonschema::options().with_draft(draft).offline().should_validate_formats(true);
            let validator = options.should_ignore_unknown_formats(true).build(&alone).ok()?;
            Some(Self { validator, units, per_bytes, bytes_max })
        };
        (text, make)
    }

    /// True where a text is what it must be.
    pub fn is_valid(&self, text: &Value) -> bool {
        let bytes = text.as_str().map_or(0, str::len);
        charge(if bytes > self.bytes_max { UNITS_MAX + 1 } else { bytes as u64 * self.units / self.per_bytes });
        self.validator.is_valid(text)
    }

    /// What is wrong with a text, without the text.
    pub fn message(&self, text: &Value) -> String {
        self.validator.validate(text).err().as_ref().map(explain).unwrap_or_default()
    }
}
