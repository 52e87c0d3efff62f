//! Every setting with its variable, default and description: what the documentation's table is made from.

use super::Config;
use toml::Value;

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Dotted, as in the file.
    pub key: String,
    /// The environment variable.
    pub variable: String,
    /// As TOML; `unset` for none.
    pub default: String,
    /// What it is, unit and bound.
    pub description: &'static str,
}

/// Keys and what they mean. Defaults come from the code itself; a test holds this list to the settings that exist.
const DESCRIPTIONS: &[(&str, &str)] = &[
    ("server.public_listen", "IP address and port, such as 127.0.0.1:7070, of the public port: gRPC and gRPC-Web"),
    ("server.internal_listen", "IP address and port of the internal port: Publish and Admin over mutual TLS"),
    ("server.ops_listen", "IP address and port of the ops port: /livez, /readyz and /metrics over plain HTTP"),
    (
        "server.plaintext_behind_proxy",
        "true where a proxy in front of the public port ends TLS; otherwise plain text is served on loopback only",
    ),
    ("server.cors_origins", "origins that browsers may call from, or \"*\""),
    ("server.reflection", "whether gRPC reflection is served"),
    ("server.tls.certificate_file", "certificate chain of the public port, PEM"),
    ("server.tls.key_file", "its private key, PEM"),
    ("server.internal_tls.certificate_file", "certificate chain of the internal port, PEM"),
    ("server.internal_tls.key_file", "its private key, PEM"),
    (
        "server.internal_tls.client_ca_file",
        "certificate authorities that sign publishers and operators, PEM; a file, or a folder of files",
    ),
    (
        "server.internal_tls.client_crl_file",
        "revocation lists of these authorities, PEM; a file, or a folder of files; an authority without a list revokes nothing",
    ),
    ("server.certificates_interval_ms", "how often certificate files are looked at, milliseconds; 100 to 600,000"),
    (
        "server.memory_bytes",
        "memory that the process may use, bytes; what is kept in memory is lowered to fit; by default what its container, its \
         resource limits or the machine leave it; at least 64 MiB",
    ),
    ("server.message_bytes_max", "largest request message, bytes; 1,024 to 67,108,864"),
    (
        "server.requests_bytes_max",
        "bytes of requests in memory at the same time on each port; a tenant gets as much as it leaves free, alone half of it; \
         further calls are refused with RESOURCE_EXHAUSTED; 1 MiB to 64 GiB",
    ),
    (
        "server.answers_bytes_max",
        "bytes of answers in memory at the same time on each port, until they are written; shared by tenants as those of requests \
         are; a call whose answer has no room is refused with RESOURCE_EXHAUSTED, one that changes something before it does; 1 MiB \
         to 64 GiB",
    ),
    ("server.header_list_bytes_max", "largest header list of a request, bytes; 1,024 to 1,048,576"),
    ("server.header_count_max", "headers of a request; 16 to 10,000"),
    ("server.streams_per_connection", "concurrent calls on one connection; 1 to 100,000"),
    (
        "server.calls_per_credential_max",
        "calls of one credential at the same time on each port, streams included; those without one count for their address; \
         1 to 10,000,000",
    ),
    (
        "server.control_frames_burst",
        "HTTP/2 frames that carry no call (settings, pings, resets, window updates, ...), or frames of a WebSocket that end no \
         message, that one connection may send at once; a tenth of it again each second, and some for each answer; 100 to 1,000,000",
    ),
    (
        "server.connections_max",
        "connections of a port, beside which an eighth as many may be leaving; lowered to what the file descriptor limit allows",
    ),
    ("server.connections_per_peer_max", "connections of a port from one address"),
    ("server.handshake_timeout_ms", "time for a TLS handshake, milliseconds; 1 to 60,000"),
    ("server.first_byte_timeout_ms", "time until a connection's first request, milliseconds; 1 to 600,000"),
    (
        "server.idle_timeout_ms",
        "time without a frame of any call after which a connection is told to end, milliseconds; 1,000 to 86,400,000",
    ),
    (
        "server.answer_timeout_ms",
        "time for a client to take an answer that is not a stream, milliseconds; 100 to 600,000",
    ),
    (
        "server.keepalive_ms",
        "interval of pings, and how long their answer may take over HTTP/2, milliseconds; 1,000 to 600,000",
    ),
    ("server.drain_timeout_ms", "time for open calls to end at shutdown, milliseconds; 0 to 600,000"),
    (
        "server.request_timeout_max_ms",
        "longest deadline of a call that is not a stream, and longest time until the request of a stream has come and is answered, \
         milliseconds; 1 to 600,000",
    ),
    ("database.url", "postgres://user@host/database, as a role that owns nothing; a secret"),
    (
        "database.migrate_url",
        "the same database as the role that owns its tables, for `carillon migrate` and `serve --migrate`, which then let the role of database.url use them; a secret",
    ),
    ("database.connections_max", "connections of the pool; 2 to 1,000"),
    ("database.acquire_timeout_ms", "how long a call waits for a connection, milliseconds; 1 to 60,000"),
    ("database.statement_timeout_ms", "longest statement, milliseconds: Postgres ends it then; 100 to 600,000"),
    (
        "database.answer_timeout_ms",
        "how long an answer of Postgres is waited for, milliseconds: a server that has vanished without a word holds nothing up for longer; above statement_timeout_ms; 200 to 1,200,000",
    ),
    ("database.idle_in_transaction_timeout_ms", "longest pause inside a transaction, milliseconds; 100 to 600,000"),
    (
        "database.listen",
        "hear at once what other replicas tell, on a connection of its own; false behind a transaction pooler, where dispatch.poll_ms finds it",
    ),
    (
        "database.unsafe_allow_lossy_postgres",
        "start although Postgres may lose acknowledged events (fsync, full_page_writes or synchronous_commit off): throw-away use only",
    ),
    (
        "secrets.keys",
        "list of {id, key_file or key}: 32 bytes as base64 that encrypt secrets at rest; the first seals, all open",
    ),
    ("operators.subjects", "certificate names (uri:... or dns:...) that may call AdminService"),
    (
        "auth.issuers",
        "list of {issuer, audience} and, where they differ from what docs/access.md says, {jwks_uri or jwks_file, tenant_claim, \
         role_claim, app_claim, algorithms, leeway_ms}: whose OIDC tokens are credentials of the public port",
    ),
    (
        "auth.keys_interval_ms",
        "how often the keys of an issuer are fetched again, milliseconds; files of keys are looked at as often as certificates; 1,000 \
         to 86,400,000",
    ),
    (
        "auth.keys_interval_min_ms",
        "least time between two fetches of an issuer's keys, whatever unknown keys tokens name, milliseconds; 100 to 600,000",
    ),
    ("auth.token_bytes_max", "largest token, bytes; 512 to 65,536"),
    ("catalogue.file", "TOML file with the operator's own SYSTEM event types"),
    ("publish.event_bytes_max", "largest event, attributes and data together, bytes; 1,024 to 4,194,304"),
    (
        "publish.commit_events_max",
        "events in one commit, beyond which no further call is added: one that begins below it is taken whole; 1 to 10,000",
    ),
    ("publish.commit_bytes_max", "bytes of events in one commit, attributes and data, likewise"),
    (
        "publish.commits_in_flight",
        "commits that may run at the same time; 1 to 16; more than one pays only where many tenants publish",
    ),
    ("publish.queue_calls_max", "publish calls that may wait for a commit; further ones wait at the door"),
    (
        "publish.queue_bytes_max",
        "bytes of events that may wait for a commit, those at the door included; further calls are refused with RESOURCE_EXHAUSTED; 1 MiB to 64 GiB",
    ),
    (
        "publish.lock_patience_ms",
        "how long a commit waits for a tenant's lock before that tenant is committed by itself, or its PRE or delayed event is tried again, so that the others go on, milliseconds; 1 to 10,000",
    ),
    (
        "publish.batch_scope",
        "any or tenant: whether one commit may hold events of several tenants; on a distributed Postgres it must not",
    ),
    (
        "publish.chain_invocations_max",
        "invocations that the events which follow from one event may fire in all; what is beyond is CANCELLED with CHAIN_BUDGET, and told \
         once by a CHAIN_BUDGET_EXHAUSTED event; 1 to 1,000,000",
    ),
    (
        "publish.idempotency_hours",
        "how long an idempotency key is kept, hours; 24 to 8,760, and no longer than events are (dispatch.retention_days)",
    ),
    ("publish.registry_tenants_max", "tenants whose registry is kept in memory"),
    ("publish.schemas_bytes_max", "compiled schemas kept in memory, bytes; 1 MiB to 64 GiB"),
    (
        "pending.phases_max",
        "PRE events whose listeners are asked at the same time by this process, of which one tenant alone gets half, and of one tenant by all; delayed ones have half as many beside them, and as many again for the first of each type, and count among the tenant's; 1 to 100,000",
    ),
    (
        "pending.phases_bytes_max",
        "bytes of PRE events whose listeners are asked at the same time by this process, each with what its listeners may answer as \
         enrichments; one tenant alone gets half of them; 1 MiB to 64 GiB",
    ),
    (
        "pending.questions_max",
        "questions to listeners of PRE events that this process waits for at the same time; one tenant alone gets half of them, and \
         further ones wait for their turn; 1 to 100,000",
    ),
    (
        "pending.due_bytes_max",
        "bytes of delayed events that are due, and of PRE events taken over from other replicas, in memory at the same time in this \
         process, with what may come as enrichments: half of them for each kind; further ones wait; of a kind one tenant alone gets half, and one that has none gets an \
         event of any size while some is left; 1 MiB to 64 GiB",
    ),
    ("pending.pre_timeout_ms", "time that listeners have where the publisher names none, milliseconds; 10 to 300,000"),
    ("pending.pre_timeout_max_ms", "longest time that a publisher may name, milliseconds; 10 to 300,000"),
    (
        "pending.abandon_grace_ms",
        "how long listeners are still asked after the last publisher that waited has gone away, milliseconds; 0 to 60,000",
    ),
    (
        "pending.lease_ms",
        "how long a replica owns a PRE event after its last sign of life, milliseconds: after a crash another one goes on after this time; 1,000 to 4,000",
    ),
    ("pending.schedule_horizon_hours", "how far ahead an event may be scheduled, hours; 1 to 8,760"),
    ("pending.scheduled_max", "events of one tenant that may be scheduled; 1 to 1,000,000"),
    (
        "dispatch.lease_ms",
        "how long a replica owns its shards after its last sign of life, milliseconds: after a crash another replica goes on with its work after this time; 1,000 to 300,000",
    ),
    ("dispatch.poll_ms", "how often heads and leases are looked at, milliseconds; 50 to 1,000"),
    ("dispatch.notify_gather_ms", "hints to other replicas are gathered for this long, milliseconds; 1 to 1,000"),
    (
        "dispatch.in_flight_max",
        "attempts that may run at the same time, those of slow listeners apart; lowered to what the file descriptor limit allows; 1 to 100,000",
    ),
    (
        "dispatch.tenant_in_flight_max",
        "attempts of one tenant that may run at the same time; lowered with the one before; 1 to 100,000",
    ),
    ("dispatch.slow_after_ms", "an attempt that has run for this long counts as slow, milliseconds; 100 to 60,000"),
    (
        "dispatch.slow_in_flight_max",
        "slow attempts that run beside those in flight, of a tenant no more than are left for others; further ones count as in flight; 1 to 100,000",
    ),
    (
        "dispatch.queue_max",
        "invocations of one subscription that wait in memory; further ones wait in the database; 4 to 1,000,000",
    ),
    (
        "dispatch.memory_bytes_max",
        "bytes of events that wait for a listener or are with one in memory, all tenants together, attributes and data; from three quarters of it on a subscription that has work waiting gets further work from the database, and at the bound one that has anything running too, so that no more than one event of each other one goes beyond it; at least 1 MiB",
    ),
    (
        "dispatch.window_max",
        "events between a tenant's cursor and the newest one in memory; at the bound the older half of what is unfinished is noted in the database one by one, so that the cursor moves on; 16 to 10,000,000",
    ),
    ("dispatch.page_max", "events read from the log, or deferred invocations, at a time; 1 to 10,000"),
    (
        "dispatch.loads_max",
        "reads for tenants that may run at the same time, of the log and of what waits in the database; tenants take turns, and one alone has three quarters of them at most, and half for what waits; lowered to a quarter of database.connections_max, or to 4; 4 to 1,000",
    ),
    ("dispatch.settle_rows_max", "changes that a settle may hold before no further events are taken; 1 to 100,000"),
    ("dispatch.settle_gather_ms", "least time between two settles of a tenant, milliseconds; 0 to 1,000"),
    (
        "dispatch.replay_per_second",
        "missed invocations of a tenant that replays take up a second at most; 1 to 100,000",
    ),
    (
        "dispatch.drain_ms",
        "how long a stop, or giving a shard away, waits for attempts that run, milliseconds; 0 to 600,000",
    ),
    ("dispatch.partitions_ahead_days", "how far ahead day partitions are made; 1 to 30"),
    (
        "dispatch.retention_days",
        "how long events are kept, with what is recorded of their invocations, days; 1 to 3,650",
    ),
    (
        "dispatch.undelete_days",
        "how long deleted subscriptions and retired event types can be undeleted, days; they are purged after that, and not before the log has forgotten them; 1 to 3,650",
    ),
    ("dispatch.audit_retention_days", "how long audit records are kept, days; 30 to 3,650"),
    ("dispatch.sweep_rows_max", "rows that one cleaning statement deletes at most; 1 to 100,000"),
    ("executor.allow_http", "whether plain http receivers are allowed"),
    (
        "executor.allow_private_ranges",
        "ranges (CIDR) that may be called although they are not public, such as 10.1.0.0/16",
    ),
    (
        "executor.nameservers",
        "name servers for the hosts of webhooks, at most 8, such as 1.1.1.1 or [2606:4700::1111]:53; where none is named the system's resolv.conf and hosts count",
    ),
    ("executor.dns_timeout_ms", "longest wait for a host name to be resolved, milliseconds; 1 to 300,000"),
    (
        "executor.dns_lookups_max",
        "host names in resolution at the same time, further ones wait; lowered to what the file descriptor limit allows; 1 to 100,000",
    ),
    ("executor.connect_timeout_ms", "longest wait for a TCP connection, milliseconds; 1 to 300,000"),
    ("executor.tls_timeout_ms", "longest TLS handshake, milliseconds; 1 to 300,000"),
    ("executor.response_bytes_max", "most bytes read of an answer's body; 0 to 1,048,576"),
    ("executor.idle_connections_per_host", "open connections kept for reuse for each receiver; 0 to 4,096"),
    (
        "executor.connections_kept_max",
        "open connections to all receivers together, beyond which none is kept for reuse; lowered to what the file descriptor limit allows; 0 to 1,000,000",
    ),
    ("executor.idle_timeout_ms", "how long an unused connection is kept, milliseconds; 1 to 300,000"),
    ("executor.extra_ca_file", "PEM file of certificates that are trusted as roots beside those of the system"),
    ("executor.user_agent", "the user-agent header of every request; 1 to 256 visible ASCII characters or spaces"),
    (
        "executor.issuers.allow_private_ranges",
        "ranges in which token issuers may be although they are not public, as CIDR; webhooks may not be called there for it",
    ),
    (
        "executor.issuers.extra_ca_file",
        "PEM file of certificates that are trusted as roots of token issuers beside those of the system",
    ),
    ("executor.issuers.timeout_ms", "longest fetch of an issuer's document, milliseconds; 100 to 60,000"),
    ("executor.issuers.document_bytes_max", "largest document of an issuer, bytes; 1,024 to 16,777,216"),
    ("watch.ring_entries_max", "events that a watched tenant's ring keeps in memory at most; 16 to 1,000,000"),
    ("watch.ring_bytes_max", "bytes that a watched tenant's ring keeps in memory at most (always at least one event)"),
    (
        "watch.rings_bytes_max",
        "bytes that the rings of all watched tenants keep in memory at most, together (always at least one event of each)",
    ),
    ("watch.shared_bytes_max", "bytes of ready-made messages that a watched tenant shares between its streams at most"),
    ("watch.message_events_max", "events in one message at most; 1 to 10,000"),
    ("watch.message_bytes_max", "bytes of events in one message at most (always at least one event)"),
    ("watch.streams_per_tenant_max", "open watches of one tenant on this replica at most"),
    ("watch.streams_per_credential_max", "open watches of one API key on this replica at most"),
    ("watch.streams_max", "open watches of this process at most"),
    ("watch.catch_up_reads_max", "reads of the store at the same time, for all watches that are behind their ring"),
    ("watch.news_max", "news items that may wait to be looked at; beyond it the heads are read from the store"),
    ("watch.stall_timeout_ms", "how long a reader may take nothing while there is something for it, milliseconds"),
    ("watch.bookmark_interval_ms", "longest silence before a bookmark where the caller does not choose, milliseconds"),
    ("watch.bookmark_events", "events that are filtered out before a bookmark says how far the watch is"),
    (
        "watch.stream_age_min_ms",
        "least age at which a stream is ended so that clients spread over the replicas, milliseconds; those of health and reflection too",
    ),
    ("watch.stream_age_max_ms", "greatest such age, milliseconds; each stream draws its own"),
    (
        "watch.credential_check_ms",
        "how often each stream asks whether its credential still holds, milliseconds; at most 60,000",
    ),
    (
        "watch.head_check_ms",
        "how often the heads of all watched tenants are read from the database, should news be lost, milliseconds",
    ),
    ("watch.linger_ms", "how long a tenant's ring is kept after its last watch has ended, milliseconds"),
    (
        "watch.reorder_wait_ms",
        "how long to wait for an event that news has skipped before it is read from the database, milliseconds",
    ),
    (
        "watch.update_timeout_ms",
        "how long an UpdateWatch waits for the stream to take its change, and a WebSocket for its watch to open, milliseconds; 100 to 60,000",
    ),
    ("watch.filter_changes_max", "changes of filters of one stream at most; 1 to 10,000"),
    (
        "watch.resume_ms",
        "how long after the end of its stream a watch can be resumed with its filters, milliseconds; at most 86,400,000",
    ),
    (
        "watch.remembered_bytes_max",
        "bytes of filters that one tenant's watches on this replica may leave to be remembered, 1 KiB more for each watch and each change, and one credential's half as many; at least 1,048,576",
    ),
    ("watch.list_scan_max", "events that one filtered ListEvents call looks at, at most"),
    ("watch.list_bytes_max", "bytes of one ListEvents page at most"),
    ("limits.subscriptions_max", "subscriptions of a tenant that are not deleted"),
    (
        "limits.deleted_subscriptions_max",
        "deleted subscriptions of a tenant that are not purged yet: at the bound Subscribe is refused",
    ),
    ("limits.event_types_max", "event types of a tenant that are not retired"),
    (
        "limits.deleted_event_types_max",
        "retired event types of a tenant that are not purged yet: at the bound CreateEventType is refused",
    ),
    ("limits.schema_versions_max", "schema versions of one event type"),
    (
        "limits.publish_events_per_second",
        "events that a tenant may publish a second on each replica; UpdateTenant sets this and the next four, limits.subscriptions_max, watch.streams_per_tenant_max and publish.event_bytes_max for one tenant; 1 to 10,000,000",
    ),
    ("limits.publish_events_burst", "events that may come at once after a pause; 1 to 10,000,000"),
    (
        "limits.publish_bytes_per_second",
        "bytes of events that a tenant may publish a second on each replica; 1,024 to 17,179,869,184",
    ),
    ("limits.publish_bytes_burst", "bytes that may come at once after a pause; 1,024 to 17,179,869,184"),
    (
        "limits.backlog_max",
        "invocations of a tenant that are neither final nor dead letters, beyond which nothing more is published until a tenth less are left; counted once a second; 1 to 1,000,000,000,000",
    ),
    ("log.format", "text or json"),
    ("log.level", "error, warn, info, debug, trace, or directives like info,carillon=debug"),
    ("traces.endpoint", "http://host:port of a collector that takes OTLP over gRPC; nothing is traced without it"),
    (
        "traces.sample_ratio",
        "part of the traces that begin here that is kept, 0 to 1; a caller's traceparent decides for its own",
    ),
    ("traces.timeout_ms", "longest export of spans, milliseconds; 100 to 60,000"),
];

/// Every setting, in the order of the documentation.
pub fn reference() -> Vec<Setting> {
    let defaults = Value::try_from(Config::default()).unwrap_or(Value::Table(toml::Table::new()));
    DESCRIPTIONS
        .iter()
        .map(|(key, description)| {
            let default = key.split('.').try_fold(&defaults, |value, name| value.get(name));
            Setting {
                key: (*key).to_owned(),
                variable: format!("CARILLON_{}", key.to_uppercase().replace('.', "__")),
                default: default.map_or_else(|| "unset".to_owned(), ToString::to_string),
                description,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(prefix: &str, value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Table(table) => {
                for (name, inner) in table {
                    let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    leaves(&key, inner, out);
                }
            }
            _ => out.push(prefix.to_owned()),
        }
    }

    #[test]
    fn every_setting_with_a_default_is_described() {
        let mut existing = Vec::new();
        leaves("", &Value::try_from(Config::default()).unwrap(), &mut existing);
        for key in existing {
            assert!(DESCRIPTIONS.iter().any(|(described, _)| *described == key), "{key} has no description");
        }
    }

    #[test]
    fn every_described_setting_exists() {
        for (key, _) in DESCRIPTIONS {
            // Hardly a setting takes a date: one that exists refuses its type at most, and one that does not is unknown.
            let date = Value::Datetime("1979-05-27".parse().unwrap());
            let alone = key
                .split('.')
                .rev()
                .fold(date, |inner, name| Value::Table([(name.to_owned(), inner)].into_iter().collect()));
            let message = alone.try_into::<Config>().map(drop).map_err(|error| error.to_string());
            assert!(message.as_ref().err().is_none_or(|text| !text.contains("unknown field")), "{key}: {message:?}");
        }
    }
}
