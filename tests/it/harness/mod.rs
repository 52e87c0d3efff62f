//! What the tests stand on: one private Postgres per run, real `carillon serve` processes on it, certificates,
//! clients, and HTTP receivers that record and verify what they get.
//!
//! Reading order: [`world`] (replicas on a database), [`tenant`] (a tenant with its clients), [`receiver`], [`wait`].
//! Nothing here knows how the service works inside.

pub mod authority;
pub mod connect;
pub mod database;
pub mod issuer;
pub mod process;
pub mod raw;
pub mod receiver;
pub mod stripper;
pub mod tenant;
pub mod wait;
pub mod world;

use std::sync::LazyLock;

use tokio::runtime::Runtime;

pub use receiver::{Answer, Receiver};
pub use tenant::Tenant;
pub use wait::{eventually, within};
pub use world::World;

/// The runtime of what outlives a single test.
pub fn shared_runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    });
    &RUNTIME
}
