//! Every rule of a publisher's CloudEvent, and the way back out.

use super::*;
use crate::domain::event::{Event as DomainEvent, Lineage};
use crate::domain::ids::{EventId, InvocationId};
use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

fn text(value: &str) -> CloudEventAttributeValue {
    CloudEventAttributeValue { attr: Some(Attr::CeString(value.to_owned())) }
}

fn cloud_event() -> CloudEvent {
    CloudEvent {
        source: "/accounts/7".to_owned(),
        r#type: "USER_CREATE".to_owned(),
        data: Some(ProtoData::BinaryData(Bytes::from_static(b"{\"a\": 1.0}"))),
        ..CloudEvent::default()
    }
}

fn with(name: &str, value: CloudEventAttributeValue) -> CloudEvent {
    CloudEvent { attributes: BTreeMap::from([(name.to_owned(), value)]), ..cloud_event() }
}

fn refused_field(event: CloudEvent) -> String {
    cloud_event_to_domain(event, "event").expect_err("is refused").field
}

#[test]
fn a_minimal_event_and_a_full_one_parse() {
    let minimal = cloud_event_to_domain(cloud_event(), "event").expect("parses");
    assert_eq!((minimal.time, minimal.subject, minimal.publisher_id), (None, None, None));

    let mut full = cloud_event();
    full.id = "order 17 ü".to_owned();
    full.spec_version = "1.0".to_owned();
    full.attributes = BTreeMap::from([
        ("subject".to_owned(), text("user/1")),
        ("time".to_owned(), text("2026-02-28T23:59:59.1234567+01:00")),
        ("datacontenttype".to_owned(), text("application/json; charset=utf-8")),
        ("dataschema".to_owned(), text("https://example.com/schema")),
        ("traceparent".to_owned(), text("00-1-1-01")),
        ("aflag".to_owned(), CloudEventAttributeValue { attr: Some(Attr::CeBoolean(true)) }),
    ]);
    let full = cloud_event_to_domain(full, "event").expect("parses");
    assert_eq!(full.publisher_id.as_deref(), Some("order 17 ü"));
    assert_eq!(full.time.expect("given").to_rfc3339(), "2026-02-28T22:59:59.123456+00:00");
    let names: Vec<_> = full.extensions.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["aflag", "dataschema", "traceparent"]);
}

#[test]
fn every_broken_attribute_is_refused_with_its_path() {
    assert_eq!(refused_field(CloudEvent { source: String::new(), ..cloud_event() }), "event.source");
    for source in ["a b", "x\0", "http://[\u{7f}", "%zz", "9:x", "ü", &"a".repeat(2_049)] {
        assert_eq!(
            refused_field(CloudEvent { source: source.to_owned(), ..cloud_event() }),
            "event.source",
            "{source:?}"
        );
    }
    for name in ["", "9A", "a b"] {
        assert_eq!(refused_field(CloudEvent { r#type: name.to_owned(), ..cloud_event() }), "event.type");
    }
    assert_eq!(refused_field(CloudEvent { spec_version: "0.3".to_owned(), ..cloud_event() }), "event.spec_version");
    for id in ["\n".to_owned(), "x".repeat(257)] {
        assert_eq!(refused_field(CloudEvent { id, ..cloud_event() }), "event.id");
    }
    for (name, value) in [
        ("subject", text("")),
        ("subject", text(&"x".repeat(2_049))),
        ("subject", text("a\nb")),
        ("subject", CloudEventAttributeValue { attr: Some(Attr::CeInteger(1)) }),
        ("time", text("yesterday")),
        ("time", CloudEventAttributeValue { attr: Some(Attr::CeBoolean(true)) }),
        ("datacontenttype", text("json")),
        ("datacontenttype", text("/")),
        ("dataschema", text("relative/only")),
        ("ext", CloudEventAttributeValue { attr: None }),
        ("ext", text(&"x".repeat(4_097))),
        ("ext", text("\u{0}")),
        ("ext", text("\u{ffff}")),
        ("id", text("1")),
        ("specversion", text("1.0")),
        ("publisherid", text("1")),
        ("carillonposition", text("1")),
        ("data", text("1")),
    ] {
        assert_eq!(refused_field(with(name, value)), format!("event.attributes.{name}"));
    }
    for name in ["", "Upper", "with_underscore", "data_base64", "twentyonecharacters21"] {
        assert_eq!(refused_field(with(name, text("x"))), "event.attributes", "{name:?}");
    }
    let many = (0..33).map(|i| (format!("x{i}"), text("1"))).collect();
    assert_eq!(refused_field(CloudEvent { attributes: many, ..cloud_event() }), "event.attributes");
    let any = Some(ProtoData::ProtoData(Any::default()));
    assert_eq!(refused_field(CloudEvent { data: any, ..cloud_event() }), "event.data");
}

#[test]
fn a_source_is_any_uri_reference_and_nothing_else() {
    let parse =
        |source: &str| cloud_event_to_domain(CloudEvent { source: source.to_owned(), ..cloud_event() }, "event");
    for source in [
        "/shop",
        "shop",
        "../shop?a=b#c",
        "./a:b",
        "//host/shop",
        "#place",
        "?a=b/?c",
        "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
        "mailto:ada@example.com",
        "tag:example.com,2026:a",
        "https://ada@example.com:8443/a%20b;c=1?d=%C3%BC#e",
        "http://[2001:db8::1]:80/",
        "http://[v1.a:b]/",
        "http://host:/",
    ] {
        assert!(parse(source).is_ok(), "{source}");
    }
    for source in [
        "http://[bad",
        "http://[bad]/",
        "http://[::1",
        "http://::1]/",
        "http://[1::2::3]/",
        "http://[::1]x/",
        "http://host:port/",
        "http://a@b@c/",
        "/a[1]",
        "?a=[",
        "#a#b",
        "/100%",
        "/%4",
        "/%4g",
        "/a b",
        "/a\\b",
        "/{id}",
        "/\u{fc}",
        "1st:place",
        ":place",
    ] {
        let error = parse(source).expect_err(source);
        assert_eq!(error.field, "event.source", "{source}");
        assert!(error.description.starts_with("is not a URI reference (RFC 3986): "), "{source}: {error:?}");
    }
    let uri =
        |name: &str, attr| cloud_event_to_domain(with(name, CloudEventAttributeValue { attr: Some(attr) }), "event");
    assert!(uri("ext", Attr::CeUriRef("a/b".to_owned())).is_ok());
    assert!(uri("ext", Attr::CeUri("urn:a:b".to_owned())).is_ok());
    let refused =
        [Attr::CeUriRef("//[x".to_owned()), Attr::CeUri("http://[x".to_owned()), Attr::CeUri("a/b".to_owned())];
    for attr in refused {
        assert_eq!(uri("ext", attr).expect_err("is refused").field, "event.attributes.ext");
    }
}

#[test]
fn times_outside_the_years_1_to_9999_are_refused() {
    let time =
        |seconds, nanos| CloudEventAttributeValue { attr: Some(Attr::CeTimestamp(Timestamp { seconds, nanos })) };
    assert!(cloud_event_to_domain(with("time", time(-62_135_596_800, 0)), "event").is_ok());
    assert!(cloud_event_to_domain(with("time", time(253_402_300_799, 999_999_999)), "event").is_ok());
    for wrong in
        [time(-62_135_596_801, 0), time(253_402_300_800, 0), time(0, -1), time(0, 1_000_000_000), time(i64::MAX, 0)]
    {
        assert_eq!(refused_field(with("time", wrong)), "event.attributes.time");
    }
    assert_eq!(refused_field(with("time", text("10000-01-01T00:00:00Z"))), "event.attributes.time");
}

fn entry(data: Data) -> LogEntry {
    let id = EventId(Uuid::from_u128(1));
    let event = DomainEvent {
        id,
        event_type: EventTypeName::parse("USER_CREATE").expect("a name"),
        schema_version: 2,
        source: "/a".to_owned(),
        subject: Some("s".to_owned()),
        time: DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a time"),
        content_type: Some("application/json".to_owned()),
        extensions: vec![(PUBLISHER_ID.to_owned(), Attribute::String("mine".to_owned()))],
        data,
        lineage: Lineage::root(id).caused_by(InvocationId { event: id, subscription_no: 3 }),
    };
    LogEntry {
        position: 9,
        committed_at: DateTime::from_timestamp_micros(1_700_000_001_000_001).expect("a time"),
        event: Arc::new(event),
        matched: Arc::from([]),
        refused: Arc::from([]),
    }
}

#[test]
fn an_entry_travels_with_its_bytes_unchanged() {
    let odd = Bytes::from_static(b"{\"n\": 9007199254740993, \"n\": 1e400}");
    for data in [
        Data::Binary(odd.clone()),
        Data::Text(odd.clone()),
        Data::Proto { type_url: "type.example.com/x".to_owned(), value: odd },
        Data::None,
    ] {
        let entry = entry(data.clone());
        let bytes = entry_to_proto(&entry, EventView::Full).encode_to_vec();
        let read = Event::decode(bytes.as_slice()).expect("decodes");
        assert_eq!((read.position, read.depth, read.schema_version), (9, 1, 2));
        let cloud_event = read.event.expect("set");
        assert_eq!(cloud_event.id, read.id);
        assert_eq!(cloud_event.spec_version, "1.0");
        assert_eq!(cloud_event.attributes[PUBLISHER_ID], text("mine"));
        assert_eq!(data_to_domain(cloud_event.data), Ok(data));
        assert!(entry_to_proto(&entry, EventView::Metadata).event.expect("set").data.is_none());
    }
}
