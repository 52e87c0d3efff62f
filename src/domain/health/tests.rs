//! How a receiver does, step by step: circuits, probes, pauses, and when nothing but failures is enough.

use super::*;
use crate::domain::retry::CircuitBreaker;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time")
}

fn policy() -> DeliveryPolicy {
    let breaker = CircuitBreaker::new(3, Duration::from_secs(30)).expect("within bounds");
    let policy = DeliveryPolicy::default().with_circuit_breaker(Some(breaker));
    policy.with_auto_disable_after(Duration::from_secs(600)).expect("within bounds")
}

fn outcome(class: OutcomeClass) -> Outcome {
    Outcome { class, status_code: 0, retry_after: None, excerpt: None, error: None }
}

fn end(health: &mut Health, class: OutcomeClass, probe: bool, now: i64) -> Verdict {
    health.ended(&outcome(class), probe, &policy(), at(now))
}

#[test]
fn the_circuit_opens_after_failures_in_a_row_and_not_before() {
    let mut health = Health::default();
    for class in [OutcomeClass::Failed, OutcomeClass::Timeout, OutcomeClass::Succeeded, OutcomeClass::Unreachable] {
        assert_eq!(end(&mut health, class, false, 0), Verdict::default());
    }
    assert_eq!(end(&mut health, OutcomeClass::Throttled, false, 1), Verdict::default());
    assert_eq!(health.gate(&policy(), at(1)), Gate::Free);
    let opened = end(&mut health, OutcomeClass::Failed, false, 2);
    assert_eq!(opened, Verdict { keep: true, told: Some(CircuitState::Open), ..Verdict::default() });
    assert_eq!(health.gate(&policy(), at(2)), Gate::Wait(at(32)));
    assert_eq!(health.kept(1).circuit, Circuit { state: CircuitState::Open, since: Some(at(2)), failures: 3 });
    assert_eq!(health.gate(&DeliveryPolicy::default(), at(2)), Gate::Free, "without a breaker in the policy");
}

#[test]
fn an_open_circuit_lets_one_probe_through_at_a_time_and_only_that_one_decides() {
    let mut health = Health::default();
    for _ in 0..3 {
        end(&mut health, OutcomeClass::Failed, false, 0);
    }
    assert_eq!(end(&mut health, OutcomeClass::Succeeded, false, 1).told, None, "it started before");
    assert_eq!(end(&mut health, OutcomeClass::Failed, false, 1).told, None);
    assert_eq!(health.gate(&policy(), at(30)), Gate::Probe);
    assert!(health.probe(at(30)));
    assert_eq!(health.gate(&policy(), at(30)), Gate::Probing);
    assert!(end(&mut health, OutcomeClass::Failed, true, 31).keep);
    assert_eq!(health.gate(&policy(), at(31)), Gate::Wait(at(61)));
    assert!(health.probe(at(61)));
    let closed = end(&mut health, OutcomeClass::Succeeded, true, 62);
    assert_eq!((closed.told, closed.keep), (Some(CircuitState::Closed), true));
    assert_eq!(health.gate(&policy(), at(62)), Gate::Free);
}

#[test]
fn a_receivers_wish_pauses_the_subscription_for_an_hour_at_most() {
    let mut health = Health::default();
    let wish = |seconds, class| Outcome { retry_after: Some(Duration::from_secs(seconds)), ..outcome(class) };
    health.ended(&wish(20, OutcomeClass::Throttled), false, &policy(), at(0));
    assert_eq!(health.gate(&policy(), at(1)), Gate::Wait(at(20)));
    health.ended(&outcome(OutcomeClass::Succeeded), false, &policy(), at(2));
    assert_eq!(health.gate(&policy(), at(3)), Gate::Wait(at(20)), "what was under way ends nothing");
    assert_eq!(health.gate(&policy(), at(20)), Gate::Free);
    health.ended(&wish(86_400, OutcomeClass::Throttled), false, &policy(), at(20));
    assert_eq!(health.gate(&policy(), at(21)), Gate::Wait(at(3_620)));
    let mut other = Health::default();
    other.ended(&wish(20, OutcomeClass::Failed), false, &policy(), at(0));
    assert_eq!(other.gate(&policy(), at(1)), Gate::Free, "an error is no wish");
}

#[test]
fn a_pause_that_is_long_is_written_once_and_known_to_the_next_owner() {
    let mut health = Health::default();
    let mut wish = |seconds, now| {
        let retry_after = Some(Duration::from_secs(seconds));
        let outcome = Outcome { retry_after, ..outcome(OutcomeClass::Throttled) };
        (health.ended(&outcome, false, &DeliveryPolicy::default(), at(now)).keep, health.kept(1))
    };
    assert!(!wish(4, 0).0, "it is over before anybody else could call");
    let (keep, row) = wish(600, 1);
    assert!(keep);
    assert_eq!(Health::restore(&row).gate(&policy(), at(2)), Gate::Wait(at(601)));
    assert!(!wish(600, 2).0, "another one that was under way");
    assert!(wish(620, 3).0, "much longer");
    assert!(wish(5, 1_000).0, "a new one");
    // Of what all replicas ask, each has to know a short one too.
    let retry_after = Some(Duration::from_secs(3));
    let busy = Ended { outcome: Outcome { retry_after, ..outcome(OutcomeClass::Throttled) }, probe: None, at: at(0) };
    let (row, verdict) = merge(&HealthRow::default(), 0, &policy(), &[busy]).expect("the subscription is the same");
    assert!(verdict.keep && row.paused_until == Some(at(3)), "{row:?}");
    let mut slowed = Health::default();
    let mut ask = |now| slowed.slow_down(&outcome(OutcomeClass::Throttled), &DeliveryPolicy::default(), at(now));
    assert_eq!([0, 100, 200, 300].map(&mut ask), [false, false, false, true], "eight seconds at last");
}

#[test]
fn a_receiver_that_does_not_say_for_how_long_pauses_it_longer_each_time_and_a_minute_at_most() {
    let mut health = Health::default();
    let mut answers = |class, now: i64| {
        health.slow_down(&outcome(class), &DeliveryPolicy::default(), at(now));
        health.paused(at(now)).map(|until| (until - at(now)).num_seconds())
    };
    assert_eq!(answers(OutcomeClass::Throttled, 0), Some(1));
    assert_eq!(answers(OutcomeClass::Throttled, 0), Some(1), "it was under way");
    assert_eq!(answers(OutcomeClass::Throttled, 1), Some(2));
    assert_eq!(answers(OutcomeClass::Failed, 3), None, "an error asks for nothing");
    let pauses: Vec<_> = (1..8).map(|turn| answers(OutcomeClass::Throttled, turn * 100)).collect();
    assert_eq!(pauses, [4, 8, 16, 32, 60, 60, 60].map(Some));
    assert_eq!(answers(OutcomeClass::Succeeded, 900), None);
    assert_eq!(answers(OutcomeClass::Throttled, 901), Some(1), "it begins anew");
}

#[test]
fn nothing_but_failures_for_the_configured_time_disables() {
    let mut health = Health::default();
    assert!(!end(&mut health, OutcomeClass::Failed, false, 0).keep);
    assert!(!end(&mut health, OutcomeClass::Failed, false, 599).disable);
    assert_eq!(health.kept(1).failing_since, Some(at(0)), "it survives its owner");
    let mut next = Health::restore(&health.kept(1));
    assert!(end(&mut next, OutcomeClass::Failed, true, 600).disable);
    assert!(!end(&mut next, OutcomeClass::Failed, true, 601).disable, "it is under way");
    assert!(end(&mut next, OutcomeClass::Failed, true, 610).disable, "it did not get through");
    assert!(end(&mut health, OutcomeClass::Succeeded, true, 600).keep, "the note goes");
    assert_eq!(health.kept(1).failing_since, None);
    assert!(!end(&mut health, OutcomeClass::Failed, false, 601).disable);
}

/// The row after the ends of questions at some seconds, each a probe or not.
fn merged(row: &HealthRow, ends: &[(OutcomeClass, i64)]) -> (HealthRow, Verdict) {
    let ended = |(class, second): &(OutcomeClass, i64)| Ended {
        outcome: outcome(*class),
        probe: row.probe_until,
        at: at(*second),
    };
    let ended: Vec<Ended> = ends.iter().map(ended).collect();
    merge(row, row.registry_version, &policy(), &ended).expect("the subscription is the same")
}

#[test]
fn failures_that_different_replicas_hear_are_counted_together() {
    let mut row = HealthRow::default();
    for _ in 0..2 {
        let (next, verdict) = merged(&row, &[(OutcomeClass::Failed, 10)]);
        assert_eq!((next.circuit.state, verdict.told), (CircuitState::Closed, None));
        row = next;
    }
    let (open, verdict) = merged(&row, &[(OutcomeClass::Timeout, 11), (OutcomeClass::Failed, 12)]);
    assert_eq!(open.circuit, Circuit { state: CircuitState::Open, since: Some(at(11)), failures: 4 });
    assert_eq!((open.failing_since, verdict.told), (Some(at(10)), Some(CircuitState::Open)));
    let (cleared, _) = merged(&row, &[(OutcomeClass::Succeeded, 11)]);
    assert_eq!(cleared, HealthRow::default(), "one success anywhere, and nothing but failures is over");
}

#[test]
fn a_probe_decides_where_its_claim_still_holds() {
    let circuit = Circuit { state: CircuitState::HalfOpen, since: Some(at(30)), failures: 3 };
    let row = HealthRow { circuit, probe_until: Some(at(40)), failing_since: Some(at(0)), ..HealthRow::default() };
    let (closed, verdict) = merged(&row, &[(OutcomeClass::Succeeded, 31)]);
    assert_eq!((closed.circuit.state, closed.probe_until), (CircuitState::Closed, None));
    assert_eq!(verdict.told, Some(CircuitState::Closed));
    assert_eq!(merged(&row, &[(OutcomeClass::Failed, 31)]).0.circuit.state, CircuitState::Open);
    let late = Ended { outcome: outcome(OutcomeClass::Succeeded), probe: Some(at(35)), at: at(36) };
    let (row, verdict) = merge(&row, 0, &policy(), &[late]).expect("the subscription is the same");
    assert_eq!((row.circuit.state, row.probe_until), (CircuitState::HalfOpen, Some(at(40))), "another one decides");
    assert_eq!(verdict.told, None);
}

#[test]
fn only_failures_at_all_replicas_disable_and_the_time_counts_over_restarts() {
    let row = HealthRow { failing_since: Some(at(0)), ..HealthRow::default() };
    assert!(merged(&row, &[(OutcomeClass::Failed, 600)]).1.disable);
    assert!(!merged(&row, &[(OutcomeClass::Failed, 599)]).1.disable);
    assert!(!merged(&row, &[(OutcomeClass::Failed, 600), (OutcomeClass::Succeeded, 601)]).1.disable);
    assert!(!merged(&row, &[(OutcomeClass::Succeeded, 300), (OutcomeClass::Failed, 600)]).1.disable);
}

#[test]
fn what_was_asked_of_an_earlier_subscription_counts_for_nothing_and_a_later_one_begins_anew() {
    let row = HealthRow { registry_version: 5, failing_since: Some(at(0)), revision: 7, ..HealthRow::default() };
    let failed = [Ended { outcome: outcome(OutcomeClass::Failed), probe: None, at: at(900) }];
    assert_eq!(merge(&row, 4, &policy(), &failed), None);
    let (anew, verdict) = merge(&row, 6, &policy(), &failed).expect("it is the later one");
    assert_eq!((anew.registry_version, anew.failing_since, verdict.disable), (6, Some(at(900)), false));
    assert_eq!(anew.revision, 7, "changes of the row are counted on");
}

#[test]
fn a_replica_takes_over_what_is_newer_and_about_the_same_subscription() {
    let mut health = Health::default();
    let row = |version, revision| HealthRow {
        registry_version: version,
        paused_until: Some(at(20 + revision)),
        revision,
        ..HealthRow::default()
    };
    health.adopt(&row(7, 3));
    assert_eq!(health.gate(&policy(), at(11)), Gate::Free, "it was another subscription then");
    for (revision, until) in [(2, 22), (1, 22), (3, 23)] {
        health.adopt(&row(0, revision));
        assert_eq!(health.gate(&policy(), at(11)), Gate::Wait(at(until)));
    }
    let circuit = Circuit { state: CircuitState::HalfOpen, since: Some(at(30)), failures: 3 };
    health.adopt(&HealthRow { circuit, probe_until: Some(at(40)), revision: 4, ..HealthRow::default() });
    assert_eq!(health.gate(&policy(), at(39)), Gate::Probing, "another replica asks");
    assert_eq!(health.gate(&policy(), at(40)), Gate::Probe, "it does not answer: the next one asks");
}

#[test]
fn a_changed_subscription_begins_anew() {
    let mut health = Health::default();
    health.is_of(4);
    for _ in 0..3 {
        end(&mut health, OutcomeClass::Failed, false, 0);
    }
    health.is_of(4);
    assert!(matches!(health.gate(&policy(), at(1)), Gate::Wait(_)));
    health.is_of(5);
    assert_eq!((health.gate(&policy(), at(1)), health.kept(1).registry_version), (Gate::Free, 5));
}
