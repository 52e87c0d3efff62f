//! The plans of the hot statements: which index serves each, under the server's role and with the plan that is used for any values.
//!
//! Nothing is copied here: the store's own functions run, and what their connection has prepared by then is explained.

mod complete;
mod explained;

use self::explained::{Expected, check, plans};
use super::Database;
use crate::domain::announcement::Announcement;
use crate::domain::event::{Data, Event, Lineage};
use crate::domain::event_type::EventTypeName;
use crate::domain::health::HealthRow;
use crate::domain::ids::{ApiKeyId, EventId, InvocationId, ReplicaId, SubscriptionId, TenantId, WatchId};
use crate::domain::invocation::{Outcome, OutcomeClass, State};
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::domain::retry::RateLimit;
use crate::domain::subscription;
use crate::store::audit::Principal;
use crate::store::dispatch::{OrderedPage, Place};
use crate::store::event_pages::PageBound;
use crate::store::event_types::Deleted;
use crate::store::events::LogPlace;
use crate::store::health::Merged;
use crate::store::invocations::{InvocationFilter, VisibleSubscription};
use crate::store::leases::{Renewal, ShardLease};
use crate::store::pending::{NewPending, PendingCommit, PendingState, WaitsFor};
use crate::store::publish::{NewEvent, NewKey, OnLocked, TenantBatch};
use crate::store::quotas::BacklogStanding;
use crate::store::replays::{Missed, Replay};
use crate::store::request_ids::{Repeatable, RequestKey};
use crate::store::settle::{Fate, Settled, Tried};
use crate::store::subscriptions::SubscriptionQuery;
use crate::store::watches::FilterVersion;
use crate::store::{Store, connect};
use chrono::{NaiveDate, TimeDelta};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Forty tenants with three days of events and everything that hangs on them. A tenant's own share is far from all of it, as it is
/// where plans matter.
const POPULATION: &str = "
    CREATE TEMP TABLE t AS SELECT n, ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid AS id FROM generate_series(1, 40) AS n;
    CREATE TEMP TABLE e AS SELECT t.id, t.n, p, (now() AT TIME ZONE 'UTC')::date - 2 + p / 400 AS day FROM t CROSS JOIN generate_series(1, 1199) AS p;
    INSERT INTO tenants SELECT id, 't' || n, '', now() FROM t;
    INSERT INTO tenant_heads (tenant_id, position, log_epoch, committed_at, changed_at) SELECT id, 1199, 1, now(), now() - interval '1 h' FROM t;
    INSERT INTO tenant_heads (tenant_id, log_epoch, committed_at, changed_at) SELECT gen_random_uuid(), 1, now(), now() - interval '1 h' FROM generate_series(1, 3000);
    INSERT INTO dispatch_cursors (tenant_id, shard, day) SELECT gen_random_uuid(), s % 64, current_date FROM generate_series(1, 3000) AS s;
    INSERT INTO dispatch_cursors (tenant_id, shard, token, position, day) SELECT id, n % 64, 1, 1190, current_date FROM t;
    INSERT INTO apps SELECT md5((s % 200)::text)::uuid, gen_random_uuid(), 'a' || s, '', now() FROM generate_series(1, 20000) AS s;
    INSERT INTO apps SELECT id, gen_random_uuid(), 'a' || s, '', now() FROM t CROSS JOIN generate_series(1, 50) AS s;
    INSERT INTO subscriptions (tenant_id, subscription_id, subscription_no, app_id, event_type, display_name, filter, target_kind,
           target_key, webhook_uri, webhook_mode, max_attempts, initial_backoff_ms, max_backoff_ms, timeout_ms, max_in_flight, state, effective_position,
           registry_version, created_at, updated_at)
      SELECT a.tenant_id, gen_random_uuid(), row_number() OVER (PARTITION BY a.tenant_id), a.app_id,
             'CUSTOM_TESTED_' || row_number() OVER (PARTITION BY a.tenant_id) % 25, '', '', 1,
             decode(md5(a.app_id::text), 'hex'), 'https://a.test/', 1, 3, 10, 10, 10, 1, 1, 0, 1, now(), now() FROM apps a;
    INSERT INTO events (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source, event_time, extensions,
           data_kind, data, matched, refused, root_id, depth, lineage)
      SELECT id, day, p, md5(id::text || p)::uuid, day + interval '1 h', 'CUSTOM_TESTED', 0, 's', now(), '', 0, '\\x00', '{1}', '{}',
             id, 0, '{}' FROM e;
    INSERT INTO outcomes (tenant_id, day, position, subscription_no, state, attempt, outcome_class, status_code, duration_us, started_at)
      SELECT id, day, p, 1 + p % 50, CASE p % 100 WHEN 0 THEN 5 ELSE 3 END, 1, 1, 200, 1, now() FROM e WHERE p < 1190;
    INSERT INTO attempts (tenant_id, day, position, subscription_no, attempt, outcome_class, status_code, duration_us, started_at)
      SELECT id, day, p, 1, a, 3, 500, 1, now() FROM e CROSS JOIN generate_series(1, 2) AS a;
    INSERT INTO deferred_invocations (tenant_id, position, subscription_no, day, shard, attempt, due_at, ordering_key)
      SELECT id, p, 1 + p % 50, day, 0, 1, now() + p * interval '1 s', md5((p % 20)::text)::uuid FROM e;
    INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at, announced_at, ordering_key)
      SELECT id, p, 1 + p % 50, day, 1, now(), now(), md5((p % 20)::text)::uuid FROM e;
    INSERT INTO removed_dead_letters SELECT id, p, 1 + p % 50, 1, day, now() FROM e;
    INSERT INTO idempotency_keys SELECT id, 'k' || p, '\\x00', id, now() + p * interval '1 min' FROM e;
    INSERT INTO request_ids SELECT id, 'r' || p, 'M', '\\x00', '\\x00', now() + p * interval '1 min' FROM e;
    INSERT INTO watches (tenant_id, watch_id, filter_version, replica_id, filters, position, day, expires_at)
      SELECT id, md5(p::text)::uuid, 1, md5((p % 7)::text)::uuid, '', 1, day, now() + p * interval '1 min' FROM e;
    INSERT INTO pending_events (tenant_id, event_id, state, token, due_at, pre_timeout_ms, expires_at, created_at, event_type,
           schema_version, source, event_time, extensions, data_kind, data, matched, refused, root_id, depth, lineage)
      SELECT id, md5(p::text)::uuid, 1, 1, now() + p * interval '1 s', 1, now() + p * interval '1 h', now(), 'CUSTOM_TESTED', 0, 's', now(),
             '', 0, '', '{}', '{}', id, 0, '{}' FROM e;
    INSERT INTO pending_verdicts (tenant_id, event_id, subscription_no, verdict, attempt, outcome_class, status_code, duration_us, started_at, message)
      SELECT id, md5(p::text)::uuid, 1, 1, 1, 1, 200, 1, now(), '' FROM e;
    INSERT INTO subscription_health (tenant_id, subscription_no, registry_version, circuit, failures)
      SELECT id, s, 1, 1, 1 FROM t CROSS JOIN generate_series(1, 200) AS s;
    INSERT INTO subscription_rates (tenant_id, subscription_no, registry_version, full_at)
      SELECT id, s, 1, now() FROM t CROSS JOIN generate_series(1, 200) AS s;
    INSERT INTO webhook_secrets SELECT tenant_id, subscription_id, md5(n::text)::uuid, 'k', '', now(),
           CASE n WHEN 1 THEN now() + subscription_no * interval '1 min' END FROM subscriptions CROSS JOIN generate_series(1, 2) AS n;
    INSERT INTO replays SELECT id, s, 1, (now() AT TIME ZONE 'UTC')::date - 2, 10 FROM t CROSS JOIN generate_series(1, 200) AS s;
    INSERT INTO api_keys (api_key_id, tenant_id, role, display_name, secret_hash, created_at)
      SELECT gen_random_uuid(), id, 1, '', sha256(''), now() FROM t CROSS JOIN generate_series(1, 200);
    INSERT INTO publisher_identities (publisher_identity_id, tenant_id, subject, event_types, created_at)
      SELECT gen_random_uuid(), id, 'uri:' || n || s, '{}', now() FROM t CROSS JOIN generate_series(1000, 1200) AS s;
    INSERT INTO chain_budgets SELECT id, md5(p::text)::uuid, day, 1 FROM e;
    INSERT INTO event_types (tenant_id, name, phase, display_name, description, registry_version, created_at, updated_at)
      SELECT id, 'CUSTOM_' || s, 2, '', '', s, now(), now() FROM t CROSS JOIN generate_series(1, 200) AS s;
    INSERT INTO event_type_schemas SELECT id, 'CUSTOM_' || s, v, '{}', now() FROM t CROSS JOIN generate_series(1, 20) AS s CROSS JOIN generate_series(1, 10) AS v;
    INSERT INTO tenant_quotas SELECT id, 'q' || s, 1 FROM t CROSS JOIN generate_series(1, 60) AS s;
    INSERT INTO full_backlogs SELECT gen_random_uuid(), now() FROM generate_series(1, 3000);
    INSERT INTO announcements SELECT id, p, md5(p::text)::uuid, 'X', '', '{}', now() FROM e";

fn event() -> Arc<Event> {
    let id = EventId(crate::clock::new_uuid());
    Arc::new(Event {
        id,
        event_type: EventTypeName::parse("CUSTOM_TESTED").expect("a name"),
        schema_version: 0,
        source: "s".to_owned(),
        subject: None,
        time: crate::clock::now(),
        content_type: None,
        extensions: Vec::new(),
        data: Data::None,
        lineage: Lineage { root: id, cause: None, depth: 0, subscriptions: Vec::new() },
    })
}

/// What a batch's event brings with it.
#[derive(Clone, Copy, PartialEq)]
enum Brings {
    Nothing,
    Key,
    /// A key, and a chain whose budget it spends.
    Chain,
}

fn batch(tenant: TenantId, brings: Brings) -> TenantBatch {
    let keyed = brings != Brings::Nothing;
    let key = keyed.then(|| NewKey { key: crate::clock::new_uuid().to_string(), request_hash: [0; 32] });
    let mut event = event();
    Arc::make_mut(&mut event).lineage.depth = i32::from(brings == Brings::Chain);
    let new = NewEvent { event, matched: [1].into(), refused: [].into(), key };
    TenantBatch { tenant, registry_version: 0, events: vec![new] }
}

fn told() -> Announcement {
    Announcement { event_type: "X".to_owned(), subject: String::new(), data: Value::Null, lineage: None }
}

fn settled(position: i64, day: NaiveDate, fate: Fate) -> Settled {
    let class = if fate == Fate::Succeeded { OutcomeClass::Succeeded } else { OutcomeClass::Failed };
    let outcome = Outcome { class, status_code: 200, retry_after: None, excerpt: None, error: None };
    let tried = Tried { attempt: 9, started_at: crate::clock::now(), duration: Duration::ZERO, outcome: Some(outcome) };
    let place = Place { position, subscription_no: 1 };
    Settled { place, day, deferred: false, key: None, tried: Some(tried), fate }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hot_statement_is_served_by_its_index_and_looks_at_no_more_days_than_it_must() {
    let database = Database::new().await;
    let old = database.store.now().date_naive() - chrono::Days::new(2);
    database.store.ensure_partitions(old, 0).await.expect("made");
    populate(&database).await;
    let config = connect::Config { connections_max: 1, ..Database::config(&database.postgres.server_url()) };
    let store = connect::open(&config).await.expect("Postgres answers");
    let mut wrong = Vec::new();
    commits(&store, &mut wrong).await;
    let [one, two] = [1, 2].map(tenant);
    let (now, today) = (store.now(), store.now().date_naive());
    let place = LogPlace { after: 1, day: old };
    let bound = PageBound { entries: 10, bytes: 1_000 };
    let replica = ReplicaId(crate::clock::new_uuid());
    let by = Principal::server(one);
    let (all, epoch) = (i64::MAX, chrono::DateTime::UNIX_EPOCH);
    let ordered =
        OrderedPage { at: now, held: &[], up_to: all, full: &[], after: None, looked: epoch, blocks: true, limit: 10 };
    let known_event: Uuid = sqlx::query_scalar("SELECT event_id FROM events WHERE tenant_id = $1 AND position = 1")
        .bind(one.0)
        .fetch_one(&mut database.connection().await)
        .await
        .expect("readable");
    let known_event = EventId(known_event);
    let subscription: Uuid = sqlx::query_scalar(
        "SELECT subscription_id FROM subscriptions WHERE tenant_id = $1 ORDER BY subscription_no LIMIT 1",
    )
    .bind(one.0)
    .fetch_one(&mut database.connection().await)
    .await
    .expect("readable");
    let mut known = BTreeSet::new();
    // What the start has prepared is not looked at.
    plans(&mut store.engine().acquire().await.expect("a connection"), &mut known).await;
    macro_rules! look {
        ($name:literal, [$($index:literal),*], scans [$($scan:literal),*], prunes $prunes:literal, $($call:expr),+) => {
            $( $call.await.expect($name); )+
            let found = plans(&mut store.engine().acquire().await.expect("a connection"), &mut known).await;
            let expected = Expected { name: $name, indexes: &[$($index),*], scans: &[$($scan),*], prunes: $prunes };
            check(&mut wrong, &expected, found);
        };
    }
    look!("settle of successes", ["dispatch_cursors_pk"], scans [], prunes false,
        store.settle(one, 1, LogPlace { after: 1191, day: today }, &[settled(1192, today, Fate::Succeeded)]));
    look!("settle of failures", ["dispatch_cursors_pk", "deferred_invocations_pk"], scans [], prunes false,
        store.settle(one, 1, LogPlace { after: 1192, day: today }, &[
            settled(1193, today, Fate::Deferred { attempt: 9, base: 0, due_at: now }),
            Settled { deferred: true, ..settled(1194, today, Fate::Deferred { attempt: 9, base: 0, due_at: now }) },
            Settled { deferred: true, ..settled(1195, today, Fate::Dead { at: now, version: 1 }) },
            Settled { deferred: true, ..settled(1196, today, Fate::Succeeded) },
            settled(1197, today, Fate::Dead { at: now, version: 1 })]));
    // The heads are scanned by intent: an index on their times would cost every publish.
    look!("pulse", ["watches_pending", "pending_events_by_due"], scans ["tenant_heads"], prunes false,
        store.pulse(replica, Some(Renewal::Staying(Duration::from_secs(1))), now));
    look!("tail read", ["events_pk", "outcomes_pk", "deferred_invocations_pk", "dead_letters_pk", "tenant_heads_pk"], scans [], prunes true,
        store.log_tail(one, place, 100, bound), store.head(one));
    look!("verdicts of events", ["outcomes_pk"], scans [], prunes false, store.committed_verdicts(one, &[(old, 1), (old, 2)]));
    look!("entries by position", ["events_pk"], scans [], prunes false, store.events_at(one, &[(old, 1), (today, 2)], 1_000));
    look!("heads of watched logs", ["tenant_heads_pk"], scans [], prunes false, store.head_positions(&[one, two]));
    look!("GetEvent", ["events_by_id"], scans [], prunes true, store.event(one, known_event));
    look!("place at a time", ["events_pk"], scans [], prunes true,
        store.place_at(one, now - TimeDelta::days(1), LogPlace { after: 1199, day: today }));
    look!("page from the end", ["events_pk"], scans [], prunes true, store.read_log_before(one, today, 500, bound));
    let of_event = InvocationFilter { event: Some(known_event), ..InvocationFilter::default() };
    look!("ListInvocations of an event", ["outcomes_pk", "deferred_invocations_pk", "dead_letters_pk", "events_pk"], scans [], prunes true,
        store.list_invocations(&by, &of_event, None, 10));
    let (id, no, state) = (SubscriptionId(subscription), 1, subscription::State::Active);
    let of_subscription =
        InvocationFilter { subscription: Some(VisibleSubscription { id, no, state }), ..InvocationFilter::default() };
    look!("ListInvocations of a subscription", ["outcomes_by_subscription", "dead_letters_by_subscription", "events_pk"], scans [], prunes true,
        store.list_invocations(&by, &of_subscription, None, 10));
    let dead = InvocationFilter { states: vec![State::DeadLettered], ..InvocationFilter::default() };
    look!("ListInvocations of a state", ["dead_letters_pk", "events_pk"], scans [], prunes false,
        store.list_invocations(&by, &dead, None, 10));
    let cancelled = InvocationFilter { states: vec![State::Cancelled], ..InvocationFilter::default() };
    look!("ListInvocations of what is cancelled", ["outcomes_cancelled", "events_pk"], scans [], prunes true,
        store.list_invocations(&by, &cancelled, None, 10));
    let of_place = |event| InvocationId { event, subscription_no: 2 };
    look!("GetInvocation", ["outcomes_by_subscription", "deferred_invocations_pk", "dead_letters_by_subscription", "events_pk", "attempts_pk"], scans [], prunes true,
        store.invocation(&by, of_place(known_event)), store.invocation(&by, of_place(EventId(Uuid::nil()))));
    let entry = store.event(one, known_event).await.expect("readable").expect("it is in the log");
    look!("what becomes of an event", ["deferred_invocations_pk", "events_pk"], scans [], prunes true,
        store.event_invocations(one, &entry, 10), store.is_settled(one, &entry));
    let first = RequestKey { id: "new".to_owned(), method: "M", body_hash: [0; 32] };
    look!("first answer", ["request_ids_pk"], scans [], prunes false, store.earlier_answer(one, &first));
    look!("due subscriptions", ["deferred_invocations_by_subscription"], scans [], prunes false,
        store.due_subscriptions(&[one]));
    look!("deferred invocations", ["deferred_invocations_by_subscription"], scans [], prunes false,
        store.deferred(one, 1, &[], 10));
    look!("deferred invocations in order", ["deferred_invocations_by_key", "deferred_invocations_by_subscription", "deferred_invocations_pk",
        "dead_letters_by_key"], scans [], prunes false,
        store.deferred_in_order(one, 1, ordered));
    look!("revoked invocations", ["deferred_invocations_pk"], scans [], prunes true,
        store.revoked(one, &[Place { position: 1, subscription_no: 1 }], place));
    look!("used keys", ["idempotency_keys_pk"], scans [], prunes false, store.used_keys(one, &["k1", "k2"]));
    let gated = NewPending {
        tenant: one,
        event: event(),
        matched: [1, 2].into(),
        refused: [].into(),
        registry_version: 0,
        key: None,
        waits_for: WaitsFor::Listeners { deadline_at: now, lease: Duration::ZERO },
        pre_timeout: Duration::from_secs(1),
        max: 100,
    };
    look!("accepting a PRE event", ["tenant_heads_pk", "pending_events_by_tenant_due", "subscription_health_pk"], scans [],
        prunes false, store.accept_pending(&gated));
    look!("how many pending events there are", ["pending_events_by_tenant_due"], scans [], prunes false,
        store.count_pending(one, 10, 10));
    look!("how a pending event stands, and claim of those that are due", ["pending_events_pk"], scans [], prunes false,
        store.pending_standing(one, known_event), store.claim_pending(one, PendingState::Scheduled, now, Duration::ZERO, &[known_event]));
    look!("what is due of a tenant", ["pending_events_by_tenant_due", "pending_events_by_type_due"], scans [], prunes false,
        store.due_gated(one, now, &[], 10), store.due_types(one, now), store.due_of_types(one, now, &[(gated.event.event_type.clone(), 9)]));
    look!("what is due", ["pending_events_by_due"], scans [], prunes false,
        store.first_due(now, 10), store.next_pending_due(now));
    look!("who has something due", ["tenant_heads_pk", "pending_events_by_tenant_due"], scans [], prunes false,
        store.tenants_with_due(PendingState::Gated, now, one, 10));
    look!("sweep", ["idempotency_keys_by_expiry", "request_ids_by_end", "pending_events_by_expiry", "webhook_secrets_by_end",
        "watches_by_expiry"], scans [], prunes false, store.delete_expired(now, 100), store.delete_expired_watches(now, 100));
    look!("purge", ["subscriptions_deleted", "event_types_deleted", "chain_budgets_by_day"], scans [], prunes false,
        store.purge_subscriptions(now, 100), store.purge_event_types(now, 100), store.purge_budgets(old, 100));
    look!("budgets that are used up", ["chain_budgets_pk"], scans [], prunes false,
        store.untold_budgets(one, &[known_event]), store.mark_budgets_told(one, &[known_event]));
    look!("unannounced", ["dead_letters_unannounced", "removed_dead_letters_pk", "announcements_pk"], scans [], prunes false,
        store.unannounced_tenants(&[one, two]), store.announcements(one, 10), store.unannounced(one, 10),
        store.mark_announced(one, &[(Place { position: 1, subscription_no: 1 }, 1)]), store.forget_announcements(one, &[Uuid::nil()]));
    look!("registry", ["subscriptions_by_registry_version", "event_types_by_registry_version"], scans [], prunes false,
        store.subscriptions_changed_since(one, 10), store.event_types_changed_since(one, 10));
    let gone = EventId(Uuid::nil());
    let verdict = Verdict {
        subscription_no: 1,
        subscription: SubscriptionId(subscription),
        kind: VerdictKind::Rejected,
        attempt: 1,
        started_at: now,
        duration: Duration::ZERO,
        outcome: None,
        message: String::new(),
        patch: None,
        failed: Vec::new(),
        late: false,
    };
    let health = |no| HealthRow { subscription_no: no, registry_version: 1, ..HealthRow::default() };
    look!("token of a rate", ["subscription_rates_pk"], scans [], prunes false,
        store.take_token(one, 1, 1, RateLimit::new(1, Duration::from_secs(1)).expect("a rate"), now), store.rates(&[one]),
        store.keep_rates(one, 1, &[crate::store::rates::Rate { subscription_no: 1, registry_version: 1, full_at: now }]));
    look!("how a receiver does, merged", ["subscription_health_pk", "tenant_heads_pk"], scans [], prunes false,
    store.merge_health(one, vec![(1, 1)], |rows| {
        rows.into_iter().map(|row| Merged { row, told: Some(told()), disable: false }).collect()
    }));
    look!("how receivers do", ["subscription_health_pk"], scans [], prunes false,
        store.keep_health(one, 1, &[health(1)]), store.health(&[one]));
    look!("probe", ["subscription_health_pk"], scans [], prunes false,
        store.claim_probe(one, (1, 1), Duration::ZERO, now), store.release_probe(one, 1, now));
    let born = PendingCommit {
        tenant: one,
        event: event(),
        token: 1,
        registry_version: Some(0),
        matched: [1].into(),
        refused: [].into(),
        verdicts: vec![verdict.clone()],
    };
    let aborted =
        Aborted { event: gone, reason: AbortReason::Rejected, message: String::new(), verdicts: vec![verdict.clone()] };
    look!("birth of a pending event", ["tenant_heads_pk", "pending_events_pk", "pending_verdicts_pk"], scans [], prunes false,
        store.commit_pending(&born, Duration::from_secs(1)));
    look!("what becomes of a pending event", ["tenant_heads_pk", "pending_events_pk", "pending_verdicts_pk"], scans [], prunes false,
        store.renew_pending(one, gone, 1, Duration::ZERO), store.renew_deadline(one, gone, 1, now), store.attach_pending(one, gone),
        store.gate_pending(1, &gated), store.note_verdicts(one, gone, 1, std::slice::from_ref(&verdict)), store.note_attempt(one, gone, 1, 1),
        store.abort_pending(one, 1, &aborted, now), store.abort_delayed(one, 1, aborted.clone(), now, told(), Duration::from_secs(1)),
        store.note_cancelled(one, gone, 1, &[verdict]), store.forget_verdicts(one, gone), store.pending_event(one, gone),
        store.pending_verdicts(one, gone), store.cancel_pending(&by, gone, TimeDelta::days(1), Repeatable::default()));
    let replay = Replay { subscription_no: 1, done: LogPlace { after: 1, day: old }, up_to: 10 };
    let missed = |position, looped| Missed { position, day: old, key: None, looped };
    look!("replay", ["dispatch_cursors_pk", "replays_pk", "deferred_invocations_by_subscription"], scans [], prunes false,
        store.replay(one, &[2], 10), store.replaying_tenants(&[one, two]),
        store.continue_replay(one, 1, replay, LogPlace { after: 10, day: old }, &[missed(2, false), missed(3, true)]));
    let (watch, first) = (WatchId(Uuid::nil()), FilterVersion { version: 1, place, filters: Vec::new() });
    look!("a watch", ["watches_pk", "watches_pending"], scans [], prunes false,
        store.create_watch(one, watch, replica, now, &[first]), store.watch_versions(one, watch, 10),
        store.newest_watch_version(one, watch), store.watch_version(one, watch, 1),
        store.propose_watch_filters(one, watch, 1, &[], Repeatable::default()), store.apply_watch_filters(one, watch, 2, place),
        store.withdraw_watch_filters(one, watch, 3, None),
        store.pending_watch_change(replica, watch), store.refuse_watch_changes(replica, watch));
    look!("whose a credential is", ["api_keys_pk", "publisher_identities_subject_unique"], scans [], prunes false,
        store.api_key_and_hash(ApiKeyId(Uuid::nil())), store.publishers_of(&["uri:a".to_owned()]));
    let states = vec![state];
    let every = SubscriptionQuery { app: None, event_type: None, states };
    let typed = SubscriptionQuery { event_type: Some(gated.event.event_type.clone()), ..every.clone() };
    look!("ListSubscriptions", ["subscriptions_no_unique"], scans [], prunes false,
        store.subscriptions(one, &every, 1, 10), store.count_subscriptions(one, &every));
    look!("page of the subscriptions of an event type", ["subscriptions_by_event_type"], scans [], prunes false,
        store.subscriptions(one, &typed, 1, 10));
    look!("how many subscriptions an event type has", ["subscriptions_by_event_type"], scans [], prunes false,
        store.count_subscriptions(one, &typed));
    look!("a subscription", ["subscriptions_pk"], scans [], prunes false,
        store.subscription(one, None, id), store.visible_subscription(&by, id));
    look!("subscriptions by number", ["subscriptions_no_unique"], scans [], prunes false, store.subscription_ids(one, &[1, 2]));
    look!("event types", ["event_types_pk", "event_type_schemas_pk"], scans [], prunes false,
        store.event_type(one, "CUSTOM_1"), store.event_types(one, None, Deleted::Hide, 10),
        store.schema(one, &gated.event.event_type, 1), store.schemas(one, &gated.event.event_type, None, 10));
    look!("quotas and backlogs", ["tenant_quotas_pk", "full_backlogs_pk", "deferred_invocations_by_subscription"], scans [], prunes false,
        store.quotas(one), store.all_quotas(&[one, two]), store.full_backlogs(&[one, two]), store.deferred_count(one, 10),
        store.mark_backlog(one, 1, BacklogStanding::Full), store.mark_backlog(one, 1, BacklogStanding::Free));
    let key = RequestKey { id: "retried".to_owned(), method: "M", body_hash: [0; 32] };
    look!("RetryInvocation", ["tenant_heads_pk", "dispatch_cursors_pk", "request_ids_pk", "request_ids_by_expiry",
        "deferred_invocations_pk", "subscriptions_no_unique"], scans [], prunes false,
        store.retry_invocation(&by, of_place(known_event), Repeatable::new(key, |()| Ok(Vec::new()))));
    // What is dead waits no more, as it does in the population.
    sqlx::query("DELETE FROM deferred_invocations WHERE tenant_id = $1")
        .bind(one.0)
        .execute(&mut database.connection().await)
        .await
        .expect("gone");
    look!("RedriveInvocations", ["dead_letters_pk", "subscriptions_no_unique"], scans [], prunes false,
        store.redrive_invocations(&by, &InvocationFilter::default(), 2, Repeatable::default()));
    look!("RedriveInvocations of a subscription", ["dead_letters_by_subscription"], scans [], prunes false,
        store.redrive_invocations(&by, &of_subscription, 2, Repeatable::default()));
    look!("CancelInvocation", ["deferred_invocations_pk", "dead_letters_by_subscription"], scans [], prunes false,
        store.cancel_invocation(&by, of_place(known_event), Repeatable::default()));
    look!("page of the log", ["events_pk"], scans [], prunes true,
        store.read_log_page(one, place, 1_000, bound), store.read_log(one, place, 1_000, 10));
    look!("claim of tenants", ["dispatch_cursors_by_shard", "tenant_heads_pk"], scans [], prunes false,
        store.claim_shard(&ShardLease { shard: 1, token: 2 }), store.claim_tenant(one, 1, 2));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    store.close().await;
    database.end().await;
}

fn tenant(n: u32) -> TenantId {
    TenantId(Uuid::parse_str(&format!("00000000-0000-7000-8000-{n:012}")).expect("an id"))
}

async fn populate(database: &Database) {
    let mut superuser = database.connection().await;
    superuser.execute(POPULATION).await.expect("populated");
    // As autovacuum does: what holds nothing yet, such as the days to come, is left alone, and so not taken for empty for ever.
    let filled: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class
          WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND pg_relation_size(oid) > 0 ORDER BY relname",
    )
    .fetch_all(&mut superuser)
    .await
    .expect("a catalogue");
    superuser.execute(AssertSqlSafe(format!("VACUUM ANALYZE {}", filled.join(", ")))).await.expect("analyzed");
}

/// The statements of a publish, without keys and with them, on the connection that commits keep.
async fn commits(store: &Store, wrong: &mut Vec<String>) {
    let mut known = BTreeSet::new();
    let mut commits = store.commit_connection(Duration::from_secs(1));
    let expires = store.now() + TimeDelta::days(1);
    let (heads, keys): (&[&str], &[&str]) = (&["tenant_heads_pk"], &["tenant_heads_pk", "idempotency_keys_pk"]);
    let chains = &["tenant_heads_pk", "idempotency_keys_pk", "chain_budgets_pk"];
    for (name, tenants, brings, on_locked, indexes) in [
        ("publish to one tenant", 1, Brings::Nothing, OnLocked::Wait, heads),
        ("publish to several tenants", 2, Brings::Nothing, OnLocked::Wait, heads),
        ("publish to those that are free", 2, Brings::Nothing, OnLocked::Skip, heads),
        ("publish with keys to one tenant", 1, Brings::Key, OnLocked::Wait, keys),
        ("the lock before a publish", 1, Brings::Key, OnLocked::WaitFirst, heads),
        ("publish with keys to several tenants", 2, Brings::Key, OnLocked::Wait, keys),
        ("publish with keys to those that are free", 2, Brings::Key, OnLocked::Skip, keys),
        ("publish of what follows from others to one tenant", 1, Brings::Chain, OnLocked::Wait, chains),
        ("publish of what follows from others to several tenants", 2, Brings::Chain, OnLocked::Wait, chains),
        ("publish of what follows from others to those that are free", 2, Brings::Chain, OnLocked::Skip, chains),
    ] {
        let batches: Vec<TenantBatch> = (1..=tenants).map(|n| batch(tenant(n), brings)).collect();
        let written = commits.commit_events(&batches, expires, 1, on_locked).await.expect("committed").written;
        assert_eq!(written.len(), batches.len());
        let found = plans(commits.get().await.expect("a connection"), &mut known).await;
        check(wrong, &Expected { name, indexes, scans: &[], prunes: false }, found);
    }
}
