//! Keywords of draft 7 that say what a text must be: `format`, `contentEncoding` and `contentMediaType`. Each looks at one text alone, once
//! what that costs is charged.

use super::PATTERN_BYTES_MAX;
use super::cost::{UNITS_MAX, charge};
use super::ecma::NO_PATTERN;
use crate::domain::json::check_json;
use data_encoding::{BASE32, BASE32HEX, BASE64, BASE64URL, Encoding, HEXUPPER_PERMISSIVE};
use jsonschema::{Draft, Validator};
use serde_json::{Map, Value};

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
/// How many pairs of names of an expression's groups cost one unit.
const NAMES_PER_UNIT: u64 = 16;
/// About what one takes in memory, bytes.
pub(super) const MEMORY_BYTES: usize = 4 * 1024;

/// What judges texts.
pub(super) struct Asserted {
    judge: Judge,
    /// What a byte costs, in units: so many for so many bytes.
    units: u64,
    per_bytes: u64,
    /// A longer text costs too much.
    bytes_max: usize,
    /// What is said of a text that is not so.
    message: String,
}

enum Judge {
    /// By the name of a format.
    Format(Box<Validator>),
    Encoding(Encoding),
    /// JSON, encoded or as it is. What is not encoded so is told by the keyword that wants it to be.
    Json(Option<Encoding>),
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

fn encoding(name: &str) -> Option<Encoding> {
    Some(match name {
        "base64" => BASE64,
        "base64url" => BASE64URL,
        "base32" => BASE32,
        "base32hex" => BASE32HEX,
        "base16" => HEXUPPER_PERMISSIVE,
        _ => return None,
    })
}

impl Asserted {
    /// What a keyword says in `schema`, as a text that is the same for all that say the same, and what makes it a judge: none where it says
    /// nothing.
    pub fn of(
        draft: Draft,
        keyword: &'static str,
        schema: &Map<String, Value>,
    ) -> (String, impl FnOnce() -> Option<Self>) {
        let said = |keyword: &str| schema.get(keyword).map(|value| known(keyword, value));
        let own = said(keyword).unwrap_or(OTHER);
        let encoded = if keyword == "contentMediaType" { said("contentEncoding") } else { None };
        let make = move || {
            let (units, per_bytes, bytes_max) = match (keyword, own) {
                // Who reads an expression goes back and forth.
                ("format", "regex") => (5, 1, PATTERN_BYTES_MAX),
                ("format", "idn-email" | "idn-hostname") => (1, 1, usize::MAX),
                ("format", _) => (1, 12, usize::MAX),
                _ => (1, 3, usize::MAX),
            };
            let (judge, message) = match keyword {
                "contentEncoding" => (Judge::Encoding(encoding(own)?), format!("the value is not encoded as {own}")),
                "contentMediaType" if own == OTHER => return None,
                "contentMediaType" => {
                    let encoding = encoded.map(|name| encoding(name).ok_or(())).transpose().ok()?;
                    (Judge::Json(encoding), format!("the value is not {own}"))
                }
                _ => {
                    let alone = Value::Object([(keyword.to_owned(), Value::from(own))].into_iter().collect());
                    let options = jsonschema::options().with_draft(draft).offline().should_validate_formats(true);
                    let validator = options.should_ignore_unknown_formats(true).build(&alone).ok()?;
                    let message = format!("the value is not a \"{own}\"");
                    (Judge::Format(Box::new(validator)), if own == "regex" { NO_PATTERN.to_owned() } else { message })
                }
            };
            Some(Self { judge, units, per_bytes, bytes_max, message })
        };
        (format!("{keyword} {own} {}", encoded.unwrap_or_default()), make)
    }

    /// True where a text is what it must be.
    pub fn is_valid(&self, value: &Value) -> bool {
        let text = value.as_str().unwrap_or_default();
        let bytes = text.len();
        charge(if bytes > self.bytes_max { UNITS_MAX + 1 } else { bytes as u64 * self.units / self.per_bytes });
        match &self.judge {
            Judge::Format(validator) => {
                // Who reads an expression looks each name of a group up among all others.
                let names = text.matches("(?<").count() as u64;
                charge(if self.bytes_max < usize::MAX { names * names / NAMES_PER_UNIT } else { 0 });
                validator.is_valid(value)
            }
            Judge::Encoding(encoding) => encoding.decode(text.as_bytes()).is_ok(),
            Judge::Json(None) => check_json(text.as_bytes()).is_ok(),
            Judge::Json(Some(encoding)) => {
                encoding.decode(text.as_bytes()).map_or(true, |json| check_json(&json).is_ok())
            }
        }
    }

    /// What is wrong with a text, without the text.
    pub fn message(&self) -> &str {
        &self.message
    }
}
