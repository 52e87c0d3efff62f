//! The keys of issuers: rotation, withdrawal, failures, files, and which addresses are called for them.

use std::fs;

use carillon::proto::public::watch_response::Kind;
use futures::future::join_all;
use jsonwebtoken::{Algorithm, Header};
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;

use super::{Stage, end_of, lists, watch};
use crate::harness::issuer::{Issuer, Signer};
use crate::harness::process::Process;
use crate::harness::tenant::{Clients, assert_refused, reason};
use crate::harness::{World, eventually, within};
use crate::operations::get;

/// Least time between two fetches in these tests, milliseconds.
const LEAST_MS: u128 = 500;

fn pace() -> String {
    format!("[auth]\nkeys_interval_ms = 86400000\nkeys_interval_min_ms = {LEAST_MS}\n")
}

async fn notices(world: &World) -> String {
    get(&format!("http://{}/readyz", world.replicas[0].addresses.ops)).await.1
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_token_names_it_and_a_withdrawn_one_ends_its_streams() {
    let (old, new, newest) =
        (Signer::new("1", Algorithm::ES256), Signer::new("2", Algorithm::RS256), Signer::new("3", Algorithm::EdDSA));
    let issuer = Issuer::start(&[&old]).await;
    let settings = format!("{}{}{}[watch]\ncredential_check_ms = 200\n", pace(), issuer.reachable(), issuer.entry(""));
    let world = World::start_with(1, &settings).await;
    let tenant = world.tenant().await;
    let claims = issuer.claims(&tenant.slug);
    let token = |signer: &Signer| signer.sign(&claims);
    lists(&world, &token(&old)).await.expect("the key of the start");
    assert_refused(lists(&world, &token(&new)).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
    let mut stream = watch(&Clients::new(&world, 0, &token(&old))).await;

    issuer.publishes(&[&old, &new]);
    eventually("the new key is known", async || lists(&world, &token(&new)).await).await;
    lists(&world, &token(&old)).await.expect("the old key is still published");
    let mut second = watch(&Clients::new(&world, 0, &token(&new))).await;

    // While the issuer fails, what is known stays known.
    issuer.fails(true);
    let before = issuer.connections();
    eventually("it was asked in vain", || async {
        let refused = lists(&world, &token(&newest)).await;
        assert_refused(refused, Code::Unauthenticated, "CREDENTIAL_INVALID");
        if issuer.connections() > before && notices(&world).await.contains("issuer 1") { Ok(()) } else { Err(before) }
    })
    .await;
    for signer in [&old, &new] {
        lists(&world, &token(signer)).await.expect("the former keys stay");
    }

    issuer.publishes(&[&new, &newest]);
    issuer.fails(false);
    eventually("the newest key is known", async || lists(&world, &token(&newest)).await).await;
    assert_refused(lists(&world, &token(&old)).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
    let (_, status) = end_of(&mut stream).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "CREDENTIAL_INVALID"));
    tenant.declare("CUSTOM_LATER").await;
    let goes_on = async {
        loop {
            let message = second.message().await.expect("a watch of a key that stays goes on").expect("a message");
            if let Some(Kind::Events(_)) = message.kind {
                return;
            }
        }
    };
    within("an event for the other watch", goes_on).await;
    assert!(!notices(&world).await.contains("issuer"), "it is well again");
}

#[tokio::test]
async fn tokens_of_unknown_keys_cause_no_more_fetches_than_their_interval_allows() {
    let key = Signer::new("1", Algorithm::EdDSA);
    let issuer = Issuer::start(&[&key]).await;
    let settings = format!("{}{}{}", pace(), issuer.reachable(), issuer.entry(""));
    let world = World::start_with(1, &settings).await;
    let tenant = world.tenant().await;
    let claims = issuer.claims(&tenant.slug);
    lists(&world, &key.sign(&claims)).await.expect("a good token");
    let (began, before) = (Instant::now(), issuer.fetched());
    for round in 0..20 {
        let unknown = |n: usize| {
            let header = Header { kid: Some(format!("{round}-{n}")), ..Header::new(Algorithm::EdDSA) };
            let token = key.sign_with(&header, &claims);
            let world = &world;
            async move { assert_refused(lists(world, &token).await, Code::Unauthenticated, "CREDENTIAL_INVALID") }
        };
        within("refusals", join_all((0..50).map(unknown))).await;
    }
    let allowed = began.elapsed().as_millis() / LEAST_MS + 2;
    let fetches = issuer.fetched() - before;
    assert!((1..=allowed).contains(&(fetches as u128)), "{fetches} fetches for 1,000 tokens, {allowed} allowed");
    lists(&world, &key.sign(&claims)).await.expect("a good token");
}

#[tokio::test]
async fn an_issuer_that_is_away_at_the_start_keeps_no_key_out_and_is_asked_again() {
    let key = Signer::new("1", Algorithm::EdDSA);
    let issuer = Issuer::start(&[&key]).await;
    issuer.fails(true);
    let settings = format!("{}{}{}", pace(), issuer.reachable(), issuer.entry(""));
    let world = World::start_with(1, &settings).await;
    let tenant = world.tenant().await;
    lists(&world, &tenant.key).await.expect("an API key needs no issuer");
    let token = key.sign(&issuer.claims(&tenant.slug));
    assert_refused(lists(&world, &token).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
    eventually("its readiness tells", || async {
        let said = notices(&world).await;
        if said.contains("keys of token issuer 1 cannot be read") { Ok(()) } else { Err(said) }
    })
    .await;
    issuer.fails(false);
    eventually("the token is accepted", || lists(&world, &token)).await;
    let metrics = get(&format!("http://{}/metrics", world.replicas[0].addresses.ops)).await.1;
    assert!(metrics.contains("carillon_token_issuers_failing 0"), "{metrics}");
    assert!(metrics.contains("carillon_token_key_looks_total{outcome=\"failed\"}"), "{metrics}");
}

#[tokio::test]
async fn an_issuer_inside_is_called_only_where_its_own_range_is_allowed() {
    let key = Signer::new("1", Algorithm::EdDSA);
    let issuer = Issuer::start(&[&key]).await;
    // Webhooks may be called on loopback in this world, which says nothing of issuers.
    let world = World::start_with(1, &issuer.entry("")).await;
    let tenant = world.tenant().await;
    let token = key.sign(&issuer.claims(&tenant.slug));
    assert_refused(lists(&world, &token).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
    eventually("the log says why", || async {
        let log = world.replicas[0].process.log();
        if log.contains("its host is not a public address") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(issuer.connections(), 0);
}

#[tokio::test]
async fn keys_in_a_file_are_read_again_and_a_broken_file_changes_nothing() {
    let (key, next) = (Signer::new("1", Algorithm::EdDSA), Signer::new("2", Algorithm::ES384));
    let issuer = Issuer::start(&[&key]).await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("jwks.json");
    fs::write(&file, issuer.jwks()).expect("written");
    let entry = issuer.entry(&format!("jwks_file = {file:?}"));
    let world = World::start_with(1, &format!("{entry}[server]\ncertificates_interval_ms = 100\n")).await;
    let tenant = world.tenant().await;
    let claims = issuer.claims(&tenant.slug);
    lists(&world, &key.sign(&claims)).await.expect("a key of the file");
    for broken in ["", "{", "[]", "{\"keys\": []}"] {
        fs::write(&file, broken).expect("written");
        eventually("it was noticed", || async {
            let said = notices(&world).await;
            if said.contains("issuer 1") { Ok(()) } else { Err(said) }
        })
        .await;
        lists(&world, &key.sign(&claims)).await.expect("the former key stays");
    }
    issuer.publishes(&[&next]);
    fs::write(&file, issuer.jwks()).expect("written");
    eventually("the new key is known", async || lists(&world, &next.sign(&claims)).await).await;
    assert_refused(lists(&world, &key.sign(&claims)).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
    assert_eq!(issuer.connections(), 0, "a file is enough");

    fs::write(&file, "hunter2").expect("written");
    let mut command = Process::carillon();
    command.arg("serve").arg("--config").arg(world.path("replica-1.toml"));
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = within("the start is refused", output).await.expect("carillon runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("auth.issuers.jwks_file") && !said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn a_token_of_an_app_or_subject_stays_good_only_as_long_as_what_it_names() {
    let stage = Stage::start("[watch]\ncredential_check_ms = 200\n").await;
    let tenant = stage.world.tenant().await;
    let mut admin = crate::harness::tenant::admin(&stage.world);
    let slug = || tenant.slug.clone();
    let request = carillon::proto::internal::CreateAppRequest {
        tenant: slug(),
        slug: "short-lived".to_owned(),
        ..Default::default()
    };
    admin.create_app(request).await.expect("an app can be made");
    let token = stage.token(&tenant, &json!({"carillon_app": "short-lived"}));
    let mut stream = watch(&stage.clients(&token)).await;
    let request = carillon::proto::internal::DeleteAppRequest {
        tenant: slug(),
        app: "short-lived".to_owned(),
        ..Default::default()
    };
    admin.delete_app(request).await.expect("it is empty");
    let (_, status) = end_of(&mut stream).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "CREDENTIAL_INVALID"));
    assert_refused(stage.lists(&token).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
}
