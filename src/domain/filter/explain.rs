//! Why a filter does not match an event: the sub-expressions that decide it, where they stand, and the values they had.
//!
//! A path of its own beside `matches`: it parses the source again to know where everything stands, and evaluates part by part under
//! one budget. It is the only thing here that shows the event's data, and is meant for those who may read the event.

use super::cost::{Budget, CHARGE, MATCHES, RANGE};
use super::{EvaluationError, Filter, FilterContext, Scope, compile};
use cel::common::ast::{CallExpr, Expr, IdedExpr, SourceInfo, operators};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelNull, CelString, CelTimestamp, CelUInt,
};
use cel::common::value::Val;
use cel::parser::Parser;
use cel::{Context, Value};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How many sub-expressions are told.
const DECIDING_MAX: usize = 16;
/// How many operands of one are told.
const OPERANDS_MAX: usize = 8;
/// How long a value is told, in bytes.
const VALUE_BYTES_MAX: usize = 200;

/// What a filter makes of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What `matches` answers.
    pub matched: Result<bool, EvaluationError>,
    /// What decides, where it does not match.
    pub deciding: Vec<Deciding>,
}

/// A sub-expression that decides that a filter does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deciding {
    /// As written.
    pub expression: String,
    /// 1-based column of its first character, and of the one behind its last.
    pub columns: (usize, usize),
    /// Why it has no value; none where it is simply not true.
    pub error: Option<String>,
    /// Its operands as written, each with its value, or with why it has none.
    pub operands: Vec<(String, String)>,
}

impl Filter {
    /// Evaluates the filter over one event, and says what decides where it does not match.
    pub fn explain(&self, context: &FilterContext<'_>) -> Explanation {
        let matched = self.matches(context);
        let deciding = if matched == Ok(true) {
            Vec::new()
        } else {
            catch_unwind(AssertUnwindSafe(|| self.deciding(context))).unwrap_or_default()
        };
        Explanation { matched, deciding }
    }

    fn deciding(&self, context: &FilterContext<'_>) -> Vec<Deciding> {
        let (Some(places), Some(program)) = (places(&self.source), self.program()) else { return Vec::new() };
        let scope = Scope { program, context, budget: Budget::new() };
        let mut variables = Context::with_env(Arc::clone(compile::environment()));
        variables.set_variable_resolver(&scope);
        let mut search = Search { filter: self, variables: &variables, places: &places, found: Vec::new() };
        search.decide(&program.expression);
        search.found
    }
}

/// What a part of the expression came to.
#[derive(Clone, PartialEq, Eq)]
enum Came {
    True,
    /// False, or no boolean at all.
    Other,
    Failed(String),
}

struct Search<'s, 'e> {
    filter: &'s Filter,
    variables: &'s Context<'s, 'e>,
    places: &'s SourceInfo,
    found: Vec<Deciding>,
}

impl Search<'_, '_> {
    fn came(&self, node: &IdedExpr) -> Came {
        match Value::resolve_val(node, self.variables) {
            Ok(value) if value.downcast_ref::<CelBool>().is_some_and(|value| *value.inner()) => Came::True,
            Ok(_) => Came::Other,
            Err(error) => Came::Failed(self.filter.explain_error(&error)),
        }
    }

    /// Goes into a part that is not true, to the parts of it that make it so.
    fn decide(&mut self, node: &IdedExpr) {
        if self.found.len() >= DECIDING_MAX {
            return;
        }
        let Expr::Call(call) = &node.expr else { return self.leaf(node) };
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_AND, [left, right]) => {
                // One false side decides, whatever the other is; only without one does an error decide.
                let sides = [(left, self.came(left)), (right, self.came(right))];
                let decides = if sides.iter().any(|(_, came)| *came == Came::Other) {
                    |came: &Came| *came == Came::Other
                } else {
                    |came: &Came| *came != Came::True
                };
                sides.iter().filter(|(_, came)| decides(came)).for_each(|(side, _)| self.decide(side));
            }
            (operators::LOGICAL_OR, [left, right]) => {
                self.decide(left);
                self.decide(right);
            }
            (operators::CONDITIONAL, [condition, yes, no]) => match self.came(condition) {
                Came::True => self.decide(yes),
                Came::Other => self.decide(no),
                Came::Failed(_) => self.decide(condition),
            },
            _ => self.leaf(node),
        }
    }

    fn leaf(&mut self, node: &IdedExpr) {
        let error = match self.came(node) {
            Came::Failed(error) => Some(error),
            Came::True | Came::Other => None,
        };
        let mut parts: Vec<&IdedExpr> = Vec::new();
        match &unwrapped(node).expr {
            Expr::Call(call) => operands(call, &mut parts),
            Expr::Comprehension(comprehension) => parts.push(&comprehension.iter_range),
            Expr::Select(select) if select.test => parts.push(&select.operand),
            Expr::Literal(_) => {}
            _ => parts.push(node),
        }
        parts.truncate(OPERANDS_MAX);
        let operands = parts.into_iter().filter_map(|part| {
            let (from, to) = self.span(part)?;
            let value = match Value::resolve_val(part, self.variables) {
                Ok(value) => render(value.as_ref()),
                Err(error) => format!("({})", self.filter.explain_error(&error)),
            };
            Some((self.text(from, to), value))
        });
        let operands = operands.collect();
        let length = self.filter.source.chars().count();
        let (from, to) = self.span(node).unwrap_or((0, length));
        self.found.push(Deciding { expression: self.text(from, to), columns: (from + 1, to + 1), error, operands });
    }

    fn text(&self, from: usize, to: usize) -> String {
        self.filter.source.chars().skip(from).take(to - from).collect()
    }

    /// Where a part stands, in characters: the parser keeps the place of one token for each node, so the ends are found from there.
    fn span(&self, node: &IdedExpr) -> Option<(usize, usize)> {
        let mut tokens = Vec::new();
        gather(unwrapped(node), &mut tokens);
        let spans = tokens.into_iter().filter_map(|id| self.places.offset_for(id));
        let (from, to) = spans.fold(None, |span: Option<(u32, u32)>, (from, to)| {
            Some(span.map_or((from, to), |(least, most)| (least.min(from), most.max(to))))
        })?;
        let source = &*self.filter.source;
        let character = |byte: u32| source.char_indices().take_while(|(at, _)| *at < byte as usize).count();
        let characters: Vec<char> = source.chars().collect();
        Some(whole_span(&characters, character(from), character(to)))
    }
}

/// A node without what `compile` wrote around it.
fn unwrapped(node: &IdedExpr) -> &IdedExpr {
    match &node.expr {
        Expr::Call(call) if [CHARGE, RANGE].contains(&call.func_name.as_str()) => {
            call.args.first().map_or(node, unwrapped)
        }
        _ => node,
    }
}

/// The operands of a call whose values tell something.
fn operands<'a>(call: &'a CallExpr, parts: &mut Vec<&'a IdedExpr>) {
    let all = call.target.as_deref().into_iter().chain(&call.args);
    // The other arguments here are the compiled pattern and the budget.
    let all = all.take(if call.func_name == MATCHES { 1 } else { usize::MAX });
    parts.extend(all.filter(|part| !matches!(unwrapped(part).expr, Expr::Literal(_))));
}

/// The ids of a part's nodes.
fn gather(node: &IdedExpr, ids: &mut Vec<u64>) {
    ids.push(node.id);
    match &node.expr {
        Expr::Select(select) => gather(&select.operand, ids),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).for_each(|part| gather(part, ids)),
        Expr::List(list) => list.elements.iter().for_each(|part| gather(part, ids)),
        Expr::Comprehension(comprehension) => {
            gather(&comprehension.iter_range, ids);
            gather(&comprehension.loop_step, ids);
        }
        _ => {}
    }
}

/// A value as people read it: JSON where there is one for it, cut where it is long.
fn render(value: &dyn Val) -> String {
    let mut text = String::new();
    write_value(value, &mut text);
    if text.len() > VALUE_BYTES_MAX {
        let mut end = VALUE_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

fn write_value(value: &dyn Val, text: &mut String) {
    if text.len() > VALUE_BYTES_MAX {
        return;
    }
    // Writing to a string cannot fail.
    let _ = if let Some(value) = value.downcast_ref::<CelString>() {
        let start: String = value.inner().chars().take(VALUE_BYTES_MAX).collect();
        write!(text, "{}", serde_json::Value::from(start))
    } else if let Some(value) = value.downcast_ref::<CelInt>() {
        write!(text, "{}", value.inner())
    } else if let Some(value) = value.downcast_ref::<CelUInt>() {
        write!(text, "{}u", value.inner())
    } else if let Some(value) = value.downcast_ref::<CelDouble>() {
        write!(text, "{:?}", value.inner())
    } else if let Some(value) = value.downcast_ref::<CelBool>() {
        write!(text, "{}", value.inner())
    } else if value.downcast_ref::<CelNull>().is_some() {
        write!(text, "null")
    } else if let Some(value) = value.downcast_ref::<CelBytes>() {
        write!(text, "({} bytes)", value.inner().len())
    } else if let Some(value) = value.downcast_ref::<CelTimestamp>() {
        write!(text, "{}", value.inner().to_rfc3339())
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        text.push('[');
        for (index, element) in list.inner().iter().enumerate() {
            text.push_str(if index > 0 { "," } else { "" });
            write_value(element.as_ref(), text);
        }
        write!(text, "]")
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        let mut members: Vec<(String, &dyn Val)> =
            map.inner().iter().take(1_000).map(|(key, value)| (render(key.inner()), value.as_ref())).collect();
        members.sort_by(|a, b| a.0.cmp(&b.0));
        text.push('{');
        for (index, (name, member)) in members.into_iter().enumerate() {
            if text.len() > VALUE_BYTES_MAX {
                break;
            }
            text.push_str(if index > 0 { "," } else { "" });
            text.push_str(&name);
            text.push(':');
            write_value(member, text);
        }
        write!(text, "}}")
    } else {
        write!(text, "({})", value.get_type().name())
    };
}

/// Where the nodes of an expression stand; the same text always gives the same ids.
fn places(source: &str) -> Option<SourceInfo> {
    let parse = || Parser::new().parse_with_source_info(source).ok().map(|(_, places)| places);
    // On a stack of its own, as compiling.
    std::thread::scope(|scope| {
        let parsing = std::thread::Builder::new().stack_size(compile::STACK_BYTES).spawn_scoped(scope, parse);
        parsing.ok()?.join().ok()?
    })
}

/// The whole of a part of an expression whose tokens lie from `from` to `to`: with the name before a bracket or behind a dot, and with
/// the brackets that it opens.
fn whole_span(characters: &[char], from: usize, to: usize) -> (usize, usize) {
    let in_name = |at: usize| characters.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    let mut start = from;
    if characters.get(start) == Some(&'(') {
        while start > 0 && in_name(start - 1) {
            start -= 1;
        }
    }
    let (mut at, mut open) = (start, 0_usize);
    let mut end = start;
    while at < characters.len() {
        if at > to && open == 0 && !(in_name(at) && (in_name(at - 1) || characters[at - 1] == '.')) {
            break;
        }
        match characters[at] {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' if open == 0 => break,
            ')' | ']' | '}' => open -= 1,
            '"' | '\'' => {
                let raw = compile::preceded_by_raw_prefix(characters, at);
                at = compile::end_of_string(characters, at, raw);
                end = at;
                continue;
            }
            _ => {}
        }
        at += 1;
        end = at;
    }
    (start, end.min(characters.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{Data, Event, Lineage};
    use crate::domain::event_type::EventTypeName;
    use crate::domain::ids::EventId;
    use bytes::Bytes;

    fn explained(source: &str, data: &'static str) -> Explanation {
        let id = EventId(uuid::Uuid::from_u128(7));
        let event = Event {
            id,
            event_type: EventTypeName::parse("CUSTOM_ORDER").expect("a name"),
            schema_version: 0,
            source: "/orders".to_owned(),
            subject: None,
            time: chrono::DateTime::from_timestamp(1_700_000_000, 0).expect("a time"),
            content_type: None,
            extensions: Vec::new(),
            data: Data::Text(Bytes::from_static(data.as_bytes())),
            lineage: Lineage::root(id),
        };
        Filter::parse(source).expect(source).explain(&FilterContext::new(&event))
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
            (
                "data.s.matches('^b')",
                r#"{"s": "abc"}"#,
                "data.s.matches('^b')",
                (1, 21),
                vec![pair("data.s", "\"abc\"")],
            ),
            ("data.l[1] == 'x'", r#"{"l": [1, "y"]}"#, "data.l[1] == 'x'", (1, 17), vec![pair("data.l[1]", "\"y\"")]),
            (
                "event.type == 'OTHER'",
                "{}",
                "event.type == 'OTHER'",
                (1, 22),
                vec![pair("event.type", "\"CUSTOM_ORDER\"")],
            ),
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
            assert_eq!(
                (found.expression.as_str(), found.columns, found.error),
                (expression, columns, None),
                "{source}"
            );
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
}
