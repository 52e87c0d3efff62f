//! Settings of the edge: ports, TLS and bounds.

use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Ports, TLS and the bounds of the edge.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of the public port.
    pub public_listen: SocketAddr,
    /// Address of the internal port.
    pub internal_listen: SocketAddr,
    /// Address of the ops port.
    pub ops_listen: SocketAddr,
    /// True where a proxy in front of the public port ends TLS.
    pub plaintext_behind_proxy: bool,
    /// Origins that browsers may call from, or `*`.
    pub cors_origins: Vec<String>,
    /// Whether reflection is served.
    pub reflection: bool,
    /// TLS of the public port.
    pub tls: PublicTls,
    /// TLS of the internal port.
    pub internal_tls: InternalTls,
    /// How often certificate files are looked at, milliseconds. 100 to 600,000.
    pub certificates_interval_ms: u64,
    /// Memory that the process may use, bytes; what is kept in memory is lowered to fit. By default what its container, its resource
    /// limits or the machine leave it. At least 64 MiB.
    pub memory_bytes: Option<usize>,
    /// Largest request message, bytes. 1,024 to 67,108,864.
    pub message_bytes_max: usize,
    /// Bytes of requests in memory at the same time on each port; a tenant gets as much as it leaves free, alone half of it; further
    /// calls are refused with RESOURCE_EXHAUSTED. 1 MiB to 64 GiB.
    pub requests_bytes_max: usize,
    /// Bytes of answers in memory at the same time on each port, until they are written; shared by tenants in the same way. Calls whose answer
    /// has no room are refused with RESOURCE_EXHAUSTED, those that change something before they do. 1 MiB to 64 GiB.
    pub answers_bytes_max: usize,
    /// Largest header list of a request, bytes. 1,024 to 1,048,576.
    pub header_list_bytes_max: u32,
    /// Headers of a request. 16 to 10,000.
    pub header_count_max: usize,
    /// Concurrent calls on one connection. 1 to 100,000.
    pub streams_per_connection: u32,
    /// Calls of one credential at the same time, on each port. 1 to 10,000,000.
    pub calls_per_credential_max: u32,
    /// Frames that carry no call, and of a WebSocket those that end no message, that one connection may send at once; a tenth of it again
    /// each second. 100 to 1,000,000.
    pub control_frames_burst: u32,
    /// Connections of a port. At least 1.
    pub connections_max: usize,
    /// Connections of a port from one address. At least 1.
    pub connections_per_peer_max: usize,
    /// Time for a TLS handshake, milliseconds. 1 to 60,000.
    pub handshake_timeout_ms: u64,
    /// Time until a connection's first request, milliseconds. 1 to 600,000.
    pub first_byte_timeout_ms: u64,
    /// Time without a frame of any call after which a connection is told to end, milliseconds. 1,000 to 86,400,000.
    pub idle_timeout_ms: u64,
    /// Time for a client to take an answer that is not a stream, milliseconds. 100 to 600,000.
    pub answer_timeout_ms: u64,
    /// Interval of pings, and how long their answer may take over HTTP/2, milliseconds. 1,000 to 600,000.
    pub keepalive_ms: u64,
    /// Time for open calls to end at shutdown, milliseconds. 0 to 600,000.
    pub drain_timeout_ms: u64,
    /// Longest deadline of a call that is not a stream, and longest time until the request of a stream has come and is answered,
    /// milliseconds. 1 to 600,000.
    pub request_timeout_max_ms: u64,
}

/// TLS of the public port: both files, or neither.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublicTls {
    /// Certificate chain, PEM.
    pub certificate_file: Option<PathBuf>,
    /// Private key, PEM.
    pub key_file: Option<PathBuf>,
}

/// TLS of the internal port. All but the revocation lists are required.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct InternalTls {
    /// Certificate chain, PEM.
    pub certificate_file: Option<PathBuf>,
    /// Private key, PEM.
    pub key_file: Option<PathBuf>,
    /// Authorities that sign publishers and operators, PEM; a file, or a folder of files.
    pub client_ca_file: Option<PathBuf>,
    /// Revocation lists of these authorities, PEM; a file, or a folder of files.
    pub client_crl_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            public_listen: local(7070),
            internal_listen: local(7071),
            ops_listen: local(7072),
            plaintext_behind_proxy: false,
            cors_origins: Vec::new(),
            reflection: true,
            tls: PublicTls::default(),
            internal_tls: InternalTls::default(),
            certificates_interval_ms: 10_000,
            message_bytes_max: 4 * 1024 * 1024,
            memory_bytes: None,
            requests_bytes_max: 256 * 1024 * 1024,
            answers_bytes_max: 256 * 1024 * 1024,
            header_list_bytes_max: 96 * 1024,
            header_count_max: 128,
            streams_per_connection: 1_000,
            calls_per_credential_max: 16_384,
            control_frames_burst: 2_000,
            connections_max: 8_192,
            connections_per_peer_max: 2_048,
            handshake_timeout_ms: 5_000,
            first_byte_timeout_ms: 10_000,
            idle_timeout_ms: 600_000,
            answer_timeout_ms: 60_000,
            keepalive_ms: 20_000,
            drain_timeout_ms: 30_000,
            request_timeout_max_ms: 60_000,
        }
    }
}

impl Config {
    /// Checks bounds and rules. Errors: the key within the section, and the rule it breaks.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |key, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) { Ok(()) } else { Err((key, format!("must be {from} to {to}"))) }
        };
        within("message_bytes_max", self.message_bytes_max as u64, 1_024, 64 * 1024 * 1024)?;
        within("memory_bytes", self.memory_bytes.map_or(u64::MAX, |bytes| bytes as u64), 64 << 20, u64::MAX)?;
        within("requests_bytes_max", self.requests_bytes_max as u64, 1 << 20, 1 << 36)?;
        within("answers_bytes_max", self.answers_bytes_max as u64, 1 << 20, 1 << 36)?;
        within("header_list_bytes_max", self.header_list_bytes_max.into(), 1_024, 1024 * 1024)?;
        within("streams_per_connection", self.streams_per_connection.into(), 1, 100_000)?;
        within("header_count_max", self.header_count_max as u64, 16, 10_000)?;
        within("calls_per_credential_max", self.calls_per_credential_max.into(), 1, 10_000_000)?;
        within("control_frames_burst", self.control_frames_burst.into(), 100, 1_000_000)?;
        within("idle_timeout_ms", self.idle_timeout_ms, 1_000, 86_400_000)?;
        within("answer_timeout_ms", self.answer_timeout_ms, 100, 600_000)?;
        within("connections_max", self.connections_max as u64, 1, 10_000_000)?;
        within("connections_per_peer_max", self.connections_per_peer_max as u64, 1, 10_000_000)?;
        within("certificates_interval_ms", self.certificates_interval_ms, 100, 600_000)?;
        within("handshake_timeout_ms", self.handshake_timeout_ms, 1, 60_000)?;
        within("first_byte_timeout_ms", self.first_byte_timeout_ms, 1, 600_000)?;
        within("keepalive_ms", self.keepalive_ms, 1_000, 600_000)?;
        within("drain_timeout_ms", self.drain_timeout_ms, 0, 600_000)?;
        within("request_timeout_max_ms", self.request_timeout_max_ms, 1, 600_000)?;
        if self.cors_origins.iter().any(|origin| !is_origin(origin)) {
            return Err((
                "cors_origins",
                "each must be an origin like https://app.example (no path, no slash at its end), or *".to_owned(),
            ));
        }
        if self.tls.certificate_file.is_some() != self.tls.key_file.is_some() {
            return Err(("tls.key_file", "set both tls.certificate_file and tls.key_file, or neither".to_owned()));
        }
        let plain = self.tls.certificate_file.is_none();
        if plain && !self.public_listen.ip().is_loopback() && !self.plaintext_behind_proxy {
            return Err((
                "public_listen",
                "plain text is served on loopback only: set server.tls.certificate_file and key_file, \
                 or server.plaintext_behind_proxy = true where a proxy in front ends TLS"
                    .to_owned(),
            ));
        }
        let required = [
            ("internal_tls.certificate_file", &self.internal_tls.certificate_file),
            ("internal_tls.key_file", &self.internal_tls.key_file),
            ("internal_tls.client_ca_file", &self.internal_tls.client_ca_file),
        ];
        for (key, file) in required {
            if file.is_none() {
                return Err((key, "is required: the internal port always speaks mutual TLS".to_owned()));
            }
        }
        Ok(())
    }
}

/// True for what browsers send as `Origin`: scheme, host, and a port that is not the scheme's own.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return text == "*" };
    let parts = uri.scheme_str().zip(uri.authority());
    text == "*" || parts.is_some_and(|(scheme, authority)| text == format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable() -> Config {
        let file = || Some(PathBuf::from("x.pem"));
        Config {
            internal_tls: InternalTls {
                certificate_file: file(),
                key_file: file(),
                client_ca_file: file(),
                client_crl_file: None,
            },
            ..Config::default()
        }
    }

    #[test]
    fn plain_text_stays_on_loopback_unless_a_proxy_is_promised() {
        assert!(usable().check().is_ok());
        let open = Config { public_listen: "0.0.0.0:7070".parse().unwrap(), ..usable() };
        assert_eq!(open.check().unwrap_err().0, "public_listen");
        assert!(Config { plaintext_behind_proxy: true, ..open.clone() }.check().is_ok());
        let tls = PublicTls { certificate_file: Some("c.pem".into()), key_file: Some("k.pem".into()) };
        assert!(Config { tls, ..open }.check().is_ok());
    }

    #[test]
    fn bounds_and_missing_files_name_their_key() {
        assert_eq!(Config::default().check().unwrap_err().0, "internal_tls.certificate_file");
        assert_eq!(Config { keepalive_ms: 0, ..usable() }.check().unwrap_err().0, "keepalive_ms");
        let tls = PublicTls { certificate_file: Some("c.pem".into()), key_file: None };
        assert_eq!(Config { tls, ..usable() }.check().unwrap_err().0, "tls.key_file");
        assert_eq!(Config { cors_origins: vec!["\n".to_owned()], ..usable() }.check().unwrap_err().0, "cors_origins");
    }
}
