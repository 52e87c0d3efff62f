//! Payload schemas: JSON Schema 2020-12 (draft 7 by its `$schema`), compiled once, without remote references.
//!
//! A document is compiled when a version is registered and when a replica loads it; publish then checks payloads against it. Nothing
//! here reads a file or the network, whatever a document refers to, and no text that leaves here repeats a payload's values.
//!
//! `format` is an assertion in draft 7 (formats that are not known are ignored) and an annotation in 2020-12, as the drafts have it.
//! Patterns are matched in linear time.

mod asserted;
mod bounds;
pub mod compatibility;
mod compile;
mod cost;
mod ecma;
mod evaluate;
mod patterns;
mod program;
mod progress;
mod references;
mod shown;
mod told;
mod weight;

use super::json::{check_json, to_json_error};
use bounds::Bounds;
use cost::{Stopped, UNITS_BRIEF, UNITS_MAX};
use evaluate::Pass;
use jsonschema::Draft;
use patterns::Expressions;
use program::Program;
use references::Document;
use serde_json::Value;
use std::fmt;
use std::sync::LazyLock;
pub use told::Violation;

/// The stack of a check that may cost all that one may.
const STACK_BYTES: usize = 128 * 1024 * 1024;
/// How deep subschemas may lead on within each other on that stack: 128 values within each other, and 100 subschemas for each.
const DEPTH_MAX: usize = 13_000;
/// The same on the caller's stack.
const DEPTH_BRIEF: usize = 128;
/// How long a document may be, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// How deep a document may be nested.
pub const DOCUMENT_DEPTH_MAX: usize = 64;
/// How many values a document may consist of.
pub const DOCUMENT_NODES_MAX: usize = 20_000;
/// How many subschemas `anyOf`, `oneOf` or `allOf` may list, and `dependencies` and its like may name.
pub const ALTERNATIVES_MAX: usize = 1_000;
/// How long a number may be, in a document and in data that is checked, in characters: what it costs to look at one grows with it.
pub const NUMBER_CHARS_MAX: usize = 128;
/// How many digits its exponent may have.
pub const EXPONENT_DIGITS_MAX: usize = 15;
/// How long all regular expressions of a document may be together, in bytes.
pub const PATTERN_BYTES_MAX: usize = 16 * 1024;
/// How large all regular expressions of a document may be together when they are compiled, in bytes.
pub const COMPILED_PATTERNS_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// How long the pointers to all places of a document may be together, with the identifiers and references there resolved, in bytes: a long
/// name counts again for everything below it.
pub const PLACES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many violations are told.
pub const VIOLATIONS_MAX: usize = 32;

/// What is said where names or identifiers make a document too long.
const TOO_LONG_PLACES: &str = "has too long names or identifiers above too many values";
/// What is said of a number that takes too long to look at.
const TOO_LONG_NUMBER: &str = "has a number of more than 128 characters, or with an exponent of more than 15 digits";

/// A compiled schema.
pub struct Schema {
    program: Program,
    memory_bytes: usize,
}

/// Why a schema document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {message}")]
pub struct SchemaError {
    /// JSON pointer (RFC 6901) into the document; empty for the whole of it; of what has a longer one than 1,024 bytes, to a place above.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
}

impl Schema {
    /// Compiles a document.
    ///
    /// Errors: with the JSON pointer, for what is not a schema of a known draft, for references out of the document, and for what is
    /// beyond the bounds on size, depth, alternatives and patterns.
    pub fn parse(document: &str) -> Result<Self, SchemaError> {
        Self::read(document, check_shape)
    }

    /// Compiles a document that was parsed before.
    ///
    /// Errors: as for [`Self::parse`], where it is another one.
    pub fn stored(document: &str) -> Result<Self, SchemaError> {
        Self::read(document, |_, _| Ok(()))
    }

    fn read(
        document: &str,
        check_shape: impl FnOnce(&Value, Draft) -> Result<(), SchemaError>,
    ) -> Result<Self, SchemaError> {
        if document.len() > DOCUMENT_BYTES_MAX {
            return Err(refuse("", format!("is longer than {DOCUMENT_BYTES_MAX} bytes")));
        }
        check_json(document.as_bytes()).map_err(|error| refuse("", error.told()))?;
        let value: Value = serde_json::from_str(document)
            .map_err(|error| refuse("", to_json_error(document.as_bytes(), &error).told()))?;
        let draft = draft(&value)?;
        let bounds = Bounds::check(&value, draft)?;
        let document = Document::new(&value, draft)?;
        document.check_progress()?;
        check_shape(&value, draft)?;
        let program = compile::compile(&document, &bounds.expressions)?;
        let memory_bytes = program.memory_bytes + bounds.expressions.memory_bytes();
        Ok(Self { program, memory_bytes })
    }

    /// About what it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Checks data; at most [`VIOLATIONS_MAX`] violations.
    ///
    /// Errors: the places where the data breaks the schema, or one violation at the root for what is not one JSON text as
    /// [`check_json`] has it.
    pub fn validate(&self, data: &[u8]) -> Result<(), Vec<Violation>> {
        self.program.check_all(&parse_data(data)?)
    }

    /// As [`Self::validate`], where others wait for the thread: none for data that takes long to check.
    pub fn validate_briefly(&self, data: &[u8]) -> Option<Result<(), Vec<Violation>>> {
        match parse_data(data) {
            Ok(value) => self.program.check(&value, UNITS_BRIEF, DEPTH_BRIEF),
            Err(violations) => Some(Err(violations)),
        }
    }
}

impl Program {
    /// Checks a value, on a stack of its own where that takes long; at most [`VIOLATIONS_MAX`] violations.
    fn check_all(&self, value: &Value) -> Result<(), Vec<Violation>> {
        if let Some(checked) = self.check(value, UNITS_BRIEF, DEPTH_BRIEF) {
            return checked;
        }
        // References that follow each other and data within data are bounded by what they cost together, which is more than the caller's
        // stack is enough for. Where there is no thread for it nothing is said of the data: the panic ends the work.
        std::thread::scope(|scope| {
            let checking = std::thread::Builder::new().name("schema".to_owned()).stack_size(STACK_BYTES);
            let checking =
                checking.spawn_scoped(scope, || self.check(value, UNITS_MAX, DEPTH_MAX)).expect("a thread can be made");
            match checking.join() {
                Ok(Some(checked)) => checked,
                Ok(None) => Err(Violation::whole("costs too much to check against the schema")),
                Err(_) => Err(Violation::whole("cannot be checked against the schema")),
            }
        })
    }

    /// None where either pass, that which judges or that which explains, costs more than so many units, or goes deeper than that.
    fn check(&self, value: &Value, units: u64, depth: usize) -> Option<Result<(), Vec<Violation>>> {
        let judge = || Pass::judge(self, value, depth);
        // What breaks the branch of a union that is meant is worth telling, where that does not cost too much.
        let explain = || match cost::bounded(units / 4, || Pass::explain(self, value, depth, true)) {
            Err(Stopped::Cost) if units > UNITS_BRIEF => {
                cost::bounded(units, || Pass::explain(self, value, depth, false)).map(Some)
            }
            told => told.map(Some),
        };
        match cost::bounded(units, judge).and_then(|valid| if valid { Ok(None) } else { explain() }) {
            Ok(None) => Some(Ok(())),
            Ok(Some(violations)) => Some(Err(violations)),
            Err(Stopped::Cost) => None,
            Err(Stopped::Panic) => Some(Err(Violation::whole("cannot be checked against the schema"))),
        }
    }
}

/// What makes a document a schema of its draft.
static DRAFT_7: LazyLock<Program> =
    LazyLock::new(|| program_of("http://json-schema.org/draft-07/schema", Draft::Draft7));
static DRAFT_2020_12: LazyLock<Program> =
    LazyLock::new(|| program_of("https://json-schema.org/draft/2020-12/schema", Draft::Draft202012));

/// A draft's own schema, compiled.
fn program_of(uri: &str, draft: Draft) -> Program {
    let all = serde_json::json!({"$ref": uri});
    let document = Document::new(&all, draft).expect("every draft is known");
    compile::compile(&document, &Expressions::default()).expect("the schema of a draft is one")
}

/// Refuses what is no schema of its draft.
fn check_shape(document: &Value, draft: Draft) -> Result<(), SchemaError> {
    let shape = if draft == Draft::Draft7 { &DRAFT_7 } else { &DRAFT_2020_12 };
    let Err(violations) = shape.check_all(document) else { return Ok(()) };
    let first = violations.into_iter().next();
    Err(first.map_or_else(|| refuse("", "is no schema"), |first| refuse(&first.data_pointer, first.message)))
}

/// Reads a payload. The tree cannot tell the parser's own wrapping of numbers from an object written like it, so where the
/// payload could hold one it is checked first.
fn parse_data(data: &[u8]) -> Result<Value, Vec<Violation>> {
    // What is not UTF-8 ends there, too.
    let is_plain = |text: &str| !text.contains("serde_json") && !text.contains("\\u00");
    if !std::str::from_utf8(data).is_ok_and(is_plain) {
        check_json(data).map_err(|error| Violation::whole(&error.told()))?;
    }
    let value = serde_json::from_slice(data).map_err(|error| Violation::whole(&to_json_error(data, &error).told()))?;
    if let Some(place) = long_number(&value) {
        return Err(vec![Violation::new(place, String::new(), TOO_LONG_NUMBER)]);
    }
    Ok(value)
}

/// The pointer to the first number that takes too long to look at.
fn long_number(value: &Value) -> Option<String> {
    /// The way there, last part first.
    fn way(value: &Value) -> Option<Vec<String>> {
        let with = |mut way: Vec<String>, part: String| {
            way.push(part);
            way
        };
        match value {
            Value::Number(number) => {
                let text = number.as_str();
                let exponent = text.split_once(['e', 'E']).map_or("", |(_, exponent)| exponent);
                let digits = exponent.trim_start_matches(['+', '-', '0']).len();
                (text.len() > NUMBER_CHARS_MAX || digits > EXPONENT_DIGITS_MAX).then(Vec::new)
            }
            Value::Array(elements) => {
                elements.iter().enumerate().find_map(|(index, element)| Some(with(way(element)?, index.to_string())))
            }
            Value::Object(members) => members.iter().find_map(|(name, member)| Some(with(way(member)?, name.clone()))),
            Value::Null | Value::Bool(_) | Value::String(_) => None,
        }
    }
    let mut way = way(value)?;
    way.reverse();
    Some(pointer(&way))
}

fn refuse(pointer: &str, message: impl Into<String>) -> SchemaError {
    let Violation { data_pointer: pointer, message, .. } =
        Violation::new(pointer.to_owned(), String::new(), &message.into());
    SchemaError { pointer, message }
}

/// The draft that a document declares: 2020-12 where it declares none.
fn draft(document: &Value) -> Result<Draft, SchemaError> {
    let Some(declared) = document.get("$schema") else {
        return Ok(Draft::Draft202012);
    };
    draft_of(declared).ok_or_else(|| refuse("/$schema", "must be JSON Schema 2020-12 or draft 7"))
}

fn draft_of(declared: &Value) -> Option<Draft> {
    let uri = declared.as_str()?;
    let uri = uri.strip_suffix('#').unwrap_or(uri);
    match uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://"))? {
        "json-schema.org/draft/2020-12/schema" => Some(Draft::Draft202012),
        "json-schema.org/draft-07/schema" => Some(Draft::Draft7),
        _ => None,
    }
}

/// Keywords whose value is data, not a schema.
const DATA_KEYWORDS: [&str; 6] = ["$vocabulary", "const", "default", "dependentRequired", "enum", "examples"];
/// Keywords whose value maps names, which may look like keywords, to schemas.
const MAP_KEYWORDS: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

fn without_fragment(uri: &str) -> &str {
    uri.split('#').next().unwrap_or_default()
}

/// RFC 6901.
fn pointer(path: &[impl AsRef<str>]) -> String {
    path.iter().fold(String::new(), |pointer, part| pointer + "/" + &escape(part.as_ref()))
}

/// One part of a pointer.
fn escape(part: &str) -> String {
    part.replace('~', "~0").replace('/', "~1")
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema(..)")
    }
}

#[cfg(test)]
mod tests;
