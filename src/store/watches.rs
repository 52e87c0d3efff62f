//! Open watches as other replicas see them: the filters of each, version by version, and who holds the stream.
//!
//! A change of filters is a row without a position until the holder of the stream puts it into effect at one; who asked for it
//! may withdraw it until then. Both are guarded by `position IS NULL`, so a change is either in effect or gone, on every replica.

use super::events::LogPlace;
use super::request_ids::{self, Once, Repeatable, RequestKey};
use super::{Store, StoreError};
use crate::domain::ids::{Position, ReplicaId, TenantId, WatchId};
use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

mod held;

/// A version of a watch's filters that is or was in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterVersion {
    /// Its number.
    pub version: i64,
    /// It selects the events after this place.
    pub place: LogPlace,
    /// An encoded `carillon.v1.WatchRequest` with nothing but its filters.
    pub filters: Vec<u8>,
}

/// The newest version of a watch's filters, in effect or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestVersion {
    /// Its number.
    pub version: i64,
    /// Where it came into effect; none while it is not.
    pub place: Option<LogPlace>,
    /// Its filters, as in [`FilterVersion`].
    pub filters: Vec<u8>,
    /// Who holds the stream.
    pub holder: ReplicaId,
    /// Whether that replica lives, as far as the database knows.
    pub holder_lives: bool,
    /// How many versions the watch has had on this stream.
    pub versions: i64,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// It waits for the holder of the stream.
    Waiting {
        /// Whether that replica lives, as far as the database knows.
        holder_lives: bool,
    },
    /// It selects the events after this place.
    InEffect(LogPlace),
}

/// A change that waits to be put into effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingChange {
    /// Whose watch.
    pub tenant: TenantId,
    /// The version that it makes.
    pub version: i64,
    /// Its filters, as in [`FilterVersion`].
    pub filters: Vec<u8>,
}

type NewestRow = (i64, Option<Position>, Option<NaiveDate>, Vec<u8>, Uuid, bool, i64);

impl Store {
    /// Makes a watch known, with the filters that apply at its start and those that apply further on.
    pub async fn create_watch(
        &self,
        tenant: TenantId,
        watch: WatchId,
        holder: ReplicaId,
        expires_at: DateTime<Utc>,
        versions: &[FilterVersion],
    ) -> Result<(), StoreError> {
        let numbers: Vec<i64> = versions.iter().map(|version| version.version).collect();
        let filters: Vec<&[u8]> = versions.iter().map(|version| version.filters.as_slice()).collect();
        let positions: Vec<Position> = versions.iter().map(|version| version.place.after).collect();
        let days: Vec<NaiveDate> = versions.iter().map(|version| version.place.day).collect();
        sqlx::query(
            "INSERT INTO watches (tenant_id, watch_id, filter_version, replica_id, filters, position, day, expires_at)
             SELECT $1, $2, v.filter_version, $3, v.filters, v.position, v.day, $4
               FROM unnest($5::bigint[], $6::bytea[], $7::bigint[], $8::date[]) AS v(filter_version, filters, position, day)",
        )
        .bind(tenant.0)
        .bind(watch.0)
        .bind(holder.0)
        .bind(expires_at)
        .bind(numbers)
        .bind(filters)
        .bind(positions)
        .bind(days)
        .execute(self.as_tenant(tenant))
        .await?;
        Ok(())
    }

    /// The versions of a watch that are or were in effect, oldest first, at most `limit`; empty for one that is not known, or no
    /// longer.
    pub async fn watch_versions(
        &self,
        tenant: TenantId,
        watch: WatchId,
        limit: u32,
    ) -> Result<Vec<FilterVersion>, StoreError> {
        let rows: Vec<(i64, Position, NaiveDate, Vec<u8>)> = sqlx::query_as(
            "SELECT filter_version, position, day, filters FROM watches
              WHERE tenant_id = $1 AND watch_id = $2 AND position IS NOT NULL AND expires_at > $3
              ORDER BY filter_version LIMIT $4",
        )
        .bind(tenant.0)
        .bind(watch.0)
        .bind(self.now())
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        let parse = |(version, after, day, filters)| FilterVersion { version, place: LogPlace { after, day }, filters };
        Ok(rows.into_iter().map(parse).collect())
    }

    /// The newest version of a watch; none where it is not known, or no longer.
    pub async fn newest_watch_version(
        &self,
        tenant: TenantId,
        watch: WatchId,
    ) -> Result<Option<NewestVersion>, StoreError> {
        let row: Option<NewestRow> = sqlx::query_as(
            "SELECT w.filter_version, w.position, w.day, w.filters, w.replica_id,
                    EXISTS (SELECT FROM replicas r WHERE r.replica_id = w.replica_id AND r.expires_at > $3),
                    (SELECT count(*) FROM watches c WHERE c.tenant_id = $1 AND c.watch_id = $2)
               FROM watches w WHERE w.tenant_id = $1 AND w.watch_id = $2 AND w.expires_at > $3
              ORDER BY w.filter_version DESC LIMIT 1",
        )
        .bind(tenant.0)
        .bind(watch.0)
        .bind(self.now())
        .fetch_optional(self.as_tenant(tenant))
        .await?;
        let parse = |(version, position, day, filters, holder, holder_lives, versions): NewestRow| NewestVersion {
            version,
            place: position.zip(day).map(|(after, day)| LogPlace { after, day }),
            filters,
            holder: ReplicaId(holder),
            holder_lives,
            versions,
        };
        Ok(row.map(parse))
    }

    /// What became of a version; none where it is gone.
    pub async fn watch_version(
        &self,
        tenant: TenantId,
        watch: WatchId,
        version: i64,
    ) -> Result<Option<VersionState>, StoreError> {
        let row: Option<(Option<Position>, Option<NaiveDate>, bool)> = sqlx::query_as(
            "SELECT w.position, w.day,
                    EXISTS (SELECT FROM replicas r WHERE r.replica_id = w.replica_id AND r.expires_at > $4)
               FROM watches w WHERE w.tenant_id = $1 AND w.watch_id = $2 AND w.filter_version = $3",
        )
        .bind(tenant.0)
        .bind(watch.0)
        .bind(version)
        .bind(self.now())
        .fetch_optional(self.as_tenant(tenant))
        .await?;
        Ok(row.map(|(position, day, holder_lives)| match position.zip(day) {
            Some((after, day)) => VersionState::InEffect(LogPlace { after, day }),
            None => VersionState::Waiting { holder_lives },
        }))
    }

    /// Asks for a change that makes version `base + 1`, which it answers. None where `base` is not the newest version, or not in
    /// effect.
    pub async fn propose_watch_filters(
        &self,
        tenant: TenantId,
        watch: WatchId,
        base: i64,
        filters: &[u8],
        request: Repeatable<i64>,
    ) -> Result<Option<Once<i64>>, StoreError> {
        self.within(async {
            let mut tx = self.begin_as(tenant).await?;
            if let Some(before) = request.begin(&mut tx, tenant, self.now()).await? {
                return Ok(Some(Once::Before(before)));
            }
            // Of two that ask at once, the primary key lets one.
            let done = sqlx::query(
                "INSERT INTO watches (tenant_id, watch_id, filter_version, replica_id, filters, expires_at)
                 SELECT tenant_id, watch_id, filter_version + 1, replica_id, $4, expires_at
                   FROM watches WHERE tenant_id = $1 AND watch_id = $2 AND filter_version = $3 AND position IS NOT NULL
                     ON CONFLICT DO NOTHING",
            )
            .bind(tenant.0)
            .bind(watch.0)
            .bind(base)
            .bind(filters)
            .execute(&mut *tx)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(None);
            }
            let version = base + 1;
            request.keep(&mut tx, tenant, &version, self.now()).await?;
            tx.commit().await?;
            Ok(Some(Once::Made(version)))
        })
        .await
    }

    /// Takes a change back, and frees the request id that it was asked for with. False where it is in effect already, or gone.
    pub async fn withdraw_watch_filters(
        &self,
        tenant: TenantId,
        watch: WatchId,
        version: i64,
        request: Option<&RequestKey>,
    ) -> Result<bool, StoreError> {
        self.within(async {
            let mut tx = self.begin_as(tenant).await?;
            let done = sqlx::query(
                "DELETE FROM watches
                  WHERE tenant_id = $1 AND watch_id = $2 AND filter_version = $3 AND position IS NULL",
            )
            .bind(tenant.0)
            .bind(watch.0)
            .bind(version)
            .execute(&mut *tx)
            .await?;
            let withdrawn = done.rows_affected() == 1;
            if withdrawn && let Some(key) = request {
                request_ids::forget(&mut tx, tenant, key).await?;
            }
            tx.commit().await?;
            Ok(withdrawn)
        })
        .await
    }

    /// Puts a change into effect at a place. False where it was withdrawn; may be repeated where an answer was lost.
    pub async fn apply_watch_filters(
        &self,
        tenant: TenantId,
        watch: WatchId,
        version: i64,
        place: LogPlace,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE watches SET position = $4, day = $5
              WHERE tenant_id = $1 AND watch_id = $2 AND filter_version = $3
                AND (position IS NULL OR (position = $4 AND day = $5))",
        )
        .bind(tenant.0)
        .bind(watch.0)
        .bind(version)
        .bind(place.after)
        .bind(place.day)
        .execute(self.as_tenant(tenant))
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
