//! A rate limit: a token bucket, kept as the one moment that says everything about it.
//!
//! Pure. Source: the generic cell rate algorithm (ITU-T I.371), of which a token bucket is the other description.

use super::retry::RateLimit;
use chrono::{DateTime, TimeDelta, Utc};

/// A bucket. Full at first.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When the bucket will be full again.
    full_at: Option<DateTime<Utc>>,
}

impl Bucket {
    /// As it was left: full again at this time.
    pub fn restore(full_at: DateTime<Utc>) -> Self {
        Self { full_at: Some(full_at) }
    }

    /// When it will be full again; none for one that nothing was taken from.
    pub fn full_at(&self) -> Option<DateTime<Utc>> {
        self.full_at
    }

    /// Takes one token. Errors: when there will be one.
    pub fn take(&mut self, limit: RateLimit, now: DateTime<Utc>) -> Result<(), DateTime<Utc>> {
        let interval = TimeDelta::from_std(limit.interval()).unwrap_or(TimeDelta::MAX);
        let token = interval / limit.count().max(1);
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + token;
        // An empty bucket is full after one interval.
        let allowed_at = full_at - interval;
        if allowed_at > now {
            return Err(allowed_at);
        }
        self.full_at = Some(full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_800_000_000_000 + millis).expect("a time")
    }

    fn taken(bucket: &mut Bucket, limit: RateLimit, now: i64) -> i32 {
        (0..=limit.count()).take_while(|_| bucket.take(limit, at(now)).is_ok()).count().try_into().expect("it is small")
    }

    #[test]
    fn a_burst_is_the_count_and_then_tokens_come_at_the_rate() {
        let limit = RateLimit::new(10, Duration::from_secs(1)).expect("within bounds");
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, limit, 0), 10);
        assert_eq!(bucket.take(limit, at(0)), Err(at(100)), "it says when to come again");
        assert_eq!(taken(&mut bucket, limit, 99), 0);
        assert_eq!(taken(&mut bucket, limit, 100), 1);
        assert_eq!(taken(&mut bucket, limit, 550), 4);
        assert_eq!(taken(&mut bucket, limit, 60_000), 10, "never more than the count at once");
    }

    #[test]
    fn over_any_long_time_the_rate_holds() {
        let limit = RateLimit::new(7, Duration::from_millis(300)).expect("within bounds");
        let mut bucket = Bucket::default();
        let total: i32 = (0..3_000).map(|now| taken(&mut bucket, limit, now)).sum();
        assert!((69..=77).contains(&total), "{total} in ten intervals, the first burst apart");
    }

    #[test]
    fn a_clock_that_goes_back_gives_no_tokens() {
        let limit = RateLimit::new(1, Duration::from_secs(1)).expect("within bounds");
        let mut bucket = Bucket::default();
        assert!(bucket.take(limit, at(10_000)).is_ok());
        assert!(bucket.take(limit, at(0)).is_err());
    }
}
