//! How a subscription's receiver does: its circuit, the pause it asked for, and since when nothing but failures came.
//!
//! Pure. Of POST event types the owner of the tenant calls the receiver, keeps this in memory and is exact about it: what must outlive
//! it, and what readers see, is a row that is written when the circuit changes, for a pause that is long enough to outlive a change of
//! owners, and once a minute at most for a receiver that only fails.
//! Of PRE event types every replica calls it: the row is the truth, each replica knows it as it was read last, and [`merge`] says what an
//! answer makes of it.

use super::ids::SubscriptionNo;
use super::invocation::{Outcome, OutcomeClass};
use super::retry::DeliveryPolicy;
use super::subscription::{Circuit, CircuitState};
use chrono::{DateTime, TimeDelta, Utc};
use std::time::Duration;

/// A receiver's wish slows the whole subscription down for this long at most.
const PAUSE_MAX: Duration = Duration::from_secs(3_600);
/// A receiver that asks to slow down and does not say for how long pauses it for this long at most.
const SLOWED_MAX: Duration = Duration::from_secs(60);
/// A subscription that is to be disabled and still fails after this long is asked for again.
const SENTENCED_AGAIN: TimeDelta = TimeDelta::seconds(10);
/// A receiver that has only failed for this long has that noted in the database.
const NOTED_AFTER: TimeDelta = TimeDelta::seconds(60);
/// A pause has its end noted where that is so much later than what is known there.
const PAUSE_NOTED_FROM: TimeDelta = TimeDelta::seconds(5);

/// How the receiver of a subscription does, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HealthRow {
    /// The subscription.
    pub subscription_no: SubscriptionNo,
    /// Its registry version: a later one begins anew.
    pub registry_version: i64,
    /// Its circuit.
    pub circuit: Circuit,
    /// Since when nothing but failures came; none for one of which something else came, or that is not known for long.
    pub failing_since: Option<DateTime<Utc>>,
    /// Until when the receiver wants no calls.
    pub paused_until: Option<DateTime<Utc>>,
    /// Until when the probe of a half-open circuit may take; of PRE event types alone.
    pub probe_until: Option<DateTime<Utc>>,
    /// Grows with every change that replicas share.
    pub revision: i64,
}

/// How a receiver does.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// The registry version of the subscription that this is about: a change of it begins anew.
    version: i64,
    circuit: Circuit,
    /// True while a probe runs.
    probing: bool,
    failing_since: Option<DateTime<Utc>>,
    paused_until: Option<DateTime<Utc>>,
    /// How many pauses in a row the receiver has asked for without saying how long.
    slowed: i32,
    /// Until when the probe that some replica has claimed may take.
    probe_until: Option<DateTime<Utc>>,
    /// Of the row that this was read from.
    revision: i64,
    /// True where the row says that it is failing.
    noted: bool,
    /// Until when the row says that it is paused.
    pause_noted: Option<DateTime<Utc>>,
    /// When it was last asked for that the subscription is disabled.
    sentenced_at: Option<DateTime<Utc>>,
}

/// Whether an attempt may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Free,
    /// It may, as the one that tells whether the receiver is well again.
    Probe,
    /// Not before then.
    Wait(DateTime<Utc>),
    /// Not before the probe has ended.
    Probing,
}

/// What the end of an attempt means beyond its invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The row is to be written.
    pub keep: bool,
    /// The circuit has opened, or closed: operators hear of it.
    pub told: Option<CircuitState>,
    /// Nothing but failures for as long as the policy allows: the subscription is to be disabled.
    pub disable: bool,
}

impl Health {
    /// As the former owner left it.
    pub fn restore(kept: &HealthRow) -> Self {
        let HealthRow {
            registry_version: version, circuit, failing_since, paused_until, probe_until, revision, ..
        } = *kept;
        let (noted, pause_noted) = (failing_since.is_some(), paused_until);
        Self {
            version,
            circuit,
            failing_since,
            paused_until,
            probe_until,
            revision,
            noted,
            pause_noted,
            ..Self::default()
        }
    }

    /// What is to be kept.
    pub fn kept(&self, subscription_no: SubscriptionNo) -> HealthRow {
        HealthRow { failing_since: self.failing_since.filter(|_| self.noted), ..self.shared(subscription_no) }
    }

    /// What replicas share: all of it at once, as none of them knows what the others hear.
    pub fn shared(&self, subscription_no: SubscriptionNo) -> HealthRow {
        let Self { version: registry_version, circuit, failing_since, paused_until, probe_until, revision, .. } = *self;
        HealthRow { subscription_no, registry_version, circuit, failing_since, paused_until, probe_until, revision }
    }

    /// Until when the receiver wants no calls, where that is ahead.
    pub fn paused(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.paused_until.filter(|until| *until > now)
    }

    /// The registry version of the subscription that this is about.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// A subscription that was changed begins anew: its receiver may be another one. True where it does.
    pub fn is_of(&mut self, version: i64) -> bool {
        let changed = self.version != version;
        if changed {
            *self = Self { version, ..Self::default() };
        }
        changed
    }

    /// Whether an attempt may start.
    pub fn gate(&self, policy: &DeliveryPolicy, now: DateTime<Utc>) -> Gate {
        if let Some(until) = self.paused(now) {
            return Gate::Wait(until);
        }
        let Some(breaker) = policy.circuit_breaker() else { return Gate::Free };
        match self.circuit.state {
            CircuitState::Closed => Gate::Free,
            CircuitState::HalfOpen if self.probing || self.probe_until.is_some_and(|until| until > now) => {
                Gate::Probing
            }
            CircuitState::HalfOpen => Gate::Probe,
            CircuitState::Open => {
                let until = self.circuit.since.map_or(now, |since| {
                    since + TimeDelta::from_std(breaker.open_duration()).unwrap_or(TimeDelta::hours(1))
                });
                if until > now { Gate::Wait(until) } else { Gate::Probe }
            }
        }
    }

    /// A probe starts. True where the row is to be written.
    pub fn probe(&mut self, now: DateTime<Utc>) -> bool {
        self.probing = true;
        let changed = self.circuit.state != CircuitState::HalfOpen;
        if changed {
            self.circuit = Circuit { state: CircuitState::HalfOpen, since: Some(now), ..self.circuit };
        }
        changed
    }

    /// Knows what replicas share, where it is newer than what is known here.
    pub fn adopt(&mut self, row: &HealthRow) {
        if row.registry_version == self.version && row.revision > self.revision {
            self.replace(row);
        }
    }

    /// Knows nothing but what replicas share.
    pub fn replace(&mut self, row: &HealthRow) {
        *self = Self { sentenced_at: self.sentenced_at, ..Self::restore(row) };
    }

    /// The probe was not waited for: it says nothing.
    pub fn abandon(&mut self, probe: bool) {
        if probe {
            self.probing = false;
        }
    }

    /// An attempt has ended.
    pub fn ended(&mut self, outcome: &Outcome, probe: bool, policy: &DeliveryPolicy, now: DateTime<Utc>) -> Verdict {
        if probe {
            self.probing = false;
            self.probe_until = None;
        }
        // One that is refused for good was answered by a receiver that is well.
        if matches!(outcome.class, OutcomeClass::Succeeded | OutcomeClass::Rejected) {
            return self.succeeded(probe, now);
        }
        let mut verdict = self.failed(probe, policy, now);
        if let Some(wish) = outcome.retry_after.filter(|_| outcome.class == OutcomeClass::Throttled) {
            verdict.keep |= self.pause(wish.min(PAUSE_MAX), now);
        }
        let since = *self.failing_since.get_or_insert(now);
        let failing = now - since;
        if !self.noted && failing >= NOTED_AFTER {
            self.noted = true;
            verdict.keep = true;
        }
        if failing >= TimeDelta::from_std(policy.auto_disable_after()).unwrap_or(TimeDelta::MAX) {
            // Once for the many attempts that may end now; again later, where it did not get through.
            verdict.disable = self.sentenced_at.is_none_or(|at| now - at >= SENTENCED_AGAIN);
            if verdict.disable {
                self.sentenced_at = Some(now);
            }
        }
        verdict
    }

    /// Slows down for a receiver of POST events that has asked for it and has not said for how long: a pause that doubles, like the wait
    /// between attempts, until an attempt succeeds. For a listener of PRE events publishers wait, and the wait between attempts is enough.
    /// True where the row is to be written.
    pub fn slow_down(&mut self, outcome: &Outcome, policy: &DeliveryPolicy, now: DateTime<Utc>) -> bool {
        match outcome.class {
            // The attempts that were under way when it began to ask count as one.
            OutcomeClass::Throttled if outcome.retry_after.is_none() && self.paused(now).is_none() => {
                self.slowed = self.slowed.saturating_add(1);
                return self.pause(policy.backoff(self.slowed, 1.0, None).min(SLOWED_MAX), now);
            }
            OutcomeClass::Succeeded => self.slowed = 0,
            _ => {}
        }
        false
    }

    /// Pauses for as long at least. True where the row is to be written: not for each of many attempts that end with the same wish.
    fn pause(&mut self, pause: Duration, now: DateTime<Utc>) -> bool {
        let until = now + TimeDelta::from_std(pause).unwrap_or(TimeDelta::hours(1));
        let until = self.paused_until.map_or(until, |known| known.max(until));
        self.paused_until = Some(until);
        let note = until - self.pause_noted.map_or(now, |noted| noted.max(now)) >= PAUSE_NOTED_FROM;
        if note {
            self.pause_noted = Some(until);
        }
        note
    }

    fn succeeded(&mut self, probe: bool, now: DateTime<Utc>) -> Verdict {
        let mut verdict = Verdict { keep: self.noted, ..Verdict::default() };
        self.failing_since = None;
        self.sentenced_at = None;
        self.noted = false;
        match self.circuit.state {
            CircuitState::Closed => self.circuit.failures = 0,
            // What started before it opened says nothing about now.
            CircuitState::Open | CircuitState::HalfOpen if !probe => {}
            CircuitState::Open | CircuitState::HalfOpen => {
                self.circuit = Circuit { since: Some(now), ..Circuit::default() };
                verdict = Verdict { keep: true, told: Some(CircuitState::Closed), ..verdict };
            }
        }
        verdict
    }

    fn failed(&mut self, probe: bool, policy: &DeliveryPolicy, now: DateTime<Utc>) -> Verdict {
        let mut verdict = Verdict::default();
        self.circuit.failures = self.circuit.failures.saturating_add(1);
        let Some(breaker) = policy.circuit_breaker() else { return verdict };
        let open = Circuit { state: CircuitState::Open, since: Some(now), failures: self.circuit.failures };
        match self.circuit.state {
            CircuitState::Closed if self.circuit.failures >= breaker.failure_threshold() => {
                self.circuit = open;
                verdict = Verdict { keep: true, told: Some(CircuitState::Open), ..verdict };
            }
            CircuitState::HalfOpen if probe => {
                self.circuit = open;
                verdict.keep = true;
            }
            CircuitState::Closed | CircuitState::Open | CircuitState::HalfOpen => {}
        }
        verdict
    }
}

/// How a question to a receiver has ended that any replica may ask.
#[derive(Debug, Clone)]
pub struct Ended {
    /// What came of it.
    pub outcome: Outcome,
    /// The probe that it was, by the time that it was claimed until.
    pub probe: Option<DateTime<Utc>>,
    /// When.
    pub at: DateTime<Utc>,
}

/// What the ends of questions make of the row that replicas share. None where the subscription was changed since they were asked; a row
/// that is about an earlier one begins anew.
pub fn merge(row: &HealthRow, version: i64, policy: &DeliveryPolicy, ended: &[Ended]) -> Option<(HealthRow, Verdict)> {
    if row.registry_version > version {
        return None;
    }
    let mut health = Health::restore(row);
    health.is_of(version);
    health.revision = row.revision;
    let mut all = Verdict { keep: true, ..Verdict::default() };
    for Ended { outcome, probe, at } in ended {
        // One that took longer than it was claimed for may have a successor, which decides.
        let probe = probe.is_some() && *probe == health.probe_until;
        let verdict = health.ended(outcome, probe, policy, *at);
        all.told = verdict.told.or(all.told);
        all.disable = health.failing_since.is_some() && (all.disable || verdict.disable);
    }
    Some((health.shared(row.subscription_no), all))
}

#[cfg(test)]
mod tests;
