//! Whether an expression can be true or false at all: one that never can would never match, and is refused when it is saved.
//!
//! CEL is typed at run time here, so this refuses only what is certain from the expression alone: literals, arithmetic, conversions,
//! and whatever is combined of them. What comes out of the payload may be a boolean.

use cel::common::ast::{ComprehensionExpr, Expr, IdedExpr, LiteralValue, operators};

/// Operators whose value is never a boolean.
const ARITHMETIC: [&str; 6] = [
    operators::ADD,
    operators::SUBSTRACT,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::NEGATE,
];
/// Functions and methods whose value is never a boolean.
const OTHERS: [&str; 19] = [
    "bytes",
    "double",
    "duration",
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
    "timestamp",
    "type",
    "uint",
];
/// Attributes that every event has, or that are texts or times where it has them.
const ATTRIBUTES: [&str; 6] = ["datacontenttype", "id", "source", "subject", "time", "type"];

/// The node that can never be a boolean where one is needed; none where all may be.
pub(super) fn never_boolean(node: &IdedExpr) -> Option<u64> {
    match &node.expr {
        Expr::Literal(LiteralValue::Boolean(_)) | Expr::Unspecified => None,
        Expr::Literal(_) | Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => Some(node.id),
        Expr::Ident(name) => (name == "event" || super::compile::TYPES.contains(&name.as_str())).then_some(node.id),
        Expr::Select(select) => {
            let of_event = matches!(&select.operand.expr, Expr::Ident(name) if name == "event");
            (!select.test && of_event && ATTRIBUTES.contains(&select.field.as_str())).then_some(node.id)
        }
        Expr::Call(call) => {
            let name = call.func_name.as_str();
            match name {
                operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT => {
                    call.args.iter().find_map(never_boolean)
                }
                operators::CONDITIONAL => match call.args.as_slice() {
                    [condition, one, other] => {
                        // A value that is right for one of the two is enough.
                        never_boolean(condition).or_else(|| never_boolean(one).and_then(|_| never_boolean(other)))
                    }
                    _ => None,
                },
                _ => (ARITHMETIC.contains(&name) || OTHERS.contains(&name)).then_some(node.id),
            }
        }
        Expr::Comprehension(comprehension) => never_boolean(result(comprehension)).map(|_| node.id),
    }
}

/// What a comprehension ends with: `all` and `exists` with a condition, `map` and `filter` with the list they have gathered.
fn result(comprehension: &ComprehensionExpr) -> &IdedExpr {
    match &comprehension.result.expr {
        Expr::Ident(name) if *name == comprehension.accu_var => &comprehension.accu_init,
        _ => &comprehension.result,
    }
}
