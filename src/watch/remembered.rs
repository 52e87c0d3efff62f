//! What watches leave in the store: their filters, for as long as a change or a resume may ask for them.
//!
//! A leaky bucket of each tenant and each credential: what is stored leaks out evenly over the longest time for which it is kept. So a
//! tenant's rows never fill more than twice its bound, and whoever goes on opening does so at a rate, without a look at the rows.

use super::{Config, NO_PANIC};
use crate::domain::access::Subject;
use crate::domain::ids::TenantId;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// What a version of filters costs beside its bytes.
const ROW_BYTES: u64 = 1024;

/// A bucket has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("watch.remembered_bytes_max is at its bound of {limit}")]
pub struct Full {
    /// The bound: the tenant's, or the half of it that is a credential's.
    pub limit: u64,
    /// When there is room.
    pub retry: Duration,
}

/// The buckets.
#[derive(Debug)]
pub(super) struct Remembered {
    bytes_max: u64,
    kept_for: Duration,
    /// When each is empty; those that are need no entry. One without a subject is the tenant's.
    empty_at: Mutex<HashMap<(TenantId, Option<Subject>), Instant>>,
}

impl Remembered {
    pub(super) fn new(config: &Config) -> Self {
        let kept_for = Duration::from_millis(config.stream_age_max_ms + config.resume_ms);
        Self { bytes_max: config.remembered_bytes_max, kept_for, empty_at: Mutex::default() }
    }

    /// Takes room for versions of so many bytes each. What never fits is taken for what just does.
    pub(super) fn take(
        &self,
        tenant: TenantId,
        subject: &Subject,
        versions: impl Iterator<Item = usize>,
    ) -> Result<(), Full> {
        let bytes: u64 = versions.map(|bytes| bytes as u64 + ROW_BYTES).sum();
        let now = Instant::now();
        let mut empty_at = self.empty_at.lock().expect(NO_PANIC);
        let fill = |key, limit: u64| {
            let leaks_for = self.kept_for.as_nanos() * u128::from(bytes.min(limit)) / u128::from(limit);
            let leaks_for = Duration::from_nanos(u64::try_from(leaks_for).unwrap_or(u64::MAX));
            let empty = empty_at.get(&key).map_or(now, |at| now.max(*at)) + leaks_for;
            match (empty - now).saturating_sub(self.kept_for) {
                Duration::ZERO => Ok((key, empty)),
                retry => Err(Full { limit, retry }),
            }
        };
        // A credential alone never fills its tenant's.
        let own = fill((tenant, Some(subject.clone())), self.bytes_max / 2)?;
        let tenants = fill((tenant, None), self.bytes_max)?;
        empty_at.extend([own, tenants]);
        Ok(())
    }

    /// Forgets buckets that are empty.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.empty_at.lock().expect(NO_PANIC).retain(|_, at| *at > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ApiKeyId;
    use uuid::Uuid;

    const TENANT: TenantId = TenantId(Uuid::from_u128(7));

    fn key(number: u128) -> Subject {
        Subject::ApiKey(ApiKeyId(Uuid::from_u128(number)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_fills_half_of_its_tenants_room_which_comes_back_over_the_time_that_rows_are_kept() {
        let config = Config {
            remembered_bytes_max: 8 * ROW_BYTES,
            stream_age_max_ms: 3_000,
            resume_ms: 1_000,
            ..Config::default()
        };
        let room = Remembered::new(&config);
        let take = |tenant, number, rows: usize| room.take(tenant, &key(number), std::iter::repeat_n(0, rows));
        assert_eq!(take(TENANT, 1, 4), Ok(()));
        let full = |limit, retry| Err(Full { limit, retry: Duration::from_millis(retry) });
        assert_eq!(take(TENANT, 1, 1), full(4 * ROW_BYTES, 1_000));
        assert_eq!(take(TENANT, 2, 4), Ok(()), "another one has its own half");
        assert_eq!(take(TENANT, 3, 1), full(8 * ROW_BYTES, 500), "the tenant's is full");
        assert_eq!(take(TenantId(Uuid::from_u128(8)), 3, 1), Ok(()), "another tenant's is not");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(take(TENANT, 1, 1), Ok(()), "what is refused takes nothing");
        tokio::time::advance(Duration::from_secs(4)).await;
        room.sweep();
        assert!(room.empty_at.lock().unwrap().is_empty());
        assert_eq!(take(TENANT, 1, 99), Ok(()), "what never fits takes everything");
        assert_eq!(take(TENANT, 1, 1), full(4 * ROW_BYTES, 1_000));
    }
}
