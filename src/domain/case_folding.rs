//! What a regular expression that ignores case costs to read: the other cases of a large class are looked up for one character after the
//! other, which takes milliseconds for each.

use regex_syntax::ast::{self, Ast, ClassPerlKind, ClassSetBinaryOp, ClassSetItem, Flag, Flags};
use std::convert::Infallible;

/// A range of more characters is a large class.
const RANGE_LARGE: u32 = 1_000;

/// How many large classes an expression has, where it ignores case anywhere.
pub(super) fn large_folded(expression: &Ast) -> usize {
    let Ok(classes) = ast::visit(expression, Folded::default());
    classes
}

/// Counts the large classes of a pattern that ignores case somewhere, and whatever else classes are made of that must be folded by itself.
#[derive(Default)]
struct Folded {
    ignores_case: bool,
    classes: usize,
}

impl Folded {
    fn flags(&mut self, flags: &Flags) {
        self.ignores_case |= flags.flag_state(Flag::CaseInsensitive) == Some(true);
    }
}

impl ast::Visitor for Folded {
    type Output = usize;
    type Err = Infallible;

    fn finish(self) -> Result<usize, Infallible> {
        Ok(if self.ignores_case { self.classes } else { 0 })
    }

    fn visit_pre(&mut self, node: &Ast) -> Result<(), Infallible> {
        match node {
            Ast::Flags(set) => self.flags(&set.flags),
            Ast::Group(group) => group.flags().into_iter().for_each(|flags| self.flags(flags)),
            Ast::ClassUnicode(_) => self.classes += 1,
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Infallible> {
        let is_large = match item {
            ClassSetItem::Unicode(_) | ClassSetItem::Bracketed(_) => true,
            ClassSetItem::Perl(class) => class.negated || class.kind == ClassPerlKind::Word,
            ClassSetItem::Range(range) => u32::from(range.end.c) - u32::from(range.start.c) > RANGE_LARGE,
            _ => false,
        };
        self.classes += usize::from(is_large);
        Ok(())
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), Infallible> {
        self.classes += 1;
        Ok(())
    }
}
