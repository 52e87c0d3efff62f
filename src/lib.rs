//! Carillon: a self-hosted event service.
//!
//! ```text
//! publishers -> api -> publish: match, group commit -> store: one row an event, with what it fires
//!                                      | feed: news is a hint, positions are the truth
//!                                      +-> dispatch -> executor: signed webhooks      pending: PRE events, delayed ones
//!                                      '-> watch -> api: live streams, pages
//! ```
//!
//! Invariants, each held in one place: positions are gapless and in commit order (`store::publish`, under the head's lock); an event and
//! what it fires are one row; only the owner of a tenant's token settles (`store::settle`); no transaction is open while a listener runs;
//! a reader that falls behind reads the store, and is never waited for.
//!
//! To read it: `domain` (values and rules), `wire` (proto to domain), `store` (all SQL), `publish`, `pending`, `dispatch`, `executor`,
//! `watch`, `api` (the edge), `app` (how the parts are put together), `cli`. `ARCHITECTURE.md` says more.

pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dev;
pub mod dispatch;
pub mod domain;
pub mod executor;
pub mod feed;
pub mod long_work;
pub mod pending;
pub mod planted;
pub mod proto;
pub mod publish;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod turnstile;
pub mod watch;
pub mod wire;
