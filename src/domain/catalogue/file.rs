//! The file that declares system event types: a TOML array of tables, `[[event_type]]`.
//!
//! The only place of the domain that derives serde: the types here are the file's, and none of them leaves.

use super::{CatalogueError, SystemEventType};
use crate::domain::event_type::{CompiledSchema, EventType, EventTypeName, Origin, Phase, SchemaVersion};
use crate::domain::schema::Schema;
use crate::domain::schema::compatibility::Compatibility;
use chrono::DateTime;
use serde::Deserialize;
use std::sync::Arc;

/// How long a display name may be, in bytes.
const DISPLAY_NAME_BYTES_MAX: usize = 256;
/// How long a description may be, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 4096;
/// The version of every schema in a catalogue.
const VERSION: i32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    event_type: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    phase: String,
    display_name: String,
    description: String,
    schema: Option<String>,
}

/// The types that a file declares, in its order.
pub(super) fn parse(text: &str) -> Result<Vec<SystemEventType>, CatalogueError> {
    let file: File = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
        CatalogueError::Syntax { line, message: error.message().replace('\n', " ") }
    })?;
    file.event_type.into_iter().enumerate().map(|(index, entry)| declare(index + 1, entry)).collect()
}

fn declare(number: usize, entry: Entry) -> Result<SystemEventType, CatalogueError> {
    let wrong = |field: &'static str, message: String| CatalogueError::Field {
        entry: number,
        name: entry.name.clone(),
        field,
        message,
    };
    let name = EventTypeName::parse_system(&entry.name).map_err(|error| wrong("name", error.to_string()))?;
    let phase = match entry.phase.as_str() {
        "PRE" => Phase::Pre,
        "POST" => Phase::Post,
        _ => return Err(wrong("phase", "must be PRE or POST".to_owned())),
    };
    for (field, text, bytes_max, kept) in [
        ("display_name", &entry.display_name, DISPLAY_NAME_BYTES_MAX, [].as_slice()),
        ("description", &entry.description, DESCRIPTION_BYTES_MAX, &['\n', '\t']),
    ] {
        if text.trim().is_empty() || text.len() > bytes_max {
            return Err(wrong(field, format!("must have 1 to {bytes_max} bytes")));
        }
        if text.contains(|c: char| c.is_control() && !kept.contains(&c)) {
            return Err(wrong(
                field,
                "must not contain control characters, a description none but line feeds and tabs".to_owned(),
            ));
        }
    }
    let schema = match &entry.schema {
        None => None,
        Some(document) => {
            let compiled = Schema::parse(document).map_err(|error| wrong("schema", error.to_string()))?;
            let version =
                SchemaVersion { version: VERSION, document: document.clone(), created_at: DateTime::UNIX_EPOCH };
            Some((version, CompiledSchema { version: VERSION, schema: Arc::new(compiled) }))
        }
    };
    let event_type = EventType {
        name,
        origin: Origin::System,
        phase,
        display_name: entry.display_name,
        description: entry.description,
        latest_schema: schema.as_ref().map_or(0, |_| VERSION),
        compatibility: Compatibility::None,
        created_at: DateTime::UNIX_EPOCH,
        updated_at: DateTime::UNIX_EPOCH,
        deleted_at: None,
    };
    Ok(SystemEventType { event_type, schema })
}
