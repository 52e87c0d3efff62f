//! Administration between proto and domain: tenants, apps, API keys, publisher identities and audit records.

use super::FieldError;
use super::event_type::mask_error;
use crate::domain::access::Role;
use crate::domain::event_type::EventTypePattern;
use crate::domain::quotas::Quota;
use crate::proto::internal as proto;
use pbjson_types::FieldMask;

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

/// What a request changes of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantPatch {
    /// Its name for people, as sent.
    pub display_name: Option<String>,
    /// Quotas to set, or to leave to the server again.
    pub quotas: Vec<(Quota, Option<u64>)>,
}

/// Reads what an UpdateTenant request changes; an empty mask means what is set.
pub fn parse_tenant_patch(tenant: &proto::Tenant, mask: Option<&FieldMask>) -> Result<TenantPatch, FieldError> {
    let sent = tenant.quotas.unwrap_or_default();
    let mut patch = TenantPatch::default();
    let mut chosen = Vec::new();
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    for path in paths {
        match path.as_str() {
            "display_name" => patch.display_name = Some(tenant.display_name.clone()),
            "quotas" => chosen.extend(Quota::ALL),
            // The whole of it, as AIP-134 has it.
            "*" => {
                patch.display_name = Some(tenant.display_name.clone());
                chosen.extend(Quota::ALL);
            }
            other => match other.strip_prefix("quotas.").and_then(Quota::of_name) {
                Some(quota) => chosen.push(quota),
                None => return Err(mask_error(other, "display_name, quotas and its fields, or * for all of them")),
            },
        }
    }
    if paths.is_empty() {
        patch.display_name = Some(tenant.display_name.clone()).filter(|name| !name.is_empty());
        chosen.extend(Quota::ALL.into_iter().filter(|quota| quota_of_proto(&sent, *quota).is_some()));
    }
    for quota in chosen {
        patch.quotas.push((quota, parse_quota(quota, quota_of_proto(&sent, quota))?));
    }
    Ok(patch)
}

fn parse_quota(quota: Quota, value: Option<i64>) -> Result<Option<u64>, FieldError> {
    let Some(value) = value else { return Ok(None) };
    let bounds = quota.bounds();
    let fits = u64::try_from(value).ok().filter(|value| bounds.contains(value));
    let wrong = || {
        let rule = format!("must be {} to {}", bounds.start(), bounds.end());
        FieldError::new(format!("tenant.quotas.{}", quota.name()), rule)
    };
    fits.map(Some).ok_or_else(wrong)
}

/// What is set of a quota.
pub fn quota_of_proto(quotas: &proto::TenantQuotas, quota: Quota) -> Option<i64> {
    match quota {
        Quota::PublishEventsPerSecond => quotas.publish_events_per_second,
        Quota::PublishEventsBurst => quotas.publish_events_burst,
        Quota::PublishBytesPerSecond => quotas.publish_bytes_per_second,
        Quota::PublishBytesBurst => quotas.publish_bytes_burst,
        Quota::EventBytes => quotas.event_bytes_max,
        Quota::Backlog => quotas.backlog_max,
        Quota::Subscriptions => quotas.subscriptions_max,
        Quota::Watches => quotas.watches_max,
    }
}

/// Quotas as proto.
pub fn quotas_to_proto(value: impl Fn(Quota) -> Option<u64>) -> proto::TenantQuotas {
    let value = |quota| value(quota).and_then(|value| i64::try_from(value).ok());
    proto::TenantQuotas {
        publish_events_per_second: value(Quota::PublishEventsPerSecond),
        publish_events_burst: value(Quota::PublishEventsBurst),
        publish_bytes_per_second: value(Quota::PublishBytesPerSecond),
        publish_bytes_burst: value(Quota::PublishBytesBurst),
        event_bytes_max: value(Quota::EventBytes),
        backlog_max: value(Quota::Backlog),
        subscriptions_max: value(Quota::Subscriptions),
        watches_max: value(Quota::Watches),
    }
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
    fn a_mask_chooses_quotas_and_one_that_is_left_unset_goes_back_to_the_servers() {
        let quotas = proto::TenantQuotas { backlog_max: Some(5), ..Default::default() };
        let tenant = proto::Tenant { quotas: Some(quotas), ..Default::default() };
        let patch = |paths: &[&str]| {
            let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
            parse_tenant_patch(&tenant, Some(&mask))
        };
        let only = vec![(Quota::Backlog, Some(5))];
        assert_eq!(parse_tenant_patch(&tenant, None).unwrap().quotas, only);
        assert_eq!(patch(&["quotas.backlog_max"]).unwrap().quotas, only);
        assert_eq!(patch(&["quotas.watches_max"]).unwrap().quotas, [(Quota::Watches, None)]);
        assert_eq!(patch(&["quotas"]).unwrap().quotas.len(), Quota::ALL.len());
        let whole = patch(&["*"]).unwrap();
        assert_eq!((whole.display_name.as_deref(), whole.quotas.len()), (Some(""), Quota::ALL.len()));
        for wrong in ["slug", "quotas.", "quotas.other", "effective_quotas"] {
            assert_eq!(patch(&[wrong]).unwrap_err().field, "update_mask", "{wrong}");
        }
        for value in [0, -1, i64::MAX] {
            let quotas = proto::TenantQuotas { backlog_max: Some(value), ..Default::default() };
            let tenant = proto::Tenant { quotas: Some(quotas), ..Default::default() };
            assert_eq!(parse_tenant_patch(&tenant, None).unwrap_err().field, "tenant.quotas.backlog_max");
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
