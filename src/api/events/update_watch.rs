//! UpdateWatch: changes the filters of a running watch, on whichever replica it runs.

use super::watch::remembered_error;
use super::{EventsDeps, parse};
use crate::api::auth::caller;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::ids::WatchId;
use crate::proto::public::{UpdateWatchRequest, UpdateWatchResponse};
use crate::watch::UpdateError;
use tonic::Request;

/// Answers UpdateWatch.
pub async fn handle(deps: &EventsDeps, request: Request<UpdateWatchRequest>) -> Result<UpdateWatchResponse, ApiError> {
    let caller = caller(&request)?.require(Role::Viewer)?.clone();
    let request = request.into_inner();
    let watch = WatchId::parse(&request.watch_id).map_err(|error| ApiError::field("watch_id", error.to_string()))?;
    let update = parse::change(&caller, watch, request).await?;
    let updated = deps.watches.update(update).await.map_err(|error| update_error(error, watch))?;
    Ok(UpdateWatchResponse { filter_version: updated.version, cursor: updated.cursor })
}

/// Why a watch was not changed, as an error.
pub(super) fn update_error(error: UpdateError, watch: WatchId) -> ApiError {
    match error {
        UpdateError::NotFound => ApiError::WatchNotFound { watch: watch.to_string() },
        UpdateError::Conflict => ApiError::EtagMismatch { resource: watch.to_string() },
        UpdateError::Filters(error) => parse::filter_error(error),
        UpdateError::TooMany { limit } => ApiError::QuotaExceeded {
            quota: "watch.filter_changes_max".to_owned(),
            limit: limit.into(),
            retry_delay: None,
        },
        UpdateError::Full(full) => remembered_error(full),
        UpdateError::Stalled => ApiError::DeadlineOfChange,
        UpdateError::Store(error) => error.into(),
    }
}
