//! What a replica asks its database, counted in the database's own log: exact, and without what the database does by itself.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use chrono::{NaiveDateTime, TimeDelta};
use tokio::time::sleep;

use crate::cli::error::CliError;
use crate::store::measure::replica_pids;

/// How long the first statement of a replica may take to be logged.
const FIRST_LIMIT: Duration = Duration::from_secs(10);
/// How much later than it is executed a statement may be seen in the log.
const LATE: Duration = Duration::from_secs(1);

/// Waits, and counts the statements of replicas in that time.
///
/// *Shape*: every statement is logged already, as [`crate::store::measure::log_statements`] asks for.
/// *Errors*: [`CliError::Result`] where no replica says anything.
pub async fn count(owner_url: &str, log: &Path, time: Duration) -> Result<u64, CliError> {
    let from = log.metadata().map_err(CliError::file("inspect", log))?.len();
    let started = Instant::now();
    let mut pids = replica_pids(owner_url).await.map_err(super::store)?;
    let first = loop {
        if let Some(first) = times(&read(log, from)?, &pids).first() {
            break *first;
        }
        if started.elapsed() > FIRST_LIMIT {
            return Err(CliError::Result("the replica has asked the database nothing".to_owned()));
        }
        sleep(Duration::from_millis(50)).await;
    };
    // Between two beats, so that no edge of the time falls on one.
    let half = TimeDelta::milliseconds(500);
    let begin = first + half;
    let end = begin + TimeDelta::from_std(time).unwrap_or_default();
    sleep(Duration::from_millis(500) + time + LATE).await;
    pids.extend(replica_pids(owner_url).await.map_err(super::store)?);
    let text = read(log, from)?;
    Ok(times(&text, &pids).iter().filter(|at| (begin..end).contains(at)).count() as u64)
}

fn read(log: &Path, from: u64) -> Result<String, CliError> {
    let mut bytes = Vec::new();
    File::open(log)
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            file.read_to_end(&mut bytes)
        })
        .map_err(CliError::file("read", log))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// When each statement of these server processes was executed, by the log's clock.
///
/// *Source*: the prefix that a private Postgres writes, `%m [%p] `, and the texts of its `log_statement`.
fn times(text: &str, pids: &[i32]) -> Vec<NaiveDateTime> {
    let statement = |line: &str| {
        let (head, said) = line.split_once(" LOG:")?;
        let said = said.trim_start();
        let (at, rest) = head.split_once(" [")?;
        let pid: i32 = rest.split_once(']')?.0.parse().ok()?;
        let is_one = pids.contains(&pid) && (said.starts_with("execute ") || said.starts_with("statement: "));
        let (at, _zone) = at.rsplit_once(' ')?;
        is_one.then(|| NaiveDateTime::parse_from_str(at, "%Y-%m-%d %H:%M:%S%.f").ok())?
    };
    text.lines().filter_map(statement).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statements_of_replicas_count() {
        let text = "2026-11-29 20:33:50.250 UTC [7] carillon@carillon LOG:  execute sqlx_s_1: SELECT 1\n\t  FROM a\n\
                    2026-11-29 20:33:51.250 UTC [8] carillon@carillon LOG:  statement: BEGIN\n\
                    2026-11-29 20:33:51.500 UTC [3] LOG:  checkpoint starting: time\n\
                    2026-11-29 20:33:52.000 UTC [9] someone@carillon LOG:  statement: SELECT 2\n\
                    2026-11-29 20:33:52.250 UTC [7] carillon@carillon DETAIL:  parameters: $1 = '1'\n";
        let seconds: Vec<_> = times(text, &[7, 8]).iter().map(|at| at.format("%S%.3f").to_string()).collect();
        assert_eq!(seconds, ["50.250", "51.250"]);
    }
}
