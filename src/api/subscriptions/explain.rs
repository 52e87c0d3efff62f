//! ExplainMatch: which subscriptions an event fires, and why the others do not; or what a filter that is not saved yet makes of the last
//! stored events of its type.
//!
//! Filters are evaluated as long work, over a bounded number of events and subscriptions and for a bounded time, and a bounded number of
//! calls at the same time: what reads much must not take the processors and the connections from those who publish. A caller that goes away
//! leaves no more behind than the piece of work that runs.

use super::hand_written::{check, hand_written};
use crate::api::auth::app_of;
use crate::api::compiling::compiling;
use crate::api::registry::{RegistryDeps, authorised, invalid, refused, wrong_page};
use crate::api::status::ApiError;
use crate::domain::access::{Caller, Role};
use crate::domain::announcement::tells_of_another_app;
use crate::domain::event::{Event, LogEntry};
use crate::domain::explain::{Reason, explain};
use crate::domain::filter::FilterContext;
use crate::domain::ids::{EventId, SubscriptionNo, TenantId};
use crate::domain::places::{Place, Places};
use crate::domain::subscription::{State, Subscription};
use crate::long_work;
use crate::proto::public::{DraftFailure, DraftFilter, DraftMatch, ExplainMatchRequest, ExplainMatchResponse};
use crate::store::StoreError;
use crate::store::event_pages::PageBound;
use crate::store::subscriptions::SubscriptionQuery;
use crate::wire::FieldError;
use crate::wire::event_type::parse_name;
use crate::wire::explain::explanation_to_proto;
use crate::wire::page::{PageScope, cut, page_size};
use crate::wire::subscription::parse_filter;
use chrono::Days;
use prost::Message as _;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Request;

/// Events of its type that a draft filter is tried on.
const LAST_EVENTS_DEFAULT: i32 = 1_000;
const LAST_EVENTS_MAX: i32 = 10_000;
/// Events of any type that are looked at for them: of a rare type there may be few in a long log.
const LOOKED_AT_MAX: i32 = 100_000;
/// Bytes of events that it reads, in all and at a time.
const DRAFT_BYTES_MAX: usize = 64 * 1024 * 1024;
const DRAFT_PAGE: PageBound = PageBound { entries: 500, bytes: 8 * 1024 * 1024 };
/// How long one call evaluates filters. A page ends early then, and the next one goes on from there; a draft has looked at fewer events.
const FILTERS_TIME_MAX: Duration = Duration::from_secs(2);
/// Calls at the same time on one replica, of which one tenant alone gets half.
const RUNNING_MAX: usize = 8;
/// When one that found no place may try again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How many ids and reasons a draft's answer names.
const SAMPLES_MAX: usize = 10;

/// The calls that run on this replica. Cheap to clone.
#[derive(Clone)]
pub struct Explains(Places);

impl Default for Explains {
    fn default() -> Self {
        Self(Places::new(RUNNING_MAX))
    }
}

impl Explains {
    /// A place for one call. Errors: QUOTA_EXCEEDED.
    fn begin(&self, tenant: TenantId) -> Result<Place, ApiError> {
        self.0.take(tenant).ok_or_else(|| ApiError::QuotaExceeded {
            quota: "explain_runs".to_owned(),
            limit: self.0.max() as u64,
            retry_delay: Some(RETRY_DELAY),
        })
    }
}

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<ExplainMatchRequest>,
) -> Result<ExplainMatchResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Viewer)?;
    let given = [!request.event_id.is_empty(), request.event.is_some(), request.draft.is_some()];
    if given.into_iter().filter(|given| *given).count() != 1 {
        let message = "exactly one of event_id, event and draft must be given";
        return Err(invalid(FieldError::new("event_id", message)));
    }
    let _place = deps.explains.begin(caller.tenant)?;
    if let Some(draft) = request.draft.take() {
        let draft = Some(try_draft(deps, &caller, draft).await?);
        return Ok(ExplainMatchResponse { draft, ..Default::default() });
    }
    let size = page_size("page_size", request.page_size, 100, 1_000).map_err(invalid)?;
    if request.schema_version < 0 {
        return Err(invalid(FieldError::new("schema_version", "must not be negative")));
    }
    let asked = ExplainMatchRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    let scope = PageScope::new("ExplainMatch", caller.tenant).with(asked.encode_to_vec());
    let after = deps.page_tokens.open_number(&scope, &request.page_token).map_err(wrong_page)?;
    let after = i32::try_from(after.unwrap_or_default()).map_err(|_| ApiError::PageTokenInvalid)?;
    let (event, entry) = match request.event.take() {
        None => {
            let id = EventId::parse(&request.event_id)
                .map_err(|error| invalid(FieldError::new("event_id", error.to_string())))?;
            let entry = deps.store.event(caller.tenant, id).await?;
            let app = app_of(&deps.store, &caller).await?;
            let entry = entry
                .filter(|entry| !is_hidden(entry, app.as_deref()))
                .ok_or(ApiError::EventNotInLog { event: request.event_id })?;
            (Arc::clone(&entry.event), Some(entry))
        }
        Some(event) => {
            let mut event = hand_written(event, None, deps.store.now())?;
            let known = deps.event_type(caller.tenant, &event.event_type).await?;
            let latest = known.event_type().latest_schema;
            event.schema_version = if request.schema_version == 0 { latest } else { request.schema_version };
            (check(deps, caller.tenant, &known, event, "event").await?, None)
        }
    };
    explain_page(deps, &caller, event, entry, (after, size), &scope).await
}

/// Whether an event tells of an app that one who is limited to `app` does not see.
fn is_hidden(entry: &LogEntry, app: Option<&str>) -> bool {
    app.is_some_and(|app| tells_of_another_app(&entry.event, app))
}

async fn explain_page(
    deps: &RegistryDeps,
    caller: &Caller,
    event: Arc<Event>,
    entry: Option<Arc<LogEntry>>,
    (after, size): (i32, u32),
    scope: &PageScope,
) -> Result<ExplainMatchResponse, ApiError> {
    let states = vec![State::Active, State::Disabled, State::Deleted];
    let query = SubscriptionQuery { app: caller.app, event_type: Some(event.event_type.clone()), states };
    let mut page = deps.store.subscriptions(caller.tenant, &query, after, size + 1).await?;
    let more = cut(&mut page, size);
    let answer = ExplainMatchResponse::default();
    let mut explained = Explained { left: page.into_iter(), last: None, spent: Duration::ZERO, answer };
    if !explained.left.as_slice().is_empty() {
        let work = move |explained: &mut Explained, end| explained.go_on(&event, entry.as_deref(), end);
        let done = long_work::in_pieces(caller.tenant, explained, work).await;
        explained = done.ok_or_else(|| ApiError::internal("explain matches", "it panicked"))?;
    }
    let Explained { left, last, mut answer, .. } = explained;
    if let Some(last) = last.filter(|_| more || !left.as_slice().is_empty()) {
        answer.next_page_token = deps.page_tokens.seal_number(scope, i64::from(last));
    }
    Ok(answer)
}

/// How far a page is.
struct Explained {
    left: std::vec::IntoIter<Subscription>,
    last: Option<SubscriptionNo>,
    /// How long filters were evaluated.
    spent: Duration,
    answer: ExplainMatchResponse,
}

impl Explained {
    /// Explains subscriptions until the end of a piece; true where the page is done.
    fn go_on(&mut self, event: &Event, entry: Option<&LogEntry>, end: Instant) -> bool {
        let context = FilterContext::new(event);
        let began = Instant::now();
        for subscription in self.left.by_ref() {
            let reason = explain(&subscription, event, &context);
            if reason == Reason::Fires {
                self.answer.subscription_ids.push(subscription.id.to_string());
            }
            self.answer.explanations.push(explanation_to_proto(&subscription, reason, entry));
            self.last = Some(subscription.no);
            if Instant::now() > end + context.reading() {
                break;
            }
        }
        self.spent += began.elapsed();
        self.left.as_slice().is_empty() || self.spent > FILTERS_TIME_MAX
    }
}

/// What became of the events that a draft filter looked at.
#[derive(Default)]
struct Tried {
    answer: DraftMatch,
    /// Events that were read, those included that the caller does not see.
    read: i32,
    /// How long the filter was evaluated.
    spent: Duration,
    failures: HashMap<String, (i32, String)>,
}

async fn try_draft(deps: &RegistryDeps, caller: &Caller, draft: DraftFilter) -> Result<DraftMatch, ApiError> {
    let (tenant, app) = (caller.tenant, app_of(&deps.store, caller).await?);
    let name = parse_name("draft.event_type", &draft.event_type).map_err(invalid)?;
    let (bytes, source) = (draft.filter.len(), draft.filter);
    let parse = move || parse_filter("draft.filter", &source);
    let filter = compiling(tenant, bytes, parse).await?.map_err(refused)?;
    let filter = filter.ok_or_else(|| invalid(FieldError::new("draft.filter", "is required")))?;
    let last = match draft.last_events {
        ..0 => return Err(invalid(FieldError::new("draft.last_events", "must not be negative"))),
        0 => LAST_EVENTS_DEFAULT,
        last => last.min(LAST_EVENTS_MAX),
    };
    deps.event_type(tenant, &name).await?;
    let head = deps.store.head(tenant).await?.ok_or(StoreError::Corrupt { what: "head" })?;
    // Tomorrow by this clock is not before today by the database's.
    let mut day = deps.store.now().date_naive() + Days::new(1);
    let mut before = head.position + 1;
    let mut bytes = 0;
    let mut tried = Tried::default();
    while tried.wants(last) && tried.read < LOOKED_AT_MAX && bytes < DRAFT_BYTES_MAX {
        let left = u32::try_from(LOOKED_AT_MAX - tried.read).unwrap_or(0);
        let bound = PageBound { entries: left.min(DRAFT_PAGE.entries), ..DRAFT_PAGE };
        let page = deps.store.read_log_before(tenant, day, before, bound).await?;
        let Some(oldest) = page.last() else { break };
        (day, before) = (oldest.day(), oldest.position);
        bytes += page.iter().map(|entry| entry.event.bytes()).sum::<usize>();
        let (filter, name, app) = (filter.clone(), name.clone(), app.clone());
        let mut page = page.into_iter();
        let look = move |tried: &mut Tried, end| {
            let began = Instant::now();
            while tried.answer.of_type < last
                && let Some(entry) = page.next()
            {
                tried.read += 1;
                if !is_hidden(&entry, app.as_deref()) {
                    tried.look(&entry, &filter, entry.event.event_type == name);
                }
                if Instant::now() > end {
                    break;
                }
            }
            tried.spent += began.elapsed();
            page.as_slice().is_empty() || !tried.wants(last)
        };
        let looked = long_work::in_pieces(tenant, tried, look).await;
        tried = looked.ok_or_else(|| ApiError::internal("try a filter", "it panicked"))?;
    }
    let mut failures: Vec<DraftFailure> = tried
        .failures
        .into_iter()
        .map(|(message, (count, sample_event_id))| DraftFailure { message, count, sample_event_id })
        .collect();
    failures.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.message.cmp(&b.message)));
    failures.truncate(SAMPLES_MAX);
    Ok(DraftMatch { failures, ..tried.answer })
}

impl Tried {
    /// True where further events are to be looked at.
    fn wants(&self, last: i32) -> bool {
        self.answer.of_type < last && self.spent <= FILTERS_TIME_MAX
    }

    fn look(&mut self, entry: &LogEntry, filter: &crate::domain::filter::Filter, of_type: bool) {
        self.answer.looked_at += 1;
        if !of_type {
            return;
        }
        self.answer.of_type += 1;
        match filter.matches(&FilterContext::new(&entry.event)) {
            Ok(true) => {
                self.answer.matched += 1;
                if self.answer.sample_event_ids.len() < SAMPLES_MAX {
                    self.answer.sample_event_ids.push(entry.event.id.to_string());
                }
            }
            Ok(false) => {}
            Err(error) => {
                self.answer.failed += 1;
                let id = || (0, entry.event.id.to_string());
                self.failures.entry(error.0).or_insert_with(id).0 += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;
    use tonic_types::StatusExt as _;
    use uuid::Uuid;

    #[test]
    fn a_tenant_that_asks_for_much_leaves_places_for_others() {
        let (explains, tenant) = (Explains::default(), |n| TenantId(Uuid::from_u128(n)));
        let held: Vec<Place> = (0..RUNNING_MAX / 2).map(|_| explains.begin(tenant(1)).expect("half of them")).collect();
        let refused = Status::from(explains.begin(tenant(1)).expect_err("no more than that"));
        let details = refused.get_error_details();
        assert_eq!(details.error_info().expect("it is set").reason, "QUOTA_EXCEEDED");
        assert_eq!(details.quota_failure().expect("it is set").violations[0].subject, "explain_runs");
        assert_eq!(details.retry_info().expect("it is set").retry_delay, Some(RETRY_DELAY));
        explains.begin(tenant(2)).expect("another tenant finds some");
        drop(held);
        explains.begin(tenant(1)).expect("there is room again");
    }
}
