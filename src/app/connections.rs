//! How many reads for deliveries the connections to the database are enough for.

use super::memory::Lowered;
use crate::config::Config;

/// However few connections there are: what lets tenants take turns.
const LOADS_LEAST: usize = 4;

/// Lowers how many such reads run at once to the quarter of the connections that is not for calls: each takes one, and is no call
/// that waits for a turn.
///
/// Answers how many connections there are where that has lowered it.
pub(super) fn affordable(mut config: Config) -> (Config, Option<Lowered>) {
    let connections = usize::try_from(config.database.connections_max).unwrap_or(usize::MAX);
    let most = (connections / 4).max(LOADS_LEAST);
    if config.dispatch.loads_max <= most {
        return (config, None);
    }
    config.dispatch.loads_max = most;
    (config, Lowered::by("database connections", connections, &["dispatch.loads_max"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_for_deliveries_leave_calls_their_connections() {
        let fitted = |connections: u32, loads: usize| {
            let mut config = Config::default();
            (config.database.connections_max, config.dispatch.loads_max) = (connections, loads);
            let (config, lowered) = affordable(config);
            assert_eq!(lowered.is_some(), config.dispatch.loads_max < loads, "{connections} connections");
            config.dispatch.loads_max
        };
        assert_eq!(fitted(16, 4), 4, "the defaults");
        assert_eq!((fitted(100, 1_000), fitted(100, 10)), (25, 10));
        assert_eq!(fitted(2, 16), LOADS_LEAST);
    }
}
