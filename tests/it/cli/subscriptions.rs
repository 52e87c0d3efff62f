//! Subscriptions as a person makes, changes and ends them.

use super::Cli;
use crate::harness::Receiver;

#[tokio::test]
async fn subscriptions_live_their_life() {
    let cli = Cli::new().await;
    let receiver = Receiver::start().await;
    let url = receiver.url("/hook");
    let shown =
        cli.run(&["subscribe", "USER_CREATE", "--webhook", &url, "--max-attempts", "1", "--name", "Hook"]).await;
    let shown = shown.ok();
    assert!(shown.contains("1 attempt of 30s, back-off 1s to 1h"), "{shown}");
    let column = |name: &str| {
        shown.lines().find(|line| line.starts_with(name)).map(|line| line.len() - line[name.len()..].trim_start().len())
    };
    assert_eq!(column("signing secret"), column("subscription"), "{shown}");
    let id = shown.lines().next().and_then(|line| line.split_whitespace().last()).expect("the id").to_owned();
    let again = cli.run(&["subscribe", "USER_CREATE", "--webhook", &url]).await;
    again.fails(1, &["ALREADY_SUBSCRIBED", &id, "carillon subscriptions update"]);
    let unfit = cli.run(&["subscribe", "USER_CREATE", "--webhook", &receiver.url("/b"), "--filter", "1 + 1"]).await;
    unfit.fails(1, &["FILTER_INVALID", "column: 3", "boolean"]);
    let absent = cli.run(&["subscribe", "USR_CREATE", "--webhook", &url]).await;
    absent.fails(1, &["EVENT_TYPE_NOT_FOUND", "near: USER_CREATE"]);
    cli.run(&["subscribe", "USER_CREATE", "--webhook", "http://10.0.0.1/"]).await.fails(1, &["ADDRESS_BLOCKED"]);

    let updated =
        cli.run(&["subscriptions", "update", &id, "--filter", "data.n > 1", "--max-backoff", "2h"]).await.ok();
    assert!(updated.contains("data.n > 1") && updated.contains("to 2h"), "{updated}");
    cli.run(&["subscriptions", "update", &id]).await.fails(2, &["--filter"]);
    assert!(cli.run(&["subscriptions", "disable", &id]).await.ok().contains("DISABLED"));
    cli.run(&["subscriptions", "enable", &id, "--etag", "0"]).await.fails(1, &["ETAG_MISMATCH"]);
    assert!(cli.run(&["subscriptions", "enable", &id]).await.ok().contains("ACTIVE"));
    assert!(cli.run(&["subscriptions", "rotate-secret", &id]).await.ok().contains("whsec_"));
    let document = cli.run(&["subscriptions", "get", &id, "--json"]).await.document();
    assert!(document["updateTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{document}");
    assert_eq!(document["deliveryPolicy"]["maxBackoff"], "7200s", "programs get the proto form");
    assert_eq!(cli.run(&["subscriptions", "list", "--json"]).await.documents().len(), 1);
    assert!(cli.run(&["subscriptions", "list"]).await.ok().contains(&id));
    cli.run(&["subscriptions", "get", "sub_bogus"]).await.fails(1, &["subscription_id", "sub_<26 characters>"]);

    cli.run(&["unsubscribe", "USER_CREATE", "--webhook", &url]).await.ok();
    assert!(cli.run(&["subscriptions", "list", "--state", "deleted"]).await.ok().contains(&id));
    let gone = cli.run(&["unsubscribe", "USER_DELETED", "--webhook", &url]).await;
    assert!(!gone.err.contains("allow_missing"), "{gone:?}");
    gone.fails(1, &["NOT_SUBSCRIBED", "--allow-missing"]);
    cli.run(&["unsubscribe", "USER_DELETED", "--webhook", &url, "--allow-missing"]).await.ok();
    cli.run(&["unsubscribe", "word"]).await.fails(2, &["--webhook"]);
    assert!(cli.run(&["subscriptions", "undelete", &id]).await.ok().contains("ACTIVE"));
}

#[tokio::test]
async fn an_update_changes_a_part_of_an_order_or_of_a_breaker_and_keeps_the_rest() {
    let cli = Cli::new().await;
    cli.tenant.declare("CUSTOM_ORDERED").await;
    let made = [
        "--ordering-key",
        "data.n",
        "--ordering-dead-letter",
        "block",
        "--circuit-failures",
        "3",
        "--circuit-open",
        "9s",
    ];
    let url = "http://127.0.0.1:9/";
    let id = cli.subscribe(&[&["CUSTOM_ORDERED", "--webhook", url][..], &made].concat()).await;
    let update = async |given: &[&str]| {
        let command = ["subscriptions", "update", id.as_str(), "--json"];
        let mut policy = cli.run(&[&command[..], given].concat()).await.document()["deliveryPolicy"].take();
        let ordering = &policy["ordering"];
        let order = format!("{} {}", ordering["key"], ordering["onDeadLetter"]).replace("ON_DEAD_LETTER_", "");
        (order.replace('"', ""), policy["circuitBreaker"].take())
    };
    let breaker = |failures: i32, open: &str| serde_json::json!({ "failureThreshold": failures, "openDuration": open });
    assert_eq!(update(&["--ordering-dead-letter", "skip"]).await, ("data.n SKIP".to_owned(), breaker(3, "9s")));
    assert_eq!(update(&["--circuit-open", "8s"]).await.1, breaker(3, "8s"));
    assert_eq!(update(&["--circuit-failures", "4"]).await.1, breaker(4, "8s"));
    assert_eq!(update(&["--ordering-dead-letter", "block"]).await.0, "data.n BLOCK");
    assert_eq!(update(&["--ordering-key", "data.m"]).await.0, "data.m BLOCK", "what is not given stays");
    let (order, breaker) = update(&["--ordering-key", "", "--circuit-failures", "0"]).await;
    assert_eq!((order.as_str(), breaker), ("null null", serde_json::Value::Null));
    // Where there is nothing that they could be a part of, on a new one as well; or where the same command takes it away.
    for (part, whole, field) in [
        (["--ordering-dead-letter", "skip"], ["--ordering-key", ""], "ordering.key"),
        (["--circuit-open", "9s"], ["--circuit-failures", "0"], "circuit_breaker.failure_threshold"),
    ] {
        let (update, new) = (["subscriptions", "update", &id], ["subscribe", "CUSTOM_ORDERED", "--webhook", url]);
        cli.run(&[&update[..], &part].concat()).await.fails(1, &["FIELD_INVALID", field, whole[0]]);
        cli.run(&[&new[..], &part].concat()).await.fails(2, &[whole[0]]);
        for command in [&update[..], &new] {
            cli.run(&[command, &part, &whole].concat()).await.fails(2, &[part[0], whole[0]]);
        }
    }
}

#[tokio::test]
async fn a_replay_that_is_asked_for_too_late_is_told_not_to_start_and_one_under_way_to_go_on() {
    let cli = Cli::new().await;
    let id = cli.subscribe(&["USER_CREATE", "--webhook", "http://127.0.0.1:9/"]).await;
    let enable = async || cli.run(&["subscriptions", "enable", &id, "--replay-missed"]).await;
    cli.run(&["subscriptions", "disable", &id]).await.ok();
    let enabled = enable().await;
    assert!(!enabled.err.contains("active already"), "{enabled:?}");
    // Whether the first one is over or not.
    let again = enable().await;
    assert!(again.err.contains("active already, so no replay starts") && again.err.contains("goes on"), "{again:?}");
    assert!(again.ok().contains("ACTIVE"));
}
