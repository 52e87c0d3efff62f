//! `carillon demo` with packages of its own, against the service of `client.toml`.

use serde_json::{Value, json};

use super::Cli;

#[tokio::test]
async fn the_demo_counts_what_breaks_its_real_schema_apart_and_loses_nothing() {
    let cli = Cli::new().await;
    let packages = tempfile::tempdir().expect("a temporary folder");
    let examples = json!([{"name": "gadget", "examples": [{"action": "created", "size": 1}, {"action": "created"}]}]);
    let schemas = json!({"definitions": {"gadget_event": {"type": "object", "required": ["size"]}}});
    for (path, text) in [
        ("webhooks-examples/package.json", json!({})),
        ("webhooks-examples/api.github.com/index.json", examples),
        ("webhooks-schemas/package.json", json!({})),
        ("webhooks-schemas/schema.json", schemas),
    ] {
        let path = packages.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder in the temporary folder");
        std::fs::write(path, text.to_string()).expect("a file in the temporary folder");
    }
    let packages = packages.path().to_str().expect("text");
    let figures = cli.run(&["demo", "--packages", packages, "--json"]).await.document();
    let help = cli.run(&["demo", "--help"]).await.ok();
    let (_, named) = help.split_once("With --json the summary is one object: ").expect("the contract");
    let names = |figures: &Value| figures.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let keys = [
        "deliveries_expected",
        "deliveries_verified",
        "lost",
        "outside_schema",
        "publish_to_receipt_ms",
        "published",
        "refused",
        "watched",
    ];
    assert_eq!(names(&figures), keys, "{figures}");
    assert_eq!(names(&figures["publish_to_receipt_ms"]), ["p50", "p99"], "{figures}");
    assert!(keys.iter().chain(&["p50", "p99"]).all(|key| named.contains(key)), "{named}");
    assert_eq!((&figures["published"], &figures["refused"]), (&json!(2), &json!(0)), "{figures}");
    assert_eq!(figures["outside_schema"], 1, "the payload without a size: {figures}");
    assert_eq!((&figures["deliveries_expected"], &figures["deliveries_verified"]), (&json!(6), &json!(6)), "{figures}");
    assert_eq!((&figures["watched"], &figures["lost"]), (&json!(2), &json!(0)), "{figures}");
    let shown = cli.run(&["demo", "--packages", packages]).await.ok();
    assert!(shown.contains("1 fit the real schema; 1 do not fit it"), "{shown}");
}
