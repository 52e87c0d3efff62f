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
            // Only the tables' owner may: the function runs as that one.
            let made = sqlx::query("SELECT make_partition($1, $2)").bind(table).bind(day).execute(self.engine()).await;
            match made {
                Ok(_) => {}
                // Two replicas may race: the loser fails on the name that exists by then, which is what it wanted.
                Err(error) if is_duplicate(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// True for duplicate_table, and for unique_violation in the catalogue, which a lost race shows as.
fn is_duplicate(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "42P07" || code == "23505")
}
