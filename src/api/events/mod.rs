//! Reading the log: GetEvent, ListEvents, Watch, UpdateWatch. One RPC per file; EventService forwards here.
//!
//! Watch has a route of its own in front of the generated server, because its messages are ready-made bytes, and a second form as a
//! WebSocket.

pub mod get_event;
pub mod list_events;
mod parse;
mod route;
pub mod update_watch;
pub mod watch;
pub mod websocket;

pub use route::WatchRoute;

use super::status::ApiError;
use crate::domain::access::Caller;
use crate::domain::cursor::CursorSealer;
use crate::store::Store;
use crate::watch::Watches;

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct EventsDeps {
    store: Store,
    sealer: CursorSealer,
    watches: Watches,
}

impl EventsDeps {
    /// Takes the parts.
    pub fn new(store: Store, sealer: CursorSealer, watches: Watches) -> Self {
        Self { store, sealer, watches }
    }

    /// Slug of the app that a caller is limited to; none for the whole tenant.
    async fn app_of(&self, caller: &Caller) -> Result<Option<String>, ApiError> {
        let Some(id) = caller.app else { return Ok(None) };
        // Of an app that is gone nothing is told any more.
        Ok(Some(self.store.app(caller.tenant, id).await?.map(|app| app.slug).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
