//! Who dispatches what: live replicas, shard leases with fencing tokens, and the one statement a second that keeps them.
//!
//! These tables coordinate replicas; they are small and not distributed. A lease says who may start attempts; whether a write
//! still counts is decided by the token in `dispatch_cursors` (see `store/dispatch.rs`), never by the clock.

use super::{Store, StoreError};
use crate::clock;
use crate::domain::ids::{ReplicaId, TenantId, WatchId};
use crate::feed::Head;
use chrono::{DateTime, Utc};
use sqlx::Row as _;
use std::sync::atomic::Ordering;
use std::time::Duration;
use uuid::Uuid;

/// Number of dispatch shards. Fixed: it decides which shard a stored row belongs to.
pub const SHARDS: i32 = 64;

/// Owners that died or hung one after the other, whose lost attempts are told apart; those before them are not counted.
const UNCLEAN_ENDS_MAX: i32 = 16;

/// The shard of a tenant, in 0..[`SHARDS`]; the same on every replica and in every release.
pub fn shard_of(tenant: TenantId) -> i32 {
    // FNV-1a: a UUIDv7's first half is time, so every byte has its say.
    let hash = tenant
        .0
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    i32::try_from(hash % 64).expect("less than 64")
}

/// A shard that this replica owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardLease {
    /// The shard.
    pub shard: i32,
    /// The fencing token; grows with every change of owner.
    pub token: i64,
}

/// In which state a shard is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// Nothing of it runs any more, and everything that ran is recorded.
    Clean,
    /// Attempts may still run; their results will be dropped.
    Unclean,
}

/// What a pulse saw.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    /// Live replicas that stay, this one included.
    pub replicas: i32,
    /// Whether another one may want hints: one that stays, or one that leaves and owns shards still.
    pub others: bool,
    /// Heads that moved since the time asked for.
    pub heads: Vec<Head>,
    /// Shards and tokens whose lease was renewed; empty where no renewal was asked for.
    pub renewed: Vec<(i32, i64)>,
    /// Shards without an owner, or with one whose lease has ended.
    pub free: i32,
    /// Watches of this replica whose filters somebody wants changed.
    pub watches: Vec<WatchId>,
    /// When the first pending event of any tenant is due.
    pub pending_due: Option<DateTime<Utc>>,
}

const KIND_REPLICAS: i16 = 0;
const KIND_HEAD: i16 = 1;
const KIND_RENEWED: i16 = 2;
const KIND_FREE: i16 = 3;
const KIND_WATCH: i16 = 4;
const KIND_PENDING: i16 = 5;

/// For how long a pulse renews what its replica has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The leases, and its share of the shards.
    Staying(Duration),
    /// The leases alone: it takes no further shard, and others need not leave it any.
    Leaving(Duration),
}

impl Store {
    /// Makes the rows of every shard, once per database.
    pub async fn prepare_shards(&self) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO shard_leases (shard, expires_at)
             SELECT s.shard, 'epoch' FROM generate_series(0, $1 - 1) AS s(shard) ON CONFLICT DO NOTHING",
        )
        .bind(SHARDS)
        .execute(self.engine())
        .await?;
        Ok(())
    }

    /// The one statement a second: tells that this replica lives, renews its leases where `renew` says until when, and reads
    /// which heads moved since `since`. Measures the database's clock on the way.
    pub async fn pulse(
        &self,
        replica: ReplicaId,
        renew: Option<Renewal>,
        since: DateTime<Utc>,
    ) -> Result<Pulse, StoreError> {
        let now = self.now();
        let (expires_at, counts_until) = match renew {
            None => (None, None),
            Some(Renewal::Staying(lease)) => (Some(now + lease), Some(now + lease)),
            Some(Renewal::Leaving(lease)) => (Some(now + lease), Some(now)),
        };
        let asked_at = clock::now();
        // The scan over the heads is a sequential one by intent: an index on the times would make every publish's update of
        // the head row write index entries.
        let rows = sqlx::query(
            "WITH beat AS (
                 INSERT INTO replicas (replica_id, expires_at)
                 SELECT $1, $5 WHERE $5::timestamptz IS NOT NULL
                     ON CONFLICT ON CONSTRAINT replicas_pk DO UPDATE SET expires_at = EXCLUDED.expires_at),
             renewed AS (
                 UPDATE shard_leases SET expires_at = $2
                  WHERE owner = $1 AND $2::timestamptz IS NOT NULL
                 RETURNING shard, token)
             SELECT 0::smallint AS kind, NULL::uuid AS tenant_id, count(*) AS a,
                    (SELECT count(*) FROM shard_leases WHERE owner <> $1 AND expires_at > $3) AS b, 0::bigint AS c, clock_timestamp() AS at
               FROM replicas WHERE expires_at > $3 AND replica_id <> $1
             UNION ALL
             SELECT 1::smallint, tenant_id, position, registry_version, deferred_version, NULL
               FROM tenant_heads WHERE changed_at >= $4 OR committed_at >= $4
             UNION ALL
             SELECT 2::smallint, NULL, shard, token, 0, NULL FROM renewed
             UNION ALL
             SELECT 3::smallint, NULL, count(*), 0, 0, NULL FROM shard_leases
              WHERE (owner IS NULL OR expires_at <= $3) AND owner IS DISTINCT FROM $1
             UNION ALL
             (SELECT 4::smallint, watch_id, 0, 0, 0, NULL FROM watches
               WHERE replica_id = $1 AND position IS NULL ORDER BY watch_id LIMIT 1000)
             UNION ALL
             SELECT 5::smallint, NULL, 0, 0, 0, min(due_at) FROM pending_events WHERE due_at IS NOT NULL",
        )
        .bind(replica.0)
        .bind(expires_at)
        .bind(now)
        .bind(since)
        .bind(counts_until)
        .fetch_all(self.engine())
        .await?;
        let middle = asked_at + (clock::now() - asked_at) / 2;
        let mut pulse = Pulse::default();
        for row in rows {
            let (a, b): (i64, i64) = (row.try_get("a")?, row.try_get("b")?);
            let small = i32::try_from(a).unwrap_or(i32::MAX);
            match row.try_get::<i16, _>("kind")? {
                KIND_REPLICAS => {
                    pulse.replicas = small.saturating_add(1);
                    pulse.others = a > 0 || b > 0;
                    self.set_clock(row.try_get("at")?, middle);
                }
                KIND_HEAD => pulse.heads.push(Head {
                    tenant: TenantId(row.try_get::<Uuid, _>("tenant_id")?),
                    position: a,
                    registry_version: b,
                    deferred_version: row.try_get("c")?,
                }),
                KIND_RENEWED => pulse.renewed.push((small, b)),
                KIND_FREE => pulse.free = small,
                KIND_WATCH => pulse.watches.push(WatchId(row.try_get::<Uuid, _>("tenant_id")?)),
                KIND_PENDING => pulse.pending_due = row.try_get("at")?,
                _ => return Err(StoreError::Corrupt { what: "pulse row" }),
            }
        }
        Ok(pulse)
    }

    /// Takes up to `limit` shards that nobody owns, or whose owner's lease has ended. The token grows with each.
    pub async fn take_shards(
        &self,
        replica: ReplicaId,
        limit: i32,
        lease: Duration,
    ) -> Result<Vec<ShardLease>, StoreError> {
        let now = self.now();
        // SKIP LOCKED spreads two replicas that start together; the locked rows carry the former lease to RETURNING.
        // Of the ends that were not clean the newest are kept, so that a row stays small however often owners die.
        let rows: Vec<(i32, i64)> = sqlx::query_as(
            "WITH free AS (
                 SELECT shard, owner AS former, expires_at AS ended FROM shard_leases
                  WHERE (owner IS NULL OR expires_at <= $3) AND owner IS DISTINCT FROM $1
                  ORDER BY shard LIMIT $2 FOR UPDATE SKIP LOCKED)
             UPDATE shard_leases l SET owner = $1, token = l.token + 1, expires_at = $4,
                    unclean_ends = CASE WHEN f.former IS NULL THEN l.unclean_ends
                                        ELSE (array_prepend(f.ended, l.unclean_ends))[1:$5] END
               FROM free f WHERE l.shard = f.shard
             RETURNING l.shard, l.token",
        )
        .bind(replica.0)
        .bind(limit)
        .bind(now)
        .bind(now + lease)
        .bind(UNCLEAN_ENDS_MAX)
        .fetch_all(self.engine())
        .await?;
        Ok(rows.into_iter().map(|(shard, token)| ShardLease { shard, token }).collect())
    }

    /// Until when former owners of a shard may have started attempts that nothing is recorded of, the newest first; at most
    /// `UNCLEAN_ENDS_MAX`. One that gave the shard back properly is not among them.
    pub async fn unclean_ends(&self, shard: i32) -> Result<Vec<DateTime<Utc>>, StoreError> {
        let ends = sqlx::query_scalar("SELECT unclean_ends FROM shard_leases WHERE shard = $1")
            .bind(shard)
            .fetch_optional(self.engine())
            .await?;
        Ok(ends.unwrap_or_default())
    }

    /// Gives shards back; only those with exactly these tokens.
    pub async fn release_shards(
        &self,
        replica: ReplicaId,
        shards: &[(i32, i64)],
        handover: Handover,
    ) -> Result<(), StoreError> {
        // The nil owner is nobody, yet not none: its successor sees that attempts may still run.
        let owner = match handover {
            Handover::Clean => None,
            Handover::Unclean => Some(Uuid::nil()),
        };
        let (shard, token): (Vec<i32>, Vec<i64>) = shards.iter().copied().unzip();
        sqlx::query(
            "UPDATE shard_leases l SET owner = $5, expires_at = $4
               FROM unnest($2::integer[], $3::bigint[]) AS r(shard, token)
              WHERE l.shard = r.shard AND l.token = r.token AND l.owner = $1",
        )
        .bind(replica.0)
        .bind(shard)
        .bind(token)
        .bind(self.now())
        .bind(owner)
        .execute(self.engine())
        .await?;
        Ok(())
    }

    /// Ends this replica's membership: leases that are still its own end now, as those of a replica that died.
    pub async fn leave(&self, replica: ReplicaId) -> Result<(), StoreError> {
        sqlx::query(
            "WITH gone AS (DELETE FROM replicas WHERE replica_id = $1)
             UPDATE shard_leases SET expires_at = $2 WHERE owner = $1",
        )
        .bind(replica.0)
        .bind(self.now())
        .execute(self.engine())
        .await?;
        Ok(())
    }

    /// Removes replicas that have not been seen since `before`, at most 1,000 a call.
    pub async fn forget_replicas(&self, before: DateTime<Utc>) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM replicas WHERE replica_id IN
                 (SELECT replica_id FROM replicas WHERE expires_at < $1 ORDER BY expires_at LIMIT 1000)",
        )
        .bind(before)
        .execute(self.engine())
        .await?;
        Ok(())
    }

    /// Takes a time of the database's clock, and the local one at the same moment.
    pub(crate) fn set_clock(&self, database: DateTime<Utc>, local: DateTime<Utc>) {
        let offset = (database - local).num_microseconds().unwrap_or_default();
        // As in `measure_clock`: half a round trip of uncertainty is not worth moving the clock for.
        let offset = if offset.abs() < 1_000 { 0 } else { offset };
        self.clock_offset_us.store(offset, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_shard_never_changes() {
        // Computed apart from this code: FNV-1a, 64 bits, modulo 64.
        let shards: Vec<i32> = (1..=4_u128).map(|n| shard_of(TenantId(Uuid::from_u128(n << 70 | n)))).collect();
        assert!(shards.iter().all(|shard| (0..SHARDS).contains(shard)), "{shards:?}");
        assert_eq!(shard_of(TenantId(Uuid::from_u128(0x0193_5b6a_ffff_7abc_8def_0123_4567_89ab))), 32);
    }
}
