//! What Postgres plans for the statements that a connection has prepared, and whether that is what is expected.

use super::tenant;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use std::collections::{BTreeMap, BTreeSet};

/// What a plan does.
#[derive(Debug, Default)]
pub struct Plan {
    /// The indexes it reads by, those of a day under the name of the whole table's.
    indexes: BTreeSet<String>,
    /// The tables it reads from end to end.
    scans: BTreeSet<String>,
    /// Whether it leaves out days by values that it is given.
    prunes: bool,
    /// How many days of one table it may look at.
    days: BTreeMap<String, usize>,
    /// The tables whose rows it sorts without a limit to them. What is in order but for ties does not count.
    sorts: BTreeSet<String>,
}

impl Plan {
    fn read(&mut self, node: &Value, parents: &BTreeMap<String, String>) {
        if let Some(index) = node["Index Name"].as_str() {
            self.indexes.insert(parents.get(index).map_or(index, String::as_str).to_owned());
        }
        if let Some(table) = node["Relation Name"].as_str() {
            let whole = parents.get(table).map_or(table, String::as_str).to_owned();
            if node["Node Type"].as_str() == Some("Seq Scan") {
                self.scans.insert(whole.clone());
            }
            if whole != table {
                *self.days.entry(whole).or_default() += 1;
            }
        }
        // What ON CONFLICT looks in.
        let arbiters = node["Conflict Arbiter Indexes"].as_array().into_iter().flatten();
        self.indexes.extend(arbiters.filter_map(Value::as_str).map(str::to_owned));
        if node["Node Type"].as_str() == Some("Sort") {
            unlimited(node, parents, &mut self.sorts);
        }
        self.prunes |= node["Subplans Removed"].as_u64().is_some_and(|removed| removed > 0);
        for child in node["Plans"].as_array().into_iter().flatten() {
            self.read(child, parents);
        }
    }
}

async fn explained(connection: &mut PgConnection, explain: &str) -> Value {
    let sql = AssertSqlSafe(explain.to_owned());
    let row = sqlx::raw_sql(sql).fetch_one(connection).await.unwrap_or_else(|error| panic!("{explain}: {error}"));
    let mut json: sqlx::types::Json<Value> = sqlx::Row::try_get_unchecked(&row, 0).expect("a plan is JSON");
    json.0[0]["Plan"].take()
}

/// The tables that a node gets rows of without a limit to them. What a nested loop looks up for each of such rows adds none.
fn unlimited(node: &Value, parents: &BTreeMap<String, String>, tables: &mut BTreeSet<String>) {
    let children = node["Plans"].as_array().into_iter().flatten();
    let children = match node["Node Type"].as_str() {
        Some("Limit") => return,
        Some("Nested Loop") => children.take(1),
        _ => children.take(usize::MAX),
    };
    let table = node["Relation Name"].as_str();
    tables.extend(table.map(|table| parents.get(table).map_or(table, String::as_str).to_owned()));
    for child in children {
        unlimited(child, parents, tables);
    }
}

/// The plans of what a connection has prepared and `known` does not hold yet.
pub async fn plans(connection: &mut PgConnection, known: &mut BTreeSet<String>) -> Vec<(String, Plan)> {
    let parents: Vec<(String, String)> = sqlx::query_as(
        "SELECT c.relname::text, p.relname::text FROM pg_inherits i
           JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent",
    )
    .fetch_all(&mut *connection)
    .await
    .expect("a catalogue");
    let parents: BTreeMap<String, String> = parents.into_iter().collect();
    let prepared: Vec<(String, String, Vec<String>)> = sqlx::query_as(
        "SELECT name, statement, parameter_types::text[] FROM pg_prepared_statements ORDER BY prepare_time, name",
    )
    .fetch_all(&mut *connection)
    .await
    .expect("a view");
    let mut plans = Vec::new();
    for (name, statement, types) in prepared {
        let ours = !statement.contains("pg_inherits") && !statement.contains("pg_prepared_statements");
        if !known.insert(name.clone()) || !ours {
            continue;
        }
        // The plan is made for any values; these only say which days are left out.
        let value = |kind: &String| match kind.as_str() {
            "uuid" => format!("'{}'", tenant(1).0),
            "date" => "(now() AT TIME ZONE 'UTC')::date - 1".to_owned(),
            "timestamp with time zone" => "now()".to_owned(),
            "boolean" => "true".to_owned(),
            array if array.ends_with("[]") => "'{}'".to_owned(),
            "text" | "bytea" => "''".to_owned(),
            _ => "'100'".to_owned(),
        };
        let values = types.iter().map(value).collect::<Vec<_>>().join(", ");
        let values = if values.is_empty() { values } else { format!("({values})") };
        let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE \"{name}\"{values}");
        let mut plan = Plan::default();
        plan.read(&explained(connection, &explain).await, &parents);
        // The few rows of a test are best sorted. Only what is sorted even where that is to be avoided has no index for its order.
        connection.execute("DISCARD PLANS; SET enable_sort = off").await.expect("a setting");
        let mut unsorted = Plan::default();
        unsorted.read(&explained(connection, &explain).await, &parents);
        plan.sorts.retain(|table| unsorted.sorts.contains(table));
        connection.execute("RESET enable_sort; DISCARD PLANS").await.expect("a setting");
        plans.push((statement, plan));
    }
    plans
}

/// What is expected of a function's statements.
pub struct Expected {
    pub name: &'static str,
    /// All of these are used.
    pub indexes: &'static [&'static str],
    /// These tables may be read from end to end.
    pub scans: &'static [&'static str],
    /// Whether days are left out.
    pub prunes: bool,
}

/// Small tables of the replicas that are read whole, wherever they are.
const CONTROL: [&str; 4] = ["replicas", "shard_leases", "duties", "settings"];

/// What is sorted whole: subscriptions that are joined to a page, the replays of a tenant, the one change that a watch waits for, and the
/// event types of a tenant, since no index has them in the order of their bytes.
const SORTED: [(&str, &str); 4] = [
    ("ListInvocations of what is cancelled", "subscriptions"),
    ("replay", "replays"),
    ("a watch", "watches"),
    ("event types", "event_types"),
];

pub fn check(wrong: &mut Vec<String>, expected: &Expected, plans: Vec<(String, Plan)>) {
    let Expected { name, indexes, scans, prunes } = expected;
    let mut used = BTreeSet::new();
    let mut pruned = false;
    if plans.is_empty() {
        wrong.push(format!("{name}: nothing was prepared"));
    }
    for (statement, plan) in plans {
        let mut open =
            plan.scans.iter().filter(|table| !scans.contains(&table.as_str()) && !CONTROL.contains(&table.as_str()));
        if let Some(table) = open.next() {
            wrong.push(format!("{name}: reads all of {table}: {statement}"));
        }
        for table in plan.sorts.iter().filter(|table| !SORTED.contains(&(*name, table.as_str()))) {
            wrong.push(format!("{name}: sorts all it finds in {table}: {statement}"));
        }
        pruned |= plan.prunes;
        used.extend(plan.indexes);
    }
    for index in *indexes {
        if !used.contains(*index) {
            wrong.push(format!("{name}: does not use {index}, but {used:?}"));
        }
    }
    if *prunes && !pruned {
        wrong.push(format!("{name}: looks at every day"));
    }
}
