//! Events that are tried by hand: whatever of an event a filter reads can be given.

use serde_json::json;

use super::Cli;
use crate::harness::Receiver;

#[tokio::test]
async fn filters_over_attributes_can_be_tried() {
    let (cli, receiver) = (Cli::new().await, Receiver::start().await);
    let name = "CUSTOM_TRIED";
    cli.run(&["event-types", "create", name]).await.ok();
    let filter = "event.source == '/shop' && event.subject == 'order-17' && event.region == 'eu'";
    let id = cli.subscribe(&[name, "--webhook", &receiver.url("/tried"), "--filter", filter]).await;
    let given = ["--data", "{}", "--json", "--source", "/shop", "--subject", "order-17", "--extension", "region=eu"];
    let explain = ["explain", "--type", name];
    let explained = cli.run(&[&explain[..], &given].concat()).await.document();
    assert_eq!(explained["subscriptionIds"], json!([id]));
    let tested = cli.run(&[&["test", id.as_str()][..], &given].concat()).await.document();
    assert_eq!(tested["match"]["fires"], true, "{tested}");
    receiver.receives("/tried", 1).await;
    let without = cli.run(&[&explain[..], &["--data", "{}", "--json"]].concat()).await.document();
    assert_eq!(without["explanations"][0]["reason"], "MATCH_REASON_FILTER", "{without}");
    let stored = cli.run(&["explain", "evt_00000000000000000000000000", "--subject", "order-17"]).await;
    stored.fails(2, &["--subject", "--data"]);
}
