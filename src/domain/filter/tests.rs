//! What filters accept, refuse and bound.

use super::*;
use crate::domain::event::{Attribute, Data, Lineage};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::EventId;
use bytes::Bytes;
use chrono::DateTime;
use proptest::prelude::*;
use std::time::{Duration, Instant};

pub(super) fn event(data: &str) -> Event {
    let id = EventId(uuid::Uuid::from_u128(7));
    Event {
        id,
        event_type: EventTypeName::parse("USER_CREATE").expect("a name"),
        schema_version: 0,
        source: "/users".to_owned(),
        subject: None,
        time: DateTime::from_timestamp(1_700_000_000, 0).expect("a time"),
        content_type: Some("application/json".to_owned()),
        extensions: vec![
            ("flag".to_owned(), Attribute::Boolean(true)),
            ("number".to_owned(), Attribute::Integer(7)),
            ("region".to_owned(), Attribute::String("eu".to_owned())),
            ("when".to_owned(), Attribute::Timestamp(DateTime::from_timestamp(0, 0).expect("a time"))),
            ("raw".to_owned(), Attribute::Bytes(Bytes::from_static(b"ab"))),
            ("link".to_owned(), Attribute::Uri("https://example.org/".to_owned())),
        ],
        data: Data::Binary(Bytes::copy_from_slice(data.as_bytes())),
        lineage: Lineage::root(id),
    }
}

fn evaluate(expression: &str, event: &Event) -> Result<bool, EvaluationError> {
    let filter = Filter::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    filter.matches(&FilterContext::new(event))
}

#[test]
fn attributes_and_data_are_read() {
    let mut event = event(
        r#"{"amount": 250, "ratio": 0.5, "whole": 1.0, "big": 9223372036854775808, "name": "A\u00e4", "tags": ["a", "b"],
            "items": [{"sku": "x", "n": 1}, {"sku": "y", "n": 3}], "nothing": null, "deep": {"er": {"est": true}},
            "k\u0065y": 1}"#,
    );
    for expression in [
        "true",
        "event.type == 'USER_CREATE' && event.source == '/users'",
        "event.id == 'evt_00000000000000000000000007' || event.id.startsWith('evt_')",
        "event.time == timestamp('2023-11-14T22:13:20Z') && event.time.getFullYear() == 2023",
        "event.time - event.when > duration('1h')",
        "event.datacontenttype == 'application/json'",
        "!has(event.subject) && !('subject' in event)",
        "event.flag && event.number == 7 && event.region == 'eu' && event.raw == b'ab' && event.link.endsWith('/')",
        "event['region'] == 'eu'",
        "data.amount > 100 && data.amount <= 250 && data.amount == 250.0",
        "data.ratio < 1 && data.whole == 1 && type(data.amount) == int && type(data.whole) == double",
        "type(data.big) == double && data.big > 9.2e18",
        "data.name == 'A\u{e4}' && size(data.name) == 2 && data.key == 1",
        "'a' in data.tags && data.tags == ['a', 'b'] && ['a', 'b'] == data.tags && data.tags.size() == 2",
        "data.items[1].sku == 'y' && data['items'][0]['n'] == 1",
        "has(data.deep.er) && !has(data.deep.x) && data.deep.er.est",
        "data.nothing == null",
        "data.items.exists(i, i.sku == 'x' && i.n == data.whole)",
        "data.items.all(i, i.n > 0) && data.items.exists_one(i, i.n == 3)",
        "data.items.filter(i, i.n > 1).size() == 1 && data.items.map(i, i.sku) == ['x', 'y']",
        "data.items.filter(i, i.n > 1).exists(i, i.sku == 'y')",
        "data.deep.all(k, k == 'er')",
        "data.name.matches('^A.$') && matches(data.name, 'A') && !data.name.matches('b')",
        "data.amount % 2 == 0 ? data.name.startsWith('A') : false",
        "'x' + data.items[0].sku == 'xx'",
        "string(data.amount) == '250' && int('7') == event.number && double(1) == 1.0",
        "data.missing == 1 || true",
        "[1, 2].exists(x, x == 2) && {'a': 1}.a == 1",
        "// a comment\n event.type\n == 'USER_CREATE'",
    ] {
        assert_eq!(evaluate(expression, &event), Ok(true), "{expression}");
    }
    event.subject = Some("s-1".to_owned());
    assert_eq!(evaluate("event.subject == 's-1' && has(event.subject)", &event), Ok(true));
}

#[test]
fn data_that_is_not_json_is_null() {
    let mut event = event("not json");
    assert_eq!(evaluate("data == null", &event), Ok(true));
    event.data = Data::None;
    assert_eq!(evaluate("data == null", &event), Ok(true));
    event.data = Data::Text(Bytes::from_static(b"{}"));
    assert_eq!(evaluate("data == {}", &event), Ok(true));
    event.content_type = Some("text/plain".to_owned());
    assert_eq!(evaluate("data == null", &event), Ok(true));
    event.content_type = None;
    for text in ["{} {}", "\u{feff}{}", "{", r#"{"$serde_json::private::Number":"5"}"#] {
        event.data = Data::Binary(Bytes::copy_from_slice(text.as_bytes()));
        assert_eq!(evaluate("data == null", &event), Ok(true), "{text}");
    }
}

#[test]
fn extensions_never_stand_in_for_attributes() {
    let mut event = event("{}");
    event.extensions =
        vec![("id".to_owned(), Attribute::Integer(1)), ("subject".to_owned(), Attribute::String("forged".to_owned()))];
    assert_eq!(evaluate("event.id == 1 || has(event.subject)", &event), Ok(false));
}

#[test]
fn what_cannot_be_evaluated_says_why_without_the_data() {
    let event = event(r#"{"secret": "hunter2", "n": 0, "list": ["hunter2"], "k": "hunter2"}"#);
    for (expression, reason) in [
        ("data.missing == 1", "no such key: missing"),
        ("data.list[5] == 1", "index out of bounds"),
        ("data[data.k] == 1", "no such key"),
        ("1 / data.n == 1", "division by zero"),
        ("1 % data.n == 1", "remainder by zero"),
        ("data.secret + 1 == 2", "operator add does not apply to these operands"),
        ("data.secret > 1", "no matching overload"),
        ("data.secret", "the filter's value is not a boolean"),
        ("data.secret && true", "no matching overload"),
        ("9223372036854775807 + size(data.k) > 0", "overflow"),
        ("timestamp(data.secret) == event.time", "function"),
        ("int(data.secret) == 1", "function"),
        ("data.secret.exists(x, x == 1)", "found string where"),
        ("data.secret.foo == 1", ""),
        ("data.secret[0] == 'h'", ""),
        ("data.n.startsWith('h')", ""),
        ("1 in data.n", ""),
        ("-data.secret == 1", ""),
        ("(-9223372036854775807 - 1) / -1 == 0", ""),
        ("{data.secret: 1, data.k: 2}.size() == 2", ""),
    ] {
        let error = evaluate(expression, &event).expect_err(expression).to_string();
        assert!(error.contains(reason), "{expression}: {error}");
        assert!(!error.contains("hunter2"), "{expression}: {error}");
    }
}

#[test]
fn what_is_wrong_is_refused_with_its_column() {
    let long = format!("event.type == '{}'", "x".repeat(5 * 1024));
    let deep = format!("{}1{} == 1", "(".repeat(33), ")".repeat(33));
    let plus = format!("data.a{} == 'x'", " + data.a".repeat(17));
    let regex = format!("data.a.matches('{}')", "a".repeat(257));
    for (expression, column) in [
        ("", 1),
        ("event.", 7),
        ("event.type == 'x", 15),
        ("event.type == 'x' &&", 21),
        ("event.type = 'x'", 12),
        ("foo == 1", 1),
        ("event.type == 'x' && foo.bar", 22),
        ("'\u{e4}\u{1f600}' == foo", 9),
        ("'\u{e4}\u{1f600}' = foo", 6),
        ("true\n&& foo", 9),
        ("true\n&& &&", 9),
        ("nope(1)", 5),
        ("data.a.nope()", 12),
        ("size(1, 2) == 1", 5),
        ("data.a.startsWith()", 18),
        ("data.a.exists(x)", 15),
        ("data.a.exists(data, true)", 14),
        ("data.a.exists(x, data.b.exists(y, x == y))", 31),
        ("data.a.exists(1, true)", 15),
        ("has(data)", 5),
        ("data.a.matches(data.b)", 15),
        ("data.a.matches('(')", 16),
        ("data.a.matches('(\\\\w{100}){100}')", 16),
        ("Message{a: 1} == 1", 8),
        ("data.?a == 1", 5),
        (&long, 4097),
        (&deep, 33),
        (&plus, 152),
        (&regex, 16),
    ] {
        let shown: String = expression.chars().take(60).collect();
        let error = Filter::parse(expression).expect_err(&shown);
        assert_eq!(error.column, column, "{shown}: {error}");
        assert!(!error.message.is_empty() && error.message.len() < 300, "{shown}: {error}");
    }
}

/// A debug build on a shared machine is far slower than what is released; the bound is still far from what a blow-up takes.
const PARSE_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 2_000 } else { 50 });

#[test]
fn hostile_expressions_are_answered_fast_and_without_using_up_the_stack() {
    let _ = Filter::parse("true");
    let repeat = |text: &str| text.repeat(SOURCE_BYTES_MAX / text.len());
    let mut hostile = Vec::new();
    for part in [
        "(",
        ")",
        "[",
        "{",
        "!",
        "-",
        "- ",
        "a.",
        "a+",
        "a-",
        "a==",
        "a?a:",
        "a?",
        "a<",
        "a&&",
        "a||",
        "a in ",
        "[a]",
        ".a",
        "a(",
        "a.a(",
        "'",
        "\"",
        "'''",
        "\\",
        "\u{0}",
        "\u{1f600}",
        "1",
        "0x",
        "1.",
        "1e",
        "r'",
        "b'",
        "//",
        "\n",
        "\t",
        "a,",
        "{a:",
        "[1].map(x,",
        "has(",
        "`",
        "$",
        "a[",
        "?",
        ":",
        "1 ",
        "a ",
        "_",
        "data.a[0]",
        "a.b.c && ",
        "(a) ",
        "(a)+",
        "a?b:c?",
        "!a&&",
        "a.exists(x,x)&&",
        "[[",
        "[{",
        "({[",
        "-1-",
    ] {
        hostile.push(repeat(part));
        hostile.push(format!("true || {}", repeat(part).chars().take(4000).collect::<String>()));
    }
    for (open, close) in
        [("(", ")"), ("[", "]"), ("{1:", "}"), ("size(", ")"), ("!(", ")"), ("-(", ")"), ("a[", "]"), ("1+(", ")")]
    {
        for depth in [32, 33, 500] {
            hostile.push(format!("{}1{}", open.repeat(depth), close.repeat(depth)));
        }
    }
    hostile.push(format!("data{} == 1", ".a".repeat(2000)));
    hostile.push(format!("data{} == 1", ".a".repeat(60)));
    hostile.push(format!("data{} == 1", "[0]".repeat(60)));
    hostile.push(format!("data{} == 1", ".size()".repeat(60)));
    hostile.push(format!("1{} == 1", " - 1".repeat(60)));
    hostile.push(format!("1{}", " == 1".repeat(700)));
    hostile.push(format!("data{}", ".map(x, x)".repeat(100)));
    hostile.push("data.a.matches('(\\\\pL{200}){200}')".to_owned());
    hostile.push(format!("data.a.matches('{}')", "(a?)".repeat(40)));
    let pattern = "data.a.matches('\\\\w{30}') || ";
    hostile.push(format!("{}true", pattern.repeat(20)));
    for pattern in [
        "[\\\\pL\\\\pN]a1b1c1",
        "(?i)[\\\\p{any}\\\\p{any}\\\\p{any}&&a]",
        "(?:\\\\PL\\\\PL\\\\PL\\\\PL){0}",
        "^(\\\\w)(\\\\w)$",
    ] {
        hostile.push(format!("{}true", format!("data.a.matches('{pattern}') || ").repeat(16)));
    }
    for expression in hostile {
        let begin = Instant::now();
        let result = Filter::parse(&expression);
        let took = begin.elapsed();
        let shown: String = expression.chars().take(40).collect();
        if let Err(error) = result {
            assert!((1..=expression.chars().count() + 1).contains(&error.column), "{shown}: {error}");
        }
        assert!(took < PARSE_MAX, "{shown}: {took:?}");
    }
}

#[test]
fn the_largest_accepted_expressions_compile_and_evaluate() {
    let event = event(r#"{"a": 1}"#);
    let many = vec!["event.type == 'USER_CREATE'"; 100].join(" && ");
    assert_eq!(evaluate(&many, &event), Ok(true));
    let any: Vec<String> = (0..150).map(|i| format!("data.a == {i}")).collect();
    assert_eq!(evaluate(&any.join(" || "), &event), Ok(true));
    let list: Vec<String> = (0..600).map(|i| format!("{i}")).collect();
    assert_eq!(evaluate(&format!("data.a in [{}]", list.join(",")), &event), Ok(true));
    let nested = format!("{}data.a == 1{}", "(".repeat(NESTING_MAX), ")".repeat(NESTING_MAX));
    assert_eq!(evaluate(&nested, &event), Ok(true));
    for (open, inner, close) in
        [("!(", "data.a != 1", ")"), ("-(", "data.a", ")"), ("true ? (", "false", ") : false"), ("[", "1", "]")]
    {
        let nested = format!("{}{inner}{} == data.a", open.repeat(NESTING_MAX), close.repeat(NESTING_MAX));
        let filter = Filter::parse(&nested).unwrap_or_else(|error| panic!("{nested}: {error}"));
        let _ = filter.matches(&FilterContext::new(&event));
    }
    let deep = format!("{}1{}", "[".repeat(127), "]".repeat(127));
    let event = self::event(&deep);
    assert_eq!(
        evaluate(&format!("data == data && size(data{}) == 1 && data.all(x, x == x)", "[0]".repeat(30)), &event),
        Ok(true)
    );
}

/// As for [`PARSE_MAX`].
const EVALUATION_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 10_000 } else { 400 });

#[test]
fn an_evaluation_over_a_large_payload_is_bounded() {
    let numbers: Vec<String> = (0..ELEMENTS_MAX).map(|i| i.to_string()).collect();
    let numbers = numbers.join(",");
    let more: String = ",0".repeat(200_000);
    let text = "x".repeat(400_000);
    let data = format!(r#"{{"l":[{numbers}],"m":[0{more}],"s":"{text}","o":{{"a":[{numbers}]}}}}"#);
    let event = event(&data);
    let context = FilterContext::new(&event);
    let chain = ".map(x, x + x)".repeat(15);
    let costly = "the evaluation costs too much over this event";
    let many = vec!["data.m == data.m"; 150].join(" && ");
    let adds = format!("size(data.s{}) > 0", " + data.s".repeat(16));
    let clones = format!("size([{}]) == 0", vec!["data"; 500].join(","));
    let contains = format!("data.l.all(x, {})", vec!["!data.s.contains('y')"; 100].join(" && "));
    let doubled = format!("[data.s]{chain}.size() == 1");
    for (expression, expected) in [
        ("data.l.all(x, x >= 0 && x < 10000)", Some(Ok(true))),
        ("data.l.filter(x, x % 2 == 0).size() == 5000", Some(Ok(true))),
        ("data.s.contains('y')", Some(Ok(false))),
        ("9999 in data.l && data.l == data.o.a", Some(Ok(true))),
        ("data.m.exists(x, x == 1)", Some(Err(costly))),
        ("data.l.exists(x, (x + 100000) in data.l)", Some(Err(costly))),
        ("data.l.all(x, data.l == data.o.a)", Some(Err(costly))),
        ("data.l.map(x, data).size() == 0", Some(Err(costly))),
        ("data.l.map(x, data.s + 'a').size() == 0", Some(Err(costly))),
        ("data.l.exists(x, data.s + 1 == 1)", Some(Err(costly))),
        ("data.l.exists(x, data.s.matches('(x+x+)+y'))", Some(Err(costly))),
        ("data.s.matches('^[a-z]+$')", Some(Ok(true))),
        ("data.s.matches('x[xy]{500}y') || data.s.matches('x[xy]{500}z')", Some(Err(costly))),
        (&doubled, Some(Err(costly))),
        (&contains, Some(Err(costly))),
        (&clones, Some(Err(costly))),
        (&many, None),
        (&adds, None),
    ] {
        let shown: String = expression.chars().take(60).collect();
        let filter = Filter::parse(expression).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let begin = Instant::now();
        let result = filter.matches(&context);
        let took = begin.elapsed();
        if let Some(expected) = expected {
            assert_eq!(result, expected.map_err(|text: &str| EvaluationError(text.to_owned())), "{shown}");
        }
        assert!(took < EVALUATION_MAX, "{shown}: {took:?}");
    }
}

#[test]
fn a_context_parses_the_payload_only_for_filters_that_read_it() {
    let event = event("{}");
    let context = FilterContext::new(&event);
    let by_type = Filter::parse("event.type == 'USER_CREATE'").expect("a filter");
    let by_data = Filter::parse("has(data.a)").expect("a filter");
    assert!(!by_type.references_data() && by_data.references_data());
    assert_eq!(by_type.matches(&context), Ok(true));
    assert!(context.data.get().is_none() && context.attributes.get().is_none());
    assert_eq!(by_data.matches(&context), Ok(false));
    assert!(context.data.get().is_some());
}

#[test]
fn what_is_read_back_is_compiled_once_when_it_is_first_evaluated() {
    let event = event(r#"{"a": "x"}"#);
    let stored = Filter::stored("data.a.matches('^x')");
    let clone = stored.clone();
    assert!(!stored.is_compiled());
    assert_eq!(stored.matches(&FilterContext::new(&event)), Ok(true));
    assert!(clone.is_compiled() && Filter::parse("data.a == 1").expect("a filter").is_compiled());
    // What is nested deep is compiled elsewhere, as often as it is wanted.
    let deep = format!("{}data.a == 'x'{}", "(".repeat(30), ")".repeat(30));
    for _ in 0..3 {
        assert!(Filter::stored(&deep).compiles() && Filter::parse(&deep).is_ok());
    }
    let broken = Filter::stored("data.a ==");
    assert!(!broken.compiles());
    let refused = broken.matches(&FilterContext::new(&event)).expect_err("it is none");
    assert_eq!(refused.0, "the expression cannot be compiled");
}

#[test]
fn filters_and_contexts_can_be_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<Filter>();
    shared::<FilterContext<'static>>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 3000 }))]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,80}") {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn any_row_of_tokens_is_answered(
        tokens in proptest::collection::vec(
            prop::sample::select(vec![
                "data", "event", ".", "type", "a", "==", "&&", "||", "!", "(", ")", "[", "]", "{", "}", "'x'", "1", "1.5", "+", "-",
                "in", "?", ":", ",", "exists", "(x,", "x", "size", "has", "matches", "null", "true", "b'a'", "\n", " ",
            ]),
            0..40,
        )
    ) {
        let text = tokens.join(" ");
        let event = event(r#"{"a": [1, "x", {"x": null}]}"#);
        if let Ok(filter) = Filter::parse(&text) {
            prop_assert_eq!(filter.source(), text.as_str());
            let _ = filter.matches(&FilterContext::new(&event));
        }
    }
}

#[test]
fn what_can_never_be_true_or_false_is_refused_with_its_column() {
    let cases = [
        ("1 + 1", 3),
        ("\"x\"", 1),
        ("null", 1),
        ("[true]", 1),
        ("{'a': true}", 1),
        ("size(data.items)", 5),
        ("-data.a", 1),
        ("event", 1),
        ("event.type", 6),
        ("string", 1),
        ("data.a > 1 && 'x'", 15),
        ("!1", 2),
        ("data.a ? 1 : 2", 14),
    ];
    for source in ["data.items.map(x, x)", "data.items.filter(x, x > 1)"] {
        let error = Filter::parse(source).expect_err(source);
        assert!(error.message.contains("never true or false"), "{source}: {error}");
    }
    for (source, column) in cases {
        let error = Filter::parse(source).expect_err(source);
        assert!(error.message.contains("never true or false"), "{source}: {error}");
        assert_eq!(error.column, column, "{source}");
        let saved_by_an_earlier_release = Filter::stored(source).matches(&FilterContext::new(&event("{}")));
        assert_ne!(saved_by_an_earlier_release, Err(EvaluationError("the expression cannot be compiled".to_owned())));
    }
    let fine = [
        "true",
        "data",
        "data.flag",
        "data['flag']",
        "event.flag",
        "has(event.subject)",
        "data.a > 1",
        "data.a ? data.b : 1",
        "data.items.exists(x, x > 1)",
        "data.items.all(x, x > 1)",
        "data.items.exists_one(x, x > 1)",
        "data.name.matches('^a')",
        "data.name.startsWith('a')",
        "bool(data.a)",
        "dyn(data.a)",
        "'a' in data.items",
        "type(data.a) == string",
    ];
    for source in fine {
        Filter::parse(source).unwrap_or_else(|error| panic!("{source}: {error}"));
    }
}

#[test]
fn the_nul_character_is_refused_with_its_column_wherever_it_stands() {
    for (source, column) in [("\0", 1), ("data.a == 'x\0'", 13), ("true // \0", 9)] {
        let error = Filter::parse(source).expect_err("it holds NUL");
        assert_eq!((error.column, error.message.contains("NUL")), (column, true), "{error}");
    }
}
