//! Decisions that go into a tenant's log: each holds a connection while it waits for the lock of the tenant's head.
//!
//! A tenant's are written in turn, and none waits for a lock for long: one whose head somebody holds, or that publishes faster than its
//! log takes it, leaves the connections to the others.

use super::Core;
use crate::clock;
use crate::domain::ids::TenantId;
use crate::store::StoreError;
use crate::turnstile::Turnstile;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Decisions of one tenant that are written at the same time: while one has the lock, the next waits for it.
const OF_TENANT: usize = 2;
/// Before a head is tried again that somebody holds.
const LOCKED_AGAIN: Duration = Duration::from_millis(100);
/// How long it is tried; then the lease ends, and whoever takes the event over decides again.
const LOCKED_MAX: Duration = Duration::from_secs(60);

/// Who may wait for the lock of a head, and for how long.
pub(super) struct Heads {
    turns: Turnstile,
    patience: Duration,
}

impl Heads {
    /// Takes the connections that there are, of which half may wait, and how long each does at a time.
    pub fn new(connections: usize, patience: Duration) -> Self {
        Self { turns: Turnstile::shared(connections / 2, OF_TENANT), patience }
    }
}

impl Core {
    /// Writes a decision as [`Core::write`] does, when it is the tenant's turn, and again where its head was locked. `write` takes how long
    /// it may wait for the lock.
    pub(super) async fn write_in_turn<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        tenant: TenantId,
        write: impl Fn(Duration) -> F,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        loop {
            let written = self.write(|| async {
                let _turn = self.heads.turns.enter(tenant).await;
                write(self.heads.patience).await
            });
            match written.await {
                Err(StoreError::Locked) if begun.elapsed() < LOCKED_MAX && !self.stop.is_cancelled() => {
                    sleep(LOCKED_AGAIN.mul_f64(0.5 + clock::jitter())).await;
                }
                done => return done,
            }
        }
    }
}
