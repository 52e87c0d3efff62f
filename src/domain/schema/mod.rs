//! Payload schemas: JSON Schema 2020-12 (draft 7 by its `$schema`), compiled once, without remote references.
//!
//! A document is compiled when a version is registered and when a replica loads it; publish then checks payloads against it. Nothing
//! here reads a file or the network, whatever a document refers to, and no text that leaves here repeats a payload's values.
//!
//! `format` is an assertion in draft 7 (formats that are not known are ignored) and an annotation in 2020-12, as the drafts have it.
//! Patterns are matched in linear time.

mod bounds;
pub mod compatibility;
mod cost;
mod patterns;
mod references;
mod weighed;

use super::json::{check_json, to_json_error};
use bounds::Bounds;
use cost::{Metering, Stopped, UNITS_BRIEF, UNITS_MAX};
use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, ReferencingError, ValidationError, ValidationOptions, Validator};
use patterns::Pattern;
use references::Document;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use weighed::{VALUE_BYTES, Weighed, bytes};

/// The stack of a check that may cost all that one may.
const STACK_BYTES: usize = 128 * 1024 * 1024;
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
/// What is said where a document cannot be compiled for all its references.
const TOO_MANY_WAYS: &str = "leads to its subschemas, by dynamic references or identifiers, in too many ways";
/// What is said of an expression that is none.
const NO_PATTERN: &str = "is not a regular expression without look-around and back-references, or is too large";
/// What a compiled document takes in memory for each of its bytes.
const COMPILED_BYTES_PER_BYTE: usize = 32;
/// How much may be compiled, as [`bytes`] has it, each part of a document as often as the ways differ that references lead to it. So many
/// times the document is the other bound.
const COMPILED_MAX: u64 = 128 * 1024;
const COMPILED_TIMES_MAX: u64 = 3;
/// What each of these takes in memory.
const COMPILED_BYTES_PER_COUNTED: u64 = 24;
/// How long a message may be, in characters.
const MESSAGE_CHARS_MAX: usize = 300;

/// A compiled schema.
pub struct Schema {
    validator: Validator,
    /// How many states the expressions of all its `patternProperties` have together.
    name_states: u64,
    memory_bytes: usize,
}

/// Why a schema document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {message}")]
pub struct SchemaError {
    /// JSON pointer (RFC 6901) into the document; empty for the whole of it.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
}

/// One place where data breaks a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// JSON pointer (RFC 6901) into the data.
    pub data_pointer: String,
    /// JSON pointer into the schema.
    pub schema_pointer: String,
    /// What is wrong, without the value.
    pub message: String,
}

impl Schema {
    /// Compiles a document.
    ///
    /// Errors: with the JSON pointer, for what is not a schema of a known draft, for references out of the document, and for what is
    /// beyond the bounds on size, depth, alternatives and patterns.
    pub fn parse(document: &str) -> Result<Self, SchemaError> {
        if document.len() > DOCUMENT_BYTES_MAX {
            return Err(refuse("", format!("is longer than {DOCUMENT_BYTES_MAX} bytes")));
        }
        check_json(document.as_bytes()).map_err(|error| refuse("", format!("is not JSON: {error}")))?;
        let value: Value = serde_json::from_str(document)
            .map_err(|error| refuse("", format!("is not JSON: {}", to_json_error(document.as_bytes(), &error))))?;
        let draft = draft(&value)?;
        let bounds = Bounds::check(&value, draft)?;
        let by_pointers = {
            let references = Document::new(&value, draft)?;
            references.check_progress()?;
            references.by_pointers()?
        };
        let name_states = bounds.name_states;
        let lone_references = draft == Draft::Draft7;
        let metering = Metering { lone_references, by_pointers: by_pointers.is_some(), name_states };
        let mut value = by_pointers.unwrap_or(value);
        let compiled_max = COMPILED_MAX.max(COMPILED_TIMES_MAX * bytes(&value));
        meter(&mut value, &metering);
        // The compiler is a dependency and the document is a stranger's: a panic there is a refusal, not the end of the task.
        let no_pattern_at = Arc::new(OnceLock::new());
        let (place, compiled) = (Arc::clone(&no_pattern_at), Mutex::new(HashMap::new()));
        let counted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&counted);
        let built = catch_unwind(AssertUnwindSafe(|| {
            let checks = Arc::new(Weighed::default());
            let weighed = weighed::keywords(draft).fold(options(draft), |options, keyword| {
                let checks = Arc::clone(&checks);
                options.with_keyword(keyword, move |schema, _, _| checks.keyword(draft, keyword, schema))
            });
            weighed
                .with_keyword(cost::KEYWORD, move |_, value, _| {
                    let (keyword, more) = cost::keyword(value);
                    if count.fetch_add(more, Ordering::Relaxed) + more > compiled_max {
                        return Err(ValidationError::custom(TOO_MANY_WAYS));
                    }
                    Ok(keyword)
                })
                .with_keyword(patterns::KEYWORD, move |_, value, path| {
                    let source = value.as_str().unwrap_or_default();
                    let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
                    match compiled.entry(source.to_owned()).or_insert_with(|| Pattern::compile(source)).clone() {
                        Some(pattern) => Ok(Box::new(pattern)),
                        None => {
                            // The error knows of no place, and nothing is compiled after the first one.
                            let _ = place.set(path.as_str().to_owned());
                            Err(ValidationError::custom(NO_PATTERN))
                        }
                    }
                })
                .build(&value)
        }));
        match built {
            Ok(Ok(validator)) => {
                let compiled = counted.load(Ordering::Relaxed) * COMPILED_BYTES_PER_COUNTED;
                let memory_bytes = (document.len() * COMPILED_BYTES_PER_BYTE)
                    .max(usize::try_from(compiled).unwrap_or(usize::MAX))
                    + bounds.places_bytes
                    + bounds.expressions.memory_bytes();
                Ok(Self { validator, name_states, memory_bytes })
            }
            Ok(Err(_)) if counted.load(Ordering::Relaxed) > compiled_max => Err(refuse("", TOO_MANY_WAYS)),
            Ok(Err(error)) => {
                let at = no_pattern_at.get().map_or(error.instance_path().as_str(), String::as_str);
                Err(refuse(at, shorten(&explain(&error))))
            }
            Err(_) => Err(refuse("", "cannot be compiled")),
        }
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
        let value = match parse_data(data) {
            Ok(value) => value,
            Err(message) => return Err(whole(&message)),
        };
        if let Some(checked) = self.check(&value, UNITS_BRIEF) {
            return checked;
        }
        // References that follow each other and data within data are bounded by what they cost together, which is more than the caller's
        // stack is enough for. Where there is no thread for it nothing is said of the data: the panic ends the work, which is tried again.
        std::thread::scope(|scope| {
            let checking = std::thread::Builder::new().name("schema".to_owned()).stack_size(STACK_BYTES);
            let checking =
                checking.spawn_scoped(scope, || self.check(&value, UNITS_MAX)).expect("a thread can be made");
            match checking.join() {
                Ok(Some(checked)) => checked,
                Ok(None) => Err(whole("costs too much to check against the schema")),
                Err(_) => Err(whole("cannot be checked against the schema")),
            }
        })
    }

    /// As [`Self::validate`], where others wait for the thread: none for data that takes long to check.
    pub fn validate_briefly(&self, data: &[u8]) -> Option<Result<(), Vec<Violation>>> {
        match parse_data(data) {
            Ok(value) => self.check(&value, UNITS_BRIEF),
            Err(message) => Some(Err(whole(&message))),
        }
    }

    /// None where either pass, that which judges or that which explains, costs more than so many units.
    fn check(&self, value: &Value, units: u64) -> Option<Result<(), Vec<Violation>>> {
        let judge = || {
            patterns::charge_for_names(value, self.name_states);
            self.validator.is_valid(value)
        };
        let explain = || {
            patterns::charge_for_names(value, self.name_states);
            self.validator.iter_errors(value).take(VIOLATIONS_MAX).map(|error| violation(&error)).collect()
        };
        let checked = cost::bounded(units, judge)
            .and_then(|valid| if valid { Ok(Vec::new()) } else { cost::bounded(units, explain) });
        match checked {
            Ok(violations) if violations.is_empty() => Some(Ok(())),
            Ok(violations) => Some(Err(violations)),
            Err(Stopped::Cost) => None,
            Err(Stopped::Panic) => Some(Err(whole("cannot be checked against the schema"))),
        }
    }
}

/// How documents of a draft are compiled.
fn options(draft: Draft) -> ValidationOptions<'static> {
    jsonschema::options()
        .with_draft(draft)
        .offline()
        .should_validate_formats(draft == Draft::Draft7)
        .should_ignore_unknown_formats(true)
        .with_pattern_options(patterns::options())
}

/// One violation, of the data as a whole.
fn whole(message: &str) -> Vec<Violation> {
    vec![Violation { data_pointer: String::new(), schema_pointer: String::new(), message: message.to_owned() }]
}

/// Reads a payload. The tree cannot tell the parser's own wrapping of numbers from an object written like it, so where the
/// payload could hold one it is checked first.
fn parse_data(data: &[u8]) -> Result<Value, String> {
    let not_json = |error: serde_json::Error| format!("is not JSON: {}", to_json_error(data, &error));
    let Ok(text) = std::str::from_utf8(data) else {
        return serde_json::from_slice(data).map_err(not_json);
    };
    if text.contains("serde_json") || text.contains("\\u00") {
        check_json(data).map_err(|error| format!("is not JSON: {error}"))?;
    }
    let value = serde_json::from_str(text).map_err(not_json)?;
    if has_long_number(&value) {
        return Err(format!("has a number of more than {NUMBER_CHARS_MAX} characters"));
    }
    Ok(value)
}

fn has_long_number(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_str().len() > NUMBER_CHARS_MAX,
        Value::Array(elements) => elements.iter().any(has_long_number),
        Value::Object(members) => members.values().any(has_long_number),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

fn violation(error: &ValidationError<'_>) -> Violation {
    Violation {
        data_pointer: error.instance_path().as_str().to_owned(),
        schema_pointer: error.schema_path().as_str().to_owned(),
        message: shorten(&explain(error)),
    }
}

/// The message without the value. What an alternative says of each of its branches is left out for the same reason.
fn explain(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::AnyOf { .. } => "is not valid under any of the schemas in anyOf".to_owned(),
        ValidationErrorKind::OneOfNotValid { .. } => "is not valid under any of the schemas in oneOf".to_owned(),
        ValidationErrorKind::OneOfMultipleValid { .. } => {
            "is valid under more than one of the schemas in oneOf".to_owned()
        }
        ValidationErrorKind::Not { .. } => "is valid under the schema in not".to_owned(),
        ValidationErrorKind::PropertyNames { .. } => "has a property whose name is not allowed".to_owned(),
        ValidationErrorKind::Referencing(error) => unresolved(error),
        ValidationErrorKind::Format { format } if format == "regex" => NO_PATTERN.to_owned(),
        _ => error.masked_with("the value").to_string(),
    }
}

fn unresolved(error: &ReferencingError) -> String {
    match error {
        ReferencingError::Unretrievable { .. } => "refers to another document, which is not fetched".to_owned(),
        other => shorten(&other.to_string()),
    }
}

fn shorten(message: &str) -> String {
    let mut short: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect();
    if short.len() < message.len() && short.chars().count() == MESSAGE_CHARS_MAX {
        short.push_str("...");
    }
    short
}

fn refuse(pointer: &str, message: impl Into<String>) -> SchemaError {
    SchemaError { pointer: pointer.to_owned(), message: message.into() }
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

/// Writes the counting keyword into every subschema; how long that is for which no such keyword stands.
fn meter(schema: &mut Value, metering: &Metering) -> u64 {
    match schema {
        Value::Array(elements) => elements.iter_mut().map(|element| meter(element, metering)).sum(),
        Value::Object(members) => {
            let mut length = VALUE_BYTES;
            for (keyword, value) in members.iter_mut() {
                length += match value {
                    Value::Object(named) if MAP_KEYWORDS.contains(&keyword.as_str()) => {
                        named.iter_mut().map(|(name, schema)| name.len() as u64 + meter(schema, metering)).sum()
                    }
                    _ if MAP_KEYWORDS.contains(&keyword.as_str()) || DATA_KEYWORDS.contains(&keyword.as_str()) => {
                        bytes(value)
                    }
                    _ => meter(value, metering),
                };
            }
            if metering.write(members, length) { 0 } else { length }
        }
        _ => bytes(schema),
    }
}

fn without_fragment(uri: &str) -> &str {
    uri.split('#').next().unwrap_or_default()
}

/// RFC 6901.
fn pointer(path: &[String]) -> String {
    path.iter().fold(String::new(), |pointer, part| pointer + "/" + &part.replace('~', "~0").replace('/', "~1"))
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema(..)")
    }
}

#[cfg(test)]
mod tests;
