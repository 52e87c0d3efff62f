//! `CheckCompatibility`: what a schema would break, without registering it.

use carillon::proto::internal::Role;
use carillon::proto::public::{
    CheckCompatibilityRequest, CheckCompatibilityResponse, ListEventTypeSchemasRequest, SchemaCompatibility,
    ValidateEventRequest,
};
use tonic::Code;

use crate::harness::tenant::{Clients, assert_refused, create_key};
use crate::harness::{Tenant, World};

const NAME: &str = "CUSTOM_COMPARED";

async fn tenant() -> Tenant {
    let tenant = World::shared().await.tenant().await;
    tenant.declare_with_schema(NAME, r#"{"type": "string", "maxLength": 10}"#).await;
    let request = carillon::proto::public::AddEventTypeSchemaRequest {
        event_type: NAME.to_owned(),
        schema: r#"{"type": "string", "maxLength": 20}"#.to_owned(),
        ..Default::default()
    };
    tenant.types().add_event_type_schema(request).await.expect("without a demand any schema may follow");
    tenant
}

fn request(schema: &str, mode: SchemaCompatibility, schema_version: i32) -> CheckCompatibilityRequest {
    CheckCompatibilityRequest {
        event_type: NAME.to_owned(),
        schema: schema.to_owned(),
        mode: mode.into(),
        schema_version,
    }
}

async fn check(tenant: &Tenant, request: CheckCompatibilityRequest) -> CheckCompatibilityResponse {
    tenant.at[1].types.clone().check_compatibility(request).await.expect("an answer").into_inner()
}

#[tokio::test]
async fn a_schema_is_compared_with_the_latest_or_a_named_version_in_any_mode() {
    use SchemaCompatibility::{Backward, Forward, Full, None, Unspecified};
    let tenant = tenant().await;
    let between = r#"{"type": "string", "maxLength": 15}"#;
    for (mode, version, compatible, checked, compared) in [
        (Backward, 0, false, Backward, 2),
        (Forward, 0, true, Forward, 2),
        (Backward, 1, true, Backward, 1),
        (Forward, 1, false, Forward, 1),
        (Full, 1, false, Full, 1),
        (None, 1, true, None, 1),
        // The type demands nothing, so everything is told.
        (Unspecified, 2, false, Full, 2),
    ] {
        let answer = check(&tenant, request(between, mode, version)).await;
        assert_eq!(
            (answer.compatible, answer.mode(), answer.schema_version),
            (compatible, checked, compared),
            "{mode:?} {version}: {answer:?}"
        );
        assert_eq!(answer.compatible, answer.violations.is_empty());
        assert_eq!(answer.breaks, answer.violations.iter().map(|one| one.message.clone()).collect::<Vec<_>>());
    }
    let answer = check(&tenant, request(between, Full, 2)).await;
    let one = &answer.violations[0];
    assert_eq!((one.direction(), one.pointer.as_str(), one.undecided), (Backward, "/maxLength", false));
    assert!(one.message.contains("15"), "{one:?}");
    let listed = ListEventTypeSchemasRequest { event_type: NAME.to_owned(), ..Default::default() };
    let listed = tenant.types().list_event_type_schemas(listed).await.expect("a page").into_inner().schemas;
    assert_eq!(listed.len(), 2, "nothing was registered");
}

#[tokio::test]
async fn what_cannot_be_decided_says_so() {
    let tenant = tenant().await;
    let answer = check(&tenant, request(r#"{"not": {"pattern": "^a"}}"#, SchemaCompatibility::Backward, 0)).await;
    assert!(!answer.compatible && answer.violations.iter().all(|one| one.undecided), "{answer:?}");
    assert_eq!(answer.violations[0].pointer, "/not");
}

#[tokio::test]
async fn g9_comparisons_of_long_lists_end_and_leave_another_tenant_its_turn() {
    let world = World::shared().await;
    let (first, second, other) = (world.tenant().await, world.tenant().await, world.tenant().await);
    other.declare_with_schema(NAME, "{}").await;
    let values: Vec<i32> = (0..19_900).collect();
    let reversed: Vec<i32> = values.iter().rev().copied().collect();
    for tenant in [&first, &second] {
        tenant.declare_with_schema(NAME, &serde_json::json!({ "enum": values }).to_string()).await;
    }
    let compare = async |tenant: &Tenant| {
        let schema = serde_json::json!({ "enum": reversed }).to_string();
        let mut request = tonic::Request::new(request(&schema, SchemaCompatibility::Full, 0));
        request.set_timeout(std::time::Duration::from_secs(30));
        tenant.at[0].types.clone().check_compatibility(request).await.expect("it ends").into_inner()
    };
    let validate = async {
        let request = ValidateEventRequest { event_type: NAME.to_owned(), data: "{}".into(), ..Default::default() };
        other.at[0].types.clone().validate_event(request).await.expect("it has its turn").into_inner()
    };
    let (one, two, validated) = tokio::join!(compare(&first), compare(&second), validate);
    assert!(one.compatible && two.compatible, "{one:?} {two:?}");
    assert!(validated.valid, "{validated:?}");
}

#[tokio::test]
async fn a_type_without_a_schema_and_a_system_type_can_be_compared_with() {
    let tenant = tenant().await;
    tenant.declare("CUSTOM_BARE").await;
    let mut bare = request("{}", SchemaCompatibility::Full, 0);
    bare.event_type = "CUSTOM_BARE".to_owned();
    let answer = check(&tenant, bare).await;
    assert!(answer.compatible && answer.schema_version == 0, "{answer:?}");
    let mut system = request(r#"{"type": "string"}"#, SchemaCompatibility::Backward, 0);
    system.event_type = "USER_CREATE".to_owned();
    let answer = check(&tenant, system).await;
    assert!(!answer.compatible && answer.schema_version == 1, "{answer:?}");
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let tenant = tenant().await;
    let full = SchemaCompatibility::Full;
    let unknown = CheckCompatibilityRequest { event_type: "CUSTOM_NONE".to_owned(), ..request("{}", full, 0) };
    let mode = CheckCompatibilityRequest { mode: 9, ..request("{}", full, 0) };
    for (request, code, reason) in [
        (request("", full, 0), Code::InvalidArgument, "FIELD_INVALID"),
        (request("{}", full, -1), Code::InvalidArgument, "FIELD_INVALID"),
        (mode, Code::InvalidArgument, "FIELD_INVALID"),
        (request(r#"{"type": "nonsense"}"#, full, 0), Code::InvalidArgument, "SCHEMA_INVALID"),
        (request(r##"{"$ref": "#"}"##, full, 0), Code::InvalidArgument, "SCHEMA_INVALID"),
        (request("{}", full, 3), Code::NotFound, "SCHEMA_VERSION_NOT_FOUND"),
        (unknown, Code::NotFound, "EVENT_TYPE_NOT_FOUND"),
    ] {
        assert_refused(tenant.types().check_compatibility(request).await, code, reason);
    }
    let world = World::shared().await;
    let viewer = create_key(world, &tenant.slug, "", Role::Viewer).await;
    let mut viewer = Clients::new(world, 0, &viewer).types;
    viewer.check_compatibility(request("{}", full, 0)).await.expect("a viewer may ask");
}
