//! What the demo publishes: real GitHub webhook payloads with their JSON Schemas.
//!
//! They come from the npm packages `@octokit/webhooks-examples` and `@octokit/webhooks-schemas` (MIT), or, where those are
//! not at hand, from the sample of them that is built in. Payloads keep the order and spelling of their authors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::cli::error::CliError;
use crate::domain::schema::Schema;

/// What the demo's event types start with.
pub const TYPE_PREFIX: &str = "CUSTOM_GITHUB_";

/// A built-in payload or schema, by its GitHub event.
macro_rules! sample {
    ($event:literal, $($number:literal),*) => {
        (
            $event,
            [$(include_str!(concat!("../../../tests/fixtures/github-webhooks/", $event, "/", $number, ".json"))),*],
            include_str!(concat!("../../../tests/fixtures/github-webhooks/schemas/", $event, ".json")),
        )
    };
}

/// The sample: GitHub event, payloads, self-contained schema.
const SAMPLE: [(&str, [&str; 2], &str); 6] = [
    sample!("create", 1, 2),
    sample!("delete", 1, 2),
    sample!("label", 1, 5),
    sample!("ping", 1, 3),
    sample!("star", 1, 2),
    sample!("watch", 1, 2),
];

/// One GitHub event with its payloads.
#[derive(Debug)]
pub struct Kind {
    /// GitHub's name, such as `issue_comment`.
    pub name: String,
    /// The event type's name, such as `CUSTOM_GITHUB_ISSUE_COMMENT`.
    pub event_type: String,
    /// The payloads.
    pub payloads: Vec<Payload>,
    /// The real schema, self-contained.
    pub schema: String,
    /// A schema of what the payloads share; only where some payload is older than the real schema and breaks it.
    pub shared_shape: Option<String>,
}

/// One payload.
#[derive(Debug)]
pub struct Payload {
    /// As published: without white space between tokens.
    pub text: String,
    /// The same, parsed.
    pub value: Value,
}

impl Payload {
    /// GitHub's `action`, such as `created`.
    pub fn action(&self) -> Option<&str> {
        self.value.get("action").and_then(Value::as_str)
    }
}

#[derive(Deserialize)]
struct Example {
    name: String,
    examples: Vec<Box<RawValue>>,
}

/// Reads the packages below a folder that npm made, or takes the built-in sample.
///
/// *Errors*: [`CliError::File`] and [`CliError::FileContent`] for packages that are not there or not as expected.
pub fn load(packages: Option<&Path>) -> Result<Vec<Kind>, CliError> {
    let Some(folder) = packages else {
        let kind = |(name, payloads, schema): &(&str, [&str; 2], &str)| {
            let payloads: Result<Vec<_>, _> = payloads.iter().map(|text| payload(text)).collect();
            kind(name, payloads?, (*schema).to_owned())
        };
        let built_in =
            |error: serde_json::Error| CliError::FileContent { path: "(built in)".into(), reason: error.to_string() };
        return SAMPLE.iter().map(kind).collect::<Result<_, _>>().map_err(built_in);
    };
    let examples_path = package(folder, "webhooks-examples").join("api.github.com").join("index.json");
    if !examples_path.is_file() {
        return Err(CliError::Usage(format!(
            "--packages {0}: it does not hold @octokit/webhooks-examples; get it with `npm install --prefix FOLDER \
             @octokit/webhooks-examples@7.6.1 @octokit/webhooks-schemas@7.6.1` and give FOLDER/node_modules, or leave \
             --packages out for the built-in sample",
            folder.display()
        )));
    }
    let schemas_path = package(folder, "webhooks-schemas").join("schema.json");
    let unusable = |path: &Path, reason: String| CliError::FileContent { path: path.to_owned(), reason };
    let read = |path: &Path| std::fs::read_to_string(path).map_err(CliError::file("read", path));
    let examples: Vec<Example> =
        serde_json::from_str(&read(&examples_path)?).map_err(|error| unusable(&examples_path, error.to_string()))?;
    let document: Value =
        serde_json::from_str(&read(&schemas_path)?).map_err(|error| unusable(&schemas_path, error.to_string()))?;
    let no_definitions = || unusable(&schemas_path, "it has no definitions".to_owned());
    let definitions = document.get("definitions").and_then(Value::as_object).ok_or_else(no_definitions)?;
    let mut kinds = Vec::new();
    for example in examples {
        let schema = self_contained(definitions, &example.name)
            .ok_or_else(|| unusable(&schemas_path, format!("it has no schema for {}", example.name)))?;
        let payloads: Result<Vec<_>, _> = example.examples.iter().map(|raw| payload(raw.get())).collect();
        let made = payloads.and_then(|payloads| kind(&example.name, payloads, schema));
        kinds.push(made.map_err(|error| unusable(&examples_path, error.to_string()))?);
    }
    Ok(kinds)
}

/// Where a package is: in a `node_modules` folder, or unpacked from its archive.
fn package(folder: &Path, name: &str) -> PathBuf {
    let places = [folder.join("@octokit").join(name), folder.join(name), folder.join(name).join("package")];
    let found = places.iter().find(|place| place.join("package.json").is_file());
    found.unwrap_or(&places[0]).clone()
}

fn kind(name: &str, payloads: Vec<Payload>, schema: String) -> Result<Kind, serde_json::Error> {
    let event_type = format!("{TYPE_PREFIX}{}", name.to_uppercase());
    // A schema that this release cannot read is for the server to refuse.
    let compiled = Schema::parse(&schema).ok();
    let all_fit =
        compiled.is_none_or(|schema| payloads.iter().all(|payload| schema.validate(payload.text.as_bytes()).is_ok()));
    let shared_shape = if all_fit { None } else { Some(shared_shape(&payloads)?) };
    Ok(Kind { name: name.to_owned(), event_type, payloads, schema, shared_shape })
}

fn payload(text: &str) -> Result<Payload, serde_json::Error> {
    Ok(Payload { text: without_white_space(text), value: serde_json::from_str(text)? })
}

/// JSON text without white space between its tokens; nothing else changes.
fn without_white_space(text: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    text.chars()
        .filter(|c| {
            if in_string {
                (in_string, escaped) = (escaped || *c != '"', !escaped && *c == '\\');
                return true;
            }
            in_string = *c == '"';
            !c.is_ascii_whitespace()
        })
        .collect()
}

/// A schema that asks for the top-level properties that every payload has.
fn shared_shape(payloads: &[Payload]) -> Result<String, serde_json::Error> {
    let keys = |payload: &Payload| -> BTreeSet<String> {
        payload.value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
    };
    let shared = payloads.iter().map(keys).reduce(|one, other| &one & &other).unwrap_or_default();
    serde_json::to_string(&json!({ "type": "object", "required": shared }))
}

/// The schema of a GitHub event with the definitions it needs and no others; none where there is no such event.
fn self_contained(definitions: &Map<String, Value>, name: &str) -> Option<String> {
    let root = definitions.get(&format!("{name}_event")).or_else(|| definitions.get(&format!("{name}$event")))?;
    let mut needed: BTreeMap<&str, Value> = BTreeMap::new();
    let mut to_visit = vec![root];
    while let Some(schema) = to_visit.pop() {
        let mut found = Vec::new();
        references(schema, &mut found);
        for reference in found {
            if let Some((definition, body)) = definitions.get_key_value(reference)
                && !needed.contains_key(definition.as_str())
            {
                needed.insert(definition, without_dialect(body));
                to_visit.push(body);
            }
        }
    }
    let mut schema = without_dialect(root);
    let object = schema.as_object_mut()?;
    object.insert("$schema".to_owned(), "http://json-schema.org/draft-07/schema#".into());
    object.insert("definitions".to_owned(), needed.into_iter().map(|(name, body)| (name.to_owned(), body)).collect());
    Some(schema.to_string())
}

/// The names of the definitions that a schema refers to directly.
fn references<'a>(schema: &'a Value, found: &mut Vec<&'a str>) {
    match schema {
        Value::Object(object) => {
            let reference = object.get("$ref").and_then(Value::as_str);
            found.extend(reference.and_then(|reference| reference.strip_prefix("#/definitions/")));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// The schema without its own `$schema`, which counts at the root only.
fn without_dialect(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(object) = schema.as_object_mut() {
        object.remove("$schema");
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_six_kinds_of_two_payloads_that_fit_their_schema() {
        let kinds = load(None).unwrap();
        assert_eq!(kinds.len(), 6);
        for kind in &kinds {
            assert_eq!(kind.payloads.len(), 2, "{}", kind.name);
            assert_eq!(kind.shared_shape, None, "{}", kind.name);
        }
        assert_eq!(kinds[0].event_type, "CUSTOM_GITHUB_CREATE");
    }

    #[test]
    fn only_white_space_between_tokens_goes() {
        let text = "{ \"a \\\" b\" :\n [ 1.50 , \"\\\\\" , \" \" ] }";
        assert_eq!(without_white_space(text), "{\"a \\\" b\":[1.50,\"\\\\\",\" \"]}");
    }

    #[test]
    fn a_schema_takes_along_what_it_refers_to() {
        let definitions = json!({
            "x_event": {"$schema": "s", "properties": {"a": {"$ref": "#/definitions/a"}}},
            "a": {"$schema": "s", "items": [{"$ref": "#/definitions/b"}]},
            "b": {"anyOf": [{"$ref": "#/definitions/a"}]},
            "unused": {},
        });
        let schema = self_contained(definitions.as_object().unwrap(), "x").unwrap();
        let expected = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "properties": {"a": {"$ref": "#/definitions/a"}},
            "definitions": {
                "a": {"items": [{"$ref": "#/definitions/b"}]},
                "b": {"anyOf": [{"$ref": "#/definitions/a"}]},
            },
        });
        assert_eq!(serde_json::from_str::<Value>(&schema).unwrap(), expected);
        assert_eq!(self_contained(definitions.as_object().unwrap(), "y"), None);
    }

    #[test]
    fn the_shared_shape_asks_for_what_all_payloads_have() {
        let payloads = [payload(r#"{"a":1,"b":2}"#).unwrap(), payload(r#"{"b":1,"c":2}"#).unwrap()];
        assert_eq!(shared_shape(&payloads).unwrap(), r#"{"required":["b"],"type":"object"}"#);
    }
}
