//! Who has more waiting than may: looked at once a second, told to every publisher through the registry's version.
//!
//! What waits is known from memory. Only the rows aside are counted by the database, now and then, up to the quota, and only of a tenant
//! that is near it or whose callers have changed some: what memory says of them may have drifted there.

use super::{Engine, LOAD_AGAIN};
use crate::dispatch::load;
use crate::dispatch::run::{Input, Life};
use crate::domain::quotas::Quota;
use crate::feed::{Head, News};
use crate::store::quotas::BacklogStanding;
use chrono::{DateTime, TimeDelta, Utc};
use std::sync::atomic::Ordering;

/// Between two counts of a tenant's rows.
const COUNT_EVERY: TimeDelta = TimeDelta::seconds(5);

/// What the engine keeps of a tenant's backlog.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backlog {
    /// True where publishers are told that it is full.
    full: bool,
    marking: bool,
    counting: bool,
    /// False where what a new owner has found is not counted yet.
    counted: bool,
    /// True where callers have changed what waits since it was counted.
    changed: bool,
    count_at: DateTime<Utc>,
}

impl Backlog {
    /// Of a tenant whose rows are not counted yet, if it has any.
    pub fn new(full: bool, has_rows: bool) -> Self {
        Self {
            full,
            marking: false,
            counting: false,
            counted: !has_rows,
            changed: has_rows,
            count_at: DateTime::UNIX_EPOCH,
        }
    }

    /// Has the rows counted when it is time.
    pub fn count_again(&mut self) {
        self.changed = true;
    }
}

/// Whether publishers are to be told so. Once it is full, a tenth less must wait before more is taken, and two less of a small one.
fn is_full(was_full: bool, backlog: u64, limit: u64) -> bool {
    backlog >= if was_full { limit.saturating_sub((limit / 10).max(1)).max(1) } else { limit }
}

impl Engine {
    /// Compares what waits with what may.
    pub(super) fn look_at_backlogs(&mut self, now: DateTime<Utc>) {
        let mut all = 0;
        for (id, held) in &mut self.tenants {
            let backlog = held.tenant.backlog();
            all += backlog;
            let life = Life { tenant: *id, token: held.tenant.token };
            let Some(registry) = &held.registry else {
                // Nothing else may ever ask for it where nothing is published any more.
                if held.backlog.full && !held.refreshing && now >= held.not_before {
                    held.refreshing = true;
                    load::registry(&self.shared, life, None);
                }
                continue;
            };
            let limit = registry.limits().get(Quota::Backlog);
            let kept = &mut held.backlog;
            let near = kept.full || backlog >= limit / 2 && held.tenant.rows > 0;
            if (near || kept.changed) && !kept.counting && now >= kept.count_at {
                (kept.counting, kept.changed) = (true, false);
                kept.count_at = now + COUNT_EVERY;
                let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
                load::count(&self.shared, life, most);
            }
            let full = is_full(kept.full, backlog, limit);
            // What is not counted yet may well be what makes it full.
            if full != kept.full && (full || kept.counted) && !kept.marking {
                kept.marking = true;
                let standing = if full { BacklogStanding::Full } else { BacklogStanding::Free };
                tracing::info!(tenant = %id, backlog, limit, ?standing, "a tenant's backlog has reached its quota, or has left it");
                load::mark(&self.shared, life, standing);
            }
        }
        self.load.backlog.store(usize::try_from(all).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    pub(super) fn take_backlog(&mut self, input: Input) {
        let (Input::Counted { life, .. } | Input::Marked { life, .. }) = &input else { return };
        let life = *life;
        let shared = self.shared.clone();
        let Some(held) = self.held(life) else { return };
        match input {
            Input::Counted { result, .. } => {
                held.backlog.counting = false;
                match result {
                    Ok(rows) => {
                        held.tenant.rows = rows;
                        held.backlog.counted = true;
                    }
                    Err(error) => {
                        held.backlog.changed = true;
                        tracing::debug!(%error, "deferred invocations could not be counted; it is tried again");
                    }
                }
            }
            Input::Marked { standing, result, .. } => {
                held.backlog.marking = false;
                match result {
                    Ok(Some(change)) => {
                        held.backlog.full = standing == BacklogStanding::Full;
                        let (position, registry_version) = (change.position, change.registry_version);
                        let tenant = life.tenant;
                        shared.parts.feed.send(&News::Head(Head {
                            tenant,
                            position,
                            registry_version,
                            deferred_version: 0,
                        }));
                    }
                    // Another owner says it now.
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(tenant = %life.tenant, %error, "a full backlog could not be told; it is tried again");
                        held.backlog.count_at += LOAD_AGAIN;
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_backlog_is_free_again_once_a_tenth_of_it_is_gone() {
        assert!(!is_full(false, 99, 100));
        assert!(is_full(false, 100, 100));
        assert!(is_full(true, 90, 100));
        assert!(!is_full(true, 89, 100));
        assert!(is_full(false, 1, 1) && is_full(true, 1, 1) && !is_full(true, 0, 1));
        for limit in 2..20 {
            assert!(is_full(true, limit - 1, limit) && !is_full(true, 0, limit), "{limit} leaves no gap");
        }
    }
}
