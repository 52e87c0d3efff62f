//! Carillon: a self-hosted event service.

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
pub mod pending;
pub mod planted;
pub mod proto;
pub mod publish;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod watch;
pub mod wire;
