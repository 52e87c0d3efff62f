//! Event types, schemas and subscribers between proto and domain.

use super::FieldError;
use super::time::timestamp_to_proto;
use crate::domain::event_type::{EventType, EventTypeName, Origin, Phase, SchemaVersion};
use crate::domain::schema::Violation;
use crate::domain::schema::compatibility::{Break, Compatibility, Direction};
use crate::domain::subscription::Subscription;
use crate::proto::public as proto;
use pbjson_types::FieldMask;

/// Largest schema document, bytes.
pub const SCHEMA_BYTES_MAX: usize = 256 * 1024;

/// A CreateEventType request whose fields are well formed; the schema is still to be compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedCreate {
    /// Starts with `CUSTOM_`.
    pub name: EventTypeName,
    /// When its listeners run.
    pub phase: Phase,
    /// Name for people.
    pub display_name: String,
    /// What it means.
    pub description: String,
    /// The document of its first schema version.
    pub schema: Option<String>,
    /// What a further version must keep.
    pub compatibility: Compatibility,
}

/// What an UpdateEventType request changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventTypePatch {
    /// Name for people.
    pub display_name: Option<String>,
    /// What it means.
    pub description: Option<String>,
    /// What a further schema version must keep.
    pub compatibility: Option<Compatibility>,
}

/// Checks the fields of a CreateEventType request.
pub fn parse_create(request: proto::CreateEventTypeRequest) -> Result<ParsedCreate, FieldError> {
    let proto::CreateEventTypeRequest { name, phase, display_name, description, schema, request_id: _, compatibility } =
        request;
    let name = parse_name("name", &name)
        .and_then(|_| EventTypeName::parse_custom(&name).map_err(|error| FieldError::new("name", error.to_string())))?;
    let phase = match proto::EventPhase::try_from(phase) {
        Ok(proto::EventPhase::Pre) => Phase::Pre,
        Ok(proto::EventPhase::Post | proto::EventPhase::Unspecified) => Phase::Post,
        Err(_) => return Err(FieldError::new("phase", "is not a known phase")),
    };
    let display_name = super::display_name("display_name", display_name)?;
    let description = super::description("description", description)?;
    let display_name = if display_name.is_empty() { name.as_str().to_owned() } else { display_name };
    let compatibility = parse_compatibility("compatibility", compatibility)?.unwrap_or(Compatibility::None);
    let schema = (!schema.is_empty()).then_some(schema);
    Ok(ParsedCreate { name, phase, display_name, description, schema, compatibility })
}

/// Checks a compatibility mode; none where it is left out.
pub fn parse_compatibility(field: &str, mode: i32) -> Result<Option<Compatibility>, FieldError> {
    match proto::SchemaCompatibility::try_from(mode) {
        Ok(proto::SchemaCompatibility::Unspecified) => Ok(None),
        Ok(proto::SchemaCompatibility::None) => Ok(Some(Compatibility::None)),
        Ok(proto::SchemaCompatibility::Backward) => Ok(Some(Compatibility::Backward)),
        Ok(proto::SchemaCompatibility::Forward) => Ok(Some(Compatibility::Forward)),
        Ok(proto::SchemaCompatibility::Full) => Ok(Some(Compatibility::Full)),
        Err(_) => Err(FieldError::new(field, "is not a known mode")),
    }
}

/// Checks an event type's name where one is selected.
pub fn parse_name(field: &str, name: &str) -> Result<EventTypeName, FieldError> {
    if name.is_empty() {
        return Err(FieldError::new(field, "is required"));
    }
    EventTypeName::parse(name).map_err(|error| FieldError::new(field, error.to_string()))
}

/// Checks what an UpdateEventType request changes; an empty mask means the fields that are set.
pub fn parse_patch(event_type: proto::EventType, mask: Option<&FieldMask>) -> Result<EventTypePatch, FieldError> {
    let proto::EventType { display_name, description, compatibility, .. } = event_type;
    let paths: Vec<&str> = mask.map(|mask| mask.paths.iter().map(String::as_str).collect()).unwrap_or_default();
    let (mut name_chosen, mut description_chosen, mut mode_chosen) = (false, false, false);
    for path in &paths {
        match *path {
            "display_name" => name_chosen = true,
            "description" => description_chosen = true,
            "compatibility" => mode_chosen = true,
            // The whole of it, as AIP-134 has it.
            "*" => (name_chosen, description_chosen, mode_chosen) = (true, true, true),
            other => return Err(mask_error(other, "display_name, description, compatibility, or * for all of them")),
        }
    }
    if paths.is_empty() {
        (name_chosen, description_chosen) = (!display_name.is_empty(), !description.is_empty());
        mode_chosen = compatibility != 0;
    }
    let mut patch = EventTypePatch::default();
    if name_chosen {
        patch.display_name = Some(super::display_name("event_type.display_name", display_name)?);
    }
    if description_chosen {
        patch.description = Some(super::description("event_type.description", description)?);
    }
    if mode_chosen {
        let mode = parse_compatibility("event_type.compatibility", compatibility)?;
        patch.compatibility = Some(mode.unwrap_or(Compatibility::None));
    }
    Ok(patch)
}

/// Says that a mask's path cannot be updated.
pub(super) fn mask_error(path: &str, allowed: &str) -> FieldError {
    let shown: String = path.chars().filter(|c| !c.is_control()).take(64).collect();
    FieldError::new("update_mask", format!("the path {shown:?} cannot be updated; these can: {allowed}"))
}

/// Checks an optional origin filter.
pub fn parse_origin(field: &str, origin: i32) -> Result<Option<Origin>, FieldError> {
    match proto::EventTypeOrigin::try_from(origin) {
        Ok(proto::EventTypeOrigin::Unspecified) => Ok(None),
        Ok(proto::EventTypeOrigin::System) => Ok(Some(Origin::System)),
        Ok(proto::EventTypeOrigin::Custom) => Ok(Some(Origin::Custom)),
        Err(_) => Err(FieldError::new(field, "is not a known origin")),
    }
}

/// An event type as the API shows it. `registry_version` is that of its last change, none for a system type.
pub fn to_proto(event_type: &EventType, registry_version: Option<i64>) -> proto::EventType {
    let origin = match event_type.origin {
        Origin::System => proto::EventTypeOrigin::System,
        Origin::Custom => proto::EventTypeOrigin::Custom,
    };
    let phase = match event_type.phase {
        Phase::Pre => proto::EventPhase::Pre,
        Phase::Post => proto::EventPhase::Post,
    };
    let state = match event_type.deleted_at {
        None => proto::EventTypeState::Active,
        Some(_) => proto::EventTypeState::Deleted,
    };
    // A system type exists in every tenant from the start, so it has no times of its own.
    let own = event_type.origin == Origin::Custom;
    proto::EventType {
        name: event_type.name.as_str().to_owned(),
        origin: origin.into(),
        phase: phase.into(),
        display_name: event_type.display_name.clone(),
        description: event_type.description.clone(),
        state: state.into(),
        latest_schema_version: event_type.latest_schema,
        create_time: own.then(|| timestamp_to_proto(event_type.created_at)),
        update_time: own.then(|| timestamp_to_proto(event_type.updated_at)),
        delete_time: event_type.deleted_at.map(timestamp_to_proto),
        etag: registry_version.map(|version| version.to_string()).unwrap_or_default(),
        compatibility: compatibility_to_proto(event_type.compatibility).into(),
    }
}

/// A compatibility mode as the API shows it.
pub fn compatibility_to_proto(mode: Compatibility) -> proto::SchemaCompatibility {
    match mode {
        Compatibility::None => proto::SchemaCompatibility::None,
        Compatibility::Backward => proto::SchemaCompatibility::Backward,
        Compatibility::Forward => proto::SchemaCompatibility::Forward,
        Compatibility::Full => proto::SchemaCompatibility::Full,
    }
}

/// A place where two schema versions are not compatible, as the API shows it.
pub fn break_to_proto(found: Break) -> proto::SchemaBreak {
    let direction = match found.direction {
        Direction::Backward => proto::SchemaCompatibility::Backward,
        Direction::Forward => proto::SchemaCompatibility::Forward,
    };
    proto::SchemaBreak {
        direction: direction.into(),
        pointer: found.pointer,
        previous_pointer: found.previous_pointer,
        message: found.message,
        undecided: found.undecided,
    }
}

/// A schema version as the API shows it.
pub fn schema_to_proto(schema: &SchemaVersion, origin: Origin) -> proto::EventTypeSchema {
    proto::EventTypeSchema {
        version: schema.version,
        schema: schema.document.clone(),
        create_time: (origin == Origin::Custom).then(|| timestamp_to_proto(schema.created_at)),
    }
}

/// A subscription as the catalogue shows it.
pub fn subscriber_to_proto(subscription: &Subscription) -> proto::Subscriber {
    proto::Subscriber {
        subscription_id: subscription.id.to_string(),
        app: subscription.app_slug.clone(),
        target_kind: subscription.target.kind().to_owned(),
        display_name: subscription.display_name.clone(),
    }
}

/// A violation as the API shows it.
pub fn violation_to_proto(violation: Violation) -> proto::SchemaViolation {
    let Violation { data_pointer, schema_pointer, message } = violation;
    proto::SchemaViolation { data_pointer, schema_pointer, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> proto::CreateEventTypeRequest {
        proto::CreateEventTypeRequest { name: "CUSTOM_ORDER".to_owned(), ..Default::default() }
    }

    #[test]
    fn a_bare_create_gets_the_documented_defaults() {
        let parsed = parse_create(create()).expect("a valid request");
        assert_eq!((parsed.phase, parsed.display_name.as_str(), parsed.schema), (Phase::Post, "CUSTOM_ORDER", None));
    }

    #[test]
    fn every_bad_field_of_a_create_is_named() {
        let field = |request| parse_create(request).expect_err("a bad request").field;
        for name in ["", "USER_CREATE", "CUSTOM_", "CUSTOM_ä", "CUSTOM_\0", &format!("CUSTOM_{}", "x".repeat(122))] {
            assert_eq!(field(proto::CreateEventTypeRequest { name: name.to_owned(), ..create() }), "name", "{name:?}");
        }
        assert_eq!(field(proto::CreateEventTypeRequest { phase: 9, ..create() }), "phase");
        assert_eq!(field(proto::CreateEventTypeRequest { compatibility: 9, ..create() }), "compatibility");
        let long = "x".repeat(129);
        assert_eq!(field(proto::CreateEventTypeRequest { display_name: long, ..create() }), "display_name");
        assert_eq!(field(proto::CreateEventTypeRequest { description: "\0".to_owned(), ..create() }), "description");
    }

    #[test]
    fn a_mask_chooses_and_an_empty_one_means_what_is_set() {
        let sent = || proto::EventType { display_name: "New".to_owned(), ..Default::default() };
        let patch = |paths: &[&str]| {
            let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
            parse_patch(sent(), Some(&mask))
        };
        let named = EventTypePatch { display_name: Some("New".to_owned()), ..EventTypePatch::default() };
        assert_eq!(parse_patch(sent(), None), Ok(named.clone()));
        assert_eq!(patch(&[]), Ok(named));
        let cleared = EventTypePatch { description: Some(String::new()), ..EventTypePatch::default() };
        assert_eq!(patch(&["description"]), Ok(cleared));
        let undemanding = EventTypePatch { compatibility: Some(Compatibility::None), ..EventTypePatch::default() };
        assert_eq!(patch(&["compatibility"]), Ok(undemanding));
        let whole = EventTypePatch {
            display_name: Some("New".to_owned()),
            description: Some(String::new()),
            compatibility: Some(Compatibility::None),
        };
        assert_eq!(patch(&["*"]), Ok(whole));
        for path in ["name", "phase", "**", "displayName", "", "description.x"] {
            assert_eq!(patch(&[path]).expect_err("not updatable").field, "update_mask", "{path}");
        }
    }
}
