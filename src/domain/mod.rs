//! Values and rules of the product, free of I/O: whatever holds without a database, a socket or a clock is written here.
//!
//! Parsing is validation: a value of one of these types is well formed. Nothing here derives serde, sqlx or prost.

pub mod access;
pub mod announcement;
pub mod bucket;
mod case_folding;
pub mod catalogue;
pub mod cursor;
pub mod event;
pub mod event_type;
pub mod explain;
pub mod filter;
pub mod health;
pub mod ids;
pub mod invocation;
pub mod json;
pub mod memory;
pub mod places;
pub mod pre;
pub mod quotas;
pub mod retry;
pub mod schema;
pub mod signing;
pub mod subscription;
pub mod trial;
pub mod webhook;
