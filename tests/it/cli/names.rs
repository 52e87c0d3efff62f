//! Names of states and types as people write them, and what is said of those that are none.

use super::{Cli, alone};

#[tokio::test]
async fn a_state_is_known_by_every_name_it_goes_by_and_another_one_is_answered_with_the_list() {
    let cli = Cli::new().await;
    cli.tenant.declare("CUSTOM_CLI").await;
    let id = cli.subscribe(&["CUSTOM_CLI", "--webhook", "http://127.0.0.1:9/"]).await;
    let count = async |state: &str| {
        let listed = cli.run(&["subscriptions", "list", "--json", "--state", state]).await.documents();
        assert!(listed.iter().all(|subscription| subscription["id"] == id.as_str()), "{listed:?}");
        listed.len()
    };
    for state in ["active", "enabled", "ENABLED", "Active", "SUBSCRIPTION_STATE_ACTIVE", "SUBSCRIPTION_STATE_ENABLED"] {
        assert_eq!(count(state).await, 1, "{state}");
    }
    for state in ["disabled", "DISABLED", "SUBSCRIPTION_STATE_DISABLED", "deleted", "SUBSCRIPTION_STATE_DELETED"] {
        assert_eq!(count(state).await, 0, "{state}");
    }
    let known = [
        &["pending", "PENDING", "INVOCATION_STATE_PENDING"][..],
        &["waiting", "INVOCATION_STATE_WAITING"],
        &["succeeded", "SUCCEEDED", "INVOCATION_STATE_SUCCEEDED"],
        &["dead", "dead-letter", "dead_letter", "dead-lettered", "DEAD_LETTERED", "INVOCATION_STATE_DEAD_LETTERED"],
        &["cancelled", "canceled", "INVOCATION_STATE_CANCELLED"],
    ];
    for state in known.concat() {
        assert!(cli.run(&["invocations", "list", "--json", "--state", state]).await.documents().is_empty(), "{state}");
    }
    let wrong = alone(&["subscriptions", "list", "--state", "broken"]).await;
    wrong.fails(2, &["'broken'", "--state", "active, disabled, deleted"]);
    let wrong = alone(&["invocations", "list", "--state", "broken"]).await;
    wrong.fails(2, &["'broken'", "pending, waiting, succeeded, dead-lettered, cancelled"]);
}

#[tokio::test]
async fn a_watch_for_a_type_that_there_is_not_says_so_and_watches() {
    let cli = Cli::new().await;
    cli.tenant.declare("CUSTOM_PAID").await;
    cli.run(&["publish", "CUSTOM_PAID", "--no-data"]).await.ok();
    let all = ["--from", "earliest", "--count", "1", "--json"];
    let watch = async |types: &[&str]| cli.run(&[&["watch"], types, &all[..]].concat()).await;
    let mistyped = watch(&["--type", "CUSTOM_PAD", "--type", "CUSTOM_PAID"]).await;
    assert!(mistyped.err.contains("no event type CUSTOM_PAD; there is CUSTOM_PAID"), "{mistyped:?}");
    assert_eq!(mistyped.documents().len(), 1, "the other one is watched");
    for known in ["CUSTOM_PAID", "CUSTOM_*"] {
        let quiet = watch(&["--type", known]).await;
        assert!(!quiet.err.contains("no event type"), "{known}: {quiet:?}");
        assert_eq!(quiet.documents().len(), 1, "{known}");
    }
}
