//! Why a filter does not match an event: the sub-expressions that decide it, where they stand, and the values they had.
//!
//! A path of its own beside `matches`: it parses the source again to know where everything stands, and evaluates part by part, each once,
//! under the budget of one evaluation; what it tells of the operands has another. It is the only thing here that shows the event's data, and is meant for those who may read the event.

use super::cost::{Budget, CHARGE, MATCHES, RANGE};
use super::{EvaluationError, Filter, FilterContext, Scope, compile};
use cel::common::ast::{CallExpr, Expr, IdedExpr, SourceInfo, operators};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelNull, CelString, CelTimestamp, CelUInt,
};
use cel::common::value::Val;
use cel::parser::Parser;
use cel::{Context, Value};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How many sub-expressions are told.
const DECIDING_MAX: usize = 16;
/// How many operands of one are told.
const OPERANDS_MAX: usize = 8;
/// How long a value is told, in bytes.
const VALUE_BYTES_MAX: usize = 200;

/// Said of what cannot be found out any more.
const TOO_COSTLY: &str = "too costly to explain further";

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
    /// Why it has no value, or why that was not found out; none where it is simply not true.
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
        // What is told besides must not use up what finding out takes.
        let scopes = [(); 2].map(|()| Scope { program, context, budget: Budget::new() });
        let mut variables = [(); 2].map(|()| Context::with_env(Arc::clone(compile::environment())));
        variables.iter_mut().zip(&scopes).for_each(|(variables, scope)| variables.set_variable_resolver(scope));
        let [finding, telling] = [0, 1].map(|at| (&variables[at], &scopes[at].budget));
        let mut search =
            Search { filter: self, finding, telling, places: &places, known: HashMap::new(), found: Vec::new() };
        // First what decides the whole, in the order of matching, so that there is enough for it where there was enough to match.
        search.came(&program.expression);
        search.decide(&program.expression);
        search.found
    }
}

/// What a part of the expression came to.
#[derive(Clone, PartialEq, Eq)]
enum Came {
    True,
    False,
    /// No boolean.
    Other,
    Failed(String),
    /// The budget is spent.
    Unknown,
}

/// Variables, and the budget that they are evaluated under.
type Evaluating<'s, 'e> = (&'s Context<'s, 'e>, &'s Budget);

struct Search<'s, 'e> {
    filter: &'s Filter,
    /// What finding out is evaluated with, and what telling is.
    finding: Evaluating<'s, 'e>,
    telling: Evaluating<'s, 'e>,
    places: &'s SourceInfo,
    /// What the parts came to that are no combination of others, so that each is evaluated once.
    known: HashMap<*const IdedExpr, Came>,
    found: Vec<Deciding>,
}

impl Search<'_, '_> {
    /// What a part comes to: as matching would evaluate it, and with no part evaluated twice.
    fn came(&mut self, node: &IdedExpr) -> Came {
        if let Expr::Call(call) = &node.expr {
            match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::LOGICAL_AND, [left, right]) => return self.either(left, right, &Came::False),
                (operators::LOGICAL_OR, [left, right]) => return self.either(left, right, &Came::True),
                (operators::CONDITIONAL, [condition, yes, no]) => {
                    return match self.came(condition) {
                        Came::True => self.came(yes),
                        Came::False => self.came(no),
                        neither => neither,
                    };
                }
                _ => {}
            }
        }
        if let Some(known) = self.known.get(&std::ptr::from_ref(node)) {
            return known.clone();
        }
        let (variables, budget) = self.finding;
        let value = if budget.is_exhausted() { None } else { Some(Value::resolve_val(node, variables)) };
        let came = match value.filter(|_| !budget.is_exhausted()) {
            None => Came::Unknown,
            Some(Err(error)) => Came::Failed(self.filter.explain_error(&error)),
            Some(Ok(value)) => match value.downcast_ref::<CelBool>().map(|value| *value.inner()) {
                Some(true) => Came::True,
                Some(false) => Came::False,
                None => Came::Other,
            },
        };
        self.known.insert(std::ptr::from_ref(node), came.clone());
        came
    }

    /// What two sides come to of which one that comes to `enough` decides, whatever the other is.
    fn either(&mut self, left: &IdedExpr, right: &IdedExpr, enough: &Came) -> Came {
        let left = self.came(left);
        if left == *enough {
            return left;
        }
        let right = self.came(right);
        match (left, right) {
            (_, right) if right == *enough => right,
            (Came::Unknown, _) | (_, Came::Unknown) => Came::Unknown,
            (Came::True | Came::False, right) => right,
            (left, _) => left,
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
                let is_false = sides.iter().any(|(_, came)| *came == Came::False);
                let decides = |came: &Came| if is_false { *came == Came::False } else { *came != Came::True };
                sides.iter().filter(|(_, came)| decides(came)).for_each(|(side, _)| self.decide(side));
            }
            (operators::LOGICAL_OR, [left, right]) => {
                self.decide(left);
                self.decide(right);
            }
            (operators::CONDITIONAL, [condition, yes, no]) => match self.came(condition) {
                Came::True => self.decide(yes),
                Came::False => self.decide(no),
                Came::Other | Came::Failed(_) | Came::Unknown => self.decide(condition),
            },
            _ => self.leaf(node),
        }
    }

    fn leaf(&mut self, node: &IdedExpr) {
        let came = self.came(node);
        let mut parts: Vec<&IdedExpr> = Vec::new();
        match &unwrapped(node).expr {
            _ if came == Came::Unknown => {}
            Expr::Call(call) => operands(call, &mut parts),
            // What it is charged for is going through it.
            Expr::Comprehension(comprehension) => parts.push(unwrapped(&comprehension.iter_range)),
            Expr::Select(select) if select.test => parts.push(&select.operand),
            Expr::Literal(_) => {}
            _ => parts.push(node),
        }
        parts.truncate(OPERANDS_MAX);
        let operands = parts.into_iter().filter_map(|part| {
            let (from, to) = self.span(part)?;
            Some((self.text(from, to), self.value(part)))
        });
        let operands = operands.collect();
        let error = match came {
            Came::Failed(error) => Some(error),
            Came::Unknown => Some(TOO_COSTLY.to_owned()),
            Came::True | Came::False | Came::Other => None,
        };
        let length = self.filter.source.chars().count();
        let (from, to) = self.span(node).unwrap_or((0, length));
        self.found.push(Deciding { expression: self.text(from, to), columns: (from + 1, to + 1), error, operands });
    }

    /// The value of an operand, or why it has none.
    fn value(&self, part: &IdedExpr) -> String {
        let (variables, budget) = self.telling;
        let value = if budget.is_exhausted() { None } else { Some(Value::resolve_val(part, variables)) };
        match value.filter(|_| !budget.is_exhausted()) {
            None => format!("({TOO_COSTLY})"),
            Some(Ok(value)) => render(value.as_ref()),
            Some(Err(error)) => format!("({})", self.filter.explain_error(&error)),
        }
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
        let parsing = std::thread::Builder::new().stack_size(super::deep::STACK_BYTES).spawn_scoped(scope, parse);
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
mod tests;
