//! How many connections the file descriptors of the process are enough for.

use rustix::process::{Resource, getrlimit, setrlimit};

/// File descriptors for everything that is not a caller's connection.
const FILES_RESERVED: u64 = 112;

/// How many connections each of the two gRPC ports can hold with the file descriptors there are.
pub(super) fn affordable(configured: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // Where it cannot be raised the present limit counts.
        let _ = setrlimit(Resource::Nofile, limit);
        limit = getrlimit(Resource::Nofile);
    }
    let Some(files) = limit.current else { return configured };
    let each = usize::try_from(files.saturating_sub(FILES_RESERVED) / 2).unwrap_or(usize::MAX).max(8);
    if each < configured {
        tracing::info!(files, each, "connections are bounded by the limit of open files");
    }
    configured.min(each)
}
