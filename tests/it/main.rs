//! The integration tests: one file per RPC and per guarantee, over gRPC and HTTP, against real `carillon serve`
//! processes on a real Postgres.
//!
//! They must never look inside the service: what a client cannot see is not tested here.

mod harness;

mod access;
mod admin;
mod audit;
mod bad_inputs;
mod browser;
mod certificates;
mod check_compatibility;
mod cli;
mod delayed;
mod documents;
mod edges;
mod error_texts;
mod event_types;
mod events;
mod explain;
mod floods;
mod foreign;
mod g01_durable;
mod g02_atomic;
mod g03_idempotent;
mod g04_pre_gate;
mod g05_at_least_once;
mod g06_fenced;
mod g07_ordered;
mod g07_replay;
mod g08_watch;
mod g09_fair;
mod g09_isolated;
mod g09_protected;
mod g10_tenants;
mod g10_wall;
mod g11_loops;
mod g12_no_silent_loss;
mod g13_slow_readers;
mod g15_bounded;
mod hostile;
mod invocations;
mod metrics;
mod operations;
mod pre_receivers;
mod publish;
mod publish_batch;
mod quotas;
mod replay_missed;
mod request_ids;
mod schemas;
mod secrets;
mod subscribe;
mod subscriptions;
mod test_subscription;
mod tokens;
mod traces;
mod unsubscribe;
mod update_watch;
mod wait_event;
mod watch;
mod webhooks;
mod websocket;
