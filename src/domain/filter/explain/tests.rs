//! What is told of a filter that does not match.

use super::*;
use crate::domain::filter::tests::event;

fn explained(source: &str, data: &'static str) -> Explanation {
    Filter::parse(source).expect(source).explain(&FilterContext::new(&event(data)))
}

fn one(source: &str, data: &'static str) -> Deciding {
    let mut explanation = explained(source, data);
    assert_eq!(explanation.deciding.len(), 1, "{source}: {explanation:?}");
    explanation.deciding.remove(0)
}

#[test]
fn the_side_that_is_false_is_told_with_its_values_and_columns() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    for (source, data, expression, columns, operands) in [
        ("data.n > 5", r#"{"n": 3}"#, "data.n > 5", (1, 11), vec![pair("data.n", "3")]),
        (
            "data.n > 5 && data.s == 'x'",
            r#"{"n": 9, "s": "y"}"#,
            "data.s == 'x'",
            (15, 28),
            vec![pair("data.s", "\"y\"")],
        ),
        (
            "true && (data.a.b >= data.c)",
            r#"{"a": {"b": 1}, "c": 2.5}"#,
            "data.a.b >= data.c",
            (10, 28),
            vec![pair("data.a.b", "1"), pair("data.c", "2.5")],
        ),
        (
            "size(data.l) == 2",
            r#"{"l": [1, {"k": null}, true]}"#,
            "size(data.l) == 2",
            (1, 18),
            vec![pair("size(data.l)", "3")],
        ),
        (
            "data.s.startsWith('b')",
            r#"{"s": "abc"}"#,
            "data.s.startsWith('b')",
            (1, 23),
            vec![pair("data.s", "\"abc\"")],
        ),
        ("data.s.matches('^b')", r#"{"s": "abc"}"#, "data.s.matches('^b')", (1, 21), vec![pair("data.s", "\"abc\"")]),
        ("data.l[1] == 'x'", r#"{"l": [1, "y"]}"#, "data.l[1] == 'x'", (1, 17), vec![pair("data.l[1]", "\"y\"")]),
        ("event.type == 'OTHER'", "{}", "event.type == 'OTHER'", (1, 22), vec![pair("event.type", "\"USER_CREATE\"")]),
        ("data.ready", r#"{"ready": false}"#, "data.ready", (1, 11), vec![pair("data.ready", "false")]),
        (
            "data.n == 1 ? data.a : data.b",
            r#"{"n": 1, "a": false, "b": true}"#,
            "data.a",
            (15, 21),
            vec![pair("data.a", "false")],
        ),
        ("!(data.n == 1)", r#"{"n": 1}"#, "!(data.n == 1)", (1, 15), vec![pair("data.n == 1", "true")]),
    ] {
        let found = one(source, data);
        assert_eq!((found.expression.as_str(), found.columns, found.error), (expression, columns, None), "{source}");
        assert_eq!(found.operands, operands, "{source}");
    }
}

#[test]
fn both_sides_of_an_or_are_told_and_errors_with_their_text() {
    let both = explained("data.n == 1 || data.n == 2", r#"{"n": 3}"#);
    let told: Vec<_> = both.deciding.iter().map(|one| (one.expression.as_str(), one.columns)).collect();
    assert_eq!(told, [("data.n == 1", (1, 12)), ("data.n == 2", (16, 27))]);
    assert_eq!(both.matched, Ok(false));
    let Deciding { expression, error, operands, .. } = one("data.n > 1 && data.absent == 1", r#"{"n": 3}"#);
    assert_eq!((expression.as_str(), error.as_deref()), ("data.absent == 1", Some("no such key: absent")));
    assert_eq!(operands, [("data.absent".to_owned(), "(no such key: absent)".to_owned())]);
    // A side that is false decides whatever the other side is.
    let Deciding { expression, error, .. } = one("data.absent == 1 && data.n == 1", r#"{"n": 3}"#);
    assert_eq!((expression.as_str(), error), ("data.n == 1", None));
    let Deciding { error, .. } = one("10 / data.n == 1", r#"{"n": 0}"#);
    assert_eq!(error.as_deref(), Some("division by zero"));
    assert_eq!(explained("data.n == 3", r#"{"n": 3}"#), Explanation { matched: Ok(true), deciding: Vec::new() });
}

#[test]
fn what_is_true_is_not_told_however_costly_the_whole_is() {
    let list = vec!["1"; 10_000].join(",");
    let data: &'static str = Box::leak(format!(r#"{{"n": 3, "m": 7, "l": [{list}]}}"#).into_boxed_str());
    let none = "data.l.exists(x, x == 7)";
    let many: Vec<String> = (1..=16).map(|n| format!("x == 10{n}")).collect();
    let costly = format!("data.l.exists(x, {})", many.join(" || "));
    let told = |source: &str| {
        let explained = explained(source, data);
        let told = explained.deciding.into_iter().map(|one| (one.expression, one.error, one.operands));
        (explained.matched, told.collect::<Vec<_>>())
    };
    let list = || ("data.l".to_owned(), format!("[{}…", "1,".repeat(100).split_at(199).0));
    let tests = "data.n == 3 && data.m == 7 && data.n < data.m && data.n != 4 && data.m != 8 && data.n > 2";
    let all = format!("data.l.all(x, x >= 0) && {costly} && {tests}");
    assert_eq!(told(&all), (Ok(false), vec![(costly.clone(), None, vec![list()])]));
    // What is never evaluated to match is found out with what is left, and not guessed.
    let much = [costly.as_str(); 6].join(" || ");
    let (matched, found) = told(&format!("data.n == 4 && ({much})"));
    assert_eq!((matched, found.len(), found[0].0.as_str()), (Ok(false), 1, "data.n == 4"));
    let (matched, found) = told(&format!("{tests} && ({much} || {none})"));
    assert_eq!(matched.expect_err("too much").0, "the evaluation costs too much over this event");
    assert!(found.len() > 1 && found.iter().all(|(part, ..)| *part == costly || *part == none), "{found:?}");
    assert_eq!(found[0], (costly, None, vec![list()]));
    let last = (none.to_owned(), Some(TOO_COSTLY.to_owned()), Vec::new());
    assert_eq!(found.last(), Some(&last), "{found:?}");
    let shown = format!("{found:?}");
    assert!(!shown.contains("budget") && !shown.contains('@'), "{shown}");
}

#[test]
fn a_comprehension_is_told_with_what_it_goes_through_and_values_are_cut() {
    let Deciding { expression, columns, operands, .. } = one("data.l.exists(x, x > 5)", r#"{"l": [1, 2]}"#);
    assert_eq!((expression.as_str(), columns), ("data.l.exists(x, x > 5)", (1, 24)));
    assert_eq!(operands, [("data.l".to_owned(), "[1,2]".to_owned())]);
    let long: &'static str = Box::leak(format!(r#"{{"s": "{}"}}"#, "ä".repeat(5_000)).into_boxed_str());
    let Deciding { operands, .. } = one("data.s == ''", long);
    assert!(operands[0].1.len() < 220, "{}", operands[0].1.len());
    let many = vec!["data.n == 1"; 60].join(" || ");
    assert_eq!(explained(&many, r#"{"n": 3}"#).deciding.len(), DECIDING_MAX);
}
