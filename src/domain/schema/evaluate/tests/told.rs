//! What is told of documents and data, where, and what each draft makes of them.

use super::DRAFT_7;
use crate::domain::schema::Schema;
use crate::domain::schema::tests::{schema, violations};

#[test]
fn what_draft_7_does_not_know_says_nothing_there() {
    for (document, data) in [
        (r#""": [false]"#, "[1]"),
        (r#""": 5, "type": "array""#, "[1]"),
        (r#""prefixItems": [false], "unevaluatedItems": false, "dependentRequired": {"a": ["b"]}"#, "[1]"),
        (r##""properties": {"a": {"$dynamicAnchor": "x"}, "b": {"$dynamicAnchor": "x", "$dynamicRef": "#y"}}"##, "{}"),
    ] {
        let document = format!(r#"{{"$schema": "{DRAFT_7}", {document}}}"#);
        assert_eq!(schema(&document).validate(data.as_bytes()), Ok(()), "{document}");
    }
    let both = format!(r#"{{"$schema": "{DRAFT_7}", "": [{{"type": "string"}}], "items": {{"type": "integer"}}}}"#);
    assert_eq!(schema(&both).validate(b"[1, 2]"), Ok(()));
    assert_eq!(violations(&both, r#"["a", 2]"#)[0].0, "/0");
}

#[test]
fn a_part_of_a_drafts_own_schema_leads_on_to_the_whole_of_it() {
    let part = schema(r#"{"$ref": "https://json-schema.org/draft/2020-12/schema#/allOf/0"}"#);
    assert_eq!(part.validate(br#"{"$defs": {"a": {"type": "string"}}}"#), Ok(()));
    let found = part.validate(br#"{"$defs": {"a": {"type": 5}}}"#).expect_err("no type");
    assert_eq!(found[0].data_pointer, "/$defs/a/type");
}

#[test]
fn a_documents_own_numbers_are_read_exactly() {
    for accepted in [r#"{"multipleOf": 1e-400}"#, r#"{"minLength": 1e400}"#, r#"{"maxItems": 5.0}"#] {
        schema(accepted);
    }
    for (refused, pointer) in [
        (r#"{"multipleOf": -1e-400}"#, "/multipleOf"),
        (r#"{"items": {"minLength": 1e-400}}"#, "/items/minLength"),
        (r#"{"maxItems": -1e400}"#, "/maxItems"),
    ] {
        assert_eq!(Schema::parse(refused).expect_err(refused).pointer, pointer);
    }
}

#[test]
fn what_is_wrong_is_told_where_it_is() {
    for (document, pointer) in [
        (r#"{"properties": {"a": {"$ref": "my schema"}}}"#, "/properties/a/$ref"),
        (r#"{"properties": {"a/b": {"$ref": "x"}}}"#, "/properties/a~1b/$ref"),
        (r#"{"properties": {"const": {"$ref": "other.json"}}}"#, "/properties/const/$ref"),
        (r#"{"dependentSchemas": {"default": {"items": {"$id": "a b"}}}}"#, "/dependentSchemas/default/items/$id"),
        (r#"{"const": {"$id": "a b"}, "$defs": {"a": {"$id": "a b"}}}"#, "/$defs/a/$id"),
        (
            r#"{"$id": "https://e.org/a", "prefixItems": [{"$ref": "a#"}, {"$dynamicRef": "b#c"}]}"#,
            "/prefixItems/1/$dynamicRef",
        ),
        (r#"{"properties": {"a": {"enum": [1, 1e1000000000000000]}}}"#, "/properties/a/enum/1"),
    ] {
        let error = Schema::parse(document).expect_err(document);
        assert_eq!(error.pointer, pointer, "{document}: {error}");
    }
    // Each place with its own fault.
    let two = r#"{"properties": {"a": {"x": {"$ref": "::%%"}}, "b": {"$ref": "other.json"}}}"#;
    let error = Schema::parse(two).expect_err("neither leads anywhere");
    assert_eq!(error.pointer, "/properties/a/x/$ref");
    assert!(error.message.contains("Invalid URI reference"), "{error}");
    let beside = format!(
        r##"{{"$schema": "{DRAFT_7}", "definitions": {{"a": {{"$id": "b c", "$ref": "#/definitions/b"}}, "b": {{}}}},
        "properties": {{"q": {{"$ref": "nowhere"}}}}}}"##
    );
    let error = Schema::parse(&beside).expect_err("it leads nowhere");
    assert_eq!(error.pointer, "/properties/q/$ref", "{error}");
    let name = "x".repeat(2_000);
    let error =
        Schema::parse(&format!(r#"{{"properties": {{"{name}": {{"$ref": "x"}}}}}}"#)).expect_err("it leads nowhere");
    assert_eq!((error.pointer.as_str(), error.message.starts_with("below it: ")), ("/properties", true), "{error}");
    schema(r#"{"x-note": {"$id": "order no 5"}}"#);
    let long = format!(r#"{{"a": [1, {{"b/c": {}}}]}}"#, "9".repeat(129));
    assert_eq!(violations("true", &long)[0].0, "/a/1/b~1c");
    let names = r#"{"propertyNames": {"pattern": "^[a-z]+$", "maxLength": 5}}"#;
    let message = "the name does not match \"^[a-z]+$\"".to_owned();
    let at =
        |name: &str, by: &str, message: &str| (format!("/{name}"), format!("/propertyNames/{by}"), message.to_owned());
    let expected = [
        at("Bad", "pattern", &message),
        at("worse!", "maxLength", "the name is longer than 5 characters"),
        at("worse!", "pattern", &message),
    ];
    assert_eq!(violations(names, r#"{"ok": 1, "Bad": 1, "worse!": 2}"#), expected);
    let none = violations(r#"{"propertyNames": {"anyOf": [{"const": "a"}, {"const": "b"}]}}"#, r#"{"c": 1}"#);
    assert_eq!(none[0].2, "the name is not valid under any of the schemas in anyOf");
    // A pointer names a place: what is too long to be told is told of what it is in.
    let name = |chars: usize| "x".repeat(chars);
    let data = |chars: usize| format!(r#"{{"a": {{"{}": 1}}}}"#, name(chars));
    let document = r#"{"properties": {"a": {"additionalProperties": false}}}"#;
    assert_eq!(violations(document, &data(1_021))[0].0, format!("/a/{}", name(1_021)));
    let told = violations(document, &data(1_022));
    assert_eq!((told[0].0.as_str(), told[0].2.as_str()), ("/a", "below it: is not allowed"));
}

#[test]
fn dynamic_references_lead_to_subschemas_alone_and_to_one_of_each_name() {
    let document = r##"{"$dynamicAnchor": "node", "properties": {"a": {"$dynamicRef": "#node"}},
        "x-note": {"$dynamicAnchor": "node", "not": {}}, "default": {"$dynamicAnchor": "node", "type": 5}}"##;
    for _ in 0..20 {
        assert_eq!(schema(document).validate(br#"{"a": {}}"#), Ok(()));
    }
    let twice = r##"{"$defs": {"a": {"$dynamicAnchor": "n", "type": "string"}, "b": {"$dynamicAnchor": "n"}}, "items": {"$dynamicRef": "#n"}}"##;
    let error = Schema::parse(twice).expect_err("which of them is meant?");
    assert!(error.pointer.ends_with("/$dynamicAnchor") && error.message.contains("twice"), "{error}");
}

#[test]
fn each_keyword_says_what_is_wrong_and_where() {
    let document = r##"{
        "properties": {
            "m": {"multipleOf": 5}, "x": {"exclusiveMaximum": 3}, "t": {"type": ["null", "integer"]}, "i": {"maxItems": 1},
            "p": {"minProperties": 2}, "c": {"contains": {"const": 1}}, "k": {"contains": {"const": 1}, "minContains": 2, "maxContains": 2},
            "d": {"dependentRequired": {"a": ["b"]}}, "s": {"dependentSchemas": {"a": {"required": ["c"]}}},
            "f": {"if": {"minimum": 5}, "then": {"maximum": 9}, "else": {"minimum": 1}}, "never": false,
            "first": {"prefixItems": [{"type": "null"}], "items": false},
            "u": {"allOf": [{"properties": {"a": true}}], "unevaluatedProperties": false},
            "v": {"prefixItems": [true], "unevaluatedItems": {"type": "null"}},
            "r": {"$ref": "#/$defs/three"}
        },
        "patternProperties": {"^x-": {"type": "string"}},
        "additionalProperties": false,
        "$defs": {"three": {"const": 3}}
    }"##;
    for (data, at, by, what) in [
        (r#"{"m": 7}"#, "/m", "/properties/m/multipleOf", "the value is not a multiple of 5"),
        (
            r#"{"x": 3}"#,
            "/x",
            "/properties/x/exclusiveMaximum",
            "the value is greater than or equal to the maximum of 3",
        ),
        (r#"{"t": "x"}"#, "/t", "/properties/t/type", "the value is not of type \"null\" or \"integer\""),
        (r#"{"i": [1, 2]}"#, "/i", "/properties/i/maxItems", "the value has more than 1 item"),
        (r#"{"p": {}}"#, "/p", "/properties/p/minProperties", "the value has fewer than 2 properties"),
        (
            r#"{"c": [2]}"#,
            "/c",
            "/properties/c/contains",
            "has 0 elements that are valid under contains, and 1 are wanted",
        ),
        (
            r#"{"k": [1]}"#,
            "/k",
            "/properties/k/minContains",
            "has 1 elements that are valid under contains, and 2 are wanted",
        ),
        (
            r#"{"k": [1, 1, 1]}"#,
            "/k",
            "/properties/k/maxContains",
            "has more than 2 elements that are valid under contains",
        ),
        (r#"{"d": {"a": 1}}"#, "/d", "/properties/d/dependentRequired", "\"b\" is a required property beside \"a\""),
        (r#"{"s": {"a": 1}}"#, "/s", "/properties/s/dependentSchemas/a/required", "\"c\" is a required property"),
        (r#"{"f": 10}"#, "/f", "/properties/f/then/maximum", "the value is greater than the maximum of 9"),
        (r#"{"f": 0}"#, "/f", "/properties/f/else/minimum", "the value is less than the minimum of 1"),
        (r#"{"never": 1}"#, "/never", "/properties/never", "is not allowed"),
        (r#"{"first": [1]}"#, "/first/0", "/properties/first/prefixItems/0/type", "the value is not of type \"null\""),
        (r#"{"first": [null, 1]}"#, "/first/1", "/properties/first/items", "is not allowed"),
        (r#"{"u": {"a": 1, "b": 2}}"#, "/u/b", "/properties/u/unevaluatedProperties", "is not allowed"),
        (r#"{"v": [1, 2]}"#, "/v/1", "/properties/v/unevaluatedItems/type", "the value is not of type \"null\""),
        (r#"{"r": 4}"#, "/r", "/$defs/three/const", "3 was expected"),
        (r#"{"x-a": 1}"#, "/x-a", "/patternProperties/^x-/type", "the value is not of type \"string\""),
        (r#"{"e~/": 1}"#, "/e~0~1", "/additionalProperties", "is not allowed"),
    ] {
        let told = violations(document, data);
        assert_eq!(told, [(at.to_owned(), by.to_owned(), what.to_owned())], "{data}");
    }
}

#[test]
fn a_subschema_beside_a_reference_of_draft_7_is_what_others_refer_to() {
    let of = |body: &str| format!(r#"{{"$schema": "{DRAFT_7}", "properties": {{{body}}}}}"#);
    let beside = of(&format!(
        r##""a": {{"$ref": "{DRAFT_7}", "allOf": [{{"type": "integer"}}], "items": {{"type": "integer"}}}},
        "b": {{"$ref": "#/properties/a/allOf/0"}}, "c": {{"$ref": "#/properties/a/items"}}"##
    ));
    assert_eq!(schema(&beside).validate(br#"{"b": 1, "c": 1}"#), Ok(()));
    assert!(schema(&beside).validate(br#"{"b": "x"}"#).is_err() && schema(&beside).validate(br#"{"c": "x"}"#).is_err());
    let within = of(
        r##""a": {"not": {"type": "null"}, "allOf": [{"$ref": "#/definitions/y", "definitions": {"x": {"type": "integer"}}}]},
        "b": {"$ref": "#/properties/a/allOf/0/definitions/x"}"##,
    );
    let within = within.replacen('{', r#"{"definitions": {"y": true},"#, 1);
    assert!(schema(&within).validate(br#"{"b": 1}"#).is_ok() && schema(&within).validate(br#"{"b": "x"}"#).is_err());
}

#[test]
fn a_union_tells_what_is_wrong_by_the_branch_that_is_meant() {
    for (document, pointer, what) in [
        (
            r#"{"properties": {"list": {"items": {"properties": {"a": {"type": "strng"}}}}}}"#,
            "/properties/list/items/properties/a/type",
            "is not one of \"array\"",
        ),
        (r#"{"items": [true, {"minLength": -1}]}"#, "/items/1/minLength", "less than the minimum of 0"),
        (r#"{"dependencies": {"a": {"items": {"pattern": "("}}}}"#, "/dependencies/a/items/pattern", "ECMA-262"),
        (r#"{"type": ["string", 5]}"#, "/type/1", "is not one of"),
        (r#"{"items": 5}"#, "/items", "not valid under any"),
    ] {
        let error =
            Schema::parse(&document.replacen('{', &format!(r#"{{"$schema": "{DRAFT_7}", "#), 1)).expect_err(document);
        assert_eq!(error.pointer, pointer, "{document}: {error}");
        assert!(error.message.contains(what), "{document}: {error}");
    }
    let union = r##"{"oneOf": [{"type": "null"}, {"$ref": "#/$defs/a"}, {"enum": [1, 2]}], "$defs": {"a": {"type": ["object", "array"],
        "properties": {"b": {"anyOf": [{"const": true}, {"minimum": 3}]}}}}}"##;
    let told = |data| violations(union, data).into_iter().map(|told| (told.0, told.1)).collect::<Vec<_>>();
    let at = |data: &str, schema: &str| vec![(data.to_owned(), schema.to_owned())];
    assert_eq!(told(r#"{"b": 1}"#), at("/b", "/$defs/a/properties/b/anyOf/1/minimum"));
    assert_eq!(told("3"), at("", "/oneOf/2/enum"));
    assert_eq!(told(r#""x""#), at("", "/oneOf"));
    let all = violations(r#"{"anyOf": [{"allOf": [{"type": "string"}]}, {"type": ["object", "null"]}]}"#, "[]");
    assert_eq!(all[0].1, "/anyOf", "neither takes it");
    // However many rows there are.
    let rows = schema(
        r#"{"items": {"properties": {"a": {"anyOf": [{"type": "null"}, {"type": "object"}, {"minimum": 3}]}}}}"#,
    );
    for count in [10, 1_000, 3_000, 10_000] {
        let data = format!(r#"[{}{{"a": 2}}]"#, r#"{"a": {}},"#.repeat(count));
        let found = rows.validate(data.as_bytes()).expect_err("the last is too small");
        assert_eq!(found[0].schema_pointer, "/items/properties/a/anyOf/2/minimum", "{count}");
    }
    assert_eq!(schema(union).validate(br#"{"b": true, "c": 1}"#), Ok(()));
}

#[test]
fn an_anchor_is_dynamic_to_dynamic_references_alone() {
    let tree = r#"{"$id": "https://e.org/tree", "$dynamicAnchor": "node", "type": "object", "properties": {"value": {"$ref": "leaf#node"}},
        "$defs": {"leaf": {"$id": "leaf", "$dynamicAnchor": "node", "type": "string"}}}"#;
    assert_eq!(schema(tree).validate(br#"{"value": "x"}"#), Ok(()));
    assert_eq!(violations(tree, r#"{"value": {}}"#)[0].1, "/$defs/leaf/type");
    let dynamic = tree.replace(r#""$ref""#, r#""$dynamicRef""#);
    assert_eq!(schema(&dynamic).validate(br#"{"value": {}}"#), Ok(()));
    let whole = r#"{"$id": "https://e.org/root", "$dynamicAnchor": "node", "allOf": [{"$ref": "other#node"}],
        "$defs": {"other": {"$id": "other", "$dynamicAnchor": "node", "type": "string"}}}"#;
    assert_eq!(schema(whole).validate(br#""x""#), Ok(()), "it is no circle");
}

#[test]
fn an_identifier_with_an_empty_fragment_is_one_without() {
    for (draft, keyword, defs) in [
        (DRAFT_7, "$ref", "definitions"),
        ("https://json-schema.org/draft/2020-12/schema", "$ref", "$defs"),
        ("https://json-schema.org/draft/2020-12/schema#", "$dynamicRef", "$defs"),
    ] {
        for to in [
            format!("#/{defs}/a"),
            format!("root.json#/{defs}/a"),
            format!("http://example.com/root.json#/{defs}/a"),
            format!("#%2F{defs}%2Fa"),
        ] {
            let document = format!(
                r##"{{"$schema": "{draft}", "$id": "http://example.com/root.json#", "{defs}": {{"a": {{"type": "string"}}}},
                "properties": {{"p": {{"{keyword}": "{to}"}}, "q": {{"items": {{"{keyword}": "#"}}}}}}}}"##
            );
            assert_eq!(schema(&document).validate(br#"{"p": "x", "q": [{"p": "y"}]}"#), Ok(()), "{to}");
            assert_eq!(violations(&document, r#"{"q": [{"p": 5}]}"#)[0].0, "/q/0/p", "{to}");
        }
    }
}

#[test]
fn an_identifier_is_that_of_a_subschema_and_no_draft_is_replaced() {
    for unknown in ["x-u", "z-u"] {
        let document = format!(
            r#"{{"{unknown}": {{"$id": "http://x.org/k", "type": "string", "$defs": {{"q": false}}}},
            "$defs": {{"a": {{"$id": "http://x.org/k", "type": "integer", "$defs": {{"q": {{"minimum": 5}}}}}}}},
            "allOf": [{{"$ref": "http://x.org/k"}}, {{"$ref": "http://x.org/k#/$defs/q"}}]}}"#
        );
        assert_eq!(schema(&document).validate(b"7"), Ok(()), "{unknown}");
        assert_eq!(violations(&document, r#""x""#)[0].1, "/$defs/a/type");
    }
    let core = r#""$defs": {"core": {"$id": "https://json-schema.org/draft/2020-12/meta/core", "type": "string"}}"#;
    for to in ["schema", "meta/core", "meta/core#meta", "meta/core#/properties/$defs"] {
        let document = format!(r#"{{{core}, "$ref": "https://json-schema.org/draft/2020-12/{to}"}}"#);
        assert_eq!(schema(&document).validate(b"{}"), Ok(()), "{to}");
        assert!(!violations(&document, r#""x""#).is_empty(), "{to}");
    }
    for (id, to) in [("", "#/$defs/a"), ("json-schema:///", "#/$defs/a"), ("", "#")] {
        let document = format!(
            r#"{{"$defs": {{"a": {{"$id": "{id}", "type": ["string", "object"]}}}}, "properties": {{"p": {{"$ref": "{to}"}}}}}}"#
        );
        assert_eq!(schema(&document).validate(br#"{"p": {}}"#), Ok(()), "{id:?} {to}");
    }
}

#[test]
fn pointers_through_many_identifiers_take_no_longer_than_others() {
    let nested =
        (0..58).fold("true".to_owned(), |below, n| format!(r#"{{"$id": "{}{n}/", "if": {below}}}"#, "y".repeat(1_900)));
    let to = "/if".repeat(59);
    let properties: Vec<_> = (0..600).map(|n| format!(r##""{n}": {{"$ref": "#{to}"}}"##)).collect();
    let document = format!(r#"{{"properties": {{{}}}, "if": {nested}}}"#, properties.join(","));
    let begin = std::time::Instant::now();
    assert_eq!(schema(&document).validate(b"{}"), Ok(()));
    assert!(begin.elapsed() < crate::domain::schema::tests::PARSE_MAX, "{:?}", begin.elapsed());
}
