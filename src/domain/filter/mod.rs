//! Filters: a CEL expression over one event that decides whether a subscription fires or a watch delivers.
//!
//! Sits between the registry, which keeps filters, and matching, which evaluates all filters of an event over one
//! [`FilterContext`]. `compile` bounds and rewrites an expression when it is saved, `values` turns an event into CEL values, `cost`
//! holds the functions that bound an evaluation. Nothing here may panic, overflow the stack or take long, whatever the expression
//! and the payload; and no text that leaves here may repeat the payload.
//!
//! An expression reads `event` (`id`, `source`, `type`, `time`, and `subject`, `datacontenttype` and the extension attributes where
//! the event has them) and `data`, the payload as JSON (null where there is none or it is not JSON). JSON integers are `int` where they
//! fit 64 bits, every other number is `double`. Functions and macros are those of the CEL standard library.

mod compile;
mod cost;
mod deep;
mod explain;
mod key;
mod pattern;
mod values;
mod wanted;

use super::event::Event;
use cel::common::ast::IdedExpr;
use cel::common::types::CelBool;
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, ExecutionError, Value};
use cost::Budget;
pub use explain::{Deciding, Explanation};
pub use key::OrderingKey;
use pattern::Pattern;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long an expression may be, in bytes.
pub const SOURCE_BYTES_MAX: usize = 4096;
/// How deep brackets may be nested in an expression.
pub const NESTING_MAX: usize = 32;
/// How many elements a list or map may have that `all`, `exists`, `exists_one`, `filter` or `map` goes through.
pub const ELEMENTS_MAX: usize = 10_000;

/// A filter. Cheap to clone, and compiled once for all clones; the source is kept as written.
#[derive(Clone)]
pub struct Filter {
    source: Arc<str>,
    /// Empty until it is compiled; none where it cannot be.
    program: Arc<OnceLock<Option<Program>>>,
}

/// Makes ready for compiling, once at the start of the process. Panics where there is no thread for it.
pub fn prepare() {
    deep::prepare();
}

/// Where an expression comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// From a caller: every bound holds.
    Caller,
    /// It was accepted before it was stored: what an earlier release accepted goes on to work.
    Store,
}

/// What an expression is compiled to.
struct Program {
    expression: IdedExpr,
    patterns: Vec<Pattern>,
    references_data: bool,
    /// The column of what makes it impossible that the value is a boolean.
    never_boolean: Option<usize>,
    /// The same for a string, an integer or a boolean.
    never_key: Option<usize>,
}

/// Why a filter is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct FilterError {
    /// 1-based column, in characters from the start, of the first thing that is wrong.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// Why a filter could not be evaluated over an event; counts as no match. The text never repeats the event's data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EvaluationError(pub String);

/// One event made ready for any number of filters. Values are made when a filter first asks for them, the payload is parsed once.
pub struct FilterContext<'e> {
    event: &'e Event,
    attributes: OnceLock<Box<dyn Val + 'e>>,
    /// With how long it took to read.
    data: OnceLock<(Box<dyn Val + 'e>, Duration)>,
}

impl Filter {
    /// Compiles and bounds an expression.
    ///
    /// Errors: with the column, for what is not CEL, for unknown names and functions, and for what is beyond the bounds: the length,
    /// the nesting, one comprehension inside another, the number of operators, and patterns that are not literals or are too large;
    /// for what can never be true or false.
    pub fn parse(source: &str) -> Result<Self, FilterError> {
        let refusal = "is never true or false: a filter's value must be a boolean";
        Self::parse_unless(source, |program| program.never_boolean, refusal)
    }

    /// The same for an ordering key.
    ///
    /// Errors: those of [`Filter::parse`], the last for what can never be a string, an integer or a boolean.
    pub fn parse_key(source: &str) -> Result<Self, FilterError> {
        let refusal = "is never a string, an integer or a boolean: an ordering key's value must be";
        Self::parse_unless(source, |program| program.never_key, refusal)
    }

    fn parse_unless(source: &str, never: fn(&Program) -> Option<usize>, refusal: &str) -> Result<Self, FilterError> {
        let program = compile(source, Origin::Caller)?;
        match never(&program) {
            None => Ok(Self { source: source.into(), program: Arc::new(OnceLock::from(Some(program))) }),
            Some(column) => Err(FilterError { column, message: refusal.to_owned() }),
        }
    }

    /// A filter or key that was parsed before it was stored. It is compiled when it is first evaluated: most of what is read back never
    /// is, and whoever evaluates takes turns with others, while whoever reads does not.
    pub fn stored(source: &str) -> Self {
        Self { source: source.into(), program: Arc::default() }
    }

    /// Whether it need not be compiled any more.
    pub fn is_compiled(&self) -> bool {
        self.program.get().is_some()
    }

    /// Whether both are one, compiled once.
    #[cfg(test)]
    pub fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.program, &other.program)
    }

    /// Compiles it, unless that was done before.
    pub fn compile(&self) {
        self.program();
    }

    /// Whether it can be compiled: what another release has stored may not.
    pub fn compiles(&self) -> bool {
        self.program().is_some()
    }

    /// None where it cannot be compiled.
    fn program(&self) -> Option<&Program> {
        self.program.get_or_init(|| compile(&self.source, Origin::Store).ok()).as_ref()
    }

    /// The expression as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// True where the expression reads the payload.
    pub fn references_data(&self) -> bool {
        self.program().is_some_and(|program| program.references_data)
    }

    /// Evaluates it over one event.
    ///
    /// Errors: a missing key, operands of the wrong type, a division by zero, an overflow, a value that is not a boolean, or an
    /// evaluation that costs too much.
    pub fn matches(&self, context: &FilterContext<'_>) -> Result<bool, EvaluationError> {
        self.evaluate(context, |value| {
            let matched = value.downcast_ref::<CelBool>().map(|matched| *matched.inner());
            matched.ok_or_else(|| EvaluationError("the filter's value is not a boolean".to_owned()))
        })
    }

    /// Evaluates it and hands its value on. Whatever panics in it is an error.
    fn evaluate<T>(
        &self,
        context: &FilterContext<'_>,
        take: impl FnOnce(&CowVal<'_, '_>) -> Result<T, EvaluationError>,
    ) -> Result<T, EvaluationError> {
        let evaluation = || {
            let program =
                self.program().ok_or_else(|| EvaluationError("the expression cannot be compiled".to_owned()))?;
            let scope = Scope { program, context, budget: Budget::new() };
            let mut variables = Context::with_env(Arc::clone(compile::environment()));
            variables.set_variable_resolver(&scope);
            let value = Value::resolve_val(&program.expression, &variables);
            if scope.budget.is_exhausted() {
                return Err(EvaluationError("the evaluation costs too much over this event".to_owned()));
            }
            match value {
                Ok(value) => take(&value),
                Err(error) => Err(EvaluationError(self.explain_error(&error))),
            }
        };
        catch_unwind(AssertUnwindSafe(evaluation))
            .unwrap_or_else(|_| Err(EvaluationError("the expression cannot be evaluated over this event".to_owned())))
    }

    /// What went wrong, in words that come from the expression and from types alone.
    fn explain_error(&self, error: &ExecutionError) -> String {
        match error {
            // A key that was computed from the payload is not named.
            ExecutionError::NoSuchKey(key) if self.source.contains(key.as_str()) => format!("no such key: {key}"),
            ExecutionError::NoSuchKey(_) => "no such key".to_owned(),
            ExecutionError::NoSuchOverload(overload) => overload.to_string().replace("@in", "in"),
            ExecutionError::UndeclaredReference(name) => format!("unknown name {name}"),
            ExecutionError::UnexpectedType { got, want } => format!("found {got} where {want} is needed"),
            ExecutionError::UnsupportedBinaryOperator(operator, ..) => {
                format!("operator {operator} does not apply to these operands")
            }
            ExecutionError::ValuesNotComparable(..) => "the operands cannot be compared".to_owned(),
            ExecutionError::UnsupportedIndex(..) | ExecutionError::UnsupportedKeyType(_) => {
                "the value cannot be used as a key or index".to_owned()
            }
            // The names of those that `compile` writes into an expression begin with @.
            ExecutionError::FunctionError { function, .. } if !function.starts_with('@') => {
                format!("function {function} failed")
            }
            ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
            ExecutionError::RemainderByZero(_) => "remainder by zero".to_owned(),
            ExecutionError::Overflow(operator, ..) => format!("overflow in operator {operator}"),
            ExecutionError::IndexOutOfBounds(_) => "index out of bounds".to_owned(),
            _ => "the expression cannot be evaluated over this event".to_owned(),
        }
    }
}

impl<'e> FilterContext<'e> {
    /// Takes an event; nothing is computed yet.
    pub fn new(event: &'e Event) -> Self {
        Self { event, attributes: OnceLock::new(), data: OnceLock::new() }
    }

    /// The variable `event`.
    fn attributes(&self) -> &(dyn Val + 'e) {
        self.attributes.get_or_init(|| values::attributes(self.event)).as_ref()
    }

    /// The variable `data`.
    fn data(&self) -> &(dyn Val + 'e) {
        let read = || {
            let began = Instant::now();
            (values::data(self.event), began.elapsed())
        };
        self.data.get_or_init(read).0.as_ref()
    }

    /// How long it took to read the payload. Work that is done in pieces reads it anew in each, so each goes on for as long besides.
    pub fn reading(&self) -> Duration {
        self.data.get().map_or(Duration::ZERO, |(_, took)| *took)
    }
}

fn compile(source: &str, origin: Origin) -> Result<Program, FilterError> {
    // The parser is a dependency and the text is a stranger's: a panic there is a refusal, not the end of the task.
    catch_unwind(|| compile::compile(source, origin))
        .unwrap_or_else(|_| Err(FilterError { column: 1, message: "the expression cannot be compiled".to_owned() }))
}

/// The variables of one evaluation: the event's, and what `compile` wrote into the expression.
struct Scope<'f, 'e> {
    program: &'f Program,
    context: &'f FilterContext<'e>,
    budget: Budget,
}

impl VariableResolver for Scope<'_, '_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "data" => Some(CowVal::Borrowed(self.context.data())),
            "event" => Some(CowVal::Borrowed(self.context.attributes())),
            // Qualified names are asked for as a whole first: the attributes most filters read need no map.
            "event.source" => Some(values::text(&self.context.event.source)),
            "event.type" => Some(values::text(self.context.event.event_type.as_str())),
            "event.subject" => self.context.event.subject.as_deref().map(values::text),
            cost::BUDGET => Some(CowVal::Borrowed(&self.budget)),
            _ => {
                let index: usize = variable.strip_prefix(cost::PATTERN)?.parse().ok()?;
                self.program.patterns.get(index).map(|pattern| CowVal::Borrowed(pattern as &dyn Val))
            }
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.source).finish()
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

#[cfg(test)]
mod tests;
