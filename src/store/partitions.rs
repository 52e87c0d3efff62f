//! Day partitions of events, outcomes and attempts: made ahead of time, dropped by retention.

use super::{Store, StoreError};
use chrono::{Days, NaiveDate};

/// The tables that are partitioned by day.
const TABLES: [&str; 3] = ["events", "outcomes", "attempts"];

impl Store {
    /// Makes the partitions of `from` and the `days` days after it, where they are missing.
    pub async fn ensure_partitions(&self, from: NaiveDate, days: u64) -> Result<(), StoreError> {
        let mut wanted = Vec::new();
        for ahead in 0..=days {
            let day = from.checked_add_days(Days::new(ahead)).ok_or(StoreError::Corrupt { what: "date" })?;
            wanted.extend(TABLES.map(|table| (table, format!("{table}_{}", day.format("%Y%m%d")), day)));
        }
        let names: Vec<&str> = wanted.iter().map(|(_, name, ..)| name.as_str()).collect();
        let existing: Vec<String> = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_catalog.pg_class c
              WHERE c.relname = ANY($1) AND c.relnamespace = current_schema()::regnamespace AND c.relispartition
              ORDER BY c.relname LIMIT 1000",
        )
        .bind(&names)
        .fetch_all(self.engine())
        .await?;
        for (table, _, day) in wanted.iter().filter(|(_, name, ..)| !existing.contains(name)) {
            for left in (0..TRIES).rev() {
                // Only the tables' owner may: the function runs as that one.
                let make = sqlx::query("SELECT make_partition($1, $2)").bind(table).bind(day);
                match make.execute(self.engine()).await {
                    Ok(_) => break,
                    // Two replicas may race: the loser fails on the name that exists by then, which is what it wanted.
                    Err(error) if has_code(&error, &DUPLICATE) => break,
                    Err(error) if left > 0 && has_code(&error, &[CATALOGUE_RACE]) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// duplicate_table, and unique_violation in the catalogue, which a lost race shows as.
const DUPLICATE: [&str; 2] = ["42P07", "23505"];
/// internal_error: a GRANT on the whole table, which takes no lock that attaching would wait for, has changed its row meanwhile.
const CATALOGUE_RACE: &str = "XX000";
/// How often a partition is tried to be made.
const TRIES: u32 = 5;

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| codes.contains(&code.as_ref()))
}
