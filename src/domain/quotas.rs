//! Quotas of a tenant: their names, their bounds, and what applies where an operator has set some of them.

use std::ops::RangeInclusive;

/// How much of something a tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quota {
    /// Events taken a second, on each replica.
    PublishEventsPerSecond,
    /// Events that may come at once after a pause.
    PublishEventsBurst,
    /// Bytes of events taken a second, on each replica.
    PublishBytesPerSecond,
    /// Bytes that may come at once after a pause.
    PublishBytesBurst,
    /// The largest event, bytes.
    EventBytes,
    /// Invocations that are neither final nor dead letters.
    Backlog,
    /// Subscriptions that are not deleted.
    Subscriptions,
    /// Open watches, on each replica.
    Watches,
}

impl Quota {
    /// Every one, in the order of [`Limits`].
    pub const ALL: [Self; 8] = [
        Self::PublishEventsPerSecond,
        Self::PublishEventsBurst,
        Self::PublishBytesPerSecond,
        Self::PublishBytesBurst,
        Self::EventBytes,
        Self::Backlog,
        Self::Subscriptions,
        Self::Watches,
    ];

    /// Its name in the API, in the store and in refusals.
    pub fn name(self) -> &'static str {
        match self {
            Self::PublishEventsPerSecond => "publish_events_per_second",
            Self::PublishEventsBurst => "publish_events_burst",
            Self::PublishBytesPerSecond => "publish_bytes_per_second",
            Self::PublishBytesBurst => "publish_bytes_burst",
            Self::EventBytes => "event_bytes_max",
            Self::Backlog => "backlog_max",
            Self::Subscriptions => "subscriptions_max",
            Self::Watches => "watches_max",
        }
    }

    /// The quota of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quota| quota.name() == name)
    }

    /// What it may be set to.
    pub fn bounds(self) -> RangeInclusive<u64> {
        match self {
            Self::PublishEventsPerSecond | Self::PublishEventsBurst | Self::Subscriptions | Self::Watches => {
                1..=10_000_000
            }
            Self::PublishBytesPerSecond | Self::PublishBytesBurst => 1_024..=17_179_869_184,
            Self::EventBytes => 1_024..=4_194_304,
            Self::Backlog => 1..=1_000_000_000_000,
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// What an operator has set for one tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides([Option<u64>; 8]);

impl Overrides {
    /// What is set of a quota.
    pub fn get(&self, quota: Quota) -> Option<u64> {
        self.0[quota.index()]
    }

    /// Sets a quota, or goes back to the server's.
    pub fn set(&mut self, quota: Quota, value: Option<u64>) {
        self.0[quota.index()] = value;
    }
}

/// The quotas that apply to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([u64; 8]);

impl Limits {
    /// Of every quota what it is.
    pub fn new(value: impl Fn(Quota) -> u64) -> Self {
        Self(Quota::ALL.map(value))
    }

    /// What it is.
    pub fn get(&self, quota: Quota) -> u64 {
        self.0[quota.index()]
    }

    /// These, but for what is set for one tenant. The server's largest event stays the largest: other bounds are made for it.
    #[must_use]
    pub fn with(&self, overrides: &Overrides) -> Self {
        Self::new(|quota| match overrides.get(quota) {
            Some(value) if quota == Quota::EventBytes => value.min(self.get(quota)),
            Some(value) => value,
            None => self.get(quota),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_wins_and_the_rest_stays_the_servers() {
        let server = Limits::new(|quota| if quota == Quota::EventBytes { 2_048 } else { 10 });
        let mut overrides = Overrides::default();
        assert_eq!(server.with(&overrides), server);
        overrides.set(Quota::Backlog, Some(99));
        overrides.set(Quota::EventBytes, Some(4_096));
        let limits = server.with(&overrides);
        assert_eq!((limits.get(Quota::Backlog), limits.get(Quota::Watches)), (99, 10));
        assert_eq!(limits.get(Quota::EventBytes), 2_048, "never more than the server's");
        overrides.set(Quota::EventBytes, Some(1_024));
        assert_eq!(server.with(&overrides).get(Quota::EventBytes), 1_024);
        overrides.set(Quota::Backlog, None);
        assert_eq!(server.with(&overrides).get(Quota::Backlog), 10);
    }

    #[test]
    fn every_quota_has_a_place_and_a_name_of_its_own() {
        for (index, quota) in Quota::ALL.into_iter().enumerate() {
            assert_eq!((quota.index(), Quota::of_name(quota.name())), (index, Some(quota)));
            assert!(quota.bounds().start() <= quota.bounds().end());
        }
        assert_eq!(Quota::of_name("other"), None);
    }
}
