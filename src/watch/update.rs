//! Changing the filters of a running watch, wherever its stream is held.
//!
//! ```text
//! any replica:  newest version -> changed filters -> a row that waits -> hint -> wait ........................ -> answer
//! the holder:                                  hint or pulse -> slot -> stream stops at its place -> row in effect -> goes on
//! ```
//!
//! The row is the truth: it is in effect at one position, or withdrawn, never both. Hints only make it faster; without them the
//! pulse brings a change to the holder, and the waiting call looks at its row once a second.

use super::filter_set::{FilterChange, FilterSet, FilterSetError};
use super::place;
use super::remembered::Full;
use super::{RecordChange, Shared, Watches};
use crate::domain::access::Subject;
use crate::domain::ids::{TenantId, WatchId};
use crate::feed::{Feed, WatchNews};
use crate::proto::public::UpdateWatchResponse;
use crate::store::events::LogPlace;
use crate::store::request_ids::{Once, Repeatable, RequestKey};
use crate::store::watches::{NewestVersion, VersionState};
use crate::store::{Store, StoreError};
use futures::FutureExt as _;
use prost::Message as _;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until};

/// How often a waiting call looks at its row where no hint comes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two tries to record a change.
const RECORD_AGAIN: Duration = Duration::from_millis(250);
/// Tries of a call that does not compare versions, against others that change the same watch, before it waits for them.
const RACES_MAX: usize = 4;

/// A change to make.
#[derive(Debug)]
pub struct WatchUpdate {
    /// Whose watch.
    pub tenant: TenantId,
    /// Who asks for it.
    pub subject: Subject,
    /// Which watch.
    pub watch: WatchId,
    /// Filters to add, or to put in the place of those of the same name.
    pub add: FilterSet,
    /// Names of filters to remove.
    pub remove: Vec<String>,
    /// The version that the caller knows; none does not compare.
    pub known_version: Option<i64>,
    /// The id by which a retry gets the first answer.
    pub request: Option<RequestKey>,
}

/// A change in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// The new version.
    pub version: i64,
    /// The place of the change.
    pub cursor: String,
}

/// Why a watch was not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Unknown, or its stream has ended.
    #[error("no such watch")]
    NotFound,
    /// Somebody else changed it, or changes it just now.
    #[error("the filters are at another version")]
    Conflict,
    /// The filters are refused.
    #[error(transparent)]
    Filters(#[from] FilterSetError),
    /// The stream has had as many changes as it may have.
    #[error("the watch has had {limit} changes")]
    TooMany {
        /// The bound.
        limit: u32,
    },
    /// Watches and their changes have left too much to be remembered.
    #[error(transparent)]
    Full(#[from] Full),
    /// The stream took nothing in time; the change was taken back.
    #[error("the stream did not take the change in time")]
    Stalled,
    /// The store cannot be used; whether the change was made, the stream says.
    #[error("the watch cannot be changed just now")]
    Store(#[from] StoreError),
}

impl Watches {
    /// Changes the filters of a watch and waits until they are in effect. Goes on where the caller goes away, so that a change is
    /// never left half made.
    pub async fn update(&self, update: WatchUpdate) -> Result<Updated, UpdateError> {
        let shared = Arc::clone(&self.shared);
        let work = self.shared.tasks.spawn(async move { shared.update(update).await });
        work.await.unwrap_or(Err(UpdateError::Store(StoreError::Interrupted)))
    }
}

impl Shared {
    async fn update(&self, update: WatchUpdate) -> Result<Updated, UpdateError> {
        let (tenant, watch) = (update.tenant, update.watch);
        let mut news = self.feed.watch_news();
        let deadline = Instant::now() + self.config.update_timeout();
        let version = match self.propose_in_turn(&update, &mut news, deadline).await? {
            Once::Made(version) => version,
            Once::Before(kept) => {
                let kept = UpdateWatchResponse::decode(kept.as_slice());
                let kept = kept.map_err(|_| StoreError::Corrupt { what: "answer of UpdateWatch" })?;
                if !kept.cursor.is_empty() {
                    return Ok(Updated { version: kept.filter_version, cursor: kept.cursor });
                }
                // Its first call still waits, or was lost: what it waits for is waited for here, too.
                kept.filter_version
            }
        };
        // From here on there is a change that may take effect at any time: what finds out is owed, and waits for no turn.
        let store = self.store.owed();
        if self.slot(watch).is_some() {
            self.feed.send_watch(WatchNews::Asked(watch));
        } else if let Err(error) = store.notify_watch(WatchNews::Asked(watch)).await {
            // The holder finds it by its pulse.
            tracing::debug!(%error, "a hint about a watch could not be sent");
        }
        let mut look_at = Instant::now() + LOOK_EVERY;
        loop {
            let stopping = tokio::select! {
                () = changed(&mut news, watch) => false,
                () = sleep_until(look_at.min(deadline)) => false,
                () = self.stop.cancelled() => true,
            };
            look_at = Instant::now() + LOOK_EVERY;
            let given_up = match store.watch_version(tenant, watch, version).await? {
                None => return Err(gone(&store, &update).await?),
                Some(VersionState::InEffect(place)) => return self.updated(&store, &update, version, place).await,
                Some(VersionState::Waiting { holder_lives: false }) if self.slot(watch).is_none() => {
                    UpdateError::NotFound
                }
                Some(VersionState::Waiting { .. }) if stopping || Instant::now() >= deadline => UpdateError::Stalled,
                Some(VersionState::Waiting { .. }) => continue,
            };
            if store.withdraw_watch_filters(tenant, watch, version, update.request.as_ref()).await? {
                return Err(given_up);
            }
            // It came into effect, or was refused, in this very moment: the next look says which.
            look_at = Instant::now();
        }
    }

    /// As [`Shared::propose_once`]. What does not compare versions waits until the change that is under way is in effect or gone.
    async fn propose_in_turn(
        &self,
        update: &WatchUpdate,
        news: &mut broadcast::Receiver<WatchNews>,
        deadline: Instant,
    ) -> Result<Once<i64>, UpdateError> {
        loop {
            match self.propose_once(update).await {
                Err(UpdateError::Conflict) if update.known_version.is_none() => {}
                proposed => return proposed,
            }
            let stopping = tokio::select! {
                () = changed(news, update.watch) => false,
                () = sleep_until(deadline.min(Instant::now() + LOOK_EVERY)) => false,
                () = self.stop.cancelled() => true,
            };
            if stopping || Instant::now() >= deadline {
                return Err(UpdateError::Stalled);
            }
        }
    }

    /// As [`Shared::propose`]. What is refused may have been made before, under the same request id, and be refused for that.
    async fn propose_once(&self, update: &WatchUpdate) -> Result<Once<i64>, UpdateError> {
        let refused = match self.propose(update).await {
            Ok(proposed) => return Ok(proposed),
            Err(refused) => refused,
        };
        let Some(key) = &update.request else { return Err(refused) };
        let kept = self.store.earlier_answer(update.tenant, key).await?;
        kept.map(Once::Before).ok_or(refused)
    }

    /// Leaves the change for the holder of the stream; the version it makes. Its request id is taken with it, and the answer to a
    /// retry has no cursor until the change is in effect.
    async fn propose(&self, update: &WatchUpdate) -> Result<Once<i64>, UpdateError> {
        let (tenant, watch) = (update.tenant, update.watch);
        for lost in 0..RACES_MAX {
            let newest = self.store.newest_watch_version(tenant, watch).await?.ok_or(UpdateError::NotFound)?;
            if !self.is_held(watch, &newest) {
                return Err(UpdateError::NotFound);
            }
            if newest.place.is_none() || update.known_version.is_some_and(|known| known != newest.version) {
                return Err(UpdateError::Conflict);
            }
            let limit = self.config.filter_changes_max;
            if newest.versions > i64::from(limit) {
                return Err(UpdateError::TooMany { limit });
            }
            let present =
                FilterSet::decode(&newest.filters).ok_or(UpdateError::Store(StoreError::Corrupt { what: "watch" }))?;
            let filters = present.changed(&update.add, &update.remove)?.encode();
            // A race that is lost has written nothing.
            if lost == 0 {
                self.remembered.take(tenant, &update.subject, std::iter::once(filters.len()))?;
            }
            let request = update.request.clone().map_or_else(Repeatable::default, |key| {
                Repeatable::new(key, |version| Ok(answer(*version, String::new()).encode_to_vec()))
            });
            let proposed = self.store.propose_watch_filters(tenant, watch, newest.version, &filters, request).await?;
            if let Some(proposed) = proposed {
                return Ok(proposed);
            }
        }
        Err(UpdateError::Conflict)
    }

    /// Whether somebody may hold the stream: this replica knows its own, of others it is known whether they live.
    fn is_held(&self, watch: WatchId, newest: &NewestVersion) -> bool {
        if newest.holder == self.replica { self.slot(watch).is_some() } else { newest.holder_lives }
    }

    async fn updated(
        &self,
        store: &Store,
        update: &WatchUpdate,
        version: i64,
        at: LogPlace,
    ) -> Result<Updated, UpdateError> {
        let tenant = update.tenant;
        let head = store.head(tenant).await?.ok_or(StoreError::Corrupt { what: "head" })?;
        let cursor = place::to_cursor(&self.sealer, tenant, head.log_epoch, at);
        if let Some(key) = &update.request {
            store.keep_answer(tenant, key, &answer(version, cursor.clone()).encode_to_vec()).await?;
        }
        Ok(Updated { version, cursor })
    }

    /// Brings the change that waits for a stream of this replica to it; refuses it where the stream has ended.
    pub(super) async fn fetch_change(self: Arc<Self>, watch: WatchId) {
        let done = async {
            let Some(slot) = self.slot(watch) else {
                self.store.refuse_watch_changes(self.replica, watch).await?;
                self.feed.send_watch(WatchNews::Changed(watch));
                return self.store.notify_watch(WatchNews::Changed(watch)).await;
            };
            if let Some(pending) = self.store.pending_watch_change(self.replica, watch).await? {
                let set = FilterSet::decode(&pending.filters).ok_or(StoreError::Corrupt { what: "watch" })?;
                slot.offer(FilterChange { version: pending.version, set });
            }
            Ok::<_, StoreError>(())
        };
        let result = tokio::select! {
            () = self.stop.cancelled() => return,
            result = done => result,
        };
        if let Err(error) = result {
            tracing::warn!(
                error = &error as &dyn Error,
                "a watch's change of filters cannot be read; the next pulse tries again"
            );
        }
    }
}

/// Why a change is gone: the holder has refused it, because the stream has ended; or another call with the same request id has taken
/// it back, and the id with it.
async fn gone(store: &Store, update: &WatchUpdate) -> Result<UpdateError, StoreError> {
    let Some(key) = &update.request else { return Ok(UpdateError::NotFound) };
    let kept = store.earlier_answer(update.tenant, key).await?;
    Ok(if kept.is_some() { UpdateError::NotFound } else { UpdateError::Stalled })
}

fn answer(filter_version: i64, cursor: String) -> UpdateWatchResponse {
    UpdateWatchResponse { filter_version, cursor }
}

/// Waits for a hint that the watch's filters have changed.
async fn changed(news: &mut broadcast::Receiver<WatchNews>, watch: WatchId) {
    loop {
        match news.recv().await {
            Ok(WatchNews::Changed(changed)) if changed == watch => return,
            // What was missed may have been the one.
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            Ok(_) => {}
        }
    }
}

/// Records changes in the store and tells those that wait for them. The stream is held up meanwhile, so it waits for no turn.
pub(super) fn recorder(store: &Store, feed: Feed) -> Arc<RecordChange> {
    let store = store.owed();
    Arc::new(move |tenant, watch, version, place| {
        let (store, feed) = (store.clone(), feed.clone());
        async move {
            let in_effect = loop {
                match store.apply_watch_filters(tenant, watch, version, place).await {
                    Ok(in_effect) => break in_effect,
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn Error, "a watch's change of filters cannot be recorded");
                        tokio::time::sleep(RECORD_AGAIN).await;
                    }
                }
            };
            if in_effect {
                feed.send_watch(WatchNews::Changed(watch));
                if let Err(error) = store.notify_watch(WatchNews::Changed(watch)).await {
                    // Whoever waits elsewhere looks again by itself.
                    tracing::debug!(%error, "a hint about a watch could not be sent");
                }
            }
            in_effect
        }
        .boxed()
    })
}
