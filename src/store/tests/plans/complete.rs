//! That no statement is forgotten: what the store offers either has its plans looked at, or is named here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What is not hot, and why.
const COLD: [(&str, &str); 6] = [
    (
        "administration, at people's pace",
        "api_keys app app_by_slug apps audit_records create_api_key create_app create_publisher_identity create_tenant delete_app \
         delete_publisher_identity publisher_identities revoke_api_key tenant_by_slug tenants update_tenant",
    ),
    (
        "changes of what is registered, at people's pace",
        "add_schema change_event_type change_subscription_state create_event_type disable_by_server rotate_secret subscribe \
         update_subscription",
    ),
    (
        "tables as small as there are replicas, shards and duties, however many the tenants are",
        "end_duty forget_replicas leave prepare_shards release_shards take_duty take_shards unclean_ends",
    ),
    (
        "at the start, once a day, or where retention has just taken something",
        "ensure_coming_partitions notice_restore removed_until renew_logs reseal_headers reseal_secrets reseal_setting retain \
         setting_or_create",
    ),
    ("hourly, by a function of the tables' owner, in the order of an index of its own", "purge_audit_records"),
    (
        "reads no table, or does what another one does too",
        "is_reachable keep_answer listen measure_clock notify notify_watch",
    ),
];

/// The functions of `impl Store` that others call.
fn offered(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            offered(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            for block in text.split("\nimpl Store {\n").skip(1) {
                let block = block.split("\n}\n").next().unwrap_or_default();
                let names = block.lines().filter_map(|line| line.strip_prefix("    pub async fn "));
                found.extend(names.filter_map(|name| name.split(['(', '<']).next().map(str::to_owned)));
            }
        }
    }
}

#[test]
fn every_function_that_is_not_cold_has_its_plans_looked_at() {
    let mut found = BTreeSet::new();
    offered(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store"), &mut found);
    assert!(found.len() > 100, "{found:?}");
    let looked = |name: &str| include_str!("../plans.rs").contains(&format!(".{name}("));
    let mut cold: BTreeSet<&str> = COLD.iter().flat_map(|(_, names)| names.split_whitespace()).collect();
    for name in &found {
        assert!(looked(name) != cold.remove(name.as_str()), "{name} is neither looked at nor cold, or both");
    }
    assert!(cold.is_empty(), "there is no {cold:?}");
}
