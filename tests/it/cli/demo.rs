//! `carillon demo` with packages of its own, against the service of `client.toml`.

use std::path::{Path, PathBuf};

use carillon::proto::internal::{Tenant as ProtoTenant, TenantQuotas, UpdateTenantRequest};
use carillon::proto::public::ListSubscriptionsRequest;
use pbjson_types::FieldMask;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Cli, run};
use crate::harness::process::Process;
use crate::harness::tenant::admin;
use crate::harness::{World, eventually};

/// A folder with the packages of these kinds; one payload of each breaks its schema.
fn packages(kinds: &[String]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let payloads = json!([{"action": "created", "size": 1}, {"action": "created"}]);
    let examples: Vec<_> = kinds.iter().map(|kind| json!({"name": kind, "examples": payloads})).collect();
    let schema = json!({"type": "object", "required": ["size"]});
    let schemas: serde_json::Map<_, _> = kinds.iter().map(|kind| (format!("{kind}_event"), schema.clone())).collect();
    for (path, text) in [
        ("webhooks-examples/package.json", json!({})),
        ("webhooks-examples/api.github.com/index.json", json!(examples)),
        ("webhooks-schemas/package.json", json!({})),
        ("webhooks-schemas/schema.json", json!({ "definitions": schemas })),
    ] {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder in the temporary folder");
        std::fs::write(path, text.to_string()).expect("a file in the temporary folder");
    }
    folder
}

/// How many subscriptions there are.
async fn subscriptions(cli: &Cli) -> usize {
    let request = ListSubscriptionsRequest { page_size: 1_000, ..Default::default() };
    cli.tenant.events().list_subscriptions(request).await.expect("a page").into_inner().subscriptions.len()
}

#[tokio::test]
async fn a_demo_that_fails_leaves_no_subscription_behind() {
    let cli = Cli::new().await;
    let quotas = Some(TenantQuotas { subscriptions_max: Some(2), ..Default::default() });
    let request = UpdateTenantRequest {
        tenant: Some(ProtoTenant { slug: cli.tenant.slug.clone(), quotas, ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["quotas.subscriptions_max".to_owned()] }),
        ..Default::default()
    };
    admin(World::shared().await).update_tenant(request).await.expect("the quota is accepted");
    let folder = packages(&["gadget".to_owned()]);
    // A kind has three listeners.
    let failed = cli.run(&["demo", "--packages", folder.path().to_str().expect("text")]).await;
    failed.fails(1, &["Subscribe", "QUOTA_EXCEEDED"]);
    assert_eq!(subscriptions(&cli).await, 0);
}

#[tokio::test]
async fn a_demo_that_is_told_to_end_leaves_no_subscription_behind() {
    let cli = Cli::new().await;
    let kinds: Vec<_> = (0..60).map(|n| format!("gadget{n}")).collect();
    let folder = packages(&kinds);
    let command = cli.command(&["demo", "--packages", folder.path().to_str().expect("text")]);
    let mut demo = Process::spawn(command, &cli.dir.path().join("demo.log")).expect("carillon runs");
    eventually("it has begun to subscribe", || async {
        let there = subscriptions(&cli).await;
        if there > 0 { Ok(()) } else { Err(there) }
    })
    .await;
    demo.signal(Signal::TERM);
    let ended = demo.ended("the demo ends").await;
    assert_eq!(ended.code(), Some(1), "{}", demo.log());
    assert!(demo.log().contains("ended before everything was published"), "{}", demo.log());
    assert_eq!(subscriptions(&cli).await, 0);
}

/// The folder of the throw-away service that a process is making, as soon as a program runs on it.
fn folder_in_making(process: u32) -> Option<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let children = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<_> = children.flat_map(|ids| ids.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let lines = children.iter().filter_map(|child| std::fs::read_to_string(format!("/proc/{child}/cmdline")).ok());
    let mut words = lines.flat_map(|line| line.split('\0').map(PathBuf::from).collect::<Vec<_>>());
    words.find_map(|word| {
        let folder = word
            .ancestors()
            .find(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("carillon-test-")));
        folder.map(Path::to_owned)
    })
}

#[tokio::test]
async fn a_demo_that_is_told_to_end_while_it_makes_its_service_leaves_no_folder_behind() {
    let cli = Cli::new().await;
    let mut demo =
        Process::spawn(cli.command(&["demo", "--throwaway"]), &cli.dir.path().join("demo.log")).expect("carillon runs");
    let folder = eventually("it has begun to make its service", || async {
        folder_in_making(demo.pid()).ok_or_else(|| demo.log())
    })
    .await;
    demo.signal(Signal::INT);
    let ended = demo.ended("the demo ends").await;
    assert_eq!(ended.code(), Some(1), "{}", demo.log());
    assert!(demo.log().contains("ended before everything was published"), "{}", demo.log());
    assert!(!folder.exists(), "{} is still there", folder.display());
}

#[tokio::test]
async fn demos_beside_each_other_lose_nothing_and_what_no_demo_listens_to_is_removed() {
    let cli = Cli::new().await;
    cli.subscribe(&["USER_CREATE", "--webhook", "http://127.0.0.1:1/left", "--name", "carillon demo"]).await;
    let kinds: Vec<_> = (0..30).map(|n| format!("gadget{n}")).collect();
    let (many, one) = (packages(&kinds), packages(&kinds[..1]));
    let of = |folder: &TempDir| cli.command(&["demo", "--json", "--packages", folder.path().to_str().expect("text")]);
    let log = cli.dir.path().join("demo.log");
    let mut long = Process::spawn(of(&many), &log).expect("carillon runs");
    eventually("it has begun to subscribe", || async {
        let there = subscriptions(&cli).await;
        if there > 2 { Ok(()) } else { Err(there) }
    })
    .await;
    let short = run(of(&one)).await.document();
    assert_eq!((&short["lost"], &short["deliveries_verified"]), (&json!(0), &json!(6)), "{short}");
    assert!(long.ended("the other demo ends").await.success(), "{}", long.log());
    assert!(long.log().contains("\"lost\":0"), "{}", long.log());
    assert_eq!(subscriptions(&cli).await, 0);
}

#[tokio::test]
async fn the_demo_counts_what_breaks_its_real_schema_apart_and_loses_nothing() {
    let cli = Cli::new().await;
    let folder = packages(&["gadget".to_owned()]);
    let packages = folder.path().to_str().expect("text");
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
