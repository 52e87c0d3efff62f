//! Fields that ListEvents, Watch and UpdateWatch share.

use crate::api::status::ApiError;
use crate::proto::public::EventView;
use crate::watch::filter_set::FilterSetError;
use crate::watch::place::PlaceError;

/// Why filters are refused, as an error.
pub(super) fn filter_error(error: FilterSetError) -> ApiError {
    match error {
        FilterSetError::Field { field, message } => ApiError::field(field, message),
        FilterSetError::Expression { field, column, message } => ApiError::FilterInvalid { field, column, message },
    }
}

/// Parses a view.
pub(super) fn view(view: i32) -> Result<EventView, ApiError> {
    match EventView::try_from(view) {
        Ok(EventView::Unspecified | EventView::Full) => Ok(EventView::Full),
        Ok(EventView::Metadata) => Ok(EventView::Metadata),
        Err(_) => Err(ApiError::field("view", "is not a known view")),
    }
}

/// Why a place in the log cannot be used, as an error.
pub(super) fn place_error(error: PlaceError, earliest_cursor: impl FnOnce() -> String) -> ApiError {
    match error {
        PlaceError::Malformed => ApiError::CursorMalformed,
        PlaceError::Foreign => ApiError::CursorForeign,
        PlaceError::Ahead => ApiError::CursorAhead,
        PlaceError::Expired { .. } => ApiError::CursorExpired { earliest: earliest_cursor() },
    }
}
