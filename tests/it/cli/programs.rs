//! What changes something, as programs run it: with `--json` the answer is one JSON document, also where there is little to say.

use serde_json::Value;

use super::{Cli, run};
use crate::harness::database::owner_url;
use crate::harness::process::Process;
use crate::harness::{Answer, Receiver, World};

/// Runs commands of one group one after the other; gives the answer of each.
async fn answers(cli: &Cli, group: &[&str], commands: &[&[&str]]) -> Vec<Value> {
    let mut answers = Vec::new();
    for command in commands {
        let done = cli.run(&[group, command, &["--json"]].concat()).await;
        assert_eq!(done.out.lines().count(), 1, "{group:?} {command:?}: {done:?}");
        answers.push(done.document());
    }
    answers
}

#[tokio::test]
async fn every_command_that_changes_something_answers_programs_with_a_document() {
    let (cli, receiver) = (Cli::new().await, Receiver::start().await);
    let name = "CUSTOM_PROGRAMS";
    let types: [&[&str]; 6] = [
        &["create", name],
        &["update", name, "--description", "Made"],
        &["add-schema", name, "{}"],
        &["delete", name],
        &["undelete", name],
        &["delete", "CUSTOM_ABSENT", "--allow-missing"],
    ];
    answers(&cli, &["event-types"], &types).await;

    let (url, absent) = (receiver.url("/hook"), receiver.url("/absent"));
    let made = answers(&cli, &["subscribe"], &[&[name, "--webhook", &url, "--max-attempts", "1"]]).await;
    let id = made[0]["subscription"]["id"].as_str().expect("an id");
    let changes: [&[&str]; 4] =
        [&["update", id, "--name", "Hook"], &["rotate-secret", id], &["disable", id], &["enable", id]];
    answers(&cli, &["subscriptions"], &changes).await;
    answers(&cli, &["unsubscribe"], &[&[id], &[name, "--webhook", &absent, "--allow-missing"]]).await;
    answers(&cli, &["subscriptions"], &[&["undelete", id]]).await;
    answers(&cli, &["test"], &[&[id, "--data", "{}"]]).await;

    let delayed = ["publish", name, "--data", "{}", "--delay", "1h"];
    let delayed = answers(&cli, &delayed, &[&[]]).await;
    answers(&cli, &["events", "cancel"], &[&[delayed[0]["eventId"].as_str().expect("an id")]]).await;
    receiver.answers("/hook", [Answer::Status(400)]);
    let dead = cli.run(&["publish", name, "--data", "{}", "--wait", "--json"]).await;
    let dead: Value = serde_json::from_str(&dead.out).expect("a document");
    let invocation = dead["invocations"][0]["id"].as_str().expect("an id");
    let changes: [&[&str]; 3] = [&["retry", invocation], &["cancel", invocation], &["redrive"]];
    receiver.answers("/hook", [Answer::Hang]);
    answers(&cli, &["invocations"], &changes).await;

    let slug = format!("programs-{}", &carillon::clock::new_uuid().simple().to_string()[20..]);
    answers(&cli, &["admin", "tenants"], &[&["create", &slug], &["update", &slug, "--display-name", "For people"]])
        .await;
    answers(&cli, &["admin", "--tenant", &slug, "apps"], &[&["create", "shop"], &["delete", "shop"]]).await;
    let made = answers(&cli, &["admin", "--tenant", &slug, "keys"], &[&["create", "--role", "viewer"]]).await;
    let id = made[0]["apiKey"]["id"].as_str().expect("an id");
    answers(&cli, &["admin", "--tenant", &slug, "keys"], &[&["revoke", id]]).await;
    let subject = format!("uri:spiffe://{slug}/p");
    let made = answers(&cli, &["admin", "--tenant", &slug, "publishers"], &[&["create", &subject]]).await;
    let id = made[0]["id"].as_str().expect("an id");
    answers(&cli, &["admin", "--tenant", &slug, "publishers"], &[&["delete", id]]).await;

    let world = World::shared().await;
    for command in ["migrate", "reseal"] {
        let mut process = Process::carillon();
        process.args([command, "--json", "--config"]).arg(world.path("replica-1.toml"));
        process.env("CARILLON_DATABASE__MIGRATE_URL", owner_url(&world.database_url));
        run(process).await.document();
    }
}
