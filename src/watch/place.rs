//! Where a reader starts: cursors and times become places in the log, or a typed reason why not.
//!
//! Used by Watch and by ListEvents, so that both take the same cursors and times and refuse them alike.

use crate::domain::cursor::{Cursor, CursorError, CursorSealer};
use crate::domain::ids::{Position, TenantId};
use crate::store::events::LogPlace;
use crate::store::heads::HeadRow;
use crate::store::{Store, StoreError};
use chrono::{DateTime, NaiveDate, Utc};

/// Why a reader cannot start where it asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Not a cursor of this service.
    #[error("the cursor is unreadable")]
    Malformed,
    /// Another tenant's, or from before a restore.
    #[error("the cursor belongs to another log")]
    Foreign,
    /// From a future that this log has not reached.
    #[error("the cursor is ahead of the log's end")]
    Ahead,
    /// Retention has removed what comes next.
    #[error("the start is older than the retained log")]
    Expired {
        /// Position of the first missing event. Of a start by time that is not known any more: the log's first.
        missing_from: Position,
        /// The place from which everything is still there.
        earliest: LogPlace,
    },
}

/// The place just before the earliest retained event.
pub fn earliest(head: &HeadRow) -> LogPlace {
    // The date is a lower bound only; the first page that is read gives the true one.
    LogPlace { after: head.earliest_position.max(1) - 1, day: NaiveDate::default() }
}

/// The log's end.
pub fn end(head: &HeadRow) -> LogPlace {
    LogPlace { after: head.position, day: head.committed_at.date_naive() }
}

/// Reads a cursor for one tenant's log.
pub fn of_cursor(sealer: &CursorSealer, tenant: TenantId, head: &HeadRow, text: &str) -> Result<LogPlace, PlaceError> {
    let cursor = sealer.open(text, tenant, head.log_epoch).map_err(|error| match error {
        CursorError::Malformed => PlaceError::Malformed,
        CursorError::Foreign => PlaceError::Foreign,
    })?;
    if cursor.position > head.position {
        return Err(PlaceError::Ahead);
    }
    if cursor.position + 1 < head.earliest_position {
        return Err(PlaceError::Expired { missing_from: cursor.position + 1, earliest: earliest(head) });
    }
    Ok(LogPlace { after: cursor.position, day: cursor.day })
}

/// The place just before the first event committed at or after a time; refused where retention has taken one of these events. A time
/// from before the log's first event is the log's start for as long as nothing of it is gone.
pub async fn of_time(
    store: &Store,
    tenant: TenantId,
    head: &HeadRow,
    time: DateTime<Utc>,
) -> Result<Result<LogPlace, PlaceError>, StoreError> {
    let found = store.place_at(tenant, time, end(head)).await?;
    // Read after the events, so that it knows of every cut that they may have been read behind.
    let head = store.head(tenant).await?.ok_or(StoreError::Corrupt { what: "head" })?;
    if store.removed_until(&head).await?.is_some_and(|removed| time <= removed) {
        return Ok(Err(PlaceError::Expired { missing_from: 1, earliest: earliest(&head) }));
    }
    Ok(Ok(found))
}

/// The text form of a place.
pub fn to_cursor(sealer: &CursorSealer, tenant: TenantId, epoch: i64, place: LogPlace) -> String {
    sealer.seal(&Cursor { tenant, epoch, position: place.after, day: place.day })
}
