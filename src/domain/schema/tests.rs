//! What schemas accept, refuse and bound.

use super::*;
use std::time::{Duration, Instant};

pub(super) fn schema(document: &str) -> Schema {
    Schema::parse(document).unwrap_or_else(|error| panic!("{document}: {error}"))
}

pub(super) fn violations(document: &str, data: &str) -> Vec<(String, String, String)> {
    let violations = schema(document).validate(data.as_bytes()).expect_err(data);
    violations.into_iter().map(|v| (v.data_pointer, v.schema_pointer, v.message)).collect()
}

#[test]
fn both_drafts_are_known_by_every_spelling() {
    for uri in ["json-schema.org/draft/2020-12/schema", "json-schema.org/draft-07/schema"] {
        for (scheme, fragment) in [("https://", ""), ("http://", ""), ("https://", "#"), ("http://", "#")] {
            let document = format!(r#"{{"$schema": "{scheme}{uri}{fragment}", "type": "object"}}"#);
            let schema = schema(&document);
            assert!(schema.validate(b"{}").is_ok() && schema.validate(b"1").is_err());
        }
    }
    // Draft 7 ignores what stands beside a reference; 2020-12 does not.
    let body = r##""properties": {"a": {"$ref": "#/definitions/any", "type": "string"}}, "definitions": {"any": {}}"##;
    let seventh = schema(&format!(r#"{{"$schema": "http://json-schema.org/draft-07/schema#", {body}}}"#));
    assert!(seventh.validate(br#"{"a": 1}"#).is_ok());
    assert!(schema(&format!("{{{body}}}")).validate(br#"{"a": 1}"#).is_err());
}

#[test]
fn violations_carry_pointers_and_no_values() {
    let document = r#"{"type": "object", "required": ["id"], "properties": {
        "id": {"type": "string", "maxLength": 3}, "a/b": {"items": {"minimum": 10}}, "e": {"enum": ["x", "y"]},
        "p": {"pattern": "^a+$"}, "u": {"anyOf": [{"type": "null"}, {"maxLength": 2}]},
        "c": {"const": 5}, "n": {"not": {"type": "string"}}, "q": {"uniqueItems": true},
        "o": {"oneOf": [{"type": "string"}, {"maxLength": 99}]}, "m": {"propertyNames": {"maxLength": 1}}}}"#;
    assert_eq!(
        violations(document, "{}"),
        [(String::new(), "/required".to_owned(), "\"id\" is a required property".to_owned())]
    );
    for (data, data_pointer, schema_pointer) in [
        (r#"{"id": "hunter2"}"#, "/id", "/properties/id/maxLength"),
        (r#"{"id": ["hunter2"]}"#, "/id", "/properties/id/type"),
        (r#"{"id": "", "a/b": [10, 1, 12]}"#, "/a~1b/1", "/properties/a~1b/items/minimum"),
        (r#"{"id": "", "e": "hunter2"}"#, "/e", "/properties/e/enum"),
        (r#"{"id": "", "p": "hunter2"}"#, "/p", "/properties/p/pattern"),
        (r#"{"id": "", "u": "hunter2"}"#, "/u", "/properties/u/anyOf/1/maxLength"),
        (r#"{"id": "", "c": "hunter2"}"#, "/c", "/properties/c/const"),
        (r#"{"id": "", "n": "hunter2"}"#, "/n", "/properties/n/not"),
        (r#"{"id": "", "o": "hunter2"}"#, "/o", "/properties/o/oneOf"),
        (r#"{"id": "", "q": ["hunter2", "hunter2"]}"#, "/q", "/properties/q/uniqueItems"),
        (r#"{"id": "", "m": {"hunter2": 1}}"#, "/m/hunter2", "/properties/m/propertyNames/maxLength"),
    ] {
        let found = violations(document, data);
        assert_eq!(found.len(), 1, "{data}: {found:?}");
        assert_eq!((found[0].0.as_str(), found[0].1.as_str()), (data_pointer, schema_pointer), "{data}");
        assert!(!found[0].2.contains("hunter2") && !found[0].2.is_empty(), "{}", found[0].2);
    }
}

#[test]
fn at_most_32_violations_are_told() {
    let data = format!("[{}]", vec!["1"; 1000].join(","));
    assert_eq!(violations(r#"{"items": {"type": "string"}}"#, &data).len(), VIOLATIONS_MAX);
}

#[test]
fn formats_are_asserted_in_draft_7_alone_and_unknown_ones_ignored() {
    for (uri, asserted) in
        [("https://json-schema.org/draft/2020-12/schema", false), ("http://json-schema.org/draft-07/schema#", true)]
    {
        let of = |format: &str| schema(&format!(r#"{{"$schema": "{uri}", "format": "{format}"}}"#));
        assert!(of("date-time").validate(b"\"2023-11-14T22:13:20Z\"").is_ok());
        assert_eq!(of("date-time").validate(b"\"yesterday\"").is_err(), asserted);
        assert!(of("email").validate(b"\"a@example.org\"").is_ok());
        assert_eq!(of("email").validate(b"\"a\"").is_err(), asserted);
        assert!(of("idn-hostname").validate("\"füße.example\"".as_bytes()).is_ok());
        assert_eq!(of("idn-hostname").validate(b"\"/a\"").is_err(), asserted);
        assert_eq!(of("idn-email").validate(b"\"a\"").is_err(), asserted);
        assert!(of("shoe-size").validate(b"\"yesterday\"").is_ok());
    }
}

#[test]
fn data_must_be_one_json_text() {
    let any = schema("{}");
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for data in
        ["1e400", "-1E-400", r#"{"a":1,"a":2}"#, "9007199254740993", "\"\\u0000\"", &"9".repeat(128), &deep(127)]
    {
        assert_eq!(any.validate(data.as_bytes()), Ok(()));
    }
    for data in [
        &b""[..],
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"\"\\ud800\"",
        b"\"\xff\"",
        b"{\"a\":}",
        deep(128).as_bytes(),
        "[".repeat(1 << 20).as_bytes(),
        b"NaN",
        b"{'a':1}",
    ] {
        let found = any.validate(data).expect_err("not JSON");
        assert_eq!(found.len(), 1);
        assert!(found[0].message.starts_with("is not JSON: at byte "), "{}", found[0].message);
    }
    let reserved = any.validate(br#"{"\u0024serde_json::private::Number":"5"}"#).expect_err("it is JSON, and reserved");
    assert!(reserved[0].message.starts_with("cannot be taken: at byte "), "{reserved:?}");
    assert!(any.validate(b"{}\n{}").expect_err("two texts")[0].message.contains("at byte 3"));
}

#[test]
fn numbers_beyond_every_machine_type_are_checked_fast() {
    let begin = Instant::now();
    let digits = "9".repeat(100_000);
    let document = r#"{"items": {"type": "number", "minimum": 0, "maximum": 1e308, "multipleOf": 0.01}}"#;
    for number in ["1e400", "-1e400", "1e-400", "1e999999999", &digits, &format!("0.{digits}"), &format!("1e{digits}")]
    {
        let _ = schema(document).validate(format!("[{number}]").as_bytes());
        let _ = schema(r#"{"const": 1, "uniqueItems": true, "enum": [1e400, 2]}"#).validate(number.as_bytes());
        let _ = schema(r#"{"type": "integer"}"#).validate(number.as_bytes());
        let _ = schema(r#"{"uniqueItems": true}"#).validate(format!("[{number}, {number}, 1]").as_bytes());
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn what_is_not_a_schema_is_refused_with_its_pointer() {
    let long = format!("{{\"description\": \"{}\"}}", "x".repeat(DOCUMENT_BYTES_MAX));
    let deep = format!("{}{{}}{}", "{\"not\":".repeat(65), "}".repeat(65));
    let deeper = "{\"not\":".repeat(30_000);
    let nodes = format!("{{\"enum\": [{}]}}", vec!["1"; DOCUMENT_NODES_MAX].join(","));
    let alternatives = format!("{{\"properties\": {{\"a\": {{\"anyOf\": [{}]}}}}}}", vec!["{}"; 10_000].join(","));
    let patterns = format!(
        "{{\"allOf\": [{}]}}",
        vec![r#"{"pattern": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#; 900].join(",")
    );
    for (document, pointer) in [
        ("", ""),
        ("{", ""),
        ("\u{feff}{}", ""),
        (r#"{"type": "strin"}"#, "/type"),
        (r#"{"properties": {"a": {"minLength": -1}}}"#, "/properties/a/minLength"),
        (r#"{"properties": {"a/b": {"pattern": "("}}}"#, "/properties/a~1b/pattern"),
        (r#"{"required": "a"}"#, "/required"),
        ("[]", ""),
        ("1", ""),
        (r#"{"$schema": "https://json-schema.org/draft/2019-09/schema"}"#, "/$schema"),
        (r#"{"$schema": "https://example.org/own"}"#, "/$schema"),
        (r#"{"$schema": 1}"#, "/$schema"),
        (r#"{"$defs": {"a": {"$schema": "http://json-schema.org/draft-04/schema#"}}}"#, "/$defs/a/$schema"),
        (r#"{"properties": {"a": {"$ref": "https://example.org/x.json"}}}"#, "/properties/a/$ref"),
        (r#"{"allOf": [{}, {"$ref": "http://127.0.0.1:1/x"}]}"#, "/allOf/1/$ref"),
        (r#"{"$ref": "file:///etc/passwd"}"#, "/$ref"),
        (r#"{"$dynamicRef": "https://example.org/x#a"}"#, "/$dynamicRef"),
        (&long, ""),
        (&deep, ""),
        (&deeper, ""),
        (&nodes, ""),
        (&alternatives, "/properties/a/anyOf"),
        (&patterns, "/allOf/409/pattern"),
    ] {
        let shown: String = document.chars().take(80).collect();
        let error = Schema::parse(document).expect_err(&shown);
        assert_eq!(error.pointer, pointer, "{shown}: {error}");
        assert!(!error.message.is_empty() && error.message.len() < 1500, "{shown}: {error}");
    }
    for unresolved in [r##"{"$ref": "#/nowhere"}"##, r#"{"$ref": "other.json"}"#, r#"{"$ref": "//example.org/x"}"#] {
        assert!(Schema::parse(unresolved).is_err(), "{unresolved}");
    }
}

#[test]
fn long_names_and_identifiers_above_many_values_are_refused() {
    let many = |value: &str| (0..6_000).map(|n| format!(r#""a{n}": {value}"#)).collect::<Vec<_>>().join(",");
    let long = "x".repeat(100_000);
    for (head, value) in [
        (format!(r#"{{"properties": {{"{long}": "#), "{}"),
        (format!(r#"{{"$id": "https://example.org/{long}", "properties": {{"a": "#), r##"{"$ref":"#"}"##),
    ] {
        let error = Schema::parse(&format!(r#"{head}{{"properties": {{{}}}}}}}}}"#, many(value))).expect_err("refused");
        assert!(error.message.contains("too long names"), "{error}");
    }
    schema(&format!(r#"{{"properties": {{{}}}}}"#, many("{}")));
    schema(&format!(r#"{{"properties": {{"{long}": {{}}}}}}"#));
}

#[test]
fn references_within_the_document_work() {
    let tree = schema(
        r##"{"$id": "https://example.org/tree", "$ref": "#/$defs/node", "$defs": {
            "node": {"type": "object", "properties": {"next": {"$ref": "https://example.org/tree#/$defs/node"}},
            "additionalProperties": false}}}"##,
    );
    assert!(tree.validate(br#"{"next": {"next": {}}}"#).is_ok());
    assert_eq!(tree.validate(br#"{"next": {"nxt": {}}}"#).expect_err("a violation")[0].data_pointer, "/next/nxt");
    let dynamic = schema(
        r##"{"$id": "https://example.org/strict", "$dynamicAnchor": "node", "$ref": "https://example.org/tree",
            "unevaluatedProperties": false, "$defs": {"tree": {"$id": "https://example.org/tree", "$dynamicAnchor": "node",
            "properties": {"data": true, "children": {"items": {"$dynamicRef": "#node"}}}}}}"##,
    );
    assert!(dynamic.validate(br#"{"children": [{"data": 1}]}"#).is_ok());
    assert!(dynamic.validate(br#"{"children": [{"daat": 1}]}"#).is_err());
    let meta = schema(r#"{"$ref": "https://json-schema.org/draft/2020-12/schema"}"#);
    assert!(meta.validate(br#"{"type": "object"}"#).is_ok() && meta.validate(br#"{"type": 1}"#).is_err());
    let named_like_a_keyword = schema(r#"{"properties": {"$ref": {"type": "string"}, "enum": {"type": "string"}}}"#);
    assert!(named_like_a_keyword.validate(br#"{"$ref": "https://example.org/"}"#).is_ok());
    let quoted = schema(r#"{"const": {"$ref": "https://example.org/"}}"#);
    assert!(quoted.validate(br#"{"$ref": "https://example.org/"}"#).is_ok());
}

#[test]
fn references_that_go_round_in_circles_are_refused_where_they_begin() {
    for (document, at) in [
        (r##"{"$ref": "#"}"##, "/$ref"),
        (
            r##"{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}"##,
            "/$defs/a/$ref",
        ),
        (r##"{"allOf": [{"$ref": "#"}, {"$ref": "#"}]}"##, "/allOf/1/$ref"),
        (r##"{"anyOf": [{"$ref": "#"}, {"type": "string"}]}"##, "/anyOf/0/$ref"),
        (r##"{"not": {"$ref": "#"}}"##, "/not/$ref"),
        (r##"{"if": {"$ref": "#"}, "then": {"$ref": "#"}}"##, "/then/$ref"),
        (r##"{"$dynamicAnchor": "a", "$dynamicRef": "#a"}"##, "/$dynamicRef"),
        (r##"{"$dynamicAnchor": "a", "allOf": [{"$dynamicRef": "#a"}]}"##, "/allOf/0/$dynamicRef"),
        (r##"{"unevaluatedProperties": {"$ref": "#"}, "anyOf": [{"$ref": "#"}, true]}"##, "/anyOf/0/$ref"),
        (r#"{"$id": "https://example.org/a", "dependentSchemas": {"x": {"$ref": "/a"}}}"#, "/dependentSchemas/x/$ref"),
        (r##"{"properties": {"x": {"$anchor": "x", "oneOf": [{"$ref": "#x"}]}}}"##, "/properties/x/oneOf/0/$ref"),
        (
            r##"{"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"x": {"$ref": "#"}}}"##,
            "/dependencies/x/$ref",
        ),
    ] {
        let error = Schema::parse(document).expect_err(document);
        assert_eq!(
            (error.pointer.as_str(), error.message.as_str()),
            (at, "refers in a circle that never goes into the data")
        );
    }
}

#[test]
fn references_to_what_is_no_schema_are_refused() {
    let doubling: Vec<_> = (0..60)
        .map(|n| format!(r##""e{n}": {{"allOf": [{{"$ref": "#/WHERE/e{0}"}}, {{"$ref": "#/WHERE/e{0}"}}]}}"##, n + 1))
        .collect();
    let below = format!(r#"{{{}, "e60": true}}"#, doubling.join(","));
    for keyword in ["default", "const", "$vocabulary", "dependentRequired"] {
        let document = format!(r##"{{"properties": {{"a": {{"$ref": "#/{keyword}/e0"}}}}, "{keyword}": {below}}}"##);
        let error = Schema::parse(&document.replace("WHERE", keyword)).expect_err(keyword);
        assert_eq!(
            (error.pointer.as_str(), error.message.as_str()),
            ("/properties/a/$ref", "refers to nothing, or to what is no schema")
        );
    }
    // Identifiers and drafts that one reader heeds and another does not.
    for document in [
        r##"{"x": {"$id": "%"}, "properties": {"a": {"$ref": "#/default/e0"}}, "default": BELOW}"##,
        r##"{"properties": {"a": {"$ref": "#/x/y/z"}}, "x": {"y": {"$id": "https://e.org/a", "z": {"$ref": "#/default/e0"}}}, "default": BELOW}"##,
        r##"{"items": {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://e.org/b", "$ref": "#/default/e0"}, "default": BELOW}"##,
    ] {
        let below = below.replace("WHERE", "default");
        Schema::parse(&document.replace("BELOW", &below)).expect_err(document);
    }
    for (document, at) in [
        (r##"{"enum": [{"type": "string"}], "$ref": "#/enum/0"}"##, "/$ref"),
        (r##"{"examples": [{"type": "string"}], "not": {"$ref": "#/examples/0"}}"##, "/not/$ref"),
        (r##"{"$defs": {"allOf": {}}, "items": {"$ref": "#/$defs"}}"##, "/items/$ref"),
        (
            r##"{"$defs": {"a": {"default": {"x": {}}}}, "items": {"$dynamicRef": "#/$defs/a/default/x"}}"##,
            "/items/$dynamicRef",
        ),
        (
            r#"{"$id": "https://example.org/a", "default": {}, "items": {"$ref": "https://example.org/a#/default"}}"#,
            "/items/$ref",
        ),
    ] {
        let error = Schema::parse(document).expect_err(document);
        assert_eq!(
            (error.pointer.as_str(), error.message.as_str()),
            (at, "refers to nothing, or to what is no schema"),
            "{document}"
        );
    }
}

#[test]
fn references_that_go_into_the_data_may_recur() {
    let deep = format!("{}{}", "[".repeat(127), "]".repeat(127));
    for document in [
        r##"{"properties": {"child": {"$ref": "#"}}}"##,
        r##"{"items": {"allOf": [{"$ref": "#"}]}}"##,
        r##"{"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}"##,
        r##"{"anyOf": [{"type": "string"}, {"additionalProperties": {"$ref": "#"}}]}"##,
        r##"{"contains": {"$ref": "#"}, "propertyNames": {"$ref": "#"}, "unevaluatedProperties": {"$ref": "#"}}"##,
        r##"{"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"$ref": "#", "allOf": [{"$ref": "#"}]}}}"##,
        r##"{"const": {"$ref": "#"}, "enum": [{"$ref": "#"}]}"##,
    ] {
        let begin = Instant::now();
        let schema = schema(document);
        let _ = schema.validate(br#"{"a": {"a": {}}}"#);
        let _ = schema.validate(deep.as_bytes());
        assert!(begin.elapsed() < Duration::from_secs(5), "{document}: {:?}", begin.elapsed());
    }
}

/// A debug build on a shared machine is far slower than what is released; the bounds are still far from what a blow-up takes.
pub(super) const PARSE_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 10_000 } else { 100 });
pub(super) const CHECK_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 20_000 } else { 1_000 });

#[test]
fn a_chain_of_references_within_data_within_data_is_checked_on_a_stack_that_is_enough() {
    let chain = (0..90).map(|n| format!(r##""r{n}":{{"$ref":"#/$defs/r{}"}}"##, n + 1)).collect::<Vec<_>>().join(",");
    let document =
        format!(r##"{{"$ref":"#/$defs/r0","$defs":{{{chain},"r90":{{"items":{{"$ref":"#/$defs/r0"}}}}}}}}"##);
    let schema = Schema::parse(&document).expect("a schema");
    let data = format!("{}{}", "[".repeat(100), "]".repeat(100));
    assert!(schema.validate_briefly(data.as_bytes()).is_none(), "it costs too much for the caller's stack");
    assert_eq!(schema.validate(data.as_bytes()), Ok(()));
    let refused = format!("{}5{}", "[".repeat(100), "]".repeat(100));
    let schema = Schema::parse(&document.replacen(r#""items""#, r#""type":"array","items""#, 1)).expect("a schema");
    schema.validate(refused.as_bytes()).expect_err("its innermost is no array");
}

#[test]
fn what_leads_on_too_often_without_going_into_the_data_is_refused_before_it_is_compiled() {
    for keyword in ["unevaluatedProperties", "unevaluatedItems"] {
        let chain = |length: usize| {
            let links = (0..length).map(|n| format!(r##""r{n}":{{"$ref":"#/$defs/r{}"}}"##, n + 1));
            let links = links.collect::<Vec<_>>().join(",");
            format!(r##"{{"{keyword}":false,"$ref":"#/$defs/r0","$defs":{{{links},"r{length}":{{}}}}}}"##)
        };
        let refused = Schema::parse(&chain(5_000)).expect_err("its stack would be used up");
        assert!(refused.message.contains("leads on"), "{refused:?}");
        let schema = Schema::parse(&chain(90)).expect("a schema");
        schema.validate_briefly(b"{}").expect("it costs little").expect("nothing is left over");
    }
}

#[test]
fn hostile_documents_are_answered_fast() {
    let alternatives = |count: usize| {
        format!("{{\"oneOf\": [{}]}}", vec![r#"{"type": "object", "required": ["a"]}"#; count].join(","))
    };
    let references = format!(
        "{{\"$defs\": {{{}}}, \"$ref\": \"#/$defs/d0\"}}",
        (0..30)
            .map(|i| format!(
                "\"d{i}\": {{\"allOf\": [{{\"$ref\": \"#/$defs/d{}\"}}, {{\"$ref\": \"#/$defs/d{}\"}}]}}",
                i + 1,
                i + 1
            ))
            .chain(["\"d30\": {\"type\": \"object\"}".to_owned()])
            .collect::<Vec<_>>()
            .join(",")
    );
    let properties = (0..3000).map(|i| format!("\"p{i}\": {{\"type\": \"string\"}}")).collect::<Vec<_>>().join(",");
    let enumeration = (0..10_000).map(|i| format!("\"v{i}\"")).collect::<Vec<_>>().join(",");
    for document in [
        alternatives(10_000),
        alternatives(ALTERNATIVES_MAX),
        references,
        format!("{{\"properties\": {{{properties}}}}}"),
        format!("{{\"enum\": [{enumeration}]}}"),
        r#"{"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}"#.to_owned(),
        r#"{"pattern": "(\\w{1000}){1000}"}"#.to_owned(),
        format!("{{\"pattern\": \"{}\"}}", "(".repeat(10_000)),
        format!("{{\"pattern\": \"{}{}\"}}", "(a?)".repeat(1000), "a{100}".repeat(100)),
        format!("{{\"allOf\": [{}]}}", vec![r#"{"pattern": "\\w{50}"}"#; 900].join(",")),
        r#"{"patternProperties": {"^(a+)+$": true, "(x+x+)+y": true}}"#.to_owned(),
    ] {
        let begin = Instant::now();
        let result = Schema::parse(&document);
        let took = begin.elapsed();
        let shown: String = document.chars().take(60).collect();
        assert!(took < PARSE_MAX, "{shown}: {took:?}");
        if let Ok(schema) = result {
            let begin = Instant::now();
            let _ = schema.validate(format!("\"{}!\"", "a".repeat(50_000)).as_bytes());
            let _ = schema.validate(format!("{{\"{}!\": 1}}", "a".repeat(50_000)).as_bytes());
            assert!(begin.elapsed() < CHECK_MAX, "{shown}: {:?}", begin.elapsed());
        }
    }
}

/// A document of so many subschemas each of which leads to the next one as `step` says, in which `NEXT` stands for a reference to it.
/// The last one takes integers of at least 5.
fn doubling(draft: &str, step: &str, steps: usize) -> String {
    let next = |n: usize| format!("{{\"$ref\": \"#/$defs/d{n}\"}}");
    let all: Vec<_> = (0..steps).map(|n| format!("\"d{n}\": {}, ", step.replace("NEXT", &next(n + 1)))).collect();
    let last = format!("\"d{steps}\": {{\"type\": \"integer\", \"minimum\": 5}}");
    format!("{{\"$schema\": \"{draft}\", \"$defs\": {{{}{last}}}, \"anyOf\": [{}]}}", all.concat(), next(0))
}

#[test]
fn subschemas_that_lead_to_the_next_one_twice_each_are_stopped_whatever_they_say_of_the_data() {
    let steps = [
        r#"{"anyOf": [NEXT, NEXT]}"#,
        r#"{"oneOf": [NEXT, NEXT]}"#,
        r#"{"anyOf": [{"not": NEXT}, {"not": NEXT}]}"#,
        r#"{"if": NEXT, "then": NEXT, "else": NEXT}"#,
        r#"{"allOf": [true, NEXT], "anyOf": [NEXT, NEXT]}"#,
        r#"{"allOf": [NEXT, NEXT]}"#,
        r#"{"allOf": [{"anyOf": [NEXT, NEXT]}, NEXT]}"#,
        r#"{"allOf": [{"not": NEXT}], "anyOf": [NEXT, NEXT]}"#,
        r#"{"anyOf": [{"allOf": [NEXT]}, {"allOf": [NEXT]}], "unevaluatedProperties": NEXT}"#,
        r#"{"anyOf": [{"properties": {"a": NEXT}}, {"items": NEXT}, NEXT, {"contains": NEXT}, NEXT]}"#,
        r#"{"dependentSchemas": {"a": NEXT, "b": NEXT}, "anyOf": [NEXT, NEXT]}"#,
        r#"{"anyOf": [{"properties": {"a": NEXT}}, {"properties": {"a": NEXT}}]}"#,
        r#"{"oneOf": [{"items": NEXT}, {"additionalProperties": NEXT}, {"contains": NEXT}]}"#,
        r#"{"if": {"properties": {"a": NEXT}}, "then": false, "else": {"properties": {"a": NEXT}}}"#,
    ];
    let nested = format!("{}3{}", "{\"a\": ".repeat(100), "}".repeat(100));
    for draft in ["https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"] {
        for (step, count) in steps.into_iter().flat_map(|step| [40, 13, 10, 6].map(|count| (step, count))) {
            let begin = Instant::now();
            let parsed = Schema::parse(&doubling(draft, step, count));
            assert!(begin.elapsed() < PARSE_MAX, "{draft} {step} {count}: {:?}", begin.elapsed());
            // What leads to too much at once is refused.
            let Ok(schema) = parsed else { continue };
            for data in ["\"x\"", "7", "[[3], 7]", "{\"a\": 7, \"b\": 3}", &nested] {
                let begin = Instant::now();
                // Whether it is valid is not the question, and it may well be judged in time.
                let _ = schema.program.check(&parse_data(data.as_bytes()).expect("JSON"), UNITS_MAX / 10, DEPTH_BRIEF);
                let took = begin.elapsed();
                assert!(took < CHECK_MAX, "{draft} {step} {count} {data}: {took:?}");
            }
        }
    }
}

#[test]
fn a_schema_that_leads_to_the_same_data_too_often_is_refused() {
    let latest = "https://json-schema.org/draft/2020-12/schema";
    let error = Schema::parse(&doubling(latest, r#"{"anyOf": [NEXT, NEXT]}"#, 40)).expect_err("2 to the 40th");
    assert!(error.message.contains("more than 20000 subschemas"), "{error}");
    assert!(Schema::parse(&doubling(latest, r#"{"anyOf": [NEXT, NEXT]}"#, 10)).is_ok());
    let step = r#"{"anyOf": [NEXT, NEXT], "unevaluatedProperties": false}"#;
    let error = Schema::parse(&doubling(latest, step, 13)).expect_err("it looks through all of them");
    assert!(error.pointer.ends_with("/unevaluatedProperties"), "{error}");
    assert!(Schema::parse(&doubling(latest, step, 4)).is_ok());
}

#[test]
fn what_may_not_take_long_is_given_up_early() {
    let types = vec![r#"{"type": "integer"}"#; 300].join(",");
    let costly = schema(&format!(r#"{{"items": {{"anyOf": [{types}, true]}}}}"#));
    assert_eq!(costly.validate_briefly(format!("[{}0.5]", "0.5,".repeat(1_000)).as_bytes()), None);
    assert_eq!(costly.validate_briefly(b"[0.5]"), Some(Ok(())));
    let cheap = schema(r#"{"required": ["a"], "properties": {"a": {"type": "integer"}}}"#);
    assert_eq!(cheap.validate_briefly(br#"{"a": 1}"#), Some(Ok(())));
    assert!(cheap.validate_briefly(b"{}").is_some_and(|checked| checked.is_err()));
}

#[test]
fn keywords_that_nobody_knows_change_neither_what_is_valid_nor_where_violations_are_told() {
    let document = r##"{"allOf": [{"$ref": "#/allOf/1"}, {"required": ["a"]}], "anyOf": [{"type": "object"}, {"type": "null"}],
                        "x-carillon-cost": [9000000, 9000000, 9000000]}"##;
    for draft in ["https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"] {
        let schema = schema(&document.replacen('{', &format!("{{\"$schema\": \"{draft}\", "), 1));
        assert_eq!(schema.validate(br#"{"a": 1}"#), Ok(()));
        let found = schema.validate(b"{}").expect_err("there is no a");
        let told: Vec<&str> = found.iter().map(|violation| violation.schema_pointer.as_str()).collect();
        assert!(told.contains(&"/allOf/1/required"), "{told:?}");
        assert!(schema.validate(b"null").is_ok() && schema.validate(b"3").is_err());
    }
}

#[test]
fn a_check_that_costs_too_much_is_stopped() {
    let numbers = format!("[{}]", vec!["1"; 300_000].join(","));
    let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let members = (0..30_000).map(|i| format!("\"k{i}\": 1")).collect::<Vec<_>>().join(",");
    let patterns = (0..500).map(|i| format!("\"^x{i}\": true")).collect::<Vec<_>>().join(",");
    let alternatives = vec![r#"{"type": "number"}"#; 500].join(",");
    for (document, data) in [
        (format!("{{\"items\": {{\"allOf\": [{alternatives}]}}}}"), numbers.clone()),
        (r##"{"allOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}"##.to_owned(), nested.clone()),
        (r##"{"anyOf": [{"items": {"$ref": "#"}, "minItems": 2}, {"items": {"$ref": "#"}, "minItems": 3}, {"type": "null"}]}"##.to_owned(), nested),
        (format!("{{\"patternProperties\": {{{patterns}}}}}"), format!("{{{members}}}")),
    ] {
        let begin = Instant::now();
        let found = schema(&document).validate(data.as_bytes());
        let took = begin.elapsed();
        assert!(took < CHECK_MAX, "{took:?}");
        if let Err(found) = found {
            assert!(!found[0].message.is_empty());
        }
    }
    let plain = schema(r#"{"items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}}"#);
    let rows = format!("[{}]", vec![r#"{"a": 1}"#; 50_000].join(","));
    assert_eq!(plain.validate(rows.as_bytes()), Ok(()));
}
