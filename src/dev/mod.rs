//! What `carillon dev` prepares before it serves: a private Postgres and a set of TLS certificates.
//!
//! `carillon dev` needs nothing but a Postgres installation somewhere on the machine. The command asks [`postgres`] for
//! a private cluster and [`ca`] for certificates, and then runs the same code as `carillon serve`. Integration tests
//! use the same two modules, so what a newcomer runs and what is tested is one thing.
//!
//! Reading order: [`postgres`] (what callers use), [`installation`] (which Postgres programs), [`account`] (as whom
//! they run), [`cluster`] (where the files are, and who holds them), `initdb` (a first start), `server` (start and
//! stop), [`ca`] (certificates).
//!
//! This module must never touch a cluster it did not create, open a network port, read the environment (callers pass
//! search paths in) or ask for the time of day (callers pass `now` in).

pub mod account;
pub mod ca;
pub mod cluster;
pub mod error;
mod initdb;
pub mod installation;
pub mod postgres;
mod server;

pub use ca::{Ca, CertRequest, DevCertificates, Issued, San, Usage};
pub use error::Error;
pub use initdb::OWNER;
pub use installation::{Installation, Search};
pub use postgres::{Options, PrivatePostgres, WhenRunning};
