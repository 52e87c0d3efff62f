//! The edge: gRPC in and out, and the ops port. Thin handlers, one RPC per file: parse, call, convert.
//!
//! A connection passes `server` (limits, TLS), a call passes `web` (browsers) and `call` (deadline, credential, panics) before
//! its handler. `status` is the only table of errors, `auth` the only place that turns credentials into callers. Nothing here
//! holds state of the product, and nothing here speaks SQL.

pub mod admin;
mod answers;
pub mod auth;
pub mod call;
mod compiling;
mod config;
pub mod connections;
pub mod deadline;
pub mod event_service;
pub mod event_types;
pub mod events;
mod frames;
pub mod health;
mod in_flight;
pub mod invocations;
pub mod ops;
pub mod publish;
pub mod registry;
mod repeat;
pub mod server;
pub mod services;
mod stalls;
pub mod status;
pub mod subscriptions;
pub mod tls;
pub mod web;

pub use config::{Config, InternalTls, PublicTls};
