//! Webhooks: an event as a signed HTTP request to a receiver that nobody trusts.
//!
//! ```text
//! call -> cloudevent (headers, body) -> sign -> client --(pooled connection)--> receiver
//!                                                 |  none idle                      |
//!                                                 `-> connector -> egress guard     `-> answer -> Outcome
//! ```
//!
//! Every new connection passes the [`egress`] guard and goes to an address that the guard has seen; nothing else in the service
//! opens an outbound connection to an address that a tenant chose. Proxies and redirects are never followed.

mod answer;
pub mod client;
pub mod cloudevent;
pub(super) mod connector;
mod decide;
pub mod egress;
mod names;
pub mod sign;

#[cfg(test)]
mod tests;
