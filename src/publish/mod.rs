//! Publishing: the only way an event is born.
//!
//! ```text
//! PublishRequest -> wire -> Draft --prepare--> Prepared --Writer (group commit)--> LogEntry
//!                            schema, matching     one statement: head lock, position, row, idempotency key
//! ```
//!
//! [`prepare`] validates and matches against the in-memory [`registry`]; [`writer`] commits many callers' events at once and
//! checks, under the head row's lock, that the registry was not behind. Nothing here runs a listener.

mod config;
mod error;
pub mod key;
pub mod prepare;
pub mod quotas;
pub mod registry;
pub mod writer;

pub use config::Config;
pub use error::PublishError;
