//! The logs of the replicas: whatever is done to a replica, it never panics.
//!
//! Reads what [`crate::stage::Stage::keep_logs`] has copied beside the records. Postgres's log is none of them: a full disk makes it
//! panic, and that is a fault of the list.

use std::fs;
use std::io;
use std::path::Path;

use super::{Report, TOLD_MAX};

/// In every line that tells of a panic: the one that the service logs, and the one of the language where nothing logs yet.
const PANIC: &str = "panicked";
/// Characters of a line that are told.
const LINE_CHARS_MAX: usize = 400;

/// Tells of every line that holds a panic, and of a run that has kept no log to look at.
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
        for (line, number) in String::from_utf8_lossy(&text).lines().zip(1..).filter(|(line, _)| line.contains(PANIC)) {
            let line: String = line.chars().take(LINE_CHARS_MAX).collect();
            panics.push(format!("a replica panicked: line {number} of {name}: {line}"));
        }
    }
    let more = panics.len().saturating_sub(TOLD_MAX);
    report.violations.extend(panics.into_iter().take(TOLD_MAX));
    report.violations.extend((more > 0).then(|| format!("a replica panicked: and {more} more")));
    Ok(())
}
