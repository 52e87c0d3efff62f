//! Fields that ListEvents, Watch and UpdateWatch share.

use crate::api::compiling::compiling;
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Caller;
use crate::domain::ids::{TenantId, WatchId};
use crate::proto::public::{EventView, UpdateWatchRequest, WatchFilter};
use crate::store::events::LogPlace;
use crate::watch::WatchUpdate;
use crate::watch::filter_set::{FilterSet, FilterSetError};
use crate::watch::place::PlaceError;
use chrono::{DateTime, TimeDelta, Utc};

/// How far the clock of a caller may be ahead.
const AHEAD_MAX: TimeDelta = TimeDelta::minutes(1);

/// Why filters are refused, as an error.
pub(super) fn filter_error(error: FilterSetError) -> ApiError {
    match error {
        FilterSetError::Field { field, message } => ApiError::field(field, message),
        FilterSetError::Expression { field, column, message } => ApiError::FilterInvalid { field, column, message },
    }
}

/// Parses the filters of a field.
pub(super) async fn filters(
    tenant: TenantId,
    field: &'static str,
    filters: Vec<WatchFilter>,
) -> Result<FilterSet, ApiError> {
    let bytes = filters.iter().map(|filter| filter.filter.len()).sum();
    compiling(tenant, bytes, move || FilterSet::parse(field, filters)).await?.map_err(filter_error)
}

/// Parses a change of a watch's filters, the id apart.
pub(super) async fn change(
    caller: &Caller,
    watch: WatchId,
    mut message: UpdateWatchRequest,
) -> Result<WatchUpdate, ApiError> {
    let request_id = std::mem::take(&mut message.request_id);
    let request = Repeat::by(caller, "UpdateWatch", &request_id, &message)?.key();
    let known_version = match message.filter_version {
        0 => None,
        version if version > 0 => Some(version),
        _ => return Err(ApiError::field("filter_version", "must not be negative")),
    };
    let add = filters(caller.tenant, "add", message.add).await?;
    let (tenant, subject) = (caller.tenant, caller.subject.clone());
    Ok(WatchUpdate { tenant, subject, watch, add, remove: message.remove, known_version, request })
}

/// Refuses a start that is ahead: of the log, what is committed until then comes before it. Clocks may differ a little.
pub(super) fn start_time(time: DateTime<Utc>, now: DateTime<Utc>) -> Result<DateTime<Utc>, ApiError> {
    if time > now + AHEAD_MAX {
        return Err(ApiError::field("start_time", "must not be more than a minute ahead of the server's clock"));
    }
    Ok(time)
}

/// Parses a view.
pub(super) fn view(view: i32) -> Result<EventView, ApiError> {
    match EventView::try_from(view) {
        Ok(EventView::Unspecified | EventView::Full) => Ok(EventView::Full),
        Ok(EventView::Metadata) => Ok(EventView::Metadata),
        Err(_) => Err(ApiError::field("view", "is not a known view")),
    }
}

/// Why a place in the log cannot be used, as an error about the field that holds the cursor.
pub(super) fn place_error(error: PlaceError, field: &str, cursor: impl FnOnce(LogPlace) -> String) -> ApiError {
    match error {
        PlaceError::Malformed => ApiError::CursorMalformed(field.to_owned()),
        PlaceError::Foreign => ApiError::CursorForeign(field.to_owned()),
        PlaceError::Ahead => ApiError::CursorAhead(field.to_owned()),
        PlaceError::Expired { earliest, .. } => ApiError::CursorExpired { earliest: cursor(earliest) },
    }
}
