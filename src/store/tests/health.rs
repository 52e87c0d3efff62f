//! How a receiver does, where any replica may change it: nothing is lost between two that do so at once, and one of them probes.

use super::Database;
use crate::domain::health::HealthRow;
use crate::domain::subscription::{Circuit, CircuitState};
use crate::store::health::Merged;
use chrono::TimeDelta;
use futures::future::join_all;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_come_at_once_are_made_one_after_the_other() {
    let database = Database::new().await;
    let (store, tenant) = (&database.store, database.tenant("a").await);
    let subscriptions = vec![(1, 5), (2, 5)];
    let fail = |rows: Vec<HealthRow>| {
        let failed = |mut row: HealthRow| {
            row.circuit.failures += 1;
            Merged { row, told: None, disable: false }
        };
        rows.into_iter().map(failed).collect()
    };
    let merges = (0..20).map(|_| store.merge_health(tenant, subscriptions.clone(), fail));
    for merged in join_all(merges).await {
        assert_eq!(merged.expect("it is written").0.len(), 2);
    }
    let rows = store.health(&[tenant]).await.expect("readable");
    let counted: Vec<_> =
        rows.iter().map(|(_, row)| (row.registry_version, row.circuit.failures, row.revision)).collect();
    assert_eq!(counted, [(5, 20, 20), (5, 20, 20)]);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_gets_the_probe_and_the_next_one_once_it_is_given_back_or_its_time_is_up() {
    let database = Database::new().await;
    let (store, tenant) = (&database.store, database.tenant("a").await);
    let opened_at = store.now() - TimeDelta::seconds(10);
    let open = move |rows: Vec<HealthRow>| {
        let circuit = Circuit { state: CircuitState::Open, since: Some(opened_at), failures: 3 };
        let open = |row| Merged { row: HealthRow { circuit, ..row }, told: None, disable: false };
        rows.into_iter().map(open).collect()
    };
    store.merge_health(tenant, vec![(1, 5)], open).await.expect("it is written");
    let claim = async |version, open, seconds| {
        let until = store.now() + TimeDelta::seconds(seconds);
        store.claim_probe(tenant, (1, version), Duration::from_secs(open), until).await.expect("answered")
    };
    assert_eq!(claim(5, 60, 60).await, None, "it is open for longer");
    assert_eq!(claim(4, 5, 60).await, None, "it is about another subscription");
    let claims = join_all((0..8).map(|_| claim(5, 5, 60))).await;
    let won: Vec<HealthRow> = claims.into_iter().flatten().collect();
    assert_eq!(won.len(), 1);
    assert_eq!(won[0].circuit.state, CircuitState::HalfOpen);
    let until = won[0].probe_until.expect("it has an end");
    store.release_probe(tenant, 1, until - TimeDelta::seconds(1)).await.expect("answered");
    assert_eq!(claim(5, 5, 60).await, None, "only who has claimed it gives it back");
    store.release_probe(tenant, 1, until).await.expect("answered");
    assert!(claim(5, 5, -1).await.is_some(), "it is free");
    assert!(claim(5, 5, 60).await.is_some(), "its time was up");
    database.end().await;
}
