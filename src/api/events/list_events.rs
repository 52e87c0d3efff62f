//! ListEvents: the log in order, a page at a time.
//!
//! A filtered call looks at a bounded number of events and answers with what it found and where to go on, so that no filter can
//! make one call read the whole log.

use super::{EventsDeps, parse};
use crate::api::auth::{app_of, caller};
use crate::api::compiling::compiling;
use crate::api::in_flight::Place;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::announcement::tells_of_another_app;
use crate::domain::event::LogEntry;
use crate::domain::ids::TenantId;
use crate::long_work::{self, TURN};
use crate::proto::public::{Event, ListEventsRequest, ListEventsResponse};
use crate::store::StoreError;
use crate::store::event_pages::PageBound;
use crate::store::events::LogPlace;
use crate::store::heads::HeadRow;
use crate::watch::filter::Selection;
use crate::watch::filter_set::selection;
use crate::watch::place;
use crate::wire::event::entry_to_proto;
use crate::wire::time::parse_timestamp;
use chrono::{DateTime, Utc};
use prost::Message as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Request;

const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1_000;
/// How long one call looks for events that its filter selects.
const SCAN_TIME_MAX: Duration = Duration::from_secs(2);

/// Answers ListEvents.
pub async fn handle(deps: &EventsDeps, request: Request<ListEventsRequest>) -> Result<ListEventsResponse, ApiError> {
    let caller = caller(&request)?.require(Role::Viewer)?.clone();
    let (tenant, app) = (caller.tenant, app_of(&deps.store, &caller).await?);
    let place_of_call = request.extensions().get::<Arc<Place>>().cloned();
    let mut request = request.into_inner();
    let page_size = match usize::try_from(request.page_size) {
        Err(_) => return Err(ApiError::field("page_size", "must not be negative")),
        Ok(0) => PAGE_SIZE_DEFAULT,
        Ok(size) => size.min(PAGE_SIZE_MAX),
    };
    let view = parse::view(request.view)?;
    let (event_types, filter) = (std::mem::take(&mut request.event_types), std::mem::take(&mut request.filter));
    let bytes = filter.len();
    let select = move || selection(&event_types, &filter, "");
    let selection = compiling(tenant, bytes, select).await?.map_err(parse::filter_error)?;
    let start_time = time("start_time", request.start_time.as_ref())?;
    let start_time = start_time.map(|time| parse::start_time(time, deps.store.now())).transpose()?;
    let end_time = time("end_time", request.end_time.as_ref())?;

    let head = deps.store.head(tenant).await?.ok_or(StoreError::Corrupt { what: "head" })?;
    let start = match (request.cursor.as_str(), start_time) {
        ("", None) => Ok(place::earliest(&head)),
        ("", Some(time)) => place::of_time(&deps.store, tenant, &head, time).await?,
        (text, _) => place::of_cursor(&deps.sealer, tenant, &head, text),
    };
    let start =
        start.map_err(|error| parse::place_error(error, "cursor", |earliest| cursor(deps, tenant, &head, earliest)))?;

    let config = deps.watches.config();
    let began = Instant::now();
    let mut page = Page { events: Vec::new(), bytes: 0, at: start, ended: false };
    // What is hidden is read and not one of the page, as what a filter leaves out.
    let takes_all = selection.is_everything() && app.is_none();
    let mut scan_left = if takes_all { u32::MAX } else { config.list_scan_max };
    while !page.ended && page.events.len() < page_size && page.at.after < head.position && scan_left > 0 {
        // What a costly filter has found by then is a page, and the next one goes on from there.
        if !takes_all && began.elapsed() > SCAN_TIME_MAX {
            break;
        }
        // Without a filter every event read is one of the page; with one, larger reads save round trips.
        let wanted = if takes_all { page_size - page.events.len() } else { PAGE_SIZE_MAX };
        let entries = u32::try_from(wanted).unwrap_or(u32::MAX).min(scan_left);
        let bound = PageBound { entries, bytes: config.list_bytes_max as u64 };
        let entries = deps.store.read_log_page(tenant, page.at, head.position, bound).await?;
        if entries.first().is_none_or(|first| first.position > page.at.after + 1) {
            return Err(missing(deps, tenant, page.at).await);
        }
        // It may wait long from here on, for its filter and for the next read, and others of its tenant with it.
        if let Some(place) = &place_of_call {
            place.make_room_to_answer(page.bytes + entries.iter().map(|entry| entry.memory_bytes()).sum::<usize>())?;
        }
        let (entries, wanted) = chosen(tenant, &selection, entries, began + SCAN_TIME_MAX).await?;
        for (entry, wanted) in entries.into_iter().zip(wanted) {
            if end_time.is_some_and(|end| entry.committed_at >= end) {
                // Commit times never decrease along the log: nothing after this can be wanted.
                page.ended = true;
                break;
            }
            let hidden = app.as_deref().is_some_and(|app| tells_of_another_app(&entry.event, app));
            if wanted && !hidden && !page.take(entry_to_proto(&entry, view), page_size, config.list_bytes_max) {
                break;
            }
            scan_left -= 1;
            page.at = LogPlace { after: entry.position, day: entry.day() };
        }
        if page.is_full(page_size) {
            break;
        }
    }
    Ok(ListEventsResponse {
        next_cursor: cursor(deps, tenant, &head, page.at),
        end_of_log: page.ended || page.at.after >= head.position,
        events: page.events,
    })
}

/// Which of the entries a selection wants: of all of them, or of the first ones where time runs out. At least one is looked at.
async fn chosen(
    tenant: TenantId,
    selection: &Selection,
    entries: Vec<Arc<LogEntry>>,
    until: Instant,
) -> Result<(Vec<Arc<LogEntry>>, Vec<bool>), ApiError> {
    let mut wanted = Vec::with_capacity(entries.len());
    let turn = Instant::now() + TURN;
    choose(selection, &entries, turn, &mut wanted);
    if wanted.len() == entries.len() {
        return Ok((entries, wanted));
    }
    // The rest beside the threads that everybody's work runs on.
    let selection = selection.clone();
    let rest = long_work::in_pieces(tenant, (entries, wanted), move |(entries, wanted), end| {
        choose(&selection, entries, until.min(end), wanted);
        wanted.len() == entries.len() || Instant::now() > until
    });
    rest.await.ok_or_else(|| ApiError::internal("evaluate a filter", "it panicked"))
}

fn choose(selection: &Selection, entries: &[Arc<LogEntry>], until: Instant, wanted: &mut Vec<bool>) {
    for entry in &entries[wanted.len()..] {
        wanted.push(selection.matches(&entry.event));
        if Instant::now() > until {
            break;
        }
    }
}

struct Page {
    events: Vec<Event>,
    bytes: usize,
    /// The place up to which events were looked at.
    at: LogPlace,
    /// True where nothing after `at` can be wanted.
    ended: bool,
}

impl Page {
    /// Adds an event; false where there is no room for it.
    fn take(&mut self, event: Event, page_size: usize, bytes_max: usize) -> bool {
        let size = event.encoded_len();
        let fits = self.events.is_empty() || (self.bytes + size <= bytes_max && self.events.len() < page_size);
        // Also where it does not fit: what comes after it does not belong on this page either.
        self.bytes += size;
        if fits {
            self.events.push(event);
        } else {
            self.bytes = usize::MAX;
        }
        fits
    }

    fn is_full(&self, page_size: usize) -> bool {
        self.bytes == usize::MAX || self.events.len() >= page_size
    }
}

fn time(field: &str, value: Option<&crate::proto::Timestamp>) -> Result<Option<DateTime<Utc>>, ApiError> {
    let parsed = value.map(|value| parse_timestamp(field, value)).transpose();
    parsed.map_err(|error| ApiError::field(error.field, error.description))
}

fn cursor(deps: &EventsDeps, tenant: TenantId, head: &HeadRow, at: LogPlace) -> String {
    place::to_cursor(&deps.sealer, tenant, head.log_epoch, at)
}

/// Why events that the head says exist are not there: retention took them between two reads.
async fn missing(deps: &EventsDeps, tenant: TenantId, at: LogPlace) -> ApiError {
    match deps.store.head(tenant).await {
        Ok(Some(head)) if head.earliest_position > at.after + 1 => {
            ApiError::CursorExpired { earliest: cursor(deps, tenant, &head, place::earliest(&head)) }
        }
        Ok(_) => StoreError::Corrupt { what: "log" }.into(),
        Err(error) => error.into(),
    }
}
