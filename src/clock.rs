//! The only reader of the wall clock and of randomness.

use chrono::{DateTime, Utc};
use rand::RngExt as _;
use uuid::Uuid;

/// The time now, UTC, microseconds.
pub fn now() -> DateTime<Utc> {
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
}

/// A new time-ordered UUIDv7.
pub fn new_uuid() -> Uuid {
    Uuid::now_v7()
}

/// `N` bytes from the operating system's generator.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    rand::rng().random()
}

/// A random number in 0..1, for jitter.
pub fn jitter() -> f64 {
    rand::rng().random()
}
