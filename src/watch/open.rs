//! Opening a watch: bounds, the start in the log, the filters of an earlier watch, the tenant's tail.

use super::filter_set::{FilterChange, FilterSet};
use super::place::{self, PlaceError};
use super::remembered::Full;
use super::slot::Slot;
use super::stream::WatchStream;
use super::tail::{Reads, Tail};
use super::terms::{OnExpired, Terms};
use super::{NO_PANIC, Shared, State, TailHandle, Watches};
use crate::clock;
use crate::domain::access::Caller;
use crate::domain::ids::{TenantId, WatchId};
use crate::domain::quotas::Quota;
use crate::planted::{self, Defect};
use crate::proto::public::EventView;
use crate::store::StoreError;
use crate::store::events::LogPlace;
use crate::store::heads::HeadRow;
use crate::store::watches::FilterVersion;
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Where a watch starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// After the log's end.
    Now,
    /// At the earliest retained event.
    Earliest,
    /// After a cursor.
    Cursor(String),
    /// At the first event committed at or after a time.
    Time(DateTime<Utc>),
    /// Where an earlier watch was at a cursor, with the filters it had there.
    Watch {
        /// The earlier watch.
        watch: WatchId,
        /// The last cursor of it that was dealt with.
        cursor: String,
    },
}

/// A watch to open.
#[derive(Debug)]
pub struct WatchRequest {
    /// Who watches; the tenant is the caller's.
    pub caller: Caller,
    /// Slug of the app that the caller is limited to: what is told of other apps' subscriptions is left out.
    pub app: Option<Arc<str>>,
    /// What is delivered; not used with [`Start::Watch`].
    pub filters: FilterSet,
    /// Where it starts.
    pub start: Start,
    /// What to do where the start is no longer retained.
    pub on_expired: OnExpired,
    /// Longest silence before a bookmark; none means the configured one.
    pub bookmark_interval: Option<Duration>,
    /// How much of each event.
    pub view: EventView,
}

/// Why a watch cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server goes down.
    #[error("the server is draining")]
    Draining,
    /// A bound on open watches is reached.
    #[error("{setting} is at its bound of {limit}")]
    TooMany {
        /// Name of the setting.
        setting: &'static str,
        /// The bound.
        limit: usize,
    },
    /// Earlier watches have left too much to be remembered.
    #[error(transparent)]
    Full(#[from] Full),
    /// The earlier watch is not known, or no longer.
    #[error("no such watch")]
    WatchNotFound(WatchId),
    /// The cursor cannot be used.
    #[error(transparent)]
    Place(PlaceError),
    /// The start is no longer retained.
    #[error("the start is no longer retained")]
    Expired {
        /// The first usable cursor.
        earliest_cursor: String,
    },
    /// The store cannot be read.
    #[error("the log cannot be read")]
    Store(#[from] StoreError),
}

/// Gives a stream's place among the open ones back unless the stream was made.
struct Admission<'a> {
    shared: &'a Shared,
    slot: Arc<Slot>,
    kept: bool,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.release(&self.slot);
        }
    }
}

impl Watches {
    /// Opens a watch. Its stream says `Created` as soon as it is asked.
    pub async fn open(&self, request: WatchRequest) -> Result<WatchStream, OpenError> {
        let shared = &self.shared;
        if shared.is_draining() {
            return Err(OpenError::Draining);
        }
        let tenant = request.caller.tenant;
        let (overrides, _) = shared.store.quotas(tenant).await?;
        let mut admission = shared.admit(&request.caller, overrides.get(Quota::Watches))?;
        let head = shared.store.head(tenant).await?.ok_or(StoreError::Corrupt { what: "head" })?;
        let (start, gap) = shared.start_place(tenant, &head, &request).await?;
        let versions = shared.filter_versions(tenant, start, &request).await?;
        let age = shared.config.stream_age(clock::jitter());
        let now = shared.store.now();
        let until_expiry = request.caller.expires_at.map(|expiry| (expiry - now).to_std().unwrap_or_default());
        let slot = Arc::clone(&admission.slot);
        let resumable = age + Duration::from_millis(shared.config.resume_ms);
        let expires_at = now + TimeDelta::from_std(resumable).unwrap_or(TimeDelta::days(1));
        let sizes = versions.iter().map(|version| version.filters.len());
        shared.remembered.take(tenant, slot.subject(), sizes)?;
        let mut scheduled = versions.iter().map(parse_version).collect::<Result<VecDeque<_>, _>>()?;
        shared.remember(&slot, expires_at, versions).await?;
        let (_, first) = scheduled.pop_front().ok_or(StoreError::Corrupt { what: "watch" })?;
        let filters = match request.start {
            // Those that it changes to further on are compiled when it comes there.
            Start::Watch { .. } => first.set.compiled(tenant).await,
            _ => request.filters,
        };
        let tail = shared.join_tail(tenant, &head, &slot);
        // What was committed between the look at the head and the tail's first news is read by position.
        tail.note_head(head.position);
        admission.kept = true;
        let terms = Terms {
            caller: request.caller,
            app: request.app,
            filters,
            filter_version: first.version,
            scheduled,
            view: request.view,
            on_expired: request.on_expired,
            bookmark_interval: request.bookmark_interval.unwrap_or(shared.config.bookmark_interval()),
            start,
            gap,
            ends_at: Instant::now() + age,
            // One that ends later than the stream needs no end of its own.
            expires_at: until_expiry.filter(|left| *left <= age).map(|left| Instant::now() + left),
        };
        drop(admission);
        Ok(WatchStream::new(Arc::clone(shared), tail, slot, terms))
    }
}

fn parse_version(version: &FilterVersion) -> Result<(LogPlace, FilterChange), StoreError> {
    let set = FilterSet::decode(&version.filters).ok_or(StoreError::Corrupt { what: "watch" })?;
    Ok((version.place, FilterChange { version: version.version, set }))
}

impl Shared {
    /// Counts a stream in, within the bounds.
    fn admit(&self, caller: &Caller, tenants_own: Option<u64>) -> Result<Admission<'_>, OpenError> {
        let slot = Arc::new(Slot::new(WatchId(clock::new_uuid()), caller.tenant, caller.subject.clone()));
        let mut state = self.state.lock().expect(NO_PANIC);
        if state.streams >= self.config.streams_max {
            return Err(OpenError::TooMany { setting: "watch.streams_max", limit: self.config.streams_max });
        }
        let own = tenants_own.and_then(|limit| usize::try_from(limit).ok());
        let limit = own.unwrap_or(self.config.streams_per_tenant_max);
        if state.open.get(&caller.tenant).is_some_and(|open| *open >= limit) {
            return Err(OpenError::TooMany { setting: "watch.streams_per_tenant_max", limit });
        }
        let limit = self.config.streams_per_credential_max;
        if state.open_by_subject.get(&caller.subject).is_some_and(|open| *open >= limit) {
            return Err(OpenError::TooMany { setting: "watch.streams_per_credential_max", limit });
        }
        *state.open.entry(caller.tenant).or_default() += 1;
        *state.open_by_subject.entry(caller.subject.clone()).or_default() += 1;
        state.streams += 1;
        Ok(Admission { shared: self, slot, kept: false })
    }

    /// Adds the stream to its tenant's tail, which starts with the first one.
    fn join_tail(self: &Arc<Self>, tenant: TenantId, head: &HeadRow, slot: &Arc<Slot>) -> Arc<Tail> {
        let mut state = self.state.lock().expect(NO_PANIC);
        let is_new = state.tail_of(tenant, head.log_epoch).is_none();
        let State { tails, .. } = &mut *state;
        let handle = tails.entry(tenant).or_insert_with(|| {
            let sealer = self.sealer.clone();
            let (end, config, rings) = (place::end(head), Arc::clone(&self.config), self.rings.clone());
            let reads = Reads {
                fill: self.read_page(tenant, &self.tail_reads),
                catch_up: self.read_page(tenant, &self.catch_up_reads),
            };
            let tail = Arc::new(Tail::new(tenant, head.log_epoch, end, sealer, config, rings, reads));
            let stop = self.stop.child_token();
            let (running, until) = (Arc::clone(&tail), stop.clone());
            self.tasks.spawn(async move { running.run(until).await });
            TailHandle { tail, stop, idle_since: None }
        });
        // Joined under the registry's lock, so that a tail is never given up between being found and being joined.
        handle.tail.join(Arc::clone(slot));
        let tail = Arc::clone(&handle.tail);
        drop(state);
        if is_new {
            self.check_heads();
        }
        tail
    }

    /// The filters at the start, and those that an earlier watch changed to further on.
    async fn filter_versions(
        &self,
        tenant: TenantId,
        start: LogPlace,
        request: &WatchRequest,
    ) -> Result<Vec<FilterVersion>, OpenError> {
        let Start::Watch { watch, .. } = &request.start else {
            return Ok(vec![FilterVersion { version: 1, place: start, filters: request.filters.encode() }]);
        };
        // A stream changes no more often than that, and begins with as many of an earlier one at most.
        let limit = self.config.filter_changes_max + 1;
        let mut versions = self.store.watch_versions(tenant, *watch, limit).await?;
        let at_start = versions.iter().rposition(|version| version.place.after <= start.after).unwrap_or_default();
        versions.drain(..at_start);
        let first = versions.first_mut().ok_or(OpenError::WatchNotFound(*watch))?;
        first.place = start;
        Ok(versions)
    }

    /// The place to start at, and the one to go on from where something is missing between them.
    async fn start_place(
        &self,
        tenant: TenantId,
        head: &HeadRow,
        request: &WatchRequest,
    ) -> Result<(LogPlace, Option<LogPlace>), OpenError> {
        let found = match &request.start {
            Start::Now => Ok(place::end(head)),
            Start::Earliest => Ok(place::earliest(head)),
            Start::Cursor(text) | Start::Watch { cursor: text, .. } => {
                place::of_cursor(&self.sealer, tenant, head, text).map(|place| {
                    let late = planted::has(Defect::ResumeLate) && place.after < head.position;
                    LogPlace { after: place.after + i64::from(late), ..place }
                })
            }
            Start::Time(time) => place::of_time(&self.store, tenant, head, *time).await?,
        };
        match found {
            Ok(place) => Ok((place, None)),
            Err(PlaceError::Expired { missing_from, earliest }) if request.on_expired == OnExpired::FromEarliest => {
                // The first cursor still says where the caller was, so that a resume with it hears of the gap as well.
                Ok((LogPlace { after: missing_from - 1, day: earliest.day }, Some(earliest)))
            }
            Err(PlaceError::Expired { earliest, .. }) => {
                let earliest_cursor = place::to_cursor(&self.sealer, tenant, head.log_epoch, earliest);
                Err(OpenError::Expired { earliest_cursor })
            }
            Err(error) => Err(OpenError::Place(error)),
        }
    }
}
