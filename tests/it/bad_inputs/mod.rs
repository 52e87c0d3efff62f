//! Hostile and malformed input, a test for each row of `docs/bad-inputs.md`: each row is a class with several members, and each
//! member has its exact outcome.
//!
//! A row never stops at its first surprise: it collects what was wrong with every member, and then looks at the service as a
//! whole. Its replicas must be the same processes, without a panic, with no more memory than ever; another tenant must be served on
//! each; and the row's own log must hold exactly what was accepted.

mod addresses;
mod cancelled;
mod credentials;
mod cursors;
mod filters;
mod messages;
mod names;
mod payloads;
pub mod raw;
mod rebinding;
mod receivers;
mod starts;

use std::fmt::Debug;
use std::time::{Duration, Instant};

use carillon::proto::internal::{PublishRequest, PublishResponse};
use carillon::proto::public::{EventView, ListEventsRequest};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::publish_request;
use crate::harness::{Tenant, World};
use crate::operations::get;

/// The event type that every row declares.
pub const TYPE: &str = "CUSTOM_BAD";

/// What a refusal must never show: statements, source files, the service's own addresses, the way a task died.
const INTERNALS: [&str; 8] = ["SELECT ", "INSERT ", "UPDATE ", "sqlx", "src/", "127.0.0.1", "panicked", "postgres"];

/// What a replica of the whole suite may hold in memory after any row: other tests use it at the same time, so it is no measure of one row,
/// but what a row leaves behind shows.
const RESIDENT_KIB_MAX: u64 = 320 * 1024;

/// How a member is answered.
#[derive(Debug, Clone, Copy)]
pub enum Expected {
    /// It is accepted.
    Fine,
    /// Code, reason, and the path of the field that the answer names; empty where it names none.
    Refused(Code, &'static str, &'static str),
}

/// A field that breaks its shape.
pub const fn invalid(field: &'static str) -> Expected {
    Expected::Refused(Code::InvalidArgument, "FIELD_INVALID", field)
}

/// A row that is being tried.
pub struct Row {
    pub world: &'static World,
    pub tenant: Tenant,
    canary: Tenant,
    accepted: usize,
    wrong: Vec<String>,
}

impl Row {
    /// Starts a row with a tenant of its own, and another one that must not notice.
    pub async fn open() -> Self {
        let world = World::shared().await;
        let (tenant, canary) = (world.tenant().await, world.tenant().await);
        tenant.declare(TYPE).await;
        canary.declare(TYPE).await;
        Self { world, tenant, canary, accepted: 0, wrong: Vec::new() }
    }

    /// Notes where a member was answered otherwise than it should be.
    pub fn check<T>(&mut self, member: &str, result: Result<T, Status>, expected: Expected) -> Option<T> {
        let member: String = member.chars().take(80).collect();
        let wanted = match expected {
            Expected::Fine => "accepted".to_owned(),
            Expected::Refused(code, reason, field) => format!("{code:?} {reason} {field:?}"),
        };
        match result {
            Ok(value) => {
                self.ensure(&member, wanted == "accepted", "accepted");
                Some(value)
            }
            Err(status) => {
                let said = format!("{} {}", status.message(), String::from_utf8_lossy(status.details()));
                let leaked = INTERNALS.iter().find(|word| said.contains(**word) && !member.contains(**word));
                self.ensure(&member, leaked.is_none(), format!("shows {leaked:?}: {said}"));
                self.ensure(&member, status.details().len() + status.message().len() < 4_096, "a status of over 4 KiB");
                let got = outcome(&status);
                let state = format!("{got} instead of {wanted}: {}", status.message());
                self.ensure(&member, got == wanted, state);
                None
            }
        }
    }

    /// Publishes; what is accepted must be in the log at the end, and nothing else.
    pub async fn publish(
        &mut self,
        member: &str,
        request: PublishRequest,
        expected: Expected,
    ) -> Option<PublishResponse> {
        let answer = self.tenant.try_publish(request).await;
        self.accepted += usize::from(answer.is_ok());
        self.check(member, answer, expected)
    }

    /// Notes where something does not hold.
    pub fn ensure(&mut self, member: &str, holds: bool, state: impl Debug) {
        if !holds {
            self.wrong.push(format!("{member}: {state:?}"));
        }
    }

    /// Looks at the service as a whole, and fails with everything that was wrong.
    pub async fn close(mut self) {
        for (index, replica) in self.world.replicas.iter().enumerate() {
            // Nothing starts these processes again, and their ports were free ones: who answers is who was asked before.
            let alive = get(&format!("http://{}/livez", replica.addresses.ops)).await;
            self.wrong.extend((alive.0 != 200).then(|| format!("replica {index} does not live: {alive:?}")));
            let kib = replica.process.memory_kib();
            self.wrong.extend((kib > RESIDENT_KIB_MAX).then(|| format!("replica {index} holds {kib} KiB")));
            let log = replica.process.log();
            let faults = ["panicked", "there is no transaction in progress"];
            let fault = log.lines().find(|line| faults.iter().any(|fault| line.contains(fault)));
            self.wrong.extend(fault.map(|line| format!("replica {index}: {line}")));
            let published = self.canary.publishers[index].clone().publish(publish_request(TYPE, &json!({}))).await;
            self.wrong.extend(published.err().map(|status| format!("another tenant cannot publish: {status:?}")));
            let seen = count(&self.canary, index).await;
            self.wrong.extend((seen != index + 1).then(|| format!("another tenant sees {seen} events of its own")));
            let kept = count(&self.tenant, index).await;
            let accepted = self.accepted;
            self.wrong.extend((kept != accepted).then(|| format!("{accepted} were accepted, {kept} are kept")));
        }
        assert!(self.wrong.is_empty(), "{} wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

/// How long a refusal may take. What a test runs is mostly not optimised, and then several times as slow.
pub const fn at_most(millis: u64) -> Duration {
    Duration::from_millis(if cfg!(debug_assertions) { 4 * millis } else { millis })
}

/// Makes a call several times: its last answer, and the time of the quickest, which is at least what the server took. That
/// way a machine that is busy with something else makes no refusal slow.
pub async fn quickest<T>(mut call: impl AsyncFnMut() -> T) -> (T, Duration) {
    const TIMES: usize = 4;
    let mut least = Duration::MAX;
    for _ in 1..TIMES {
        let sent = Instant::now();
        call().await;
        least = least.min(sent.elapsed());
    }
    let sent = Instant::now();
    (call().await, least.min(sent.elapsed()))
}

/// Code, reason, and the first field that a status names.
fn outcome(status: &Status) -> String {
    let reason = status.get_details_error_info().map_or_else(|| "without a reason".to_owned(), |info| info.reason);
    let field = status.get_details_bad_request().and_then(|bad| bad.field_violations.into_iter().next());
    format!("{:?} {reason} {:?}", status.code(), field.map(|field| field.field).unwrap_or_default())
}

/// How many events of [`TYPE`] a tenant's log holds, as a replica shows it.
async fn count(tenant: &Tenant, replica: usize) -> usize {
    let mut request = ListEventsRequest {
        page_size: 1_000,
        event_types: vec![TYPE.to_owned()],
        view: EventView::Metadata.into(),
        ..Default::default()
    };
    let mut found = 0;
    loop {
        let page = tenant.at[replica].events.clone().list_events(request.clone()).await.expect("a page").into_inner();
        found += page.events.len();
        if page.end_of_log {
            return found;
        }
        request.cursor = page.next_cursor;
    }
}
