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
}

#[cfg(test)]
mod tests;
