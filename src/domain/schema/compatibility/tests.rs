//! What breaks and what does not, and that the comparison never says "compatible" where data shows otherwise.

use super::*;
use crate::domain::schema::Schema;
use std::path::Path;

fn backward(previous: &str, new: &str) -> Vec<Break> {
    compare(previous, new, Compatibility::Backward).expect("both are schemas")
}

#[test]
fn what_breaks_is_told_with_pointers_into_both() {
    for (previous, new, pointer, previous_pointer, said) in [
        (r#"{"type": ["string", "null"]}"#, r#"{"type": "string"}"#, "/type", "", "also allows null"),
        (r#"{"type": "object"}"#, r#"{"type": "object", "required": ["a"]}"#, "/required", "", "requires \"a\""),
        (
            r#"{"type": "string", "maxLength": 9}"#,
            r#"{"type": "string", "maxLength": 5}"#,
            "/maxLength",
            "",
            "allows more",
        ),
        (r#"{"type": "integer"}"#, r#"{"type": "integer", "minimum": 0}"#, "/minimum", "", "no such bound"),
        (r#"{"enum": ["a", "b"]}"#, r#"{"enum": ["a"]}"#, "", "", "refuses \"b\""),
        (r#"{"type": "string"}"#, r#"{"type": "string", "pattern": "^a"}"#, "/pattern", "", "has none"),
        (
            r#"{"properties": {"a": {"type": "number"}}}"#,
            r#"{"properties": {"a": {"type": "integer"}}}"#,
            "/properties/a/type",
            "/properties/a",
            "number that is not whole",
        ),
        (
            r#"{"type": "object", "properties": {"a": true}}"#,
            r#"{"type": "object", "properties": {"a": true}, "additionalProperties": false}"#,
            "/additionalProperties",
            "",
            "without naming them",
        ),
        (
            r#"{"type": "object", "properties": {"a": true}, "additionalProperties": false}"#,
            r#"{"type": "object", "properties": {}, "additionalProperties": false}"#,
            "/additionalProperties",
            "/properties/a",
            "does not allow the member \"a\"",
        ),
        (
            r##"{"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"type": "number"}}}"##,
            r##"{"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"type": "integer"}}}"##,
            "/$defs/x/type",
            "/items",
            "takes integer alone",
        ),
    ] {
        let breaks = backward(previous, new);
        assert_eq!(breaks.len(), 1, "{previous} to {new}: {breaks:?}");
        let one = &breaks[0];
        assert_eq!((one.pointer.as_str(), one.previous_pointer.as_str()), (pointer, previous_pointer), "{one:?}");
        assert!(one.message.contains(said) && !one.undecided, "{one:?}");
        assert_eq!(one.direction, Direction::Backward);
        assert_eq!(compare(new, previous, Compatibility::Backward), Ok(Vec::new()), "{new} to {previous}");
        let forward = compare(new, previous, Compatibility::Forward).expect("both are schemas");
        assert_eq!(forward.len(), 1, "{forward:?}");
        assert_eq!((forward[0].pointer.as_str(), forward[0].previous_pointer.as_str()), (previous_pointer, pointer));
        assert_eq!(forward[0].direction, Direction::Forward);
        assert_eq!(compare(previous, new, Compatibility::Full).expect("both").len(), 1);
        assert_eq!(compare(previous, new, Compatibility::None), Ok(Vec::new()));
    }
}

#[test]
fn what_accepts_more_is_compatible() {
    for (previous, new) in [
        (r#"{"type": "integer", "exclusiveMinimum": 0}"#, r#"{"type": "number", "minimum": 1}"#),
        (r#"{"type": "integer", "minimum": 1.0}"#, r#"{"minimum": 1e0}"#),
        (r#"{"multipleOf": 6}"#, r#"{"multipleOf": 3}"#),
        (r#"{"const": 3}"#, r#"{"type": "integer", "minimum": 2, "multipleOf": 3}"#),
        (r#"{"enum": ["ab", "cd"]}"#, r#"{"pattern": "^[a-d]+$", "maxLength": 2}"#),
        (r#"{"required": ["a", "b"]}"#, r#"{"required": ["b"], "minProperties": 2}"#),
        (
            r#"{"properties": {"a": {"type": "string"}}, "additionalProperties": false}"#,
            r#"{"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "additionalProperties": false}"#,
        ),
        (
            r#"{"properties": {"ab": {"type": "string"}}, "additionalProperties": false}"#,
            r#"{"patternProperties": {"^a": {"type": ["string", "null"]}}}"#,
        ),
        (
            r#"{"oneOf": [{"type": "string"}, {"type": "integer"}]}"#,
            r#"{"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}"#,
        ),
        (r#"{"type": ["string", "null"]}"#, r#"{"anyOf": [{"type": "null"}, {"type": "string"}]}"#),
        (
            r#"{"oneOf": [{"required": ["k"], "type": "object", "properties": {"k": {"const": "x"}}}]}"#,
            r#"{"oneOf": [{"required": ["k"], "type": "object", "properties": {"k": {"const": "y"}}}, {"required": ["k"], "type": "object", "properties": {"k": {"const": "x"}}}]}"#,
        ),
        (r#"{"type": "string"}"#, r#"{"not": {"type": "integer"}}"#),
        (
            r##"{"type": "object", "properties": {"child": {"$ref": "#"}, "n": {"type": "integer"}}}"##,
            r##"{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}, "n": {"type": "number"}}}}}"##,
        ),
        (r#"{"prefixItems": [{"type": "string"}], "items": false}"#, r#"{"items": {"type": "string"}, "maxItems": 1}"#),
        (
            r#"{"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}"#,
            r#"{"prefixItems": [{"type": "string"}]}"#,
        ),
        (
            r#"{"if": {"type": "string"}, "then": {"minLength": 1}}"#,
            r#"{"if": {"type": "string"}, "then": {"minLength": 1}, "title": "t"}"#,
        ),
        (r#"{"title": "a"}"#, r#"{"title": "b", "default": 1, "examples": [2]}"#),
        ("false", r#"{"type": "string"}"#),
    ] {
        assert_eq!(backward(previous, new), [], "{previous} to {new}");
    }
}

#[test]
fn what_cannot_be_decided_says_so_and_counts_unless_it_is_the_same() {
    for (previous, new) in [
        (r#"{"type": "string", "pattern": "^a$"}"#, r#"{"type": "string", "pattern": "^(a|b)$"}"#),
        (r#"{"type": "object"}"#, r#"{"type": "object", "unevaluatedProperties": false}"#),
        (r#"{"type": "string"}"#, r#"{"not": {"maxLength": 3}}"#),
        (r#"{"type": "number"}"#, r#"{"if": {"minimum": 5}, "then": {"multipleOf": 2}}"#),
        (r#"{"multipleOf": 0.3}"#, r#"{"multipleOf": 0.1}"#),
        (r#"{"type": "string"}"#, r#"{"oneOf": [{"type": "string"}, {"maxLength": 4}]}"#),
    ] {
        let breaks = backward(previous, new);
        assert!(!breaks.is_empty() && breaks.iter().all(|one| one.undecided), "{previous} to {new}: {breaks:?}");
        assert!(breaks[0].message.contains("cannot be compared"), "{breaks:?}");
        for same in [previous, new] {
            assert_eq!(compare(same, same, Compatibility::Full), Ok(Vec::new()), "{same}");
        }
    }
}

#[test]
fn what_content_is_and_how_it_is_encoded_are_judged_together() {
    let schema = |keywords: &str| format!(r#"{{"$schema": "http://json-schema.org/draft-07/schema#", {keywords}}}"#);
    let (encoding, media) = (r#""contentEncoding": "base64""#, r#""contentMediaType": "application/json""#);
    let (encoded, plain, both) = (schema(encoding), schema(media), schema(&format!("{encoding}, {media}")));
    let split = schema(&format!(r#""allOf": [{{{encoding}}}, {{{media}}}]"#));
    let content = br#""eyJhIjoxfQ==""#;
    let accepted = |schema: &str| Schema::parse(schema).expect("a schema").validate(content).is_ok();
    assert_eq!([&encoded, &both, &plain, &split].map(|schema| accepted(schema)), [true, true, false, false]);
    for (previous, new) in [(&both, &plain), (&both, &split), (&encoded, &both), (&split, &both), (&plain, &both)] {
        let breaks = backward(previous, new);
        assert!(!breaks.is_empty() && breaks.iter().all(|one| one.undecided), "{previous} to {new}: {breaks:?}");
    }
    let titled = schema(&format!(r#""allOf": [{{{encoding}, {media}}}]"#));
    for (previous, new) in [(&both, &titled), (&titled, &both), (&split, &encoded), (&split, &plain)] {
        assert_eq!(backward(previous, new), [], "{previous} to {new}");
    }
}

#[test]
fn documents_that_are_the_same_are_compatible_whatever_they_say() {
    let tree = r##"{"$id": "https://e.org/tree", "$dynamicAnchor": "node", "title": "a", "type": "object",
        "properties": {"title": {"type": "string"}, "next": {"items": {"$dynamicRef": "#node"}, "default": [1]}}}"##;
    let told = tree.replace(r#""title": "a""#, r#""description": "b", "$comment": "c""#).replace("[1]", "[]");
    for (previous, new) in [(tree, tree), (tree, &told), (&told, tree)] {
        assert_eq!(compare(previous, new, Compatibility::Full), Ok(Vec::new()), "{previous} to {new}");
    }
    // What may be referred to, or is the name of a member, is no annotation.
    for (previous, new) in [
        (r#"{"type": "string"}"#, r#"{"type": "array"}"#),
        (r#""title": {"type": "string"}, "#, ""),
        (r##""#node""##, r##""#""##),
    ] {
        assert_ne!(compare(tree, &tree.replace(previous, new), Compatibility::Full), Ok(Vec::new()), "{new}");
    }
    let named = |node: bool| {
        format!(
            r##"{{"$dynamicAnchor": "n", "items": {{"$dynamicRef": "#n"}}, "x-defs": {{"readOnly": {node}}}, "not": {{"$ref": "#/x-defs/readOnly"}}}}"##
        )
    };
    assert_ne!(compare(&named(false), &named(true), Compatibility::Full), Ok(Vec::new()));
}

#[test]
fn a_keyword_that_one_of_the_drafts_ignores_says_nothing_there() {
    for (keywords, pointer) in [
        (r#""dependentRequired": {"a": ["b"]}"#, "/dependentRequired"),
        (r#""dependentSchemas": {"a": {"required": ["b"]}}"#, "/dependentSchemas"),
    ] {
        let seventh = format!(r#"{{"$schema": "http://json-schema.org/draft-07/schema#", {keywords}}}"#);
        let latest = format!(r#"{{"$schema": "https://json-schema.org/draft/2020-12/schema", {keywords}}}"#);
        let breaks = backward(&seventh, &latest);
        assert_eq!(breaks.len(), 1, "{keywords}: {breaks:?}");
        assert_eq!((breaks[0].pointer.as_str(), breaks[0].direction), (pointer, Direction::Backward), "{breaks:?}");
        assert_eq!(backward(&latest, &seventh), [], "{keywords}");
        // What it breaks is real.
        let accepted = |schema: &str| Schema::parse(schema).expect("a schema").validate(br#"{"a": 1}"#).is_ok();
        assert!(accepted(&seventh) && !accepted(&latest), "{keywords}");
    }
    // The keyword of draft 7 is none of 2020-12: the same words ask for less there.
    let keywords = r#""dependencies": {"a": ["b"]}"#;
    let seventh = format!(r#"{{"$schema": "http://json-schema.org/draft-07/schema#", {keywords}}}"#);
    assert_eq!(backward(&seventh, r#"{"dependentRequired": {"a": ["b"]}}"#), []);
    assert_eq!(backward(r#"{"dependentRequired": {"a": ["b"]}}"#, &seventh), []);
}

#[test]
fn long_lists_are_compared_whole() {
    let list = |values: &[Value]| format!(r#"{{"enum": {}}}"#, Value::from(values.to_vec()));
    let numbers: Vec<Value> = (0..19_900).map(Value::from).collect();
    let objects: Vec<Value> = (0..3_000).map(|n| serde_json::json!({"a": n, "b": ["x", n]})).collect();
    for mut values in [numbers, objects] {
        let previous = list(&values);
        values.reverse();
        assert_eq!(compare(&previous, &list(&values), Compatibility::Full), Ok(Vec::new()));
        let gone = values.pop().expect("the first one");
        let breaks = compare(&previous, &list(&values), Compatibility::Full).expect("both are schemas");
        assert_eq!(breaks.len(), 1, "{breaks:?}");
        assert!(breaks[0].message.contains(&format!("refuses {gone}")) && !breaks[0].undecided, "{breaks:?}");
    }
    let names: Vec<String> = (0..9_000).map(|n| format!("n{n}")).collect();
    let reversed: Vec<&String> = names.iter().rev().collect();
    for keyword in ["required", "dependentRequired"] {
        let document = |names: Value| match keyword {
            "required" => serde_json::json!({ "required": names }).to_string(),
            _ => serde_json::json!({ "dependentRequired": { "n0": names } }).to_string(),
        };
        let (previous, new) = (document(serde_json::json!(names)), document(serde_json::json!(reversed)));
        assert_eq!(compare(&previous, &new, Compatibility::Full), Ok(Vec::new()), "{keyword}");
    }
}

#[test]
fn what_costs_too_much_to_compare_is_not_decided() {
    let written: Vec<i32> = (0..9_000).collect();
    let read: Vec<Value> = (0..900).map(|n| serde_json::json!({ "const": -n })).collect();
    let (written, read) = (serde_json::json!({ "enum": written }), serde_json::json!({ "anyOf": read }));
    let names = |prefix: &str| -> serde_json::Map<String, Value> {
        (0..9_000).map(|n| (format!("{prefix}{n}"), serde_json::json!({}))).collect()
    };
    let patterns: serde_json::Map<String, Value> =
        (0..250).map(|n| (format!("^x{n}"), serde_json::json!({ "minLength": n }))).collect();
    let (named, patterns) =
        (serde_json::json!({ "properties": names("x") }), serde_json::json!({ "patternProperties": patterns }));
    for (previous, new) in [(written, read), (named, patterns)] {
        let breaks = backward(&previous.to_string(), &new.to_string());
        assert_eq!(breaks, [too_large(Direction::Backward)]);
        assert!(breaks[0].undecided && breaks[0].message.contains("too large"), "{breaks:?}");
    }
}

#[test]
fn messages_show_the_beginning_of_a_long_value() {
    let property = |n: usize| (format!("p{n}"), serde_json::json!({ "$ref": "#/$defs/v" }));
    let properties: serde_json::Map<String, Value> = (0..10).map(property).collect();
    let written = serde_json::json!({ "properties": properties, "$defs": { "v": { "const": "x".repeat(240_000) } } });
    let mut alternatives = vec![serde_json::json!({ "type": "integer" }); 999];
    alternatives.push(serde_json::json!({ "format": "x" }));
    let property = |n: usize| (format!("p{n}"), serde_json::json!({ "$ref": "#/$defs/r" }));
    let properties: serde_json::Map<String, Value> = (0..10).map(property).collect();
    let read = serde_json::json!({ "properties": properties, "$defs": { "r": { "anyOf": alternatives } } });
    let breaks = backward(&written.to_string(), &read.to_string());
    assert!(breaks.iter().all(|one| one.message.len() < 300), "{breaks:?}");
    let refused = backward(&written.to_string(), &read.to_string().replace(r#"{"format":"x"}"#, r#"{"type":"null"}"#));
    assert!(refused[0].message.contains(r#"refuses "xxx"#) && refused[0].message.len() < 300, "{refused:?}");
    let beside = serde_json::json!({ "dependentRequired": { "x".repeat(9_000): ["y".repeat(9_000)] } });
    let refused = backward("{}", &beside.to_string());
    assert!(refused[0].message.contains(r#"requires "yyy"#) && refused[0].message.len() < 300, "{refused:?}");
}

#[test]
fn what_goes_too_deep_says_so_of_the_schemas_and_points_at_the_place() {
    let chain = |end: &str| {
        let links = (0..120).map(|n| format!(r##""r{n}/":{{"items":{{"$ref":"#/$defs/r{}~1"}}}}"##, n + 1));
        let links = links.chain([format!(r#""r120/":{{"type":"{end}"}}"#)]).collect::<Vec<_>>().join(",");
        format!(r##"{{"$ref":"#/$defs/r0~1","$defs":{{{links}}}}}"##)
    };
    let breaks = backward(&chain("string"), &chain("null"));
    assert_eq!(breaks.len(), 1, "{breaks:?}");
    let Break { pointer, message, undecided, .. } = &breaks[0];
    assert!(*undecided && message == "the schemas cannot be compared: they are too deep", "{message}");
    let named = pointer.strip_prefix("/$defs/r").and_then(|rest| rest.split('~').next()).map(str::parse::<usize>);
    assert!(matches!(named, Some(Ok(_))) && !pointer.ends_with('/'), "{pointer}");
    // A member whose name is empty keeps its place in the pointer.
    let of = |kind: &str| format!(r#"{{"properties": {{"": {kind}}}}}"#);
    let one = &backward(&of(r#"{"enum": [1, 2]}"#), &of(r#"{"enum": [1]}"#))[0];
    assert_eq!((one.pointer.as_str(), one.previous_pointer.as_str()), ("/properties/", "/properties/"), "{one:?}");
}

#[test]
fn what_refers_far_is_compared_to_its_end() {
    let ring = |length: usize| {
        let links = (0..length).map(|n| format!(r##""a{n}":{{"items":{{"$ref":"#/$defs/a{}"}}}}"##, (n + 1) % length));
        format!(r##"{{"$ref":"#/$defs/a0","$defs":{{{}}}}}"##, links.collect::<Vec<_>>().join(","))
    };
    let chain = (0..6_000).map(|n| format!(r##""a{n}":{{"items":{{"$ref":"#/$defs/a{}"}}}}"##, n + 1));
    let chain = chain.chain([r#""a6000":{"type":"string"}"#.to_owned()]).collect::<Vec<_>>().join(",");
    let chain = format!(r##"{{"$ref":"#/$defs/a0","$defs":{{{chain}}}}}"##);
    // Rings of any length say the same: data ends.
    for (previous, new) in [(&ring(101), &ring(103)), (&ring(400), &ring(400)), (&chain, &chain)] {
        assert_eq!(compare(previous, new, Compatibility::Full).expect("both are schemas"), []);
    }
    let other = chain.replace("string", "null");
    assert_ne!(compare(&chain, &other, Compatibility::Full).expect("both are schemas"), []);
}

#[test]
fn large_and_tangled_schemas_are_answered_within_the_bound() {
    let alternatives = |n: usize| (0..n).map(|i| format!(r#"{{"required": ["p{i}"]}}"#)).collect::<Vec<_>>().join(",");
    let doubling = (0..60)
        .map(|i| format!(r##""d{i}": {{"anyOf": [{{"properties": {{"a": {{"$ref": "#/$defs/d{}"}}}}}}, {{"properties": {{"b": {{"$ref": "#/$defs/d{}"}}}}}}]}}"##, i + 1, i + 1))
        .chain([r#""d60": {"type": "string"}"#.to_owned()])
        .collect::<Vec<_>>()
        .join(",");
    let all = (0..13)
        .map(|i| format!(r##""d{i}": {{"allOf": [{{"$ref": "#/$defs/d{0}"}}, {{"$ref": "#/$defs/d{0}"}}]}}"##, i + 1))
        .chain([r#""d13": {"type": "string"}, "d60": {"type": "string"}"#.to_owned()])
        .collect::<Vec<_>>()
        .join(",");
    let values =
        format!(r##"{{"anyOf": [{{"$ref": "#/$defs/d0"}}, {{"enum": ["a", "b", "c", 4]}}], "$defs": {{{all}}}}}"##);
    for document in [
        values,
        format!(r##"{{"allOf": [{{"$ref": "#/$defs/d0"}}], "$defs": {{{all}}}}}"##),
        format!(r#"{{"anyOf": [{}]}}"#, alternatives(1_000)),
        format!(r#"{{"oneOf": [{}]}}"#, alternatives(100)),
        format!(r##"{{"$ref": "#/$defs/d0", "$defs": {{{doubling}}}}}"##),
    ] {
        let other = document.replacen('{', r#"{"type": "object", "#, 1);
        let other = if other.contains("\"d60\"") {
            document.replace(r#""d60": {"type": "string"}"#, r#""d60": {"type": "null"}"#)
        } else {
            other
        };
        for (previous, new) in [(&document, &other), (&other, &document), (&document, &document)] {
            let begin = std::time::Instant::now();
            let breaks = compare(previous, new, Compatibility::Full).expect("both are schemas");
            assert!(breaks.len() <= 2 * BREAKS_MAX);
            assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
        }
    }
}

/// Schemas and data of the public test suite: where the comparison says that one schema accepts all of another's data, no data of
/// the suite may show otherwise; and every schema is compatible with itself.
#[test]
fn no_data_of_the_test_suite_contradicts_a_comparison() {
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/json-schema-test-suite");
    let (mut compatible, mut compared) = (0, 0);
    for (draft, uri) in [
        ("draft7", "http://json-schema.org/draft-07/schema#"),
        ("draft2020-12", "https://json-schema.org/draft/2020-12/schema"),
    ] {
        let mut files: Vec<_> = std::fs::read_dir(suite.join(draft))
            .expect("the fixtures")
            .map(|file| file.expect("a file").path())
            .collect();
        files.sort();
        for file in files {
            let groups: Vec<Value> =
                serde_json::from_str(&std::fs::read_to_string(&file).expect("a file")).expect("JSON");
            let mut schemas = Vec::new();
            let mut data: Vec<String> = Vec::new();
            for group in &groups {
                let mut document = group["schema"].clone();
                if let Value::Object(members) = &mut document {
                    members.entry("$schema").or_insert_with(|| Value::from(uri));
                } else if draft == "draft7" {
                    continue;
                }
                let document = document.to_string();
                if let Ok(schema) = Schema::parse(&document) {
                    schemas.push((document, schema));
                }
                data.extend(group["tests"].as_array().expect("tests").iter().map(|test| test["data"].to_string()));
            }
            let verdicts: Vec<Vec<bool>> = schemas
                .iter()
                .map(|(_, schema)| data.iter().map(|data| schema.validate(data.as_bytes()).is_ok()).collect())
                .collect();
            for (i, (previous, _)) in schemas.iter().enumerate() {
                for (j, (new, _)) in schemas.iter().enumerate() {
                    let breaks = backward(previous, new);
                    compared += 1;
                    if i == j {
                        assert_eq!(breaks, [], "{previous} with itself");
                    }
                    if breaks.is_empty() {
                        compatible += 1;
                        for (index, data) in data.iter().enumerate() {
                            assert!(!verdicts[i][index] || verdicts[j][index], "{data}: {previous} to {new}");
                        }
                    }
                }
            }
        }
    }
    assert!(compatible > 800 && compared > 5_000, "{compatible} of {compared}");
}
