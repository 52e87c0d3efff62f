//! Administration between proto and domain: tenants, apps, API keys, publisher identities and audit records.

use super::FieldError;
use crate::domain::access::Role;
use crate::domain::event_type::EventTypePattern;
use crate::proto::internal as proto;

/// Patterns of one publisher identity at most.
const EVENT_TYPES_MAX: usize = 64;
/// Longest subject alternative name.
const SUBJECT_BYTES_MAX: usize = 512;

/// Reads a required role.
pub fn parse_role(field: &str, value: i32) -> Result<Role, FieldError> {
    match proto::Role::try_from(value) {
        Ok(proto::Role::Viewer) => Ok(Role::Viewer),
        Ok(proto::Role::Subscriber) => Ok(Role::Subscriber),
        Ok(proto::Role::Developer) => Ok(Role::Developer),
        Ok(proto::Role::Admin) => Ok(Role::Admin),
        Ok(proto::Role::Unspecified) | Err(_) => Err(FieldError::new(field, "is required and must be a known role")),
    }
}

/// A role as proto.
pub fn role_to_proto(role: Role) -> proto::Role {
    match role {
        Role::Viewer => proto::Role::Viewer,
        Role::Subscriber => proto::Role::Subscriber,
        Role::Developer => proto::Role::Developer,
        Role::Admin => proto::Role::Admin,
    }
}

/// Reads a certificate's name: `uri:` with a scheme, or `dns:` with a host name, of printable ASCII.
pub fn parse_subject(field: &str, value: String) -> Result<String, FieldError> {
    let wrong = |description: &str| Err(FieldError::new(field, description));
    if value.len() > SUBJECT_BYTES_MAX {
        return wrong("must be at most 512 bytes");
    }
    let graphic = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    match value.split_once(':') {
        Some(("uri", uri)) if graphic(uri) && uri.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)) => {
            Ok(value)
        }
        Some(("dns", name)) if graphic(name) && name.bytes().all(is_host_byte) => Ok(value),
        _ => wrong("must be uri:<URI> or dns:<host name>"),
    }
}

/// Reads the names and prefixes that an identity may publish.
pub fn parse_event_types(field: &str, values: &[String]) -> Result<Vec<EventTypePattern>, FieldError> {
    if values.len() > EVENT_TYPES_MAX {
        return Err(FieldError::new(field, "must have at most 64 entries"));
    }
    let parse = |(index, text): (usize, &String)| {
        EventTypePattern::parse(text).map_err(|error| FieldError::new(format!("{field}[{index}]"), error.to_string()))
    };
    values.iter().enumerate().map(parse).collect()
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// Wildcards are no host's name: names are compared byte for byte.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_whole_uris_or_host_names() {
        for good in ["uri:spiffe://carillon.dev/orders", "uri:urn:x:y", "dns:orders.example", "dns:a_b-c.d"] {
            assert_eq!(parse_subject("subject", good.to_owned()).unwrap(), good);
        }
        let long = format!("dns:{}", "a".repeat(600));
        for bad in [
            "",
            "uri:",
            "uri:nothing",
            "uri:://x",
            "dns:",
            "dns:*.example",
            "dns:a b",
            "cn:x",
            "orders",
            "dns:é",
            &long,
        ] {
            assert!(parse_subject("subject", bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn event_type_patterns_name_the_entry_that_is_wrong() {
        let texts = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
        assert_eq!(parse_event_types("event_types", &texts(&["A", "B*", "*"])).unwrap().len(), 3);
        let error = parse_event_types("event_types", &texts(&["A", "*B"])).unwrap_err();
        assert_eq!(error.field, "event_types[1]");
        assert!(parse_event_types("event_types", &vec!["A".to_owned(); 65]).is_err());
        assert!(parse_role("role", 0).is_err() && parse_role("role", 99).is_err());
    }
}
