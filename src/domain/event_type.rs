//! Event types: names, patterns over names, and what the catalogue says of each.

use super::schema::Schema;
use super::schema::compatibility::Compatibility;
use chrono::{DateTime, Utc};
use std::fmt;
use std::sync::Arc;

/// Name of an event type: `[A-Za-z][A-Za-z0-9_.-]{0,127}`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventTypeName(Arc<str>);

/// A text that is not an event type's name or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The shape is wrong.
    #[error("must match [A-Za-z][A-Za-z0-9_.-]{{0,127}}")]
    Shape,
    /// A tenant's own type without the prefix.
    #[error("must start with CUSTOM_ and go on for 1 to 121 more characters of [A-Za-z0-9_.-]")]
    NotCustom,
    /// A system type with the tenants' prefix.
    #[error("must not start with CUSTOM_, which is kept for tenants")]
    NotSystem,
}

impl EventTypeName {
    /// What the names of tenants' own types start with.
    pub const CUSTOM_PREFIX: &'static str = "CUSTOM_";

    /// Parses any name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let mut bytes = text.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_alphabetic());
        let tail = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if head && tail && text.len() <= 128 { Ok(Self(text.into())) } else { Err(NameError::Shape) }
    }

    /// Parses a name that a tenant may declare.
    pub fn parse_custom(text: &str) -> Result<Self, NameError> {
        let name = Self::parse(text)?;
        if name.is_custom() && text.len() > Self::CUSTOM_PREFIX.len() { Ok(name) } else { Err(NameError::NotCustom) }
    }

    /// Parses a name that an operator may declare.
    pub fn parse_system(text: &str) -> Result<Self, NameError> {
        let name = Self::parse(text)?;
        if name.is_custom() { Err(NameError::NotSystem) } else { Ok(name) }
    }

    /// True for tenants' own types.
    pub fn is_custom(&self) -> bool {
        self.0.starts_with(Self::CUSTOM_PREFIX)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventTypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for EventTypeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Selects event types: a name, or a prefix that ends in `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventTypePattern {
    /// Exactly this type.
    Exact(EventTypeName),
    /// Every type whose name starts so; an empty prefix selects all.
    Prefix(String),
}

impl EventTypePattern {
    /// Parses a name or a prefix that ends in `*`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text.strip_suffix('*') {
            None => EventTypeName::parse(text).map(Self::Exact),
            Some("") => Ok(Self::Prefix(String::new())),
            Some(prefix) => EventTypeName::parse(prefix).map(|name| Self::Prefix(name.as_str().to_owned())),
        }
    }

    /// True where it selects the name.
    pub fn matches(&self, name: &EventTypeName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Prefix(prefix) => name.as_str().starts_with(prefix.as_str()),
        }
    }
}

impl fmt::Display for EventTypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Where an event type comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built in or declared by the operator; the same in every tenant.
    System,
    /// Declared by the tenant.
    Custom,
}

/// When listeners run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the event exists; any listener can abort it.
    Pre,
    /// After it is committed.
    Post,
}

/// What the catalogue says of an event type.
#[derive(Debug, Clone)]
pub struct EventType {
    /// Its name.
    pub name: EventTypeName,
    /// Where it comes from.
    pub origin: Origin,
    /// When its listeners run.
    pub phase: Phase,
    /// Name for people.
    pub display_name: String,
    /// What it means.
    pub description: String,
    /// The version Publish checks against by default; 0 for none.
    pub latest_schema: i32,
    /// What a further version of its schema must keep.
    pub compatibility: Compatibility,
    /// When it was declared; the epoch for built-in types.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was retired.
    pub deleted_at: Option<DateTime<Utc>>,
}

/// One immutable version of an event type's schema, with its document.
#[derive(Debug, Clone)]
pub struct SchemaVersion {
    /// 1 for the first.
    pub version: i32,
    /// The document as registered.
    pub document: String,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// A compiled schema version, shared by every publish that is checked against it.
#[derive(Debug, Clone)]
pub struct CompiledSchema {
    /// Its version.
    pub version: i32,
    /// The validator.
    pub schema: Arc<Schema>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_the_door() {
        assert!(EventTypeName::parse("USER_CREATE").is_ok());
        assert!(EventTypeName::parse("a.b-c_9").is_ok());
        let long = "x".repeat(129);
        for wrong in ["", " ", "9A", "A B", "A\0", "Á", "../x", "A\u{200b}", long.as_str()] {
            assert_eq!(EventTypeName::parse(wrong), Err(NameError::Shape), "{wrong:?}");
        }
        assert!(EventTypeName::parse_custom("CUSTOM_X").is_ok());
        assert_eq!(EventTypeName::parse_custom("CUSTOM_"), Err(NameError::NotCustom));
        assert_eq!(EventTypeName::parse_custom("USER_CREATE"), Err(NameError::NotCustom));
        assert_eq!(EventTypeName::parse_system("CUSTOM_X"), Err(NameError::NotSystem));
    }

    #[test]
    fn a_pattern_selects_a_name_or_a_prefix() {
        let name = EventTypeName::parse("USER_CREATE").expect("a valid name");
        let matches = |p: &str| EventTypePattern::parse(p).expect("a valid pattern").matches(&name);
        assert!(matches("USER_CREATE") && matches("USER_*") && matches("*"));
        assert!(!matches("USER") && !matches("FILE_*"));
        assert!(EventTypePattern::parse("USER_*_X").is_err());
    }
}
