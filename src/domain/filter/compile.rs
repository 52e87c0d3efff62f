//! From an expression's text to a program: bounds the text before the parser sees it, then checks and rewrites the tree.
//!
//! The rewriting puts the functions of `cost` around what can be expensive: the range of every comprehension, every path into the
//! event inside a comprehension, and every path where there are many of them. Patterns are compiled here, once.

use super::pattern::Patterns;
use super::wanted::{Wanted, never};
use super::{FilterError, NESTING_MAX, Origin, Program, SOURCE_BYTES_MAX};
use super::{cost, deep};
use cel::Env;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};
use cel::parser::Parser;
use std::sync::{Arc, LazyLock};

/// How many tokens an expression may have.
const TOKENS_MAX: usize = 1_500;
/// How many nodes the tree may have, macros expanded.
const NODES_MAX: usize = 1_024;
/// How many operators that group from one side an expression may have.
const OPERATORS_MAX: usize = 64;
/// How deep the tree may be; the evaluation recurses on the caller's stack.
const DEPTH_MAX: usize = 36;
/// How many `+` an expression may have: each can double what the next one copies.
const ADDITIONS_MAX: usize = 16;
/// How long a pattern may be, in bytes.
const PATTERN_BYTES_MAX: usize = 256;
/// How many patterns an expression may have.
const PATTERNS_MAX: usize = 16;
/// From how many paths into the event on each of them is charged.
const FREE_PATHS_MAX: usize = 16;

/// How deep brackets and operators may be nested for the parser to run on the caller's stack.
const IN_PLACE_MAX: usize = 4;

/// Functions that are called as `f(x)`, with how many arguments.
const FUNCTIONS: [(&str, &[usize]); 11] = [
    ("bool", &[1]),
    ("bytes", &[1]),
    ("double", &[1]),
    ("duration", &[1]),
    ("dyn", &[1]),
    ("int", &[1]),
    ("size", &[1]),
    ("string", &[1]),
    ("timestamp", &[1]),
    ("type", &[1]),
    ("uint", &[1]),
];

/// Functions that are called as `x.f()`, with how many arguments besides `x`.
const METHODS: [(&str, &[usize]); 14] = [
    ("contains", &[1]),
    ("endsWith", &[1]),
    ("getDate", &[0, 1]),
    ("getDayOfMonth", &[0, 1]),
    ("getDayOfWeek", &[0, 1]),
    ("getDayOfYear", &[0, 1]),
    ("getFullYear", &[0, 1]),
    ("getHours", &[0, 1]),
    ("getMilliseconds", &[0, 1]),
    ("getMinutes", &[0, 1]),
    ("getMonth", &[0, 1]),
    ("getSeconds", &[0, 1]),
    ("size", &[0]),
    ("startsWith", &[1]),
];

/// Names of types, for `type(x) == string`.
pub(super) const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// Macros that go through a list or a map.
const COMPREHENSIONS: [&str; 6] = ["all", "exists", "exists_one", "existsOne", "filter", "map"];

/// The environment every filter is evaluated in.
pub(super) fn environment() -> &'static Arc<Env> {
    static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
        let mut environment = Env::stdlib();
        cost::declare(&mut environment).expect("the names start with @, which no other function's does");
        Arc::new(environment)
    });
    &ENVIRONMENT
}

/// Compiles an expression.
pub(super) fn compile(source: &str, origin: Origin) -> Result<Program, FilterError> {
    let shape = scan(source)?;
    if shape.nesting <= IN_PLACE_MAX && shape.chain <= IN_PLACE_MAX {
        return compile_bounded(source, origin);
    }
    // The parser takes tens of kilobytes of stack for each level. What is allowed but unusual is compiled where there is a stack for it, so
    // that it cannot use up the caller's.
    let source = source.to_owned();
    let compiled = deep::run(move || compile_bounded(&source, origin));
    compiled.unwrap_or_else(|| Err(refuse(1, "the expression cannot be compiled")))
}

fn compile_bounded(source: &str, origin: Origin) -> Result<Program, FilterError> {
    let (mut expression, places) = Parser::new().parse_with_source_info(source).map_err(|errors| {
        let first = errors.errors.iter().min_by_key(|error| error.pos);
        first.map_or_else(
            || refuse(1, "is not an expression"),
            |error| FilterError { column: column(source, error.pos), message: syntax_message(&error.msg) },
        )
    })?;
    let patterns = Patterns::new(origin);
    let mut check = Check { places, patterns, nodes: 0, additions: 0, paths: 0, references_data: false };
    check.walk(&mut expression, &Place { depth: 0, variables: &[], in_body: false })?;
    let [never_boolean, never_key] =
        [Wanted::Boolean, Wanted::Key].map(|wanted| never(wanted, &expression).map(|id| check.column_of(id)));
    let charge_all = check.paths > FREE_PATHS_MAX;
    meter(&mut expression, charge_all, &[]);
    let (patterns, references_data) = (check.patterns.into_compiled(), check.references_data);
    Ok(Program { expression, patterns, references_data, never_boolean, never_key })
}

fn refuse(column: usize, message: impl Into<String>) -> FilterError {
    FilterError { column, message: message.into() }
}

/// How much the parser will have to recurse.
struct Shape {
    nesting: usize,
    chain: usize,
}

/// Bounds the text before the parser, which recurses, reads it.
fn scan(source: &str) -> Result<Shape, FilterError> {
    if source.len() > SOURCE_BYTES_MAX {
        let column = source.char_indices().take_while(|(at, _)| *at < SOURCE_BYTES_MAX).count() + 1;
        return Err(refuse(column, format!("is longer than {SOURCE_BYTES_MAX} bytes")));
    }
    let characters: Vec<char> = source.chars().collect();
    // Nowhere, not even in a string: Postgres does not store it.
    if let Some(at) = characters.iter().position(|character| *character == '\0') {
        return Err(refuse(at + 1, "must not contain the NUL character"));
    }
    let (mut at, mut nesting, mut tokens) = (0, 0_usize, 0);
    let mut shape = Shape { nesting: 0, chain: 0 };
    while let Some(&character) = characters.get(at) {
        let start = at;
        at += 1;
        if character.is_whitespace() {
            continue;
        }
        if character == '/' && characters.get(at) == Some(&'/') {
            at += characters[at..].iter().take_while(|c| **c != '\n').count();
            continue;
        }
        tokens += 1;
        if tokens > TOKENS_MAX {
            return Err(refuse(start + 1, "has too many operators and operands"));
        }
        match character {
            '(' | '[' | '{' => {
                nesting += 1;
                shape.nesting = shape.nesting.max(nesting);
                if nesting > NESTING_MAX {
                    return Err(refuse(start + 1, format!("brackets are nested more than {NESTING_MAX} deep")));
                }
            }
            ')' | ']' | '}' => nesting = nesting.saturating_sub(1),
            '"' | '\'' => {
                let raw = preceded_by_raw_prefix(&characters, start);
                at = end_of_string(&characters, start, raw);
            }
            c if c.is_alphanumeric() || c == '_' => {
                at += characters[at..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
            }
            _ => {}
        }
        // The parser nests one level deeper for every operator of a row that it groups from the left, and for every `? :`.
        match character {
            '+' | '-' | '*' | '/' | '%' | '?' => shape.chain += 1,
            _ => {}
        }
        if shape.chain > OPERATORS_MAX {
            return Err(refuse(start + 1, format!("has more than {OPERATORS_MAX} of + - * / % ?")));
        }
    }
    Ok(shape)
}

/// True where the quote at `quote` follows an `r` or `R` that is a prefix: `r"`, `br"`, `rb"`.
pub(super) fn preceded_by_raw_prefix(characters: &[char], quote: usize) -> bool {
    let prefix = characters[..quote].iter().rev().take_while(|c| c.is_alphanumeric() || **c == '_');
    let prefix: Vec<char> = prefix.map(char::to_ascii_lowercase).collect();
    matches!(prefix.as_slice(), ['r'] | ['r', 'b'] | ['b', 'r'])
}

/// The index behind a string literal that begins at `start`; the end of the text where it is not closed.
pub(super) fn end_of_string(characters: &[char], start: usize, raw: bool) -> usize {
    let quote = characters[start];
    let triple = characters[start..].iter().take(3).filter(|c| **c == quote).count() == 3;
    let width = if triple { 3 } else { 1 };
    let mut at = start + width;
    while at < characters.len() {
        if characters[at] == '\\' && !raw {
            at += 2;
        } else if characters[at..].iter().take(width).filter(|c| **c == quote).count() == width {
            return at + width;
        } else {
            at += 1;
        }
    }
    characters.len()
}

/// The column of the parser's line and column, in characters from the start of the text.
fn column(source: &str, (line, column): (isize, isize)) -> usize {
    let lines = usize::try_from(line - 1).unwrap_or(0);
    let before: usize = source.split_inclusive('\n').take(lines).map(|line| line.chars().count()).sum();
    (before + usize::try_from(column).unwrap_or(1).max(1)).min(source.chars().count() + 1)
}

/// The parser's message, which is text of its own and of the expression, without its habit of listing every possible token, and what it
/// thinks of a literal.
fn syntax_message(message: &str) -> String {
    let short = message.split(" expecting ").next().unwrap_or_default().trim();
    let short =
        short.split_once(" literal: ").map_or_else(|| short.to_owned(), |(which, _)| format!("{which} literal"));
    let short: String = short.chars().filter(|c| !c.is_control()).take(200).collect();
    if short.is_empty() || short == "UNKNOWN" { "is not an expression".to_owned() } else { short }
}

/// Where in the tree a node is.
struct Place<'a> {
    depth: usize,
    /// The loop variables that can be seen from here.
    variables: &'a [String],
    /// Inside what a comprehension does for each element.
    in_body: bool,
}

/// What is counted on the way through the tree.
struct Check {
    places: SourceInfo,
    patterns: Patterns,
    nodes: usize,
    additions: usize,
    paths: usize,
    references_data: bool,
}

impl Check {
    /// The column of a node.
    fn column(&self, node: &IdedExpr) -> usize {
        self.column_of(node.id)
    }

    fn column_of(&self, id: u64) -> usize {
        // The parser counts bytes from 0.
        let start = self.places.offset_for(id).map_or(0, |(start, _)| start as usize);
        self.places.source.char_indices().take_while(|(at, _)| *at < start).count() + 1
    }

    fn walk(&mut self, node: &mut IdedExpr, place: &Place<'_>) -> Result<(), FilterError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX || place.depth > DEPTH_MAX {
            return Err(refuse(self.column(node), "is too large"));
        }
        let deeper = Place { depth: place.depth + 1, ..*place };
        let column = self.column(node);
        match &mut node.expr {
            Expr::Unspecified => Err(refuse(column, "is not an expression")),
            Expr::Struct(_) => Err(refuse(column, "messages cannot be made")),
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.name(name, column, place),
            Expr::Select(select) => self.walk(&mut select.operand, &deeper),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.walk(element, &deeper)),
            Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.walk(&mut entry.key, &deeper)?;
                    self.walk(&mut entry.value, &deeper)
                }
                EntryExpr::StructField(_) => Err(refuse(column, "messages cannot be made")),
            }),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, column, place),
            Expr::Call(call) => self.call(call, column, &deeper),
        }
    }

    fn name(&mut self, name: &str, column: usize, place: &Place<'_>) -> Result<(), FilterError> {
        if place.variables.iter().any(|variable| variable == name) || TYPES.contains(&name) {
            return Ok(());
        }
        match name {
            "data" => self.references_data = true,
            "event" => {}
            _ => {
                let name: String = name.chars().take(40).collect();
                return Err(refuse(column, format!("unknown name {name}: event and data can be read")));
            }
        }
        self.paths += 1;
        Ok(())
    }

    fn comprehension(
        &mut self,
        comprehension: &mut ComprehensionExpr,
        column: usize,
        place: &Place<'_>,
    ) -> Result<(), FilterError> {
        if place.in_body {
            return Err(refuse(column, "one comprehension (all, exists, exists_one, filter, map) inside another"));
        }
        let variable = &comprehension.iter_var;
        if variable == "event" || variable == "data" || TYPES.contains(&variable.as_str()) {
            return Err(refuse(column, format!("{variable} cannot be the name of a loop's variable")));
        }
        let depth = place.depth + 1;
        self.walk(&mut comprehension.iter_range, &Place { depth, ..*place })?;
        let variables = [comprehension.iter_var.clone(), comprehension.accu_var.clone()];
        let body = Place { depth, variables: &variables, in_body: true };
        for part in [
            &mut comprehension.accu_init,
            &mut comprehension.loop_cond,
            &mut comprehension.loop_step,
            &mut comprehension.result,
        ] {
            self.walk(part, &body)?;
        }
        Ok(())
    }

    fn call(&mut self, call: &mut CallExpr, column: usize, deeper: &Place<'_>) -> Result<(), FilterError> {
        if let Some(target) = &mut call.target {
            self.walk(target, deeper)?;
        }
        call.args.iter_mut().try_for_each(|argument| self.walk(argument, deeper))?;
        if call.func_name == "matches" {
            return self.pattern(call, column);
        }
        if call.func_name == operators::ADD {
            // The addition with which `map` and `filter` gather their results costs nothing.
            let gathers =
                matches!(call.args.first().map(|arg| &arg.expr), Some(Expr::Ident(name)) if name == "@result");
            self.additions += usize::from(!gathers);
            if self.additions > ADDITIONS_MAX {
                return Err(refuse(column, format!("has more than {ADDITIONS_MAX} additions")));
            }
        }
        let name = call.func_name.as_str();
        // No name that can be written has these characters: they are operators.
        if name.starts_with('@') || name.contains(['_', '!']) && !name.chars().all(|c| c == '_' || c.is_alphanumeric())
        {
            return Ok(());
        }
        if COMPREHENSIONS.contains(&name) || name == "has" {
            return Err(refuse(column, format!("{name} is used with the wrong arguments")));
        }
        let known = if call.target.is_some() { &METHODS[..] } else { &FUNCTIONS[..] };
        match known.iter().find(|(known, _)| *known == name) {
            None => {
                let name: String = name.chars().take(40).collect();
                Err(refuse(column, format!("unknown function {name}")))
            }
            Some((_, counts)) if !counts.contains(&call.args.len()) => {
                Err(refuse(column, format!("{name} is called with the wrong number of arguments")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Replaces `text.matches('...')` by a call with the compiled pattern.
    fn pattern(&mut self, call: &mut CallExpr, column: usize) -> Result<(), FilterError> {
        let expected = if call.target.is_some() { 1 } else { 2 };
        if call.args.len() != expected {
            return Err(refuse(column, "matches is called with the wrong number of arguments"));
        }
        let Some(IdedExpr { id, expr: Expr::Literal(LiteralValue::String(pattern)) }) = call.args.pop() else {
            return Err(refuse(column, "the pattern of matches must be a literal string"));
        };
        let column = self.column_of(id);
        if pattern.inner().len() > PATTERN_BYTES_MAX {
            return Err(refuse(column, format!("the pattern is longer than {PATTERN_BYTES_MAX} bytes")));
        }
        if self.patterns.len() == PATTERNS_MAX {
            return Err(refuse(column, format!("has more than {PATTERNS_MAX} patterns")));
        }
        let variable = ident(id, format!("{}{}", cost::PATTERN, self.patterns.len()));
        self.patterns.add(pattern.inner()).map_err(|message| refuse(column, message))?;
        let text = call.target.take().map(|target| *target).or_else(|| call.args.pop());
        cost::MATCHES.clone_into(&mut call.func_name);
        call.args = text.into_iter().chain([variable, ident(id, cost::BUDGET.to_owned())]).collect();
        Ok(())
    }
}

/// Writes the charges into the tree. `variables` are the loop's, empty outside of a comprehension's body.
fn meter(node: &mut IdedExpr, charge_all: bool, variables: &[String]) {
    if is_path(node, variables) {
        meter_indexes(node, charge_all, variables);
        if charge_all || !variables.is_empty() {
            wrap(node, cost::CHARGE, &[1]);
        }
        return;
    }
    match &mut node.expr {
        // What `has` asks for costs the same wherever it is, and may be absent.
        Expr::Select(select) if select.test && is_path(&select.operand, variables) => {}
        Expr::Select(select) => meter(&mut select.operand, charge_all, variables),
        Expr::List(list) => list.elements.iter_mut().for_each(|element| meter(element, charge_all, variables)),
        Expr::Map(map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    meter(&mut entry.key, charge_all, variables);
                    meter(&mut entry.value, charge_all, variables);
                }
            }
        }
        Expr::Call(call) => {
            let parts = call.target.as_deref_mut().into_iter().chain(&mut call.args);
            parts.for_each(|part| meter(part, charge_all, variables));
        }
        Expr::Comprehension(comprehension) => {
            let (nodes, uses) = count(&comprehension.loop_step, &comprehension.iter_var);
            // The range's own charge covers what it costs to read it.
            if is_path(&comprehension.iter_range, variables) {
                meter_indexes(&mut comprehension.iter_range, charge_all, variables);
            } else {
                meter(&mut comprehension.iter_range, charge_all, variables);
            }
            wrap(&mut comprehension.iter_range, cost::RANGE, &[uses, nodes]);
            let variables = [comprehension.iter_var.clone(), comprehension.accu_var.clone()];
            meter(&mut comprehension.loop_step, charge_all, &variables);
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

/// True for `data`, `event` and what is selected or indexed from them.
fn is_path(node: &IdedExpr, variables: &[String]) -> bool {
    match &node.expr {
        Expr::Ident(name) => (name == "data" || name == "event") && !variables.contains(name),
        Expr::Select(select) => !select.test && is_path(&select.operand, variables),
        Expr::Call(call) => {
            call.func_name == operators::INDEX && call.args.first().is_some_and(|first| is_path(first, variables))
        }
        _ => false,
    }
}

/// Writes the charges into the indexes of a path.
fn meter_indexes(node: &mut IdedExpr, charge_all: bool, variables: &[String]) {
    match &mut node.expr {
        Expr::Select(select) => meter_indexes(&mut select.operand, charge_all, variables),
        Expr::Call(call) => {
            if let [base, index] = call.args.as_mut_slice() {
                meter_indexes(base, charge_all, variables);
                meter(index, charge_all, variables);
            }
        }
        _ => {}
    }
}

/// Replaces a node by a call of one of `cost`'s functions on it.
fn wrap(node: &mut IdedExpr, function: &str, numbers: &[i64]) {
    let id = node.id;
    let numbers =
        numbers.iter().map(|number| IdedExpr { id, expr: Expr::Literal(LiteralValue::Int((*number).into())) });
    let wrapped = std::mem::take(node);
    let args = [wrapped].into_iter().chain(numbers).chain([ident(id, cost::BUDGET.to_owned())]).collect();
    *node = IdedExpr { id, expr: Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args }) };
}

fn ident(id: u64, name: String) -> IdedExpr {
    IdedExpr { id, expr: Expr::Ident(name) }
}

/// How many nodes a loop's step has, and how many of them are its variable.
fn count(node: &IdedExpr, variable: &str) -> (i64, i64) {
    let sum = |parts: &mut dyn Iterator<Item = &IdedExpr>| {
        parts.map(|part| count(part, variable)).fold((1, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
    };
    match &node.expr {
        Expr::Ident(name) => (1, i64::from(name == variable)),
        Expr::Select(select) => sum(&mut [select.operand.as_ref()].into_iter()),
        Expr::List(list) => sum(&mut list.elements.iter()),
        Expr::Map(map) => sum(&mut map.entries.iter().flat_map(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
            EntryExpr::StructField(field) => vec![&field.value],
        })),
        Expr::Call(call) => sum(&mut call.target.as_deref().into_iter().chain(&call.args)),
        Expr::Comprehension(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => (1, 0),
    }
}
