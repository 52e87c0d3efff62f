//! How many connections the file descriptors of the process are enough for.

use super::memory::Lowered;
use crate::api::connections::LEAVING_PART;
use crate::config::Config;
use rustix::process::{Resource, getrlimit, setrlimit};

/// File descriptors for everything that is neither a caller's connection, nor one to a receiver or the database.
const FILES_RESERVED: usize = 96;
/// What one look-up of a name holds at most: two name servers are asked for both families, each several times where no answer comes.
const FILES_PER_LOOKUP: usize = 12;
/// However few there are, one of everything must be possible.
const LEAST: usize = 8;

/// Raises the limit of open files as far as may be, and lowers what connections may be open to what it is enough for.
///
/// Answers the limit and which settings it has lowered, if any.
pub(super) fn affordable(config: Config) -> (Config, Option<Lowered>) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // Where it cannot be raised the present limit counts.
        let _ = setrlimit(Resource::Nofile, limit);
        limit = getrlimit(Resource::Nofile);
    }
    let Some(files) = limit.current else { return (config, None) };
    let limit = usize::try_from(files).unwrap_or(usize::MAX);
    let (lowered, fitted) = fitted(config, limit);
    (fitted, Lowered::by("file descriptors", limit, &lowered))
}

/// Lowers the highest of the settings until so many files are enough for all; the names of those that were lowered.
///
/// Callers' connections must not take the files that deliveries need, nor the other way, and neither those of the database.
fn fitted(mut config: Config, files: usize) -> (Vec<&'static str>, Config) {
    let Config { server, dispatch, pending, executor, database, .. } = &mut config;
    let reserved = FILES_RESERVED + usize::try_from(database.connections_max).unwrap_or(usize::MAX);
    let mut there = files.saturating_sub(reserved);
    let mut lowered = Vec::new();
    // A quarter for look-ups of names.
    let lookups = (there / 4 / FILES_PER_LOOKUP).max(1);
    if lookups < executor.dns_lookups_max {
        executor.dns_lookups_max = lookups;
        lowered.push("executor.dns_lookups_max");
    }
    there = there.saturating_sub(executor.dns_lookups_max * FILES_PER_LOOKUP);
    let attempts = dispatch.in_flight_max;
    // Each with how often it is there, in parts: there are two gRPC ports, of which each has some connections that leave beside the others.
    let once = LEAVING_PART;
    let mut bounds = [
        ("server.connections_max", &mut server.connections_max, 2 * (once + 1)),
        ("dispatch.in_flight_max", &mut dispatch.in_flight_max, once),
        ("dispatch.slow_in_flight_max", &mut dispatch.slow_in_flight_max, once),
        ("pending.questions_max", &mut pending.questions_max, once),
        ("executor.connections_kept_max", &mut executor.connections_kept_max, once),
    ];
    bounds.sort_by_key(|(_, bound, _)| **bound);
    let mut times: usize = bounds.iter().map(|(_, _, times)| times).sum();
    let mut left = there;
    for (name, bound, each) in bounds {
        // From the lowest on: what one does not need is for those above it.
        let share = (left * once / times).max(LEAST);
        if share < *bound {
            *bound = share;
            lowered.push(name);
        }
        left = left.saturating_sub((*bound * each).div_ceil(once));
        times -= each;
    }
    if dispatch.in_flight_max < attempts {
        // As large a part of all attempts as before.
        let share = (dispatch.tenant_in_flight_max as u128 * dispatch.in_flight_max as u128 / attempts as u128)
            .try_into()
            .unwrap_or(usize::MAX);
        dispatch.tenant_in_flight_max = share.max(1);
        lowered.push("dispatch.tenant_in_flight_max");
    }
    (lowered, config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_open_is_lowered_to_what_the_files_are_enough_for() {
        let wanted = |config: &Config| {
            2 * (config.server.connections_max + config.server.connections_max / LEAVING_PART)
                + config.dispatch.in_flight_max
                + config.dispatch.slow_in_flight_max
                + config.pending.questions_max
                + config.executor.connections_kept_max
                + FILES_PER_LOOKUP * config.executor.dns_lookups_max
        };
        for files in [512, 1_024, 4_096, 20_000] {
            let (lowered, fitted) = fitted(Config::default(), files);
            assert_eq!(lowered.len(), 7, "{files}: {lowered:?}");
            let reserved = FILES_RESERVED + Config::default().database.connections_max as usize;
            assert!(wanted(&fitted) + reserved <= files, "{files}: {}", wanted(&fitted));
            assert!(wanted(&fitted) + reserved + 24 > files, "{files}: {} is less than there is", wanted(&fitted));
            let (all, one) = (fitted.dispatch.in_flight_max, fitted.dispatch.tenant_in_flight_max);
            assert!(one < all, "a tenant leaves some to others: {one} of {all}");
        }
        let roomy = fitted(Config::default(), 1 << 20);
        assert_eq!((roomy.0.len(), wanted(&roomy.1)), (0, wanted(&Config::default())));
    }

    #[test]
    fn what_is_low_already_stays_as_it_is_and_leaves_the_rest_to_others() {
        let mut config = Config::default();
        (config.dispatch.in_flight_max, config.dispatch.tenant_in_flight_max) = (20, 16);
        let (lowered, fitted) = fitted(config, 4_096);
        assert_eq!((fitted.dispatch.in_flight_max, fitted.dispatch.tenant_in_flight_max), (20, 16));
        assert!(!lowered.contains(&"dispatch.in_flight_max") && !lowered.contains(&"dispatch.tenant_in_flight_max"));
        let (_, all_high) = super::fitted(Config::default(), 4_096);
        assert!(fitted.server.connections_max > all_high.server.connections_max, "{}", fitted.server.connections_max);
    }

    #[test]
    fn with_hardly_any_files_there_is_still_one_of_everything() {
        let (_, fitted) = fitted(Config::default(), 64);
        assert_eq!((fitted.server.connections_max, fitted.dispatch.slow_in_flight_max), (LEAST, LEAST));
    }
}
