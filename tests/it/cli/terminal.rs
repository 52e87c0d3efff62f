//! What others wrote, on a terminal: shown, and never obeyed.

use carillon::proto::cloudevents::cloud_event::cloud_event_attribute_value::Attr;
use carillon::proto::cloudevents::cloud_event::{CloudEventAttributeValue, Data};
use carillon::proto::internal::PublishRequest;
use serde_json::json;

use super::{Cli, Done, run};
use crate::harness::tenant::publish_request;

/// Writes to the clipboard, sets the title and clears the screen, in both of their forms, and hides what comes after it.
const HOSTILE: &str = "a\u{1b}]52;c;cm0=\u{7}b\u{1b}[2J\u{9d}0;t\u{9c}\u{9b}2J\u{1b}[8mc\nd";

/// Runs a command as on a terminal with colours.
async fn on_a_terminal(cli: &Cli, args: &[&str]) -> Done {
    let mut command = cli.command(args);
    command.env("CLICOLOR_FORCE", "1");
    run(command).await
}

/// What a terminal would obey, apart from line ends.
fn obeyed(text: &str) -> String {
    text.chars().filter(|character| character.is_control() && *character != '\n').collect()
}

#[tokio::test]
async fn a_payload_is_shown_and_not_obeyed() {
    let cli = Cli::new().await;
    cli.tenant.declare("CUSTOM_CLI").await;
    let mut event = publish_request("CUSTOM_CLI", &json!({})).event.expect("it is set");
    event.data = Some(Data::TextData(HOSTILE.to_owned()));
    let text = CloudEventAttributeValue { attr: Some(Attr::CeString("text/plain".to_owned())) };
    event.attributes.insert("datacontenttype".to_owned(), text);
    let request = PublishRequest { event: Some(event), ..publish_request("CUSTOM_CLI", &json!({})) };
    let id = cli.tenant.try_publish(request).await.expect("published").event_id;

    let shown = on_a_terminal(&cli, &["events", "get", &id]).await.ok();
    let (fields, data) = shown.split_once("\n\n").expect("the data comes after an empty line");
    assert!(fields.contains("\u{1b}[2m"), "our own styles stay: {fields:?}");
    assert_eq!(data, "a\u{fffd}]52;c;cm0=\u{fffd}b\u{fffd}[2J\u{fffd}0;t\u{fffd}\u{fffd}2J\u{fffd}[8mc\nd\n");
    let listed = on_a_terminal(&cli, &["events", "list", "--type", "CUSTOM_CLI"]).await.ok();
    assert_eq!(obeyed(&listed), "", "{listed:?}");
    assert!(listed.contains("]52;c;cm0="), "{listed:?}");
    let watched = ["watch", "--from", "earliest", "--type", "CUSTOM_CLI", "--count", "1"];
    let watched = on_a_terminal(&cli, &watched).await.ok();
    assert!(watched.contains("\u{fffd}[8mc d") && !watched.contains('\u{7}'), "{watched:?}");

    let raw = on_a_terminal(&cli, &["events", "get", &id, "--data"]).await.ok();
    assert_eq!(raw, HOSTILE, "as published");
    let document = on_a_terminal(&cli, &["events", "get", &id, "--json"]).await;
    assert_eq!(obeyed(&document.out), "");
    assert_eq!(document.document()["event"]["textData"], HOSTILE, "JSON says what was published");
}
