//! Events between proto and domain: a publisher's CloudEvent in, a log entry out.
//!
//! Incoming attributes are checked one by one here, so that everything behind holds a well-formed CloudEvent 1.0. The payload
//! passes untouched in both directions: it is never parsed, rounded or reordered here.

use super::FieldError;
use super::time::{parse_timestamp, timestamp_to_proto};
use crate::domain::event::{self, Attribute, Data, Lineage, LogEntry};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::EventId;
use crate::proto::Timestamp;
use crate::proto::cloudevents::CloudEvent;
use crate::proto::cloudevents::cloud_event::CloudEventAttributeValue;
use crate::proto::cloudevents::cloud_event::Data as ProtoData;
use crate::proto::cloudevents::cloud_event::cloud_event_attribute_value::Attr;
use crate::proto::public::{Event, EventView};
use chrono::{DateTime, Datelike as _, Utc};
use fluent_uri::{Uri, UriRef};
use pbjson_types::Any;
use std::collections::BTreeMap;

/// Name of the extension attribute that keeps the id a publisher gave.
pub const PUBLISHER_ID: &str = "publisherid";

const SOURCE_BYTES_MAX: usize = 2_048;
const SUBJECT_BYTES_MAX: usize = 2_048;
const CONTENT_TYPE_BYTES_MAX: usize = 256;
const PUBLISHER_ID_CHARS_MAX: usize = 256;
const EXTENSIONS_MAX: usize = 32;
const EXTENSION_NAME_BYTES_MAX: usize = 20;
const EXTENSION_VALUE_BYTES_MAX: usize = 4_096;
const TYPE_URL_BYTES_MAX: usize = 2_048;

/// Attribute names that a publisher cannot use as extensions: the context attributes themselves, the members of the JSON
/// format, and what the server sets.
const RESERVED: &[&str] = &["id", "source", "specversion", "type", "data", PUBLISHER_ID];

/// What the server sets starts so.
const RESERVED_PREFIX: &str = "carillon";

/// A CloudEvent as a publisher may send it: everything but what the server assigns.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedEvent {
    /// The CloudEvent's `type`.
    pub event_type: EventTypeName,
    /// Its `source`, a URI reference.
    pub source: String,
    /// Its `subject`.
    pub subject: Option<String>,
    /// Its `time`, microseconds.
    pub time: Option<DateTime<Utc>>,
    /// Its `datacontenttype`.
    pub content_type: Option<String>,
    /// Further attributes (`dataschema` among them), sorted by name.
    pub extensions: Vec<(String, Attribute)>,
    /// The payload, byte for byte.
    pub data: Data,
    /// The `id` that the publisher gave.
    pub publisher_id: Option<String>,
}

impl ParsedEvent {
    /// The event that it becomes, the first of its chain: with an id, and the present time where it says none.
    pub fn into_event(self, id: EventId, now: DateTime<Utc>) -> event::Event {
        event::Event {
            id,
            event_type: self.event_type,
            schema_version: 0,
            source: self.source,
            subject: self.subject,
            time: self.time.unwrap_or(now),
            content_type: self.content_type,
            extensions: self.extensions,
            data: self.data,
            lineage: Lineage::root(id),
        }
    }
}

/// Checks a publisher's CloudEvent. `path` is its place in the request, e.g. `event` or `requests[3].event`.
///
/// Errors: the first attribute that is missing, malformed, reserved or too long.
pub fn cloud_event_to_domain(event: CloudEvent, path: &str) -> Result<ParsedEvent, FieldError> {
    let field = |name: &str| format!("{path}.{name}");
    let event_type = match event.r#type.as_str() {
        "" => return Err(FieldError::new(field("type"), "is required")),
        name => EventTypeName::parse(name).map_err(|error| FieldError::new(field("type"), error.to_string()))?,
    };
    check_text(&event.source, SOURCE_BYTES_MAX).and_then(|()| check_uri_reference(&event.source)).map_err(|wrong| {
        FieldError::new(field("source"), if event.source.is_empty() { "is required".to_owned() } else { wrong })
    })?;
    if !matches!(event.spec_version.as_str(), "" | "1.0") {
        return Err(FieldError::new(field("spec_version"), "must be 1.0"));
    }
    if event.id.chars().count() > PUBLISHER_ID_CHARS_MAX || event.id.chars().any(is_refused) {
        return Err(FieldError::new(
            field("id"),
            format!("must be at most {PUBLISHER_ID_CHARS_MAX} printable characters"),
        ));
    }
    let mut parsed = ParsedEvent {
        event_type,
        source: event.source,
        subject: None,
        time: None,
        content_type: None,
        extensions: Vec::new(),
        data: data_to_domain(event.data).map_err(|wrong| FieldError::new(field("data"), wrong))?,
        publisher_id: (!event.id.is_empty()).then_some(event.id),
    };
    // Sorted, so that the same wrong event always names the same attribute.
    let mut attributes: Vec<_> = event.attributes.into_iter().collect();
    attributes.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
    for (name, value) in attributes {
        check_name(&name).map_err(|wrong| FieldError::new(field("attributes"), wrong))?;
        parsed
            .set_attribute(&name, value)
            .map_err(|wrong| FieldError::new(field(&format!("attributes.{name}")), wrong))?;
    }
    if parsed.extensions.len() > EXTENSIONS_MAX {
        return Err(FieldError::new(
            field("attributes"),
            format!("has more than {EXTENSIONS_MAX} extension attributes"),
        ));
    }
    Ok(parsed)
}

impl ParsedEvent {
    fn set_attribute(&mut self, name: &str, value: CloudEventAttributeValue) -> Result<(), String> {
        let value = value.attr.ok_or("has no value")?;
        match (name, value) {
            ("subject", Attr::CeString(text)) => {
                check_text(&text, SUBJECT_BYTES_MAX)?;
                self.subject = Some(text);
            }
            ("time", Attr::CeTimestamp(time)) => self.time = Some(timestamp_to_domain(&time)?),
            ("time", Attr::CeString(text)) => self.time = Some(truncate(parse_time(&text)?)),
            ("time", _) => return Err("must be a timestamp".to_owned()),
            ("datacontenttype", Attr::CeString(text)) => {
                check_text(&text, CONTENT_TYPE_BYTES_MAX)?;
                check_media_type(&text)?;
                self.content_type = Some(text);
            }
            ("subject" | "datacontenttype", _) => return Err("must be a string".to_owned()),
            ("dataschema", Attr::CeUri(text) | Attr::CeString(text)) => {
                check_text(&text, SOURCE_BYTES_MAX)?;
                check_uri(&text)?;
                self.extensions.push((name.to_owned(), Attribute::Uri(text)));
            }
            ("dataschema", _) => return Err("must be a URI".to_owned()),
            (name, _) if RESERVED.contains(&name) || name.starts_with(RESERVED_PREFIX) => {
                return Err("is reserved".to_owned());
            }
            (name, value) => self.extensions.push((name.to_owned(), extension_to_domain(value)?)),
        }
        Ok(())
    }
}

fn extension_to_domain(value: Attr) -> Result<Attribute, String> {
    let bounded = |text: String| match text.len() {
        0..=EXTENSION_VALUE_BYTES_MAX if !text.chars().any(is_refused) => Ok(text),
        0..=EXTENSION_VALUE_BYTES_MAX => Err("holds a control character".to_owned()),
        _ => Err(format!("is longer than {EXTENSION_VALUE_BYTES_MAX} bytes")),
    };
    Ok(match value {
        Attr::CeBoolean(value) => Attribute::Boolean(value),
        Attr::CeInteger(value) => Attribute::Integer(value),
        Attr::CeString(text) => Attribute::String(bounded(text)?),
        Attr::CeBytes(bytes) if bytes.len() <= EXTENSION_VALUE_BYTES_MAX => Attribute::Bytes(bytes),
        Attr::CeBytes(_) => return Err(format!("is longer than {EXTENSION_VALUE_BYTES_MAX} bytes")),
        Attr::CeUri(text) => {
            check_uri(&text)?;
            Attribute::Uri(bounded(text)?)
        }
        Attr::CeUriRef(text) => {
            check_uri_reference(&text)?;
            Attribute::UriRef(bounded(text)?)
        }
        Attr::CeTimestamp(time) => Attribute::Timestamp(timestamp_to_domain(&time)?),
    })
}

fn data_to_domain(data: Option<ProtoData>) -> Result<Data, String> {
    Ok(match data {
        None => Data::None,
        Some(ProtoData::BinaryData(bytes)) => Data::Binary(bytes),
        Some(ProtoData::TextData(text)) => Data::Text(text.into()),
        Some(ProtoData::ProtoData(any)) => {
            check_text(&any.type_url, TYPE_URL_BYTES_MAX).map_err(|wrong| format!("type_url {wrong}"))?;
            Data::Proto { type_url: any.type_url, value: any.value }
        }
    })
}

fn check_name(name: &str) -> Result<(), String> {
    let shaped = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if shaped && (1..=EXTENSION_NAME_BYTES_MAX).contains(&name.len()) {
        Ok(())
    } else {
        Err(format!("attribute names must match [a-z0-9]{{1,{EXTENSION_NAME_BYTES_MAX}}}"))
    }
}

/// A required text within its bound.
fn check_text(text: &str, bytes_max: usize) -> Result<(), String> {
    match text.len() {
        0 => Err("must not be empty".to_owned()),
        length if length > bytes_max => Err(format!("is longer than {bytes_max} bytes")),
        _ if text.chars().any(is_refused) => Err("holds a control character".to_owned()),
        _ => Ok(()),
    }
}

/// Characters that CloudEvents keeps out of attributes: C0, DEL, C1 and the noncharacters.
fn is_refused(character: char) -> bool {
    let code = u32::from(character);
    character.is_control() || (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

/// RFC 3986 `URI-reference`, relative ones among them.
fn check_uri_reference(text: &str) -> Result<(), String> {
    UriRef::parse(text).map(drop).map_err(|error| format!("is not a URI reference (RFC 3986): {error}"))
}

/// RFC 3986 `URI`: a reference with a scheme.
fn check_uri(text: &str) -> Result<(), String> {
    Uri::parse(text).map(drop).map_err(|error| format!("is not an absolute URI (RFC 3986): {error}"))
}

/// RFC 2045 `type/subtype` with optional parameters.
fn check_media_type(text: &str) -> Result<(), String> {
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    match essence.split_once('/') {
        Some((kind, subtype)) if token(kind) && token(subtype) && text.is_ascii() => Ok(()),
        _ => Err("is not a media type".to_owned()),
    }
}

/// Reads RFC 3339.
fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    // The bound keeps a hostile text from being scanned; no RFC 3339 time is longer.
    let time = (text.len() <= 64).then(|| DateTime::parse_from_rfc3339(text).ok()).flatten();
    in_range(time.ok_or("is not an RFC 3339 time")?.with_timezone(&Utc))
}

fn in_range(time: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    if (1..=9_999).contains(&time.year()) { Ok(time) } else { Err("is not a time in the years 1 to 9999".to_owned()) }
}

/// The store keeps microseconds: what is answered at once must equal what is read later.
fn truncate(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

fn timestamp_to_domain(time: &Timestamp) -> Result<DateTime<Utc>, String> {
    parse_timestamp("", time).map_err(|error| error.description)
}

/// Writes an entry of the log as far as the view asks for.
pub fn entry_to_proto(entry: &LogEntry, view: EventView) -> Event {
    let event = &entry.event;
    Event {
        id: event.id.to_string(),
        position: entry.position,
        commit_time: Some(timestamp_to_proto(entry.committed_at)),
        event: Some(cloud_event_to_proto(event, view)),
        schema_version: event.schema_version,
        root_event_id: event.lineage.root.to_string(),
        cause_invocation_id: event.lineage.cause.map(|cause| cause.to_string()).unwrap_or_default(),
        depth: event.lineage.depth,
    }
}

/// Writes an event as a CloudEvent 1.0 as far as the view asks for.
pub fn cloud_event_to_proto(event: &crate::domain::event::Event, view: EventView) -> CloudEvent {
    let mut attributes = BTreeMap::new();
    let mut set = |name: &str, attr: Attr| {
        attributes.insert(name.to_owned(), CloudEventAttributeValue { attr: Some(attr) });
    };
    set("time", Attr::CeTimestamp(timestamp_to_proto(event.time)));
    if let Some(subject) = &event.subject {
        set("subject", Attr::CeString(subject.clone()));
    }
    if let Some(content_type) = &event.content_type {
        set("datacontenttype", Attr::CeString(content_type.clone()));
    }
    for (name, value) in &event.extensions {
        set(name, extension_to_proto(value));
    }
    CloudEvent {
        id: event.id.to_string(),
        source: event.source.clone(),
        spec_version: "1.0".to_owned(),
        r#type: event.event_type.as_str().to_owned(),
        attributes,
        data: if view == EventView::Metadata { None } else { data_to_proto(&event.data) },
    }
}

fn extension_to_proto(value: &Attribute) -> Attr {
    match value {
        Attribute::Boolean(value) => Attr::CeBoolean(*value),
        Attribute::Integer(value) => Attr::CeInteger(*value),
        Attribute::String(text) => Attr::CeString(text.clone()),
        Attribute::Bytes(bytes) => Attr::CeBytes(bytes.clone()),
        Attribute::Uri(text) => Attr::CeUri(text.clone()),
        Attribute::UriRef(text) => Attr::CeUriRef(text.clone()),
        Attribute::Timestamp(time) => Attr::CeTimestamp(timestamp_to_proto(*time)),
    }
}

fn data_to_proto(data: &Data) -> Option<ProtoData> {
    match data {
        Data::None => None,
        Data::Binary(bytes) => Some(ProtoData::BinaryData(bytes.clone())),
        // Text was UTF-8 when it was published; what a damaged disk made of it still has to travel as UTF-8.
        Data::Text(bytes) => Some(ProtoData::TextData(String::from_utf8_lossy(bytes).into_owned())),
        Data::Proto { type_url, value } => {
            Some(ProtoData::ProtoData(Any { type_url: type_url.clone(), value: value.clone() }))
        }
    }
}

#[cfg(test)]
mod tests;
