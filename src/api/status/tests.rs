//! Every reason has an error, its code is the proto file's, and no status grows beyond its bound.

use super::*;
use std::collections::HashMap;
use tonic_types::StatusExt as _;

const PROTO: &str = include_str!("../../../proto/carillon/v1/errors.proto");

/// (reason without its prefix, code) as the proto file has them.
fn annotated() -> HashMap<String, i32> {
    PROTO
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().strip_prefix("ERROR_REASON_")?.split_once(" = ")?;
            let code = rest.split_once("(grpc_code) = ")?.1.split_once(']')?.0.parse().ok()?;
            Some((name.to_owned(), code))
        })
        .collect()
}

fn text() -> String {
    "ы".repeat(2_000)
}

fn violation() -> FieldViolation {
    FieldViolation { field: text(), description: text() }
}

/// One of each variant, with texts as long as a hostile caller can make them.
fn one_of_each() -> Vec<(&'static str, ApiError)> {
    let schema = Violation { data_pointer: text(), schema_pointer: text(), message: text() };
    let broken = Break {
        direction: crate::domain::schema::compatibility::Direction::Backward,
        pointer: text(),
        previous_pointer: text(),
        message: text(),
        undecided: false,
    };
    let verdicts = vec![PreVerdict { subscription: text(), verdict: "REJECTED", description: text() }; 100];
    vec![
        ("FIELD_INVALID", ApiError::FieldInvalid { violations: vec![violation(); 100] }),
        ("FIELD_INVALID", ApiError::field("page_size", "must not be negative")),
        ("FILTER_INVALID", ApiError::FilterInvalid { field: text(), column: 7, message: text() }),
        ("PAGE_TOKEN_INVALID", ApiError::PageTokenInvalid),
        (
            "SCHEMA_VIOLATION",
            ApiError::SchemaViolation {
                event_type: text(),
                version: 1,
                field: "event.data".to_owned(),
                violations: vec![schema; 100],
            },
        ),
        ("EVENT_TOO_LARGE", ApiError::EventTooLarge { field: text(), limit_bytes: 1 }),
        (
            "SCHEMA_INCOMPATIBLE",
            ApiError::SchemaIncompatible { event_type: text(), version: 1, breaks: vec![broken; 100] },
        ),
        ("SCHEMA_INVALID", ApiError::SchemaInvalid { field: text(), pointer: text(), message: text() }),
        ("ADDRESS_BLOCKED", ApiError::AddressBlocked { field: text(), message: text() }),
        ("EVENT_TYPE_NOT_FOUND", ApiError::EventTypeNotFound { name: text(), near: vec![text(); 100] }),
        ("SCHEMA_VERSION_NOT_FOUND", ApiError::SchemaVersionNotFound { event_type: text(), version: 1 }),
        ("SUBSCRIPTION_NOT_FOUND", ApiError::SubscriptionNotFound { subscription: text() }),
        ("EVENT_NOT_FOUND", ApiError::EventNotFound { event: text() }),
        ("EVENT_NOT_FOUND", ApiError::EventNotInLog { event: text() }),
        ("INVOCATION_NOT_FOUND", ApiError::InvocationNotFound { invocation: text() }),
        ("TENANT_NOT_FOUND", ApiError::TenantNotFound { tenant: text() }),
        ("APP_NOT_FOUND", ApiError::AppNotFound { app: text() }),
        ("API_KEY_NOT_FOUND", ApiError::ApiKeyNotFound { api_key: text() }),
        ("PUBLISHER_IDENTITY_NOT_FOUND", ApiError::PublisherIdentityNotFound { publisher_identity: text() }),
        ("NOT_SUBSCRIBED", ApiError::NotSubscribed { event_type: text() }),
        ("WATCH_NOT_FOUND", ApiError::WatchNotFound { watch: text() }),
        ("ALREADY_SUBSCRIBED", ApiError::AlreadySubscribed { subscription: text() }),
        ("ENRICH_PATH_TAKEN", ApiError::EnrichPathTaken { path: text(), subscription: Some(text()) }),
        ("EVENT_TYPE_EXISTS", ApiError::EventTypeExists { name: text() }),
        ("TENANT_EXISTS", ApiError::TenantExists { tenant: text() }),
        ("APP_EXISTS", ApiError::AppExists { app: text() }),
        ("PUBLISHER_IDENTITY_EXISTS", ApiError::PublisherIdentityExists { subject: text() }),
        ("REQUEST_ID_REUSED", ApiError::RequestIdReused { field: text() }),
        ("REQUEST_ID_REUSED", ApiError::Store(StoreError::RequestIdReused)),
        ("CURSOR_FOREIGN", ApiError::CursorForeign(text())),
        ("CURSOR_AHEAD", ApiError::CursorAhead(text())),
        ("INVOCATION_STATE", ApiError::InvocationState { invocation: text(), state: text() }),
        ("EVENT_TYPE_STATE", ApiError::EventTypeState { name: text(), message: text() }),
        ("SUBSCRIPTION_STATE", ApiError::SubscriptionState { subscription: text(), message: text() }),
        ("PRE_REJECTED", ApiError::PreRejected { message: text(), event: text(), verdicts: verdicts.clone() }),
        ("RESOURCE_STATE", ApiError::ResourceState { kind: "carillon.dev/App", name: text(), message: text() }),
        ("CURSOR_MALFORMED", ApiError::CursorMalformed(text())),
        ("CURSOR_EXPIRED", ApiError::CursorExpired { earliest: text() }),
        ("QUOTA_EXCEEDED", ApiError::QuotaExceeded { quota: text(), limit: 7, retry_delay: Some(Duration::MAX) }),
        ("SLOW_CONSUMER", ApiError::SlowConsumer { resume_cursor: text() }),
        ("ETAG_MISMATCH", ApiError::EtagMismatch { resource: text() }),
        ("LEASE_LOST", ApiError::LeaseLost),
        ("SERVER_DRAINING", ApiError::ServerDraining),
        ("STREAM_AGE", ApiError::StreamAge { resume_cursor: text() }),
        ("STORE_UNAVAILABLE", ApiError::Store(StoreError::unavailable_example())),
        ("STORE_UNAVAILABLE", ApiError::Store(StoreError::TooSlow(sqlx::Error::PoolTimedOut.into()))),
        ("STORE_UNAVAILABLE", ApiError::Store(StoreError::PartitionMissing)),
        ("STORE_UNAVAILABLE", ApiError::Store(StoreError::Locked)),
        ("QUOTA_EXCEEDED", ApiError::Store(StoreError::Crowded)),
        ("STORAGE_FULL", ApiError::Store(StoreError::full_example())),
        (
            "PRE_LISTENER_UNAVAILABLE",
            ApiError::PreListenerUnavailable { message: text(), event: text(), verdicts: verdicts.clone() },
        ),
        ("PRE_DEADLINE", ApiError::PreDeadline { message: text(), event: text(), verdicts }),
        ("DEADLINE", ApiError::Deadline),
        ("DEADLINE", ApiError::DeadlineOfChange),
        ("CREDENTIAL_INVALID", ApiError::CredentialInvalid),
        ("ROLE_INSUFFICIENT", ApiError::RoleInsufficient { required: Role::Admin }),
        ("EVENT_TYPE_FORBIDDEN", ApiError::EventTypeForbidden { event_type: text() }),
        ("NOT_IMPLEMENTED", not_implemented(text())),
        ("INTERNAL", ApiError::Store(StoreError::Conflict { constraint: text() })),
        ("INTERNAL", ApiError::Store(StoreError::Corrupt { what: "row" })),
        ("INTERNAL", ApiError::Store(StoreError::Interrupted)),
        ("INTERNAL", ApiError::Store(StoreError::Statement(sqlx::Error::PoolTimedOut.into()))),
        ("INTERNAL", ApiError::internal("test", text())),
    ]
}

#[test]
fn every_reason_has_an_error_and_travels_with_the_code_of_the_proto_file() {
    let mut unseen = annotated();
    assert_eq!(unseen.len(), PROTO.matches("[(grpc_code) = ").count());
    let codes = unseen.clone();
    for (reason, error) in one_of_each() {
        assert_eq!(error.reason_name(), reason);
        let status = Status::from(error);
        assert_eq!(codes.get(reason), Some(&i32::from(status.code())), "{reason}");
        let details = status.get_error_details();
        let info = details.error_info().expect("every status has an ErrorInfo");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, DOMAIN));
        unseen.remove(reason);
    }
    assert!(unseen.is_empty(), "reasons without an error: {unseen:?}");
}

#[test]
fn a_status_stays_under_4_kib_whatever_a_caller_sends() {
    for (reason, error) in one_of_each() {
        let status = Status::from(error);
        let message: usize = status.message().bytes().map(|b| if b.is_ascii_graphic() { 1 } else { 3 }).sum();
        let bytes = message + status.details().len() * 4 / 3;
        assert!(bytes < 4_096, "{reason}: {bytes}");
    }
}

#[test]
fn a_fault_of_the_server_names_its_incident_and_nothing_else() {
    let status = Status::from(ApiError::internal("open_file", "secret detail"));
    assert!(!format!("{status:?}").contains("secret"));
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|info| info.metadata["incident"].len()), Some(32));
}

#[test]
fn details_name_fields_resources_and_delays() {
    let status = Status::from(ApiError::field("page_size", "must not be negative"));
    assert_eq!(status.message(), "page_size: must not be negative");
    let details = status.get_error_details();
    assert_eq!(details.bad_request().map(|bad| bad.field_violations[0].field.as_str()), Some("page_size"));

    let status = Status::from(ApiError::AlreadySubscribed { subscription: "sub_1".to_owned() });
    let details = status.get_error_details();
    assert_eq!(details.resource_info().map(|info| info.resource_name.as_str()), Some("sub_1"));

    let status = Status::from(ApiError::ServerDraining);
    assert!(status.get_error_details().retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
}

#[test]
fn fifty_listeners_are_named_whatever_they_said_and_the_first_one_with_its_words() {
    let event = crate::domain::ids::EventId(uuid::Uuid::max()).to_string();
    let listener = |n: u128| PreVerdict {
        subscription: crate::domain::ids::SubscriptionId(uuid::Uuid::from_u128(n)).to_string(),
        verdict: "SUCCEEDED",
        description: "x".repeat(256),
    };
    let verdicts: Vec<_> = (1..=60).map(listener).collect();
    let message = "a listener that must agree failed or could not be reached".to_owned();
    let error = ApiError::PreListenerUnavailable { message, event: event.clone(), verdicts: verdicts.clone() };
    let details = Status::from(error).get_error_details();
    let info = details.error_info().expect("it is set");
    assert_eq!((info.metadata["event"].as_str(), info.metadata["listeners"].as_str()), (event.as_str(), "60"));
    let named = &details.precondition_failure().expect("they are named").violations;
    let ids = |all: usize| verdicts.iter().take(all).map(|one| one.subscription.as_str()).collect::<Vec<_>>();
    assert_eq!(named.iter().map(|one| one.subject.as_str()).collect::<Vec<_>>(), ids(50));
    assert!(named[0].description.len() > 200 && named[49].description.is_empty(), "{named:?}");
}
