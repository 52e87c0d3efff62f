//! The system catalogue: event types that exist in every tenant, built in or declared by the operator in a file.
//!
//! Built once when the process starts and never changed. `file` reads the declarations, `nearest` finds what a wrong name was meant to be.

mod file;
mod nearest;

use super::event_type::{CompiledSchema, EventType, EventTypeName, SchemaVersion};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One system event type with its one schema version.
#[derive(Debug, Clone)]
pub struct SystemEventType {
    /// The catalogue's entry.
    pub event_type: EventType,
    /// Its schema, version 1.
    pub schema: Option<(SchemaVersion, CompiledSchema)>,
}

/// Every system event type, by name. Immutable for the life of the process.
#[derive(Debug, Default)]
pub struct Catalogue {
    types: BTreeMap<EventTypeName, Arc<SystemEventType>>,
}

/// Why an operator's file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// The file is not TOML, or has unknown or missing keys.
    #[error("line {line}: {message}")]
    Syntax {
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A field of an entry has a wrong value.
    #[error("event type {entry} ({name}): {field}: {message}")]
    Field {
        /// The entry's place in the file, from 1.
        entry: usize,
        /// The entry's name, as written.
        name: String,
        /// The field.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl Catalogue {
    /// The built-in types.
    pub fn builtin() -> Self {
        let mut catalogue = Self::default();
        catalogue.add(include_str!("system.toml")).expect("the built-in catalogue is read by a test");
        catalogue
    }

    /// The built-in types and the operator's.
    ///
    /// Errors: what is not a catalogue, names that are kept for tenants or that exist already, and schemas that do not compile.
    pub fn with_operator_file(text: &str) -> Result<Self, CatalogueError> {
        let mut catalogue = Self::builtin();
        catalogue.add(text)?;
        Ok(catalogue)
    }

    /// The type of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<SystemEventType>> {
        self.types.get(name)
    }

    /// True for those of them that tell of a subscription.
    pub fn tells_of_subscriptions(name: &str) -> bool {
        let prefixes = ["SUBSCRIPTION_", "INVOCATION", "CHAIN_"];
        Self::is_carillons_own(name) && prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    /// True for the types that Carillon itself publishes, and nobody else may.
    pub fn is_carillons_own(name: &str) -> bool {
        matches!(
            name,
            "SUBSCRIPTION_CREATED"
                | "SUBSCRIPTION_UPDATED"
                | "SUBSCRIPTION_CIRCUIT_CLOSED"
                | "SUBSCRIPTION_CIRCUIT_OPENED"
                | "SUBSCRIPTION_DISABLED"
                | "SUBSCRIPTION_DELETED"
                | "INVOCATION_DEAD_LETTERED"
                | "CHAIN_BUDGET_EXHAUSTED"
                | "INVOCATIONS_EXPIRED"
                | "DELAYED_EVENT_ABORTED"
                | "EVENT_TYPE_CREATED"
                | "EVENT_TYPE_UPDATED"
                | "EVENT_TYPE_DELETED"
        )
    }

    /// Every type, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<SystemEventType>> {
        self.types.values()
    }

    /// At most `count` (and never more than five) of the candidates that `name` may have been meant to be, the most similar first.
    pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>, count: usize) -> Vec<String> {
        nearest::nearest(name, candidates, count)
    }

    fn add(&mut self, text: &str) -> Result<(), CatalogueError> {
        for (index, declared) in file::parse(text)?.into_iter().enumerate() {
            let name = declared.event_type.name.clone();
            if self.types.contains_key(&name) {
                return Err(CatalogueError::Field {
                    entry: index + 1,
                    name: name.to_string(),
                    field: "name",
                    message: "exists already".to_owned(),
                });
            }
            self.types.insert(name, Arc::new(declared));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event_type::{Origin, Phase};
    use chrono::DateTime;

    fn entry(name: &str, more: &str) -> String {
        format!(
            "[[event_type]]\nname = \"{name}\"\nphase = \"POST\"\ndisplay_name = \"A name\"\ndescription = \"What happened.\"\n{more}\n"
        )
    }

    #[test]
    fn the_builtin_types_are_complete() {
        let catalogue = Catalogue::builtin();
        assert_eq!(catalogue.iter().count(), 41);
        for declared in catalogue.iter() {
            let event_type = &declared.event_type;
            let name = event_type.name.as_str();
            assert_eq!(event_type.origin, Origin::System, "{name}");
            assert_eq!(event_type.phase == Phase::Pre, name.starts_with("PRE_"), "{name}");
            assert_eq!(event_type.created_at, DateTime::UNIX_EPOCH, "{name}");
            assert_eq!((event_type.updated_at, event_type.deleted_at), (DateTime::UNIX_EPOCH, None), "{name}");
            assert!(!event_type.display_name.is_empty() && !event_type.description.is_empty(), "{name}");
            let (document, compiled) = declared.schema.as_ref().unwrap_or_else(|| panic!("{name} has a schema"));
            assert_eq!((event_type.latest_schema, document.version, compiled.version), (1, 1, 1), "{name}");
            assert!(compiled.schema.validate(b"{}").is_err(), "{name} requires what identifies its subject");
        }
        let file = catalogue.get("FILE_FINALIZED").expect("built in");
        let schema = &file.schema.as_ref().expect("has a schema").1.schema;
        assert_eq!(schema.validate(br#"{"bucket": "b", "path": "p", "more": 1}"#), Ok(()));
        assert!(catalogue.get("file_finalized").is_none());
    }

    #[test]
    fn nobody_can_hold_up_carillons_own_events() {
        let catalogue = Catalogue::builtin();
        let own: Vec<_> =
            catalogue.iter().filter(|system| Catalogue::is_carillons_own(system.event_type.name.as_str())).collect();
        assert_eq!(own.len(), 13);
        assert!(own.iter().all(|system| system.event_type.phase == crate::domain::event_type::Phase::Post));
        let again = "[[event_type]]\nname = \"SUBSCRIPTION_DISABLED\"\nphase = \"PRE\"\ndisplay_name = \"x\"\ndescription = \"x\"\n";
        assert!(Catalogue::with_operator_file(again).is_err(), "an operator cannot declare one anew");
        assert!(Catalogue::with_operator_file(&again.replace("DISABLED", "PAUSED")).is_ok(), "the text is fine");
    }

    #[test]
    fn the_example_of_an_operators_file_is_read() {
        let text = include_str!("../../../docs/examples/catalogue.toml");
        let catalogue = Catalogue::with_operator_file(text).expect("the example is right");
        assert_eq!(catalogue.get("PRE_ORDER_PLACED").expect("declared").event_type.phase, Phase::Pre);
        assert!(catalogue.get("ORDER_PLACED").is_some() && catalogue.get("FILE_DELETED").is_some());
        assert_eq!(Catalogue::with_operator_file("").expect("nothing is fine").iter().count(), 41);
    }

    #[test]
    fn a_type_without_a_schema_takes_any_data() {
        let catalogue = Catalogue::with_operator_file(&entry("ORDER_PLACED", "")).expect("schema is optional");
        let declared = catalogue.get("ORDER_PLACED").expect("declared");
        assert!(declared.schema.is_none());
        assert_eq!(declared.event_type.latest_schema, 0);
    }

    #[test]
    fn what_is_wrong_is_named_by_entry_and_field() {
        let good = entry("ORDER_PLACED", "");
        let field = |text: &str| match Catalogue::with_operator_file(text).expect_err(text) {
            CatalogueError::Field { entry, name, field, .. } => (entry, name, field),
            CatalogueError::Syntax { line, message } => panic!("{line}: {message}"),
        };
        for (text, entry_no, name, wrong) in [
            (entry("CUSTOM_X", ""), 1, "CUSTOM_X", "name"),
            (entry("9X", ""), 1, "9X", "name"),
            (entry("FILE_DELETED", ""), 1, "FILE_DELETED", "name"),
            (format!("{good}{good}"), 2, "ORDER_PLACED", "name"),
            (format!("{good}{}", entry("B", "").replace("POST", "DURING")), 2, "B", "phase"),
            (entry("B", "").replace("A name", ""), 1, "B", "display_name"),
            (entry("B", "").replace("A name", &"x".repeat(300)), 1, "B", "display_name"),
            (entry("B", "").replace("A name", "A\\nname"), 1, "B", "display_name"),
            (entry("B", "").replace("What happened.", " "), 1, "B", "description"),
            (entry("B", "").replace("What happened.", "\\u001b[2J"), 1, "B", "description"),
            (entry("B", "schema = '{'"), 1, "B", "schema"),
            (entry("B", "schema = '{\"type\": \"strin\"}'"), 1, "B", "schema"),
            (entry("B", "schema = '{\"$ref\": \"https://example.org/\"}'"), 1, "B", "schema"),
        ] {
            assert_eq!(field(&text), (entry_no, name.to_owned(), wrong), "{text}");
        }
    }

    #[test]
    fn unknown_and_missing_keys_and_broken_toml_are_refused_with_the_line() {
        for (text, line) in [
            (entry("B", "colour = 'red'"), 6),
            (format!("version = 1\n{}", entry("B", "")), 1),
            ("[[event_type]]\nname = \"B\"\n".to_owned(), 1),
            ("[[event_type]]\nname = \n".to_owned(), 2),
            (entry("B", "").replace("\"A name\"", "7"), 4),
        ] {
            match Catalogue::with_operator_file(&text).expect_err(&text) {
                CatalogueError::Syntax { line: found, message } => {
                    assert_eq!(found, line, "{text}: {message}");
                    assert!(!message.is_empty() && !message.contains('\n'), "{message}");
                }
                CatalogueError::Field { .. } => panic!("{text}"),
            }
        }
    }
}
