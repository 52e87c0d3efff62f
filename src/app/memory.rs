//! How much may be kept in memory with the memory that the process may have.

use crate::config::Config;
use rustix::process::{Resource, getrlimit};
use rustix::thread::disable_transparent_huge_pages;
use std::fs;
use std::path::Path;

/// Where the kernel mounts control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// With less memory than this, pages of 2 MiB would spend too much of it on what is next to what is used.
const HUGE_PAGES_FROM: usize = 1 << 30;

/// However large answers may be, several listeners can be asked.
const LEAST_QUESTIONS: usize = 8;

/// Settings that were lowered to what the process may have.
pub(super) struct Lowered {
    what: &'static str,
    limit: usize,
    settings: String,
}

impl Lowered {
    pub fn by(what: &'static str, limit: usize, settings: &[&str]) -> Option<Self> {
        (!settings.is_empty()).then(|| Self { what, limit, settings: settings.join(", ") })
    }

    /// For the log, once it serves: a start that fails tells of that alone.
    pub fn tell(&self) {
        let Self { what, limit, settings } = self;
        tracing::info!(limit, settings, "settings are lowered to the {what} that the process may have");
    }
}

/// Lowers what may be kept in memory to what the process may have: as configured, or else by its container, its resource limits or
/// the machine.
///
/// Answers the limit and which settings it has lowered, if any.
pub(super) fn affordable(config: Config) -> (Config, Option<Lowered>) {
    let Some(limit) = config.server.memory_bytes.or_else(limit) else { return (config, None) };
    if limit < HUGE_PAGES_FROM {
        // Not every kernel has them.
        let _ = disable_transparent_huge_pages(true);
    }
    let (lowered, fitted) = fitted(config, limit);
    (fitted, Lowered::by("bytes of memory", limit, &lowered))
}

/// Lowers settings to their share of `limit` bytes; the names of those that were above it.
fn fitted(mut config: Config, limit: usize) -> (Vec<&'static str>, Config) {
    let bounds = [
        ("server.requests_bytes_max", &mut config.server.requests_bytes_max, 32),
        ("server.answers_bytes_max", &mut config.server.answers_bytes_max, 16),
        ("publish.queue_bytes_max", &mut config.publish.queue_bytes_max, 32),
        ("publish.schemas_bytes_max", &mut config.publish.schemas_bytes_max, 16),
        ("publish.commit_bytes_max", &mut config.publish.commit_bytes_max, 128),
        ("pending.phases_bytes_max", &mut config.pending.phases_bytes_max, 32),
        ("pending.due_bytes_max", &mut config.pending.due_bytes_max, 16),
        ("dispatch.memory_bytes_max", &mut config.dispatch.memory_bytes_max, 16),
        ("watch.rings_bytes_max", &mut config.watch.rings_bytes_max, 16),
        ("watch.ring_bytes_max", &mut config.watch.ring_bytes_max, 32),
        ("watch.shared_bytes_max", &mut config.watch.shared_bytes_max, 128),
        ("watch.list_bytes_max", &mut config.watch.list_bytes_max, 128),
    ];
    let mut lowered = Vec::new();
    for (name, bound, share) in bounds {
        if *bound > limit / share {
            *bound = limit / share;
            lowered.push(name);
        }
    }
    // Each may bring a whole answer.
    let questions = (limit / 16 / config.executor.response_bytes_max.max(1)).max(LEAST_QUESTIONS);
    if config.pending.questions_max > questions {
        config.pending.questions_max = questions;
        lowered.push("pending.questions_max");
    }
    (lowered, config)
}

/// Bytes that the process may have: the least of its control groups' limits, its resource limits and the machine's memory.
fn limit() -> Option<usize> {
    let resources = [Resource::Data, Resource::As].into_iter().filter_map(|resource| getrlimit(resource).current);
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").map(|text| groups(&text, Path::new(CGROUPS)));
    let least = resources.chain(machine).chain(groups.unwrap_or_default()).min()?;
    usize::try_from(least).ok()
}

/// The machine's memory in bytes, of `/proc/meminfo`.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The limits of the control groups that `/proc/self/cgroup` names, and of those around them. In a container the mount shows the
/// container's own group at its root, whatever the name says.
fn groups(names: &str, mount: &Path) -> Vec<u64> {
    let mut limits = Vec::new();
    for line in names.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(name)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = root.join(name.trim_start_matches('/'));
        let around = group.ancestors().take_while(|path| path.starts_with(&root));
        // `max` stands for no limit.
        limits.extend(around.filter_map(|path| fs::read_to_string(path.join(file)).ok()?.trim().parse::<u64>().ok()));
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    #[test]
    fn settings_are_lowered_to_their_share_and_never_raised() {
        let (lowered, fitted) = fitted(Config::default(), 128 << 20);
        assert_eq!(fitted.publish.queue_bytes_max, 4 << 20);
        assert_eq!(fitted.server.answers_bytes_max, 8 << 20);
        assert_eq!(fitted.publish.schemas_bytes_max, 8 << 20);
        assert_eq!(fitted.pending.due_bytes_max, 8 << 20);
        assert_eq!(fitted.dispatch.memory_bytes_max, 8 << 20);
        assert_eq!(fitted.watch.rings_bytes_max, 8 << 20);
        assert_eq!(fitted.pending.questions_max, 128);
        assert_eq!(lowered.len(), 13, "{lowered:?}");
        let (lowered, roomy) = super::fitted(Config::default(), 16 << 30);
        assert_eq!(lowered, Vec::<&str>::new());
        assert_eq!(roomy.publish, Config::default().publish);
        let small =
            Config { publish: crate::publish::Config { queue_bytes_max: 1 << 20, ..Default::default() }, ..roomy };
        assert_eq!(super::fitted(small, 128 << 20).1.publish.queue_bytes_max, 1 << 20);
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_around_it_counts() {
        let mount = tempfile::tempdir().expect("a folder");
        let nested = mount.path().join("pods/one");
        create_dir_all(&nested).expect("folders");
        write(mount.path().join("pods/memory.max"), "268435456\n").expect("a file");
        write(nested.join("memory.max"), "max\n").expect("a file");
        assert_eq!(groups("0::/pods/one\n", mount.path()), [268_435_456]);
        create_dir_all(mount.path().join("memory/box")).expect("folders");
        write(mount.path().join("memory/box/memory.limit_in_bytes"), "134217728\n").expect("a file");
        assert_eq!(groups("9:name=systemd:/\n4:memory:/box\n3:cpuset:/\n", mount.path()), [134_217_728]);
        // The name is the host's; the mount shows the container's group as its root.
        write(mount.path().join("memory.max"), "67108864\n").expect("a file");
        assert_eq!(groups("0::/../elsewhere\n", mount.path()), [67_108_864]);
    }

    #[test]
    fn the_machine_has_memory() {
        assert_eq!(machine("MemTotal:       24689124 kB\nMemFree: 1 kB\n"), Some(24_689_124 * 1024));
        assert!(limit().is_some_and(|bytes| bytes > 1 << 20));
    }
}
