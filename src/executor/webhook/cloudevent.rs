//! An event as an HTTP message: CloudEvents structured and binary mode, and the bare data.
//!
//! The structured document is written straight into bytes: the payload is copied once and never parsed into a tree, so numbers
//! that no program could hold (2^53+1, 1e400) reach the receiver as published. Must never produce a document whose meaning the
//! payload can change: what is not one valid JSON value is never inserted as JSON.
//!
//! Source: CloudEvents 1.0.2, JSON Event Format and HTTP Protocol Binding.

use crate::domain::event::{Attribute, Data, Event};
use crate::domain::webhook::WebhookMode;
use crate::executor::EncodedEvent;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use std::borrow::Cow;

const STRUCTURED: HeaderValue = HeaderValue::from_static("application/cloudevents+json; charset=utf-8");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const CE_SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");
const CE_ID: HeaderName = HeaderName::from_static("ce-id");
const CE_SOURCE: HeaderName = HeaderName::from_static("ce-source");
const CE_TYPE: HeaderName = HeaderName::from_static("ce-type");
const CE_SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
const CE_TIME: HeaderName = HeaderName::from_static("ce-time");

/// Adds the event's headers to `headers` and returns the request's body.
pub fn message(event: &EncodedEvent, mode: WebhookMode, headers: &mut HeaderMap) -> Bytes {
    match mode {
        WebhookMode::Structured => {
            headers.insert(CONTENT_TYPE, STRUCTURED);
            event.structured().clone()
        }
        WebhookMode::Binary => {
            let event = &event.entry().event;
            attribute_headers(event, headers);
            data_body(event, headers)
        }
        WebhookMode::Raw => data_body(&event.entry().event, headers),
    }
}

/// The event as one CloudEvents JSON document.
///
/// Shape: `data` is the payload byte for byte where it is JSON, a JSON string where it is text of another type, and
/// `data_base64` otherwise.
pub fn structured(event: &Event) -> Vec<u8> {
    let data = event.data.as_bytes();
    let mut out = Vec::with_capacity(256 + data.len() + data.len() / 3);
    out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":");
    string(&mut out, &event.id.to_string());
    member(&mut out, "source", &event.source);
    member(&mut out, "type", event.event_type.as_str());
    if let Some(subject) = &event.subject {
        member(&mut out, "subject", subject);
    }
    member(&mut out, "time", &timestamp(&event.time));
    if let Some(content_type) = declared_content_type(event) {
        member(&mut out, "datacontenttype", content_type);
    }
    for (name, value) in extensions(event) {
        key(&mut out, name);
        match value {
            Attribute::Boolean(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Attribute::Integer(value) => out.extend_from_slice(value.to_string().as_bytes()),
            _ => string(&mut out, &text(value)),
        }
    }
    match &event.data {
        Data::None => {}
        Data::Binary(bytes) | Data::Text(bytes) if event.has_json_data() && is_one_json_value(bytes) => {
            key(&mut out, "data");
            out.extend_from_slice(bytes);
        }
        Data::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => member(&mut out, "data", text),
            Err(_) => base64_member(&mut out, bytes),
        },
        Data::Binary(bytes) | Data::Proto { value: bytes, .. } => base64_member(&mut out, bytes),
    }
    out.push(b'}');
    out
}

fn attribute_headers(event: &Event, headers: &mut HeaderMap) {
    headers.insert(CE_SPECVERSION, HeaderValue::from_static("1.0"));
    headers.insert(CE_ID, header_value(&event.id.to_string()));
    headers.insert(CE_SOURCE, header_value(&event.source));
    headers.insert(CE_TYPE, header_value(event.event_type.as_str()));
    if let Some(subject) = &event.subject {
        headers.insert(CE_SUBJECT, header_value(subject));
    }
    headers.insert(CE_TIME, header_value(&timestamp(&event.time)));
    for (name, value) in extensions(event) {
        // An attribute's name is made of header-name characters only, so this never drops one.
        if let Ok(name) = HeaderName::try_from(format!("ce-{name}")) {
            headers.insert(name, header_value(&text(value)));
        }
    }
}

fn data_body(event: &Event, headers: &mut HeaderMap) -> Bytes {
    let implied = || event.has_json_data().then_some("application/json");
    if let Some(content_type) = declared_content_type(event).or_else(implied) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap_or(OCTETS));
    }
    match &event.data {
        Data::None => Bytes::new(),
        Data::Binary(bytes) | Data::Text(bytes) | Data::Proto { value: bytes, .. } => bytes.clone(),
    }
}

/// The content type the event names. An encoded message is never taken for JSON, so it gets a type where it names none.
fn declared_content_type(event: &Event) -> Option<&str> {
    let implied = matches!(event.data, Data::Proto { .. }).then_some("application/protobuf");
    event.content_type.as_deref().or(implied)
}

/// Attributes beside the ones written by name. One that bears such a name would be a duplicate member, which parsers resolve
/// differently; it is left out.
fn extensions(event: &Event) -> impl Iterator<Item = (&str, &Attribute)> {
    const OWN: [&str; 8] = ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"];
    event.extensions.iter().map(|(name, value)| (name.as_str(), value)).filter(|(name, _)| !OWN.contains(name))
}

/// The canonical text of an attribute.
fn text(value: &Attribute) -> Cow<'_, str> {
    match value {
        Attribute::Boolean(value) => Cow::Borrowed(if *value { "true" } else { "false" }),
        Attribute::Integer(value) => Cow::Owned(value.to_string()),
        Attribute::String(text) | Attribute::Uri(text) | Attribute::UriRef(text) => Cow::Borrowed(text),
        Attribute::Bytes(bytes) => Cow::Owned(STANDARD.encode(bytes)),
        Attribute::Timestamp(time) => Cow::Owned(timestamp(time)),
    }
}

fn timestamp(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// One pass over the bytes, without building anything. `&RawValue` also checks that they are UTF-8.
fn is_one_json_value(bytes: &[u8]) -> bool {
    serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_ok()
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    key(out, name);
    string(out, value);
}

fn string(out: &mut Vec<u8>, value: &str) {
    serde_json::to_writer(out, value).expect("writing a string into memory cannot fail");
}

fn base64_member(out: &mut Vec<u8>, bytes: &[u8]) {
    key(out, "data_base64");
    out.push(b'"');
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.push(b'"');
}

/// Percent-encodes what a header value cannot carry: everything but visible ASCII, and `"` and `%` themselves.
fn header_value(text: &str) -> HeaderValue {
    let plain = |byte: u8| (b'!'..=b'~').contains(&byte) && byte != b'"' && byte != b'%';
    let encoded = if text.bytes().all(plain) {
        text.to_owned()
    } else {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let mut encoded = String::with_capacity(text.len() + 16);
        for byte in text.bytes() {
            if plain(byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push('%');
                encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
                encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
        encoded
    };
    HeaderValue::from_maybe_shared(Bytes::from(encoded)).expect("visible ASCII is a valid header value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{Lineage, LogEntry};
    use crate::domain::event_type::EventTypeName;
    use crate::domain::ids::EventId;
    use std::sync::Arc;
    use uuid::Uuid;

    fn event(content_type: Option<&str>, data: Data) -> Event {
        let id = EventId(Uuid::from_u128(7));
        Event {
            id,
            event_type: EventTypeName::parse("CUSTOM_ORDER").expect("a name"),
            schema_version: 0,
            source: "/orders".to_owned(),
            subject: None,
            time: DateTime::from_timestamp(1_700_000_000, 120_000_000).expect("a time"),
            content_type: content_type.map(str::to_owned),
            extensions: Vec::new(),
            data,
            lineage: Lineage::root(id),
        }
    }

    const HEAD: &str = concat!(
        r#"{"specversion":"1.0","id":"evt_0000000000000000000000000w","source":"/orders","type":"CUSTOM_ORDER","#,
        r#""time":"2023-11-14T22:13:20.120Z""#
    );

    fn document(event: &Event) -> String {
        let document = String::from_utf8(structured(event)).expect("UTF-8");
        assert!(is_one_json_value(document.as_bytes()), "{document}");
        document
    }

    fn tail(event: &Event) -> String {
        document(event).strip_prefix(HEAD).expect("the common head").to_owned()
    }

    fn text(text: &'static str) -> Data {
        Data::Text(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn json_data_is_inserted_byte_for_byte() {
        let odd = "{ \"n\" : 9007199254740993,\"e\":1e400,\"z\":0.10,\"d\":1,\"d\":2,\"u\":\"\\u0000\\ud800\" }\n";
        for data in [text(odd), Data::Binary(Bytes::from_static(odd.as_bytes()))] {
            assert_eq!(
                tail(&event(Some("application/vnd.x+json; v=1"), data.clone())),
                format!(r#","datacontenttype":"application/vnd.x+json; v=1","data":{odd}}}"#)
            );
            assert_eq!(tail(&event(None, data)), format!(r#","data":{odd}}}"#));
        }
    }

    #[test]
    fn data_that_only_claims_to_be_json_cannot_change_the_document() {
        for forged in ["1,\"type\":\"OTHER\"", "{}{}", "", "{\"a\":1}}", "\u{feff}{}", "nul"] {
            let data = Data::Binary(Bytes::from(forged.to_owned()));
            let expected = format!(",\"data_base64\":\"{}\"}}", STANDARD.encode(forged));
            assert_eq!(tail(&event(None, data)), expected);
        }
        let broken = Data::Binary(Bytes::from_static(b"\"\xff\""));
        assert_eq!(tail(&event(None, broken)), r#","data_base64":"Iv8i"}"#);
        assert_eq!(tail(&event(None, text("a \"quoted\" line\n"))), r#","data":"a \"quoted\" line\n"}"#);
    }

    #[test]
    fn other_data_is_a_string_or_base64_and_absent_data_is_absent() {
        let plain = event(Some("text/plain"), text("h\u{e9} \u{1}"));
        assert_eq!(tail(&plain), ",\"datacontenttype\":\"text/plain\",\"data\":\"h\u{e9} \\u0001\"}");
        let number = event(Some("text/plain"), text("42"));
        assert_eq!(tail(&number), r#","datacontenttype":"text/plain","data":"42"}"#);
        let binary = event(Some("image/png"), Data::Binary(Bytes::from_static(&[0, 255, 16])));
        assert_eq!(tail(&binary), r#","datacontenttype":"image/png","data_base64":"AP8Q"}"#);
        let value = Bytes::from_static(&[8, 1]);
        let proto = event(None, Data::Proto { type_url: "type.example/a.B".to_owned(), value });
        assert_eq!(tail(&proto), r#","datacontenttype":"application/protobuf","data_base64":"CAE="}"#);
        assert_eq!(tail(&event(None, Data::None)), "}");
    }

    fn with_extensions() -> Event {
        let mut event = event(None, text("1"));
        event.subject = Some("a \"b\" 100% \u{20ac}".to_owned());
        let time = DateTime::from_timestamp(0, 0).expect("a time");
        event.extensions = [
            ("bin", Attribute::Bytes(Bytes::from_static(&[1, 2]))),
            ("data", Attribute::String("hidden".to_owned())),
            ("flag", Attribute::Boolean(true)),
            ("id", Attribute::String("hidden".to_owned())),
            ("num", Attribute::Integer(-5)),
            ("ref", Attribute::UriRef("/x".to_owned())),
            ("str", Attribute::String("5".to_owned())),
            ("when", Attribute::Timestamp(time)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        event
    }

    #[test]
    fn extension_attributes_keep_their_types() {
        let expected = concat!(
            r#"{"specversion":"1.0","id":"evt_0000000000000000000000000w","source":"/orders","type":"CUSTOM_ORDER","#,
            r#""subject":"a \"b\" 100% "#,
            "\u{20ac}",
            r#"","time":"2023-11-14T22:13:20.120Z","bin":"AQI=","flag":true,"num":-5,"ref":"/x","str":"5","#,
            r#""when":"1970-01-01T00:00:00Z","data":1}"#
        );
        assert_eq!(document(&with_extensions()), expected);
    }

    fn sent(event: Event, mode: WebhookMode) -> (Vec<(String, String)>, Bytes) {
        let entry = LogEntry {
            position: 1,
            committed_at: event.time,
            event: Arc::new(event),
            matched: Arc::new([]),
            refused: Arc::new([]),
        };
        let mut headers = HeaderMap::new();
        let body = message(&EncodedEvent::new(Arc::new(entry)), mode, &mut headers);
        let pair = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), value.to_str().expect("visible ASCII").to_owned())
        };
        (headers.iter().map(pair).collect(), body)
    }

    #[test]
    fn binary_mode_carries_the_attributes_in_percent_encoded_headers() {
        let (mut headers, body) = sent(with_extensions(), WebhookMode::Binary);
        headers.sort();
        let expected = [
            ("ce-bin", "AQI="),
            ("ce-flag", "true"),
            ("ce-id", "evt_0000000000000000000000000w"),
            ("ce-num", "-5"),
            ("ce-ref", "/x"),
            ("ce-source", "/orders"),
            ("ce-specversion", "1.0"),
            ("ce-str", "5"),
            ("ce-subject", "a%20%22b%22%20100%25%20%E2%82%AC"),
            ("ce-time", "2023-11-14T22:13:20.120Z"),
            ("ce-type", "CUSTOM_ORDER"),
            ("ce-when", "1970-01-01T00:00:00Z"),
            ("content-type", "application/json"),
        ];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(body, "1");
    }

    #[test]
    fn raw_mode_is_the_data_and_its_type_alone() {
        let plain = event(Some("text/plain"), text("hello"));
        let (headers, body) = sent(plain, WebhookMode::Raw);
        assert_eq!(headers, [("content-type".to_owned(), "text/plain".to_owned())]);
        assert_eq!(body, "hello");
        let (headers, body) = sent(event(None, Data::None), WebhookMode::Raw);
        assert!(headers.is_empty() && body.is_empty());
        let (headers, _) = sent(event(Some("text/plain\r\nx-evil: 1"), text("x")), WebhookMode::Raw);
        assert_eq!(headers, [("content-type".to_owned(), "application/octet-stream".to_owned())]);
    }
}
