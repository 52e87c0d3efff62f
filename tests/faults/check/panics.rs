//! The logs of the replicas: whatever is done to a replica, it never panics and never aborts.
//!
//! Reads what [`crate::stage::Stage::keep_logs`] has copied beside the records. Postgres's log is none of them: a full disk makes it
//! panic, and that is a fault of the list.

use std::fs;
use std::io;
use std::path::Path;

use super::{Report, TOLD_MAX};

/// In every line that tells of a panic, the one that the service logs and the one of the language where nothing logs yet; and in those of
/// the language where it aborts without one: a stack that is used up, memory that is not to be had, what it cannot go on after.
const LAST_WORDS: [&str; 4] = ["panicked", "has overflowed its stack", "memory allocation of", "fatal runtime error"];
/// Characters of a line that are told.
const LINE_CHARS_MAX: usize = 400;

/// Tells of every line that holds one of these, and of a run that has kept no log to look at.
pub fn none_in(folder: &Path, report: &mut Report) -> io::Result<()> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("replica-") && Path::new(&name).extension().is_some_and(|extension| extension == "log") {
            logs.push(name);
        }
    }
    logs.sort();
    if logs.is_empty() {
        report.violations.push("no replica's log was kept: a panic would not be seen".to_owned());
    }
    let mut panics = Vec::new();
    for name in logs {
        let text = fs::read(folder.join(&name))?;
        let text = String::from_utf8_lossy(&text);
        let last = |line: &str| LAST_WORDS.iter().any(|words| line.contains(words));
        for (line, number) in text.lines().zip(1..).filter(|(line, _)| last(line)) {
            let line: String = line.chars().take(LINE_CHARS_MAX).collect();
            panics.push(format!("a replica panicked or aborted: line {number} of {name}: {line}"));
        }
    }
    let more = panics.len().saturating_sub(TOLD_MAX);
    report.violations.extend(panics.into_iter().take(TOLD_MAX));
    report.violations.extend((more > 0).then(|| format!("a replica panicked or aborted: and {more} more")));
    Ok(())
}
