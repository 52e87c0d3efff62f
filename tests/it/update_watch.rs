//! `EventService.UpdateWatch`: the filters of a running watch change at one exact position, from any replica, and a later watch
//! takes them up again.

use carillon::proto::internal::{CreateAppRequest, Role};
use carillon::proto::public::watch_request::Start;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{
    UpdateWatchRequest, UpdateWatchResponse, WatchFilter, WatchRequest, WatchResponse, WatchedEvent,
};
use serde_json::json;
use tonic::{Code, Status, Streaming};

use crate::harness::tenant::{admin, assert_refused, create_key};
use crate::harness::{Tenant, World, eventually, within};

/// A filter on `data.kind`, named after it.
pub fn kind(kind: &str) -> WatchFilter {
    WatchFilter { name: kind.to_owned(), event_types: Vec::new(), filter: format!("data.kind == '{kind}'") }
}

/// A running watch.
pub struct Open {
    /// Its identifier.
    pub id: String,
    /// The version of its filters when it began.
    pub version: i64,
    /// Its messages from the second one on.
    pub stream: Streaming<WatchResponse>,
    /// The cursor of the last one taken.
    pub cursor: String,
}

impl Open {
    /// Opens a watch on a replica and takes its `Created`.
    pub async fn at(tenant: &Tenant, replica: usize, request: WatchRequest) -> Self {
        Self::try_at(tenant, replica, request).await.expect("a watch")
    }

    /// As [`Open::at`], where it may be refused.
    pub async fn try_at(tenant: &Tenant, replica: usize, request: WatchRequest) -> Result<Self, Status> {
        let mut client = tenant.at[replica].events.clone();
        let mut stream = client.watch(request).await?.into_inner();
        let first = next(&mut stream).await;
        let Some(Kind::Created(created)) = first.kind else { panic!("unexpected {first:?}") };
        Ok(Self { id: created.watch_id, version: created.filter_version, stream, cursor: first.cursor })
    }

    /// The next message that is not a bookmark.
    pub async fn next(&mut self) -> Kind {
        loop {
            let message = next(&mut self.stream).await;
            self.cursor = message.cursor;
            match message.kind.expect("it is set") {
                Kind::Bookmark(_) => {}
                kind => return kind,
            }
        }
    }

    /// The next events.
    pub async fn events(&mut self, count: usize) -> Vec<WatchedEvent> {
        let mut seen = Vec::new();
        while seen.len() < count {
            match self.next().await {
                Kind::Events(events) => seen.extend(events.events),
                other => panic!("unexpected {other:?}"),
            }
        }
        seen
    }

    /// The next message, which must be a change of filters; its version.
    pub async fn changed(&mut self) -> i64 {
        match self.next().await {
            Kind::FilterChanged(changed) => changed.filter_version,
            other => panic!("unexpected {other:?}"),
        }
    }
}

async fn next(stream: &mut Streaming<WatchResponse>) -> WatchResponse {
    within("the next message of a watch", stream.message()).await.expect("the stream lives").expect("it goes on")
}

/// What an event says of itself: its position and the filters that matched.
fn seen(events: Vec<WatchedEvent>) -> Vec<(i64, Vec<String>)> {
    events.into_iter().map(|watched| (watched.event.expect("it is set").position, watched.filters)).collect()
}

pub async fn update(
    tenant: &Tenant,
    replica: usize,
    request: UpdateWatchRequest,
) -> Result<UpdateWatchResponse, Status> {
    let mut client = tenant.at[replica].events.clone();
    within("UpdateWatch", client.update_watch(request)).await.map(tonic::Response::into_inner)
}

fn adding(watch: &Open, filters: Vec<WatchFilter>) -> UpdateWatchRequest {
    UpdateWatchRequest { watch_id: watch.id.clone(), add: filters, ..Default::default() }
}

async fn publish(tenant: &Tenant, kind: &str) {
    tenant.publish("CUSTOM_CHANGING", &json!({"kind": kind})).await;
}

fn filtered(filters: Vec<WatchFilter>) -> WatchRequest {
    WatchRequest { filters, ..Default::default() }
}

#[tokio::test]
async fn filters_are_added_replaced_and_removed_from_either_replica() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_CHANGING").await;
    let mut watch = Open::at(&tenant, 0, filtered(vec![kind("a")])).await;
    assert_eq!(watch.version, 1);
    for kind in ["a", "b"] {
        publish(&tenant, kind).await;
    }
    // The declaration of the type is the log's first event.
    assert_eq!(seen(watch.events(1).await), [(2, vec!["a".to_owned()])]);

    for (replica, expected) in [(0, 2), (1, 3)] {
        let request = if replica == 0 {
            adding(&watch, vec![kind("b")])
        } else {
            let all = WatchFilter { name: "b".to_owned(), ..Default::default() };
            UpdateWatchRequest { remove: vec!["a".to_owned()], filter_version: 2, ..adding(&watch, vec![all]) }
        };
        let answer = update(&tenant, replica, request).await.expect("a change");
        assert_eq!(answer.filter_version, expected, "from replica {replica}");
        assert_eq!(watch.changed().await, expected);
        assert_eq!(answer.cursor, watch.cursor, "the answer names the place of the change");
    }
    for kind in ["a", "c"] {
        publish(&tenant, kind).await;
    }
    assert_eq!(seen(watch.events(2).await), [4, 5].map(|position| (position, vec!["b".to_owned()])));
}

#[tokio::test]
async fn a_version_that_is_not_the_present_one_is_refused() {
    let tenant = World::shared().await.tenant().await;
    let mut watch = Open::at(&tenant, 1, filtered(vec![kind("a")])).await;
    let of_version = |version| UpdateWatchRequest { filter_version: version, ..adding(&watch, vec![kind("b")]) };
    assert_refused(update(&tenant, 0, of_version(2)).await, Code::Aborted, "ETAG_MISMATCH");
    // Of many that change the same version at once, on both replicas, exactly one does.
    let racers = (0..16).map(|n| update(&tenant, n % 2, of_version(1)));
    let (won, lost): (Vec<_>, Vec<_>) = futures::future::join_all(racers).await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{lost:?}");
    for refused in lost {
        assert_refused(refused, Code::Aborted, "ETAG_MISMATCH");
    }
    assert_eq!(watch.changed().await, 2);
}

#[tokio::test]
async fn changes_that_compare_no_version_are_made_one_after_the_other() {
    let tenant = World::shared().await.tenant().await;
    let mut watch = Open::at(&tenant, 1, filtered(vec![kind("f0")])).await;
    let racers = (1..16).map(|n| update(&tenant, n % 2, adding(&watch, vec![kind(&format!("f{n}"))])));
    let mut versions = Vec::new();
    for made in futures::future::join_all(racers).await {
        versions.push(made.expect("nobody else's change is in the way").filter_version);
    }
    versions.sort_unstable();
    assert_eq!(versions, (2..=16).collect::<Vec<_>>(), "each is a change of its own");
    for version in 2..=16 {
        assert_eq!(watch.changed().await, version);
    }
    // On top of what there was by then: nothing of the others is lost.
    let full = update(&tenant, 0, adding(&watch, vec![kind("one too many")])).await;
    assert_refused(full, Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn changes_that_cannot_be_name_their_field_and_change_nothing() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_CHANGING").await;
    let mut watch = Open::at(&tenant, 0, filtered(vec![kind("a")])).await;
    let many = (0..16).map(|n| kind(&format!("f{n}"))).collect();
    let removing = |names: &[&str]| UpdateWatchRequest {
        remove: names.iter().map(|name| (*name).to_owned()).collect(),
        ..adding(&watch, Vec::new())
    };
    let bad = WatchFilter { filter: "data.kind ==".to_owned(), ..kind("b") };
    let cases = [
        (adding(&watch, Vec::new()), "FIELD_INVALID"),
        (adding(&watch, many), "FIELD_INVALID"),
        (adding(&watch, vec![kind("")]), "FIELD_INVALID"),
        (adding(&watch, vec![bad]), "FILTER_INVALID"),
        (removing(&["b"]), "FIELD_INVALID"),
        (removing(&["a"]), "FIELD_INVALID"),
        (UpdateWatchRequest { filter_version: -1, ..adding(&watch, vec![kind("b")]) }, "FIELD_INVALID"),
        (UpdateWatchRequest { watch_id: "x".to_owned(), ..adding(&watch, vec![kind("b")]) }, "FIELD_INVALID"),
    ];
    for (request, reason) in cases {
        for replica in [0, 1] {
            let result = update(&tenant, replica, request.clone()).await;
            assert_refused(result, Code::InvalidArgument, reason);
        }
    }
    publish(&tenant, "b").await;
    publish(&tenant, "a").await;
    assert_eq!(seen(watch.events(1).await), [(3, vec!["a".to_owned()])]);
}

#[tokio::test]
async fn a_watch_that_is_gone_or_anothers_is_not_found() {
    let world = World::shared().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let watch = Open::at(&tenant, 0, filtered(vec![kind("a")])).await;
    let request = adding(&watch, vec![kind("b")]);
    let absent = UpdateWatchRequest { watch_id: "wat_00000000000000000000000000".to_owned(), ..request.clone() };
    for replica in [0, 1] {
        let foreign = assert_refused(update(&other, replica, request.clone()).await, Code::NotFound, "WATCH_NOT_FOUND");
        let none = assert_refused(update(&other, replica, absent.clone()).await, Code::NotFound, "WATCH_NOT_FOUND");
        assert_eq!(foreign.message(), none.message());
        let resume = WatchRequest {
            start: Some(Start::Watch(watch.id.clone())),
            resume_cursor: watch.cursor.clone(),
            ..Default::default()
        };
        let foreign = Open::try_at(&other, replica, resume).await.map(|open| open.id);
        // The cursor tells first that this is another tenant's.
        assert_refused(foreign, Code::FailedPrecondition, "CURSOR_FOREIGN");
    }
    drop(watch.stream);
    for replica in [0, 1] {
        eventually("the ended watch cannot be changed", || async {
            match update(&tenant, replica, request.clone()).await {
                Err(status) if status.code() == Code::NotFound => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_later_watch_takes_up_filters_version_and_place_on_either_replica() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_CHANGING").await;
    let mut watch = Open::at(&tenant, 0, filtered(vec![kind("a")])).await;
    for kind in ["a", "b", "a", "b"] {
        publish(&tenant, kind).await;
    }
    let before = watch.events(1).await;
    let early = watch.cursor.clone();
    let rest = watch.events(2 - before.len()).await;
    assert_eq!(before.len() + rest.len(), 2);
    let request = UpdateWatchRequest { remove: vec!["a".to_owned()], ..adding(&watch, vec![kind("b")]) };
    update(&tenant, 1, request).await.expect("a change");
    assert_eq!(watch.changed().await, 2);
    let (id, late) = (watch.id.clone(), watch.cursor.clone());
    drop(watch.stream);
    for kind in ["a", "b"] {
        publish(&tenant, kind).await;
    }
    let resume = |cursor: &str| WatchRequest {
        start: Some(Start::Watch(id.clone())),
        resume_cursor: cursor.to_owned(),
        ..Default::default()
    };
    for replica in [0, 1] {
        // After the change: its filters and version from the first message on.
        let mut resumed = Open::at(&tenant, replica, resume(&late)).await;
        assert_eq!(resumed.version, 2);
        assert_eq!(seen(resumed.events(1).await), [(7, vec!["b".to_owned()])]);
        assert_eq!(
            update(&tenant, replica, adding(&resumed, vec![kind("c")])).await.expect("a change").filter_version,
            3
        );
        assert_eq!(resumed.changed().await, 3);
        // Before it: the former filters up to its place, again.
        let mut resumed = Open::at(&tenant, replica, resume(&early)).await;
        assert_eq!(resumed.version, 1);
        if rest.len() == 1 {
            assert_eq!(seen(resumed.events(1).await), [(4, vec!["a".to_owned()])]);
        }
        assert_eq!(resumed.changed().await, 2);
        assert_eq!(seen(resumed.events(1).await), [(7, vec!["b".to_owned()])]);
    }
}

/// A filter on `data.kind` that takes some milliseconds to compile.
fn large(wanted: &str) -> WatchFilter {
    let others: Vec<String> = (0..120).map(|n| format!("data.kind == 'other-{n}'")).collect();
    let filter = format!("data.kind.matches('^\\\\pL+$') && (data.kind == '{wanted}' || {})", others.join(" || "));
    WatchFilter { filter, ..kind(wanted) }
}

#[tokio::test]
async fn as_many_filters_as_there_may_be_however_large_are_changed_and_taken_up_again() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_CHANGING").await;
    let names: Vec<String> = ('a'..='p').map(String::from).collect();
    let mut watch = Open::at(&tenant, 0, filtered(names.iter().map(|name| large(name)).collect())).await;
    let early = watch.cursor.clone();
    for kind in ["b", "z", "p"] {
        publish(&tenant, kind).await;
    }
    let named = |position, name: &str| (position, vec![name.to_owned()]);
    let before = [named(2, "b"), named(4, "p")];
    assert_eq!(seen(watch.events(2).await), before);
    let request = UpdateWatchRequest { remove: vec!["b".to_owned()], ..adding(&watch, vec![large("z")]) };
    update(&tenant, 1, request).await.expect("a change");
    assert_eq!(watch.changed().await, 2);
    for kind in ["b", "z"] {
        publish(&tenant, kind).await;
    }
    assert_eq!(seen(watch.events(1).await), [named(6, "z")]);
    let start = Some(Start::Watch(watch.id.clone()));
    let request = WatchRequest { start, resume_cursor: early, ..Default::default() };
    let mut resumed = Open::at(&tenant, 1, request).await;
    assert_eq!(seen(resumed.events(2).await), before);
    assert_eq!(resumed.changed().await, 2);
    assert_eq!(seen(resumed.events(1).await), [named(6, "z")]);
}

#[tokio::test]
async fn a_start_by_watch_says_what_is_wrong_with_it() {
    let tenant = World::shared().await.tenant().await;
    let watch = Open::at(&tenant, 0, filtered(vec![kind("a")])).await;
    let resume = WatchRequest {
        start: Some(Start::Watch(watch.id.clone())),
        resume_cursor: watch.cursor.clone(),
        ..Default::default()
    };
    let cases = [
        WatchRequest { resume_cursor: String::new(), ..resume.clone() },
        WatchRequest { filters: vec![kind("a")], ..resume.clone() },
        WatchRequest { start: Some(Start::Watch("x".to_owned())), ..resume.clone() },
        WatchRequest { start: Some(Start::Now(true)), ..resume.clone() },
    ];
    for request in cases {
        let result = Open::try_at(&tenant, 1, request).await.map(|open| open.id);
        assert_refused(result, Code::InvalidArgument, "FIELD_INVALID");
    }
    let absent = WatchRequest { start: Some(Start::Watch("wat_00000000000000000000000000".to_owned())), ..resume };
    let result = Open::try_at(&tenant, 1, absent).await.map(|open| open.id);
    assert_refused(result, Code::NotFound, "WATCH_NOT_FOUND");
}

#[tokio::test]
async fn a_watch_is_forgotten_some_time_after_its_end_and_changes_are_counted() {
    let settings =
        "[watch]\nresume_ms = 0\nstream_age_min_ms = 1000\nstream_age_max_ms = 1000\nfilter_changes_max = 1\n";
    let world = World::start_with(2, settings).await;
    let tenant = world.tenant().await;
    let mut watch = Open::at(&tenant, 0, filtered(vec![kind("a")])).await;
    update(&tenant, 1, adding(&watch, vec![kind("b")])).await.expect("a change");
    let result = update(&tenant, 1, adding(&watch, vec![kind("c")])).await;
    let status = assert_refused(result, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(tonic_types::StatusExt::get_details_quota_failure(&status).is_some());
    assert_eq!(watch.changed().await, 2);
    let Kind::Closing(closing) = watch.next().await else { panic!("the stream ends by its age") };
    assert_eq!(closing.reason, "STREAM_AGE");
    let ended = within("the end", watch.stream.message()).await;
    assert_refused(ended.map(|_| ()), Code::Unavailable, "STREAM_AGE");
    let resume = WatchRequest {
        start: Some(Start::Watch(watch.id.clone())),
        resume_cursor: closing.resume_cursor,
        ..Default::default()
    };
    eventually("the watch is forgotten", || async {
        match Open::try_at(&tenant, 1, resume.clone()).await.map(|open| open.id) {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[tokio::test]
async fn a_watch_of_a_killed_replica_is_gone_and_resumes_elsewhere_with_its_filters() {
    let settings = "[dispatch]\nlease_ms = 2000\n";
    let mut world = World::start_with(2, settings).await;
    let mut tenant = world.tenant().await;
    tenant.declare("CUSTOM_CHANGING").await;
    let mut watch = Open::at(&tenant, 1, filtered(vec![kind("a")])).await;
    update(&tenant, 0, adding(&watch, vec![kind("b")])).await.expect("a change");
    assert_eq!(watch.changed().await, 2);
    world.replicas[1].process.kill();
    tenant.reconnect(&world);
    let result = update(&tenant, 0, adding(&watch, vec![kind("c")])).await;
    assert_refused(result, Code::NotFound, "WATCH_NOT_FOUND");
    publish(&tenant, "b").await;
    let resume = WatchRequest {
        start: Some(Start::Watch(watch.id.clone())),
        resume_cursor: watch.cursor.clone(),
        ..Default::default()
    };
    let mut resumed = Open::at(&tenant, 0, resume).await;
    assert_eq!(resumed.version, 2);
    assert_eq!(seen(resumed.events(1).await), [(2, vec!["b".to_owned()])]);
}

#[tokio::test]
async fn keys_of_two_apps_may_use_the_same_request_id() {
    let world = World::shared().await;
    let mut tenant = world.tenant().await;
    let request = CreateAppRequest { tenant: tenant.slug.clone(), slug: "other".to_owned(), ..Default::default() };
    admin(world).create_app(request).await.expect("an app can be made");
    for app in ["shop", "other"] {
        tenant.key = create_key(world, &tenant.slug, app, Role::Viewer).await;
        tenant.reconnect(world);
        let mut watch = Open::at(&tenant, 0, filtered(vec![kind("a")])).await;
        let request = UpdateWatchRequest { request_id: "1".to_owned(), ..adding(&watch, vec![kind("b")]) };
        let first = update(&tenant, 0, request.clone()).await.expect("it is this app's first use of the id");
        assert_eq!((first.filter_version, watch.changed().await), (2, 2));
        assert_eq!(update(&tenant, 1, request).await.expect("the first answer"), first);
    }
}
