//! Fields that ListEvents and Watch share.

use crate::api::status::ApiError;
use crate::domain::event_type::EventTypePattern;
use crate::domain::filter::Filter;
use crate::proto::public::EventView;
use crate::watch::filter::Selection;
use crate::watch::place::PlaceError;

/// Event types that one selection may name.
const EVENT_TYPES_MAX: usize = 64;

/// Parses event types and a filter. `prefix` is empty, or `filters[3].`.
pub(super) fn selection(event_types: &[String], filter: &str, prefix: &str) -> Result<Selection, ApiError> {
    if event_types.len() > EVENT_TYPES_MAX {
        let message = format!("has more than {EVENT_TYPES_MAX} entries");
        return Err(ApiError::field(format!("{prefix}event_types"), message));
    }
    let parse = |(index, text): (usize, &String)| {
        EventTypePattern::parse(text)
            .map_err(|error| ApiError::field(format!("{prefix}event_types[{index}]"), error.to_string()))
    };
    let event_types = event_types.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    let filter = match filter {
        "" => None,
        source => Some(Filter::parse(source).map_err(|error| ApiError::FilterInvalid {
            field: format!("{prefix}filter"),
            column: error.column,
            message: error.message,
        })?),
    };
    Ok(Selection { event_types, filter })
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
