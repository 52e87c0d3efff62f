//! What checks cost, whatever becomes of them, and that they say what the drafts say.

use crate::domain::schema::Schema;
use crate::domain::schema::tests::{CHECK_MAX, schema, violations};
use std::time::Instant;

mod told;

const DRAFT_7: &str = "http://json-schema.org/draft-07/schema#";

fn many(keyword: &str) -> Schema {
    let all = vec![format!("{{{keyword}}}"); 900].join(",");
    schema(&format!(r#"{{"$schema": "{DRAFT_7}", "allOf": [{all}]}}"#))
}

#[test]
fn keywords_that_look_at_all_of_a_value_again_and_again_cost_too_much() {
    let list = |bytes: usize| format!("[{}]", (0..bytes / 7).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
    let text = |bytes: usize| format!("\"{}\"", "a".repeat(bytes));
    let json = |bytes: usize| format!("\"[{}1]\"", "1,".repeat(bytes / 2));
    let rows: [(&str, &dyn Fn(usize) -> String); 6] = [
        (r#""uniqueItems": true"#, &list),
        (r#""contentMediaType": "application/json""#, &json),
        (r#""contentEncoding": "base64""#, &text),
        (r#""format": "uri-template""#, &text),
        (r#""minLength": 1"#, &text),
        (r#""maxLength": 1000000"#, &text),
    ];
    for (keyword, data) in rows {
        let schema = many(keyword);
        assert!(schema.validate_briefly(data(30_000).as_bytes()).is_none(), "others do not wait for {keyword}");
        let begin = Instant::now();
        let found = schema.validate(data(980_000).as_bytes()).expect_err("it is long");
        assert!(found[0].message.contains("costs too much"), "{keyword}: {found:?}");
        assert!(begin.elapsed() < CHECK_MAX, "{keyword}: {:?}", begin.elapsed());
    }
    let few = r#"{"properties": {"t": {"minLength": 1, "maxLength": 1000000}, "l": {"uniqueItems": true}}}"#;
    let data = format!(r#"{{"t": {}, "l": {}}}"#, text(500_000), list(400_000));
    assert_eq!(schema(few).validate(data.as_bytes()), Ok(()), "once is fine");
}

#[test]
fn elements_are_compared_exactly_however_alike_they_are() {
    let document = r#"{"uniqueItems": true}"#;
    let fits = r#"[18446744073709551616, 18446744073709551617, "1", 1, {"a": 1}]"#;
    assert_eq!(schema(document).validate(fits.as_bytes()), Ok(()));
    for alike in ["[1e400, 10e399]", "[0, 0e999999999999999]", r#"[{"a": 1, "b": 2}, {"b": 2.0, "a": 1}]"#] {
        assert_eq!(violations(document, alike).len(), 1, "{alike}");
    }
    assert_eq!(schema(r#"{"uniqueItems": false}"#).validate(b"[1, 1]"), Ok(()));
    let begin = Instant::now();
    let alike = format!("[{}0]", "1e400,".repeat(40_000));
    assert_eq!(violations(document, &alike).len(), 1);
    let close: Vec<_> = (0..40_000).map(|n| format!("1{n:05}e400")).collect();
    assert_eq!(schema(document).validate(format!("[{}]", close.join(",")).as_bytes()), Ok(()));
    assert!(begin.elapsed() < CHECK_MAX, "{:?}", begin.elapsed());
}

#[test]
fn long_values_that_are_compared_again_and_again_cost_something() {
    let list = format!("[{}0]", "1,".repeat(7_000));
    for keyword in [format!(r#""const": {list}"#), format!(r#""enum": [{list}]"#)] {
        let refer = vec![r##"{"$ref": "#/$defs/c"}"##; 800].join(",");
        let document = format!(r#"{{"$defs": {{"c": {{{keyword}}}}}, "allOf": [{refer}]}}"#);
        assert!(schema(&document).validate_briefly(list.as_bytes()).is_none(), "others do not wait");
        assert_eq!(schema(&document).validate(list.as_bytes()), Ok(()));
    }
}

#[test]
fn what_a_drafts_own_schema_and_expressions_within_data_take_is_bounded() {
    let refer = vec![r#"{"$ref": "https://json-schema.org/draft/2020-12/schema"}"#; 800].join(",");
    let meta = schema(&format!(r#"{{"allOf": [{refer}]}}"#));
    let members = |count: usize| (0..count).map(|n| format!(r#""{n}":{{}}"#)).collect::<Vec<_>>().join(",");
    let begin = Instant::now();
    let data = |count: usize| format!(r#"{{"properties": {{{}}}}}"#, members(count));
    assert!(meta.validate_briefly(data(1_600).as_bytes()).is_none(), "others do not wait");
    let found = meta.validate(data(40_000).as_bytes()).expect_err("it is long");
    assert!(found[0].message.contains("costs too much"), "{found:?}");
    let latest = "https://json-schema.org/draft/2020-12/schema";
    let old = DRAFT_7;
    let refer = refer.replace(latest, old);
    let meta = schema(&format!(r#"{{"$schema": "{old}", "definitions": {{"x": true}}, "allOf": [{refer}]}}"#));
    assert_eq!(meta.validate(br#"{"type": "string"}"#), Ok(()));
    assert!(meta.validate(br#"{"type": 5}"#).is_err());
    let found = meta.validate(data(40_000).as_bytes()).expect_err("it is long");
    assert!(found[0].message.contains("costs too much"), "{found:?}");
    let expression = schema(&format!(r#"{{"$schema": "{DRAFT_7}", "format": "regex"}}"#));
    let groups = (0..60_000).map(|n| format!("(?<a{n}>x)")).collect::<Vec<_>>().concat();
    let found = expression.validate(format!("\"{groups}\"").as_bytes()).expect_err("it is long");
    assert!(found[0].message.contains("costs too much"), "{found:?}");
    assert_eq!(expression.validate(br#""^a+$""#), Ok(()));
    let names = (0..2_000).map(|n| format!("(?<{n:a>3}>")).collect::<Vec<_>>().concat();
    assert!(expression.validate_briefly(format!("\"{names}\"").as_bytes()).is_none(), "each is looked up among all");
    assert!(begin.elapsed() < CHECK_MAX, "{:?}", begin.elapsed());
}

#[test]
fn what_is_charged_is_judged_as_the_drafts_have_it() {
    let content =
        format!(r#"{{"$schema": "{DRAFT_7}", "contentEncoding": "base64", "contentMediaType": "application/json"}}"#);
    assert_eq!(schema(&content).validate(br#""eyJhIjoxfQ==""#), Ok(()));
    let found = violations(&content, r#""e30hunter2=""#);
    assert!(!found.is_empty() && found.iter().all(|(_, _, message)| !message.contains("hunter2")), "{found:?}");
    let latest = content.replace(DRAFT_7, "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema(&latest).validate(br#""{""#), Ok(()), "it asserts nothing there");
    let told = violations(r#"{"properties": {"a": {"uniqueItems": true}}}"#, r#"{"a": [1, 1.0]}"#);
    let [(at, by, message)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((at.as_str(), by.as_str()), ("/a", "/properties/a/uniqueItems"));
    assert!(message.contains("non-unique"), "{message}");
    let told = violations(r#"{"items": {"minLength": 3}}"#, r#"["abc", "ab"]"#);
    assert_eq!(told[0].2, "the value is shorter than 3 characters");
}

#[test]
fn numbers_that_nobody_could_read_are_refused_in_documents_and_in_data() {
    let number = |digits: usize| "9".repeat(digits);
    let of = |digits: usize| format!(r#"{{"items": {{"minimum": {}}}}}"#, number(digits));
    let error = Schema::parse(&of(129)).expect_err("it is long");
    assert!(error.message.contains("more than 128 characters"), "{error}");
    let schema = schema(&of(128));
    assert_eq!(schema.validate(format!("[{}]", number(128)).as_bytes()), Ok(()));
    for data in [
        format!("[{}]", number(129)),
        format!("1e{}", number(200)),
        "1e-1000000000000000".to_owned(),
        format!(r#"{{"a": 0.{}}}"#, number(200)),
    ] {
        let found = schema.validate(data.as_bytes()).expect_err("it is long");
        assert!(found[0].message.contains("more than 128 characters"), "{found:?}");
    }
}

#[test]
fn references_within_data_within_data_are_checked_on_a_stack_that_is_enough_in_draft_7_too() {
    let chain =
        (0..97).map(|n| format!(r##""r{n}":{{"$ref":"#/definitions/r{}"}}"##, n + 1)).collect::<Vec<_>>().join(",");
    let document = format!(
        r##"{{"$schema":"{DRAFT_7}","allOf":[{{"$ref":"#/definitions/r0"}}],
        "definitions":{{{chain},"r97":{{"type":"array","items":{{"$ref":"#/definitions/r0"}}}}}}}}"##
    );
    let data = |within: &str| format!("{}{within}{}", "[".repeat(120), "]".repeat(120));
    let schema = schema(&document);
    assert!(schema.validate_briefly(data("5").as_bytes()).is_none(), "the caller's stack is not enough");
    assert_eq!(schema.validate(data("").as_bytes()), Ok(()));
    assert_eq!(schema.validate(data("5").as_bytes()).expect_err("5 is no array").len(), 1);
}

#[test]
fn walks_that_end_in_a_no_cost_what_they_looked_at() {
    let ones = |last: &str| format!("[{}{last}]", "1,".repeat(400_000));
    let members = |last: &str| {
        let ones: Vec<_> = (0..60_000).map(|n| format!(r#""k{n:06}": 1"#)).collect();
        format!(r#"{{{}, "z": {last}}}"#, ones.join(","))
    };
    let names = |count: usize| (0..count).map(|n| format!(r#""a{n}""#)).collect::<Vec<_>>().join(",");
    let given = (0..15_000).map(|n| format!(r#""a{n}": 1"#)).collect::<Vec<_>>().join(",");
    let given = format!("{{{given}}}");
    let integers = r#""items": {"type": "integer"}"#;
    let rows = [
        (format!("{{{integers}}}"), ones(r#""x""#)),
        (format!(r#"{{"not": {{"not": {{{integers}}}}}}}"#), ones(r#""x""#)),
        (r#"{"contains": {"type": "string"}}"#.to_owned(), ones("1")),
        (r#"{"contains": {"type": "integer"}, "minContains": 1000000}"#.to_owned(), ones("1")),
        (r#"{"items": {"const": 1}}"#.to_owned(), ones("2")),
        (r#"{"additionalProperties": {"type": "integer"}}"#.to_owned(), members(r#""x""#)),
        (r#"{"unevaluatedProperties": {"type": "integer"}}"#.to_owned(), members(r#""x""#)),
        (format!(r#"{{"required": [{}, "b"]}}"#, names(15_000)), given.clone()),
        (format!(r#"{{"dependentRequired": {{"a1": [{}, "b"]}}}}"#, names(15_000)), given.clone()),
    ];
    for (no, data) in rows {
        let refer = vec![r##"{"$ref": "#/$defs/no"}"##; 900].join(",");
        let schema = schema(&format!(r#"{{"$defs": {{"no": {no}}}, "anyOf": [{refer}, true]}}"#));
        assert!(schema.validate_briefly(data.as_bytes()).is_none(), "others do not wait for {no:.80}");
        let begin = Instant::now();
        let found = schema.validate(data.as_bytes()).expect_err("each of them is a walk");
        assert!(found[0].message.contains("costs too much"), "{no:.80}: {found:?}");
        assert!(begin.elapsed() < CHECK_MAX, "{no:.80}: {:?}", begin.elapsed());
    }
    let dependencies = format!(r#""dependencies": {{"a1": [{}, "b"]}}"#, names(15_000));
    let all = vec![r##"{"$ref": "#/definitions/no"}"##; 900].join(",");
    let document =
        format!(r#"{{"$schema": "{DRAFT_7}", "definitions": {{"no": {{{dependencies}}}}}, "anyOf": [{all}, true]}}"#);
    let found = schema(&document).validate(given.as_bytes()).expect_err("so are these");
    assert!(found[0].message.contains("costs too much"), "{found:?}");
}

#[test]
fn what_is_told_takes_no_more_than_is_told() {
    let many = |element: &str| format!("[{}{element}]", format!("{element},").repeat(1_000));
    let long = "x".repeat(100_000);
    let strings = vec![r#"{"type": "string"}"#; 1_000].join(",");
    let named = format!(r#"{{"{long}": [{}1]}}"#, "1,".repeat(60));
    for (document, data) in [
        (format!(r#"{{"items": {{"not": {{"x-note": "{long}"}}}}}}"#), many("1")),
        (format!(r#"{{"items": {{"required": ["{long}"]}}}}"#), many("{}")),
        (format!(r#"{{"items": {{"const": "{long}"}}}}"#), many("1")),
        (format!(r#"{{"items": {{"enum": ["{long}", "{long}y"]}}}}"#), many("1")),
        (r#"{"additionalProperties": {"items": {"type": "string"}}}"#.to_owned(), named.clone()),
        (r#"{"additionalProperties": false}"#.to_owned(), named.clone()),
        (format!(r#"{{"properties": {{"{long}": {{"items": {{"type": "string"}}}}}}}}"#), named),
        (format!(r#"{{"items": {{"anyOf": [{strings}]}}}}"#), many("1")),
        (r#"{"items": {"required": ["a", "b", "c", "d"]}}"#.to_owned(), many("{}")),
    ] {
        let told = violations(&document, &data);
        assert!((1..=32).contains(&told.len()), "{document:.80}: {}", told.len());
        for (data_pointer, schema_pointer, message) in told {
            assert!(data_pointer.len() < 1_100 && schema_pointer.len() < 1_100, "{document:.80}");
            assert!(message.len() < 400, "{document:.80}: {message}");
        }
    }
}

#[test]
fn a_document_takes_time_and_memory_in_proportion_to_its_length() {
    let chain = |n: u32| {
        let next = vec![format!(r##"{{"$ref": "#/$defs/d{}"}}"##, n + 1); 3].join(",");
        format!(r#""d{n}": {{"allOf": [{next}]}}"#)
    };
    let chain = (0..8).map(chain).collect::<Vec<_>>().join(",");
    let properties: Vec<_> =
        (0..2_500).map(|n| format!(r##""p{n}": {{"anyOf": [{{"$ref": "#/$defs/d0"}}, true, true]}}"##)).collect();
    let document = format!(r#"{{"$defs": {{{chain}, "d8": true}}, "properties": {{{}}}}}"#, properties.join(","));
    let begin = Instant::now();
    assert_eq!(schema(&document).validate(br#"{"p0": 1}"#), Ok(()));
    assert!(begin.elapsed() < super::super::tests::PARSE_MAX, "{:?}", begin.elapsed());
    let formats: Vec<_> = (0..5_000).map(|n| format!(r#"{{"format": "f{n}"}}"#)).collect();
    let formats = formats.chunks(1_000).map(|some| format!(r#"{{"allOf": [{}]}}"#, some.join(",")));
    let formats = formats.collect::<Vec<_>>().join(",");
    let formats = schema(&format!(r#"{{"$schema": "{DRAFT_7}", "allOf": [{formats}]}}"#));
    assert!(formats.memory_bytes() < 5_000 * 500, "{}", formats.memory_bytes());
    let below = (0..9_000).map(|n| format!(r#""a{n}": {{}}"#)).collect::<Vec<_>>().join(",");
    let long = format!(r#"{{"$id": "https://e.org/{}", "properties": {{{below}}}}}"#, "x".repeat(100_000));
    let begin = Instant::now();
    schema(&long);
    assert!(begin.elapsed() < super::super::tests::PARSE_MAX, "{:?}", begin.elapsed());
    let list = format!("[{}0]", "1,".repeat(9_000));
    let nested = format!(r#"{}{{"enum": {list}}}{}"#, r#"{"not":"#.repeat(60), "}".repeat(60));
    let (plain, nested) = (schema(&format!(r#"{{"enum": {list}}}"#)), schema(&nested));
    assert!(plain.memory_bytes() > 9_000 * 64, "{}", plain.memory_bytes());
    assert!(nested.memory_bytes() < plain.memory_bytes() + 60 * 1_000, "{}", nested.memory_bytes());
    let objects = schema(&format!(r#"{{"const": [{}0]}}"#, r#"{"a":1},"#.repeat(6_000)));
    assert!(objects.memory_bytes() > 6_000 * 600, "each is a tree: {}", objects.memory_bytes());
}

#[test]
fn numbers_are_judged_exactly_whatever_their_size() {
    for (document, fits, breaks) in [
        (r#"{"const": 9007199254740993.0}"#, "9007199254740993", "9007199254740992"),
        (r#"{"enum": [1e400, 2]}"#, "10e399", "1e399"),
        (r#"{"minimum": 18446744073709551617}"#, "18446744073709551617", "18446744073709551616"),
        (r#"{"maximum": 0.1}"#, "0.1", "0.10000000000000000001"),
        (r#"{"exclusiveMinimum": -1e400}"#, "-9.9e399", "-1e400"),
        (r#"{"exclusiveMaximum": 1e999999999999999}"#, "1e999999999999998", "1e999999999999999"),
        (r#"{"multipleOf": 0.01}"#, "4.02", "4.025"),
        (r#"{"multipleOf": 3}"#, "-36893488147419103233e0", "-36893488147419103232"),
        (r#"{"multipleOf": 7e-3}"#, "7e400", "1e-400"),
        (r#"{"multipleOf": 2.5}"#, "1e999999999999999", "1.1"),
        (r#"{"multipleOf": 1e9}"#, "0", "1e8"),
        (r#"{"type": "integer"}"#, "1.50e1", "1.5"),
        (r#"{"type": "integer"}"#, "1e999999999999999", "1e-999999999999999"),
        (r#"{"minItems": 2.0}"#, "[1, 2]", "[1]"),
    ] {
        assert_eq!(schema(document).validate(fits.as_bytes()), Ok(()), "{document} {fits}");
        assert_eq!(violations(document, breaks).len(), 1, "{document} {breaks}");
    }
}

#[test]
fn a_payload_cannot_put_another_one_in_its_place() {
    let closed = r#"{"required": ["id"], "properties": {"id": {"type": "integer"}}, "additionalProperties": false}"#;
    let inner = r#"{"id": 5}"#;
    let name = "$serde_json::private::RawValue";
    for key in [name.to_owned(), name.replace('$', "\\u0024"), name.replace("serde_json", "s\\u0065rde_json")] {
        let data = format!(r#"{{"{key}": {}}}"#, serde_json::to_string(inner).expect("a text"));
        let told = violations(closed, &data);
        assert!(told[0].2.contains("a reserved key"), "{told:?}");
        assert!(Schema::parse(&data).is_err(), "nor can a document");
        assert!(violations("true", &format!(r#"[{{"a": 1, "b": {data}}}]"#))[0].2.contains("a reserved key"));
    }
    assert_eq!(
        schema("true").validate(br#"{"a": "$serde_json::private::RawValue"}"#),
        Ok(()),
        "it is a text like any other"
    );
}

/// So many texts within each other, each of which the parser would take apart on its own where the one around it has a reserved name.
fn nested(levels: usize) -> String {
    (0..levels).fold("5".to_owned(), |within, _| {
        let text = within.replace('\\', "\\u005c").replace('"', "\\u0022");
        format!(r#"{}{{"$serde_json::private::RawValue":"{text}"}}{}"#, "[".repeat(120), "]".repeat(120))
    })
}

#[test]
fn texts_within_texts_are_not_taken_apart_by_what_is_not_utf_8_nor_as_content() {
    let nested = nested(20);
    let broken = [b"[", nested.as_bytes(), b",\"\xff\"]"].concat();
    let found = schema("true").validate(&broken).expect_err("it is not UTF-8");
    assert!(found[0].message.contains("a reserved key"), "{found:?}");
    let content = |encoding: &str| {
        schema(&format!(r#"{{"$schema": "{DRAFT_7}", {encoding} "contentMediaType": "application/json"}}"#))
    };
    let text = serde_json::Value::from(nested.as_str()).to_string();
    assert_eq!(
        content("").validate(text.as_bytes()).expect_err("reserved")[0].message,
        "the value is not application/json"
    );
    let encoded = format!("\"{}\"", data_encoding::BASE64.encode(nested.as_bytes()));
    let found = content(r#""contentEncoding": "base64","#).validate(encoded.as_bytes()).expect_err("reserved");
    assert_eq!((found.len(), found[0].message.as_str()), (1, "the value is not application/json"));
}

#[test]
fn content_is_encoded_as_it_says() {
    for (encoding, encoded, others) in [
        ("base64", "eyJhIjoxfQ==", "eyJhIjoxfQ"),
        ("base64url", "Pz8_", "Pz8/"),
        ("base32", "PMRGCIR2GF6Q====", "pmrgcir2gf6q===="),
        ("base32hex", "FCH62GHQ65SG====", "FCH62GHQ65SG"),
        ("base16", "7b7D", "7b7"),
    ] {
        let document = format!(r#"{{"$schema": "{DRAFT_7}", "contentEncoding": "{encoding}"}}"#);
        assert_eq!(schema(&document).validate(format!("\"{encoded}\"").as_bytes()), Ok(()), "{encoding}");
        let told = violations(&document, &format!("\"{others}\""));
        assert_eq!(told[0].2, format!("the value is not encoded as {encoding}"));
        let json = document.replace('}', r#", "contentMediaType": "application/json"}"#);
        assert_eq!(violations(&json, &format!("\"{others}\"")), told, "it is told once");
    }
    for nothing in [r#""contentEncoding": "quoted-printable""#, r#""contentMediaType": "image/png""#] {
        let document = format!(r#"{{"$schema": "{DRAFT_7}", {nothing}}}"#);
        assert_eq!(schema(&document).validate(br#""=""#), Ok(()), "{nothing}");
    }
    let unknown = r#""contentEncoding": "gzip", "contentMediaType": "application/json""#;
    assert_eq!(schema(&format!(r#"{{"$schema": "{DRAFT_7}", {unknown}}}"#)).validate(br#""{""#), Ok(()));
}

#[test]
fn a_list_of_types_costs_what_they_are() {
    let types = vec![r#""null""#; 19_000].join(",");
    let document = format!(r##"{{"items": {{"$ref": "#/x-types"}}, "x-types": {{"type": [{types}, "number"]}}}}"##);
    let begin = Instant::now();
    let data = format!("[{}1.5]", "1.5,".repeat(5_000));
    assert_eq!(schema(&document).validate_briefly(data.as_bytes()), Some(Ok(())));
    assert!(begin.elapsed() < CHECK_MAX, "{:?}", begin.elapsed());
}

#[test]
fn numbers_that_are_read_again_and_again_cost_what_that_takes() {
    let refer = |what: &str| vec![format!(r##"{{"$ref": "#/$defs/{what}"}}"##); 900].join(",");
    let long: Vec<_> = (0..1_500).map(|n| format!("1.{}{n:05}", "7".repeat(110))).collect();
    let multiple = format!("{}7e-100", "3".repeat(110));
    for (what, data) in [
        (format!(r#"{{"enum": [{}]}}"#, long.join(",")), format!("[{}1.5]", "1.25,".repeat(10))),
        (format!(r#"{{"multipleOf": {multiple}}}"#), format!("[{}7e999999999999999]", "3e999999999999999,".repeat(10))),
    ] {
        let document = format!(r#"{{"$defs": {{"n": {what}}}, "items": {{"anyOf": [{}, true]}}}}"#, refer("n"));
        let begin = Instant::now();
        assert!(schema(&document).validate_briefly(data.as_bytes()).is_none(), "others do not wait: {what:.60}");
        let _ = schema(&document).validate(data.as_bytes());
        assert!(begin.elapsed() < CHECK_MAX, "{what:.60}: {:?}", begin.elapsed());
    }
}
