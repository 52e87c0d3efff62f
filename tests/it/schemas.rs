//! JSON Schema as the public API has it: the cases of the public test suite, hostile documents, and what a version must keep.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use carillon::proto::public::{
    AddEventTypeSchemaRequest, CreateEventTypeRequest, EventType, SchemaCompatibility, Subscription,
    UpdateEventTypeRequest, UpdateSubscriptionRequest, ValidateEventRequest,
};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, publish_request, reason};
use crate::harness::{Receiver, Tenant, World};

/// What became of a draft's cases.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    refused: BTreeMap<String, usize>,
}

async fn add(tenant: &Tenant, name: &str, schema: String) -> Result<i32, tonic::Status> {
    let request = AddEventTypeSchemaRequest { event_type: name.to_owned(), schema, ..Default::default() };
    let added = tenant.types().add_event_type_schema(request).await?.into_inner().schema;
    Ok(added.expect("it is set").version)
}

async fn run_suite(draft: &str, uri: &str) -> Tally {
    let tenant = World::shared().await.tenant().await;
    let name = "CUSTOM_SUITE";
    tenant.declare(name).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/json-schema-test-suite").join(draft);
    let mut groups = Vec::new();
    for file in std::fs::read_dir(folder).expect("the fixtures") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("a file");
        groups.extend(serde_json::from_str::<Vec<Value>>(&text).expect("JSON"));
    }
    let results = stream::iter(groups).map(|group| {
        let (tenant, mut schema) = (&tenant, group["schema"].clone());
        // A document says which draft it is; true and false say the same in both.
        if let Value::Object(members) = &mut schema {
            members.entry("$schema").or_insert_with(|| Value::from(uri));
        }
        async move {
            let tests = group["tests"].as_array().expect("tests").clone();
            let mut tally = Tally::default();
            let version = match add(tenant, name, schema.to_string()).await {
                Ok(version) => version,
                Err(status) => {
                    assert_eq!(reason(&status), "SCHEMA_INVALID", "{schema}: {status:?}");
                    tally.refused.insert(status.message().to_owned(), tests.len());
                    return tally;
                }
            };
            for (index, test) in tests.iter().enumerate() {
                let request = ValidateEventRequest {
                    event_type: name.to_owned(),
                    schema_version: version,
                    data: test["data"].to_string().into(),
                };
                let mut types = tenant.at[index % tenant.at.len()].types.clone();
                let answer = types.validate_event(request).await.expect("an answer").into_inner();
                if test["valid"] == answer.valid {
                    tally.passed += 1;
                } else {
                    tally
                        .failed
                        .push(format!("{}: {}: {:?}", group["description"], test["description"], answer.violations));
                }
            }
            tally
        }
    });
    let mut whole = Tally::default();
    let mut results = results.buffer_unordered(16);
    while let Some(one) = results.next().await {
        whole.passed += one.passed;
        whole.failed.extend(one.failed);
        for (message, count) in one.refused {
            *whole.refused.entry(message).or_default() += count;
        }
    }
    let refused: usize = whole.refused.values().sum();
    let (passed, failed) = (whole.passed, whole.failed.len());
    // Past the test runner, which shows what a test prints only where it fails.
    writeln!(std::io::stdout(), "JSON Schema {draft}: {passed} passed, {failed} failed, {refused} refused")
        .expect("standard output");
    whole
}

#[tokio::test]
async fn every_case_of_draft_7_passes_but_those_that_need_another_document() {
    let tally = run_suite("draft7", "http://json-schema.org/draft-07/schema#").await;
    assert_eq!(tally.failed, Vec::<String>::new());
    let other_document =
        "schema: not a usable JSON Schema: refers to another document, which is not fetched".to_owned();
    assert_eq!((tally.passed, tally.refused), (904, BTreeMap::from([(other_document, 23)])));
}

#[tokio::test]
async fn every_case_of_2020_12_passes_but_those_that_need_another_document() {
    let tally = run_suite("draft2020-12", "https://json-schema.org/draft/2020-12/schema").await;
    assert_eq!(tally.failed, Vec::<String>::new());
    let other_document =
        "schema: not a usable JSON Schema: refers to another document, which is not fetched".to_owned();
    // A vocabulary of one's own is another document, too: the one that $schema names.
    let other_draft = "schema: not a usable JSON Schema: must be JSON Schema 2020-12 or draft 7".to_owned();
    assert_eq!((tally.passed, tally.refused), (1250, BTreeMap::from([(other_document, 44), (other_draft, 5)])));
}

#[tokio::test]
async fn hostile_schemas_are_refused_quickly_with_a_pointer() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_HOSTILE_SCHEMA").await;
    let alternatives = vec!["{}"; 10_000].join(",");
    for (schema, pointer) in [
        (r##"{"$ref": "#"}"##.to_owned(), "/$ref"),
        (
            r##"{"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}]}}}"##.to_owned(),
            "/properties/a/anyOf/0/$ref",
        ),
        (r#"{"properties": {"a": {"$ref": "http://127.0.0.1:9/remote.json"}}}"#.to_owned(), "/properties/a/$ref"),
        (r#"{"$ref": "file:///etc/hostname"}"#.to_owned(), "/$ref"),
        (format!(r#"{{"anyOf": [{alternatives}]}}"#), "/anyOf"),
        (r#"{"pattern": "(a+)+\\1"}"#.to_owned(), "/pattern"),
        (r#"{"pattern": "((a{99}){99}){99}"}"#.to_owned(), "/pattern"),
    ] {
        let shown: String = schema.chars().take(60).collect();
        let begin = Instant::now();
        let result = add(&tenant, "CUSTOM_HOSTILE_SCHEMA", schema).await;
        let status = assert_refused(result, Code::InvalidArgument, "SCHEMA_INVALID");
        // A debug build on a shared machine is far slower than what is released.
        assert!(begin.elapsed() < Duration::from_secs(5), "{shown}: {:?}", begin.elapsed());
        let info = status.get_details_error_info().expect("it is set");
        assert_eq!(info.metadata["pointer"], pointer, "{shown}");
        assert_eq!(status.get_details_bad_request().expect("it is set").field_violations[0].field, "schema");
    }
    // A pattern that makes other engines backtrack for ever is a pattern like any other here.
    let version = add(&tenant, "CUSTOM_HOSTILE_SCHEMA", r#"{"pattern": "^(a+)+$"}"#.to_owned()).await.expect("valid");
    let request = ValidateEventRequest {
        event_type: "CUSTOM_HOSTILE_SCHEMA".to_owned(),
        schema_version: version,
        data: json!(format!("{}!", "a".repeat(50_000))).to_string().into(),
    };
    let begin = Instant::now();
    assert!(!tenant.types().validate_event(request).await.expect("an answer").into_inner().valid);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_schema_that_refers_to_itself_below_its_data_works() {
    let tenant = World::shared().await.tenant().await;
    let schema = r##"{"type": "object", "properties": {"child": {"$ref": "#"}, "n": {"type": "integer"}}}"##;
    tenant.declare_with_schema("CUSTOM_RECURSIVE", schema).await;
    for (data, valid) in
        [(json!({"child": {"child": {"n": 1}}}), true), (json!({"child": {"child": {"n": "x"}}}), false)]
    {
        for at in &tenant.at {
            let request = ValidateEventRequest {
                event_type: "CUSTOM_RECURSIVE".to_owned(),
                data: data.to_string().into(),
                ..Default::default()
            };
            let answer = at.types.clone().validate_event(request).await.expect("an answer").into_inner();
            assert_eq!(answer.valid, valid, "{data}");
        }
    }
}

#[tokio::test]
async fn a_version_must_keep_what_the_type_demands() {
    let tenant = World::shared().await.tenant().await;
    let name = "CUSTOM_DEMANDING";
    let old = r#"{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}"#;
    let request = CreateEventTypeRequest {
        name: name.to_owned(),
        schema: old.to_owned(),
        compatibility: SchemaCompatibility::Backward.into(),
        ..Default::default()
    };
    let created = tenant.types().create_event_type(request).await.expect("valid").into_inner().event_type;
    assert_eq!(created.expect("it is set").compatibility(), SchemaCompatibility::Backward);

    let narrower =
        r#"{"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n", "m"]}"#;
    let status =
        assert_refused(add(&tenant, name, narrower.to_owned()).await, Code::FailedPrecondition, "SCHEMA_INCOMPATIBLE");
    let violations = status.get_details_precondition_failure().expect("it is set").violations;
    let mut places: Vec<_> = violations.iter().map(|one| (one.r#type.as_str(), one.subject.as_str())).collect();
    places.sort_unstable();
    assert_eq!(places, [("BACKWARD", "/properties/n/minimum"), ("BACKWARD", "/required")], "{violations:?}");
    let info = status.get_details_error_info().expect("it is set");
    assert_eq!((info.metadata["schema_version"].as_str(), info.metadata["breaks"].as_str()), ("1", "2"));

    let wider = r#"{"type": "object", "properties": {"n": {"type": "number"}, "m": true}, "required": ["n"], "additionalProperties": false}"#;
    assert_eq!(add(&tenant, name, wider.to_owned()).await.expect("it accepts more"), 2);
    let mode = |mode: SchemaCompatibility| {
        let event_type = EventType { name: name.to_owned(), compatibility: mode.into(), ..Default::default() };
        let update_mask = Some(pbjson_types::FieldMask { paths: vec!["compatibility".to_owned()] });
        UpdateEventTypeRequest { event_type: Some(event_type), update_mask, ..Default::default() }
    };
    for (demand, schema, accepted) in [
        (SchemaCompatibility::Forward, wider.replace("number", "string"), false),
        (SchemaCompatibility::Forward, old.to_owned(), true),
        (SchemaCompatibility::Full, wider.to_owned(), false),
        (
            SchemaCompatibility::Full,
            old.replace("\"type\": \"object\"", "\"title\": \"T\", \"type\": \"object\""),
            true,
        ),
        (SchemaCompatibility::None, narrower.to_owned(), true),
    ] {
        let mut types = tenant.at[1].types.clone();
        let updated = types.update_event_type(mode(demand)).await.expect("valid").into_inner().event_type;
        assert_eq!(updated.expect("it is set").compatibility(), demand);
        let result = add(&tenant, name, schema.clone()).await;
        assert_eq!(result.is_ok(), accepted, "{demand:?}: {schema}: {result:?}");
    }
    let unknown = CreateEventTypeRequest { name: "CUSTOM_X".to_owned(), compatibility: 9, ..Default::default() };
    assert_refused(tenant.types().create_event_type(unknown).await, Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn of_versions_that_race_each_is_compared_with_the_one_before_it() {
    let tenant = World::shared().await.tenant().await;
    let name = "CUSTOM_RACED";
    let request = CreateEventTypeRequest {
        name: name.to_owned(),
        schema: r#"{"type": "integer"}"#.to_owned(),
        compatibility: SchemaCompatibility::Backward.into(),
        ..Default::default()
    };
    tenant.types().create_event_type(request).await.expect("valid");
    // Either widens the first version, and neither accepts what the other adds: one of the two has to lose.
    let results = futures::future::join_all((0..2).map(|replica| {
        let schema = [r#"{"type": ["integer", "string"]}"#, r#"{"type": ["integer", "null"]}"#][replica];
        let request =
            AddEventTypeSchemaRequest { event_type: name.to_owned(), schema: schema.to_owned(), ..Default::default() };
        let mut types = tenant.at[replica].types.clone();
        async move { types.add_event_type_schema(request).await }
    }))
    .await;
    let refused: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(reason(&refused[0]), "SCHEMA_INCOMPATIBLE", "{refused:?}");
}

#[tokio::test]
async fn a_pinned_subscription_fires_for_its_version_alone_and_one_that_follows_for_all() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let name = "CUSTOM_PINNED";
    tenant.declare_with_schema(name, r#"{"required": ["a"]}"#).await;
    add(&tenant, name, r#"{"required": ["b"]}"#.to_owned()).await.expect("valid");
    let subscribe = async |path: &str, schema_version: i32| {
        let mut request = tenant.subscribe_request(name, &receiver.url(path));
        request.schema_version = schema_version;
        tenant.events().subscribe(request).await.map(|answer| answer.into_inner().subscription.expect("it is set"))
    };
    let one = subscribe("/one", 1).await.expect("version 1 exists");
    assert_eq!(one.schema_version, 1);
    let all = subscribe("/all", 0).await.expect("valid");
    assert_refused(subscribe("/three", 3).await, Code::NotFound, "SCHEMA_VERSION_NOT_FOUND");
    assert_refused(subscribe("/less", -1).await, Code::InvalidArgument, "FIELD_INVALID");

    // Published through either replica: what matches is decided by the version that the event is recorded with.
    let fired = async |version: i32| {
        let mut fired = Vec::new();
        for publisher in &tenant.publishers {
            let mut request = publish_request(name, &json!({"a": 1, "b": 1}));
            request.schema_version = version;
            let answer = publisher.clone().publish(request).await.expect("valid").into_inner();
            let mut ids: Vec<_> = answer.invocations.into_iter().map(|one| one.subscription_id).collect();
            ids.sort();
            fired.push(ids);
        }
        assert_eq!(fired[0], fired[1], "every replica matches alike");
        fired.remove(0)
    };
    let mut both = vec![one.id.clone(), all.id.clone()];
    both.sort();
    assert_eq!(fired(1).await, both);
    assert_eq!(fired(2).await, vec![all.id.clone()]);
    assert_eq!(fired(0).await, vec![all.id.clone()], "the latest is version 2");

    let update = async |schema_version: i32| {
        let subscription = Subscription { id: one.id.clone(), schema_version, ..Default::default() };
        let update_mask = Some(pbjson_types::FieldMask { paths: vec!["schema_version".to_owned()] });
        let request = UpdateSubscriptionRequest { subscription: Some(subscription), update_mask, ..Default::default() };
        tenant.at[1].events.clone().update_subscription(request).await
    };
    assert_refused(update(3).await, Code::NotFound, "SCHEMA_VERSION_NOT_FOUND");
    let moved = update(2).await.expect("version 2 exists").into_inner().subscription.expect("it is set");
    assert!(moved.schema_version == 2 && moved.effective_position > one.effective_position, "{moved:?}");
    assert_eq!((fired(1).await, fired(2).await), (vec![all.id.clone()], both.clone()));
    let follows = update(0).await.expect("valid").into_inner().subscription.expect("it is set");
    assert_eq!(follows.schema_version, 0);
    assert_eq!((fired(1).await, fired(2).await), (both.clone(), both));
}
