//! Waiting without sleeping blindly: a predicate is looked at until it holds or the time is up, and then the last state
//! is printed.
//!
//! It must never be used to give something "enough time": what is waited for is always named.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

/// How long a predicate may take on a loaded machine before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(45);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// Looks until the answer is `Ok`, and returns what it holds; `Err` carries the state to print at the end.
pub async fn eventually<T, S, F, R>(what: &str, look: F) -> T
where
    S: Debug,
    F: FnMut() -> R,
    R: Future<Output = Result<T, S>>,
{
    eventually_within(PATIENCE, what, look).await
}

/// As [`eventually`], with a time of its own.
pub async fn eventually_within<T, S, F, R>(patience: Duration, what: &str, mut look: F) -> T
where
    S: Debug,
    F: FnMut() -> R,
    R: Future<Output = Result<T, S>>,
{
    let deadline = Instant::now() + patience;
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look().await {
            Ok(value) => return value,
            Err(state) if Instant::now() >= deadline => {
                panic!("{what}: not so within {} s; the last state was {state:#?}", patience.as_secs())
            }
            Err(_) => {}
        }
    }
}

/// Gives a future a deadline that fails the test with the name of what was waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, future).await;
    ended.unwrap_or_else(|_elapsed| panic!("{what}: nothing within {} s", PATIENCE.as_secs()))
}
