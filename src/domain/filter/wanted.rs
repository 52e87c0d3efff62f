//! Whether an expression can have a value of the kind that is wanted at all: a filter that is never true or false would never match,
//! a key that is never a string, an integer or a boolean would order nothing, and both are refused when they are saved.
//!
//! CEL is typed at run time here, so this refuses only what is certain from the expression alone: literals, arithmetic, conversions,
//! and whatever is combined of them. What comes out of the payload may be anything.

use cel::common::ast::{ComprehensionExpr, Expr, IdedExpr, LiteralValue, operators};

/// What an expression is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A filter: true or false.
    Boolean,
    /// An ordering key: a string, an integer or a boolean.
    Key,
}

/// Operators whose value has the kind of their operands, and is never a boolean.
const ARITHMETIC: [&str; 6] = [
    operators::ADD,
    operators::SUBSTRACT,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::NEGATE,
];
/// Functions and methods whose value is a string or an integer.
const KEYS: [&str; 14] = [
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "int",
    "size",
    "string",
    "uint",
];
/// Functions whose value is neither a boolean nor a key.
const OTHERS: [&str; 5] = ["bytes", "double", "duration", "timestamp", "type"];
/// Attributes that are texts where an event has them.
const TEXTS: [&str; 5] = ["datacontenttype", "id", "source", "subject", "type"];

/// The node that can never be what is wanted of it; none where all may be.
pub(super) fn never(wanted: Wanted, node: &IdedExpr) -> Option<u64> {
    let is_key = wanted == Wanted::Key;
    match &node.expr {
        Expr::Literal(LiteralValue::Boolean(_)) | Expr::Unspecified => None,
        Expr::Literal(LiteralValue::String(_) | LiteralValue::Int(_) | LiteralValue::UInt(_)) if is_key => None,
        Expr::Literal(_) | Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => Some(node.id),
        Expr::Ident(name) => (name == "event" || super::compile::TYPES.contains(&name.as_str())).then_some(node.id),
        Expr::Select(select) => {
            let of_event = matches!(&select.operand.expr, Expr::Ident(name) if name == "event");
            let is_text = TEXTS.contains(&select.field.as_str());
            (!select.test && of_event && (select.field == "time" || is_text && !is_key)).then_some(node.id)
        }
        Expr::Call(call) => {
            let name = call.func_name.as_str();
            match name {
                operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT => {
                    call.args.iter().find_map(|operand| never(Wanted::Boolean, operand))
                }
                operators::CONDITIONAL => match call.args.as_slice() {
                    [condition, one, other] => {
                        // A value that is right for one of the two is enough.
                        never(Wanted::Boolean, condition)
                            .or_else(|| never(wanted, one).and_then(|_| never(wanted, other)))
                    }
                    _ => None,
                },
                _ if is_key && ARITHMETIC.contains(&name) => {
                    call.args.iter().find_map(|operand| never(wanted, operand))
                }
                _ if is_key => OTHERS.contains(&name).then_some(node.id),
                _ => [&ARITHMETIC[..], &KEYS, &OTHERS].iter().any(|names| names.contains(&name)).then_some(node.id),
            }
        }
        Expr::Comprehension(comprehension) => never(wanted, result(comprehension)).map(|_| node.id),
    }
}

/// What a comprehension ends with: `all` and `exists` with a condition, `map` and `filter` with the list they have gathered.
fn result(comprehension: &ComprehensionExpr) -> &IdedExpr {
    match &comprehension.result.expr {
        Expr::Ident(name) if *name == comprehension.accu_var => &comprehension.accu_init,
        _ => &comprehension.result,
    }
}
