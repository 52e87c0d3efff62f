//! What the operating system knows about a process and the machine, read from /proc.

use std::fs;
use std::time::Duration;

/// Processor times in /proc are in units of 10 ms on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// One line of the process table.
#[derive(Debug, Clone)]
struct Entry {
    pid: u32,
    parent: u32,
    name: String,
    /// Its own time.
    own: Duration,
    /// The time of children that have ended and were waited for.
    ended_children: Duration,
}

/// The processor time of one process.
pub fn cpu(pid: u32) -> Duration {
    entry(pid).map(|entry| entry.own).unwrap_or_default()
}

/// The processor time of every Postgres process below a process, ended ones included.
pub fn postgres_cpu_below(pid: u32) -> Duration {
    let all: Vec<Entry> = fs::read_dir("/proc")
        .map(|entries| {
            let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            pids.filter_map(entry).collect()
        })
        .unwrap_or_default();
    let servers: Vec<&Entry> = all.iter().filter(|entry| entry.parent == pid && entry.name == "postgres").collect();
    let backends = all.iter().filter(|entry| servers.iter().any(|server| server.pid == entry.parent));
    servers.iter().map(|server| server.own + server.ended_children).sum::<Duration>()
        + backends.map(|backend| backend.own).sum::<Duration>()
}

/// Resident memory of a process, bytes.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kibibytes(&status, "VmRSS:") << 10
}

/// Whether the kernel may back a process's memory by 2 MiB at a time.
pub fn has_huge_pages(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("THP_enabled:").is_some_and(|value| value.trim() == "1"))
}

/// Main memory of the machine, bytes.
pub fn machine_memory() -> u64 {
    kibibytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:") << 10
}

/// The processor's name.
pub fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned())
}

/// The kernel's version.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn kibibytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

fn entry(pid: u32) -> Option<Entry> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// *Source*: proc_pid_stat(5). The name may hold spaces and brackets, so the numbers are counted from its last bracket.
fn parse(pid: u32, text: &str) -> Option<Entry> {
    let (head, rest) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok()).unwrap_or_default();
    Some(Entry {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        name,
        own: TICK * (ticks(11) + ticks(12)),
        ended_children: TICK * (ticks(13) + ticks(14)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_process_table_is_read_whatever_the_name() {
        let text = "7 (a) b) S 3 7 7 0 -1 4194560 1 2 3 4 100 50 20 10 20 0 1 0 5 6 7";
        let entry = parse(7, text).expect("a line");
        assert_eq!((entry.parent, entry.name.as_str()), (3, "a) b"));
        assert_eq!(entry.own, Duration::from_millis(1500));
        assert_eq!(entry.ended_children, Duration::from_millis(300));
    }
}
