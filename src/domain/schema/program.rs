//! What a schema document compiles to: one node for each subschema that a check can meet, however many references lead there.

use super::asserted::Asserted;
use super::compatibility::Decimal;
use super::patterns::Pattern;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Where a node is in [`Program::nodes`].
pub(super) type NodeId = usize;

/// A compiled document.
#[derive(Default)]
pub(super) struct Program {
    /// The first one is the document's root.
    pub nodes: Vec<Node>,
    /// Where dynamic references lead, by the resource and the name that stand there.
    pub anchors: HashMap<(usize, usize), NodeId>,
    /// About what it takes in memory, but for its expressions.
    pub memory_bytes: usize,
}

/// A compiled subschema.
#[derive(Default)]
pub(super) struct Node {
    /// Where it is: a JSON pointer into the document, or the URI of what is elsewhere.
    pub pointer: Box<str>,
    /// The resource that it stands in: the document, or one within it that has an identifier of its own.
    pub resource: usize,
    pub checks: Vec<Check>,
    /// Asked once all others have said what they looked at.
    pub unevaluated_items: Option<NodeId>,
    pub unevaluated_properties: Option<NodeId>,
}

/// One keyword, or some that are judged together.
pub(super) enum Check {
    /// The schema `false`.
    Never,
    Type(Vec<Type>),
    Const(Value),
    /// Texts apart, which are looked up.
    Enum {
        texts: HashSet<Box<str>>,
        others: Vec<Value>,
        shown: Box<str>,
    },
    Bound(Bound, Decimal, Box<str>),
    MultipleOf(Decimal, Box<str>),
    Length(Bound, u64),
    Pattern(Pattern),
    /// What looks at texts and stands alone.
    Asserted(&'static str, Arc<Asserted>),
    Items(Bound, u64),
    Properties(Bound, u64),
    Unique,
    Required(Vec<Box<str>>),
    Members(Members),
    Elements(Elements),
    Contains(Contains),
    Names(NodeId),
    DependentRequired(&'static str, Vec<(Box<str>, Vec<Box<str>>)>),
    DependentSchemas(Vec<(Box<str>, NodeId)>),
    Reference(NodeId),
    /// Where the name is none's, it is an ordinary reference.
    Dynamic {
        usual: NodeId,
        name: Option<usize>,
    },
    All(Vec<NodeId>),
    Any(Vec<NodeId>),
    One(Vec<NodeId>),
    Not(NodeId),
    If {
        condition: NodeId,
        then: Option<NodeId>,
        otherwise: Option<NodeId>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Type {
    Null,
    Boolean,
    Integer,
    Number,
    Text,
    Array,
    Object,
}

impl Type {
    /// As `type` names it.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "string" => Self::Text,
            "array" => Self::Array,
            "object" => Self::Object,
            _ => return None,
        })
    }

    /// Its name in `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Text => "string",
            Self::Array => "array",
            Self::Object => "object",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    Least,
    Most,
    /// Numbers alone have these.
    Above,
    Below,
}

#[derive(Default)]
pub(super) struct Members {
    pub named: HashMap<Box<str>, NodeId>,
    pub patterns: Vec<(Pattern, NodeId)>,
    pub additional: Option<NodeId>,
}

pub(super) struct Elements {
    pub first: Vec<NodeId>,
    pub rest: Option<NodeId>,
}

pub(super) struct Contains {
    pub node: NodeId,
    pub least: u64,
    pub most: Option<u64>,
    /// By `minContains`.
    pub is_least_given: bool,
}
