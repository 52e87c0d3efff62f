//! Settings of the executor, with their bounds. Read once at start; nothing here looks at the environment.

use super::ExecutorError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// How webhooks are called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether plain `http` receivers are allowed. Default: false, so only `https` is.
    pub allow_http: bool,
    /// Ranges that may be called although they are not public. Shape: CIDR texts such as `10.1.0.0/16` or `::1/128`. Default:
    /// none. A name is called only where every address it resolves to is public or in one of these.
    pub allow_private_ranges: Vec<Cidr>,
    /// Name servers that are asked for the hosts of webhooks. Shape: an address, or one with a port, such as `1.1.1.1` or
    /// `[2606:4700::1111]:53`. Bound: 8 of them. Default: none, and names are looked up as the system's `resolv.conf` and `hosts` say.
    pub nameservers: Vec<NameServer>,
    /// Longest wait for a host name to be resolved. Unit: milliseconds. Default: 5,000. Bound: 1 to 300,000.
    pub dns_timeout_ms: u64,
    /// Host names that may be in resolution at the same time; further ones wait, and the tenants that they are looked up for take turns.
    /// Each holds several sockets. Default: 1,024. Bound: 1 to 100,000.
    pub dns_lookups_max: usize,
    /// Longest wait for a TCP connection. Unit: milliseconds. Default: 5,000. Bound: 1 to 300,000.
    pub connect_timeout_ms: u64,
    /// Longest TLS handshake. Unit: milliseconds. Default: 5,000. Bound: 1 to 300,000.
    pub tls_timeout_ms: u64,
    /// Most bytes that are read of an answer's body; a longer one is cut off. Default: 65,536. Bound: 0 to 1,048,576.
    pub response_bytes_max: usize,
    /// Open connections kept for reuse for each receiver. Bound: 0 to 4,096. Default: 4,096: many subscriptions may call one receiver, and
    /// a bound below their common number of running attempts closes connections only to open them again, at twice the cost of a call.
    pub idle_connections_per_host: usize,
    /// Open connections to all receivers together; while there are more, none is kept for reuse. Bound: 0 to 1,000,000. Default: 8,192.
    pub connections_kept_max: usize,
    /// How long an unused connection is kept. Unit: milliseconds. Bound: 1 to 300,000. Default: 4,000: shorter than the keep-alive
    /// of common HTTP servers, so that a request seldom meets a connection the receiver is just closing.
    pub idle_timeout_ms: u64,
    /// A PEM file of certificates that are trusted as roots beside those of the system. Default: none.
    pub extra_ca_file: Option<PathBuf>,
    /// The `user-agent` header of every request. Shape: 1 to 256 visible ASCII characters or spaces.
    pub user_agent: String,
    /// How the keys of token issuers are fetched.
    pub issuers: Issuers,
}

/// How the keys of token issuers are fetched: always by `https`, and apart from webhooks, since an operator names issuers and tenants
/// name receivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Issuers {
    /// Ranges in which issuers may be although they are not public, as in [`Config::allow_private_ranges`]. Default: none.
    pub allow_private_ranges: Vec<Cidr>,
    /// A PEM file of certificates that are trusted as roots of issuers beside those of the system. Default: none.
    pub extra_ca_file: Option<PathBuf>,
    /// Longest fetch of one document, from resolving its host name to its last byte. Unit: milliseconds. Default: 10,000. Bound: 100
    /// to 60,000.
    pub timeout_ms: u64,
    /// Largest document, bytes. Default: 262,144. Bound: 1,024 to 16,777,216.
    pub document_bytes_max: usize,
}

impl Default for Issuers {
    fn default() -> Self {
        Self {
            allow_private_ranges: Vec::new(),
            extra_ca_file: None,
            timeout_ms: 10_000,
            document_bytes_max: 256 * 1024,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow_http: false,
            allow_private_ranges: Vec::new(),
            nameservers: Vec::new(),
            dns_timeout_ms: 5_000,
            dns_lookups_max: 1_024,
            connect_timeout_ms: 5_000,
            tls_timeout_ms: 5_000,
            response_bytes_max: 64 * 1024,
            idle_connections_per_host: 4_096,
            connections_kept_max: 8_192,
            idle_timeout_ms: 4_000,
            extra_ca_file: None,
            user_agent: concat!("carillon/", env!("CARGO_PKG_VERSION")).to_owned(),
            issuers: Issuers::default(),
        }
    }
}

impl Config {
    /// Checks every bound.
    ///
    /// Errors: names the first key out of its bound, never its value.
    pub fn check(&self) -> Result<(), ExecutorError> {
        let bound = |key, holds: bool, bound| {
            if holds { Ok(()) } else { Err(ExecutorError::Setting { key, bound }) }
        };
        let timeout = 1..=300_000;
        bound("dns_timeout_ms", timeout.contains(&self.dns_timeout_ms), "1 to 300000")?;
        bound("connect_timeout_ms", timeout.contains(&self.connect_timeout_ms), "1 to 300000")?;
        bound("tls_timeout_ms", timeout.contains(&self.tls_timeout_ms), "1 to 300000")?;
        bound("idle_timeout_ms", timeout.contains(&self.idle_timeout_ms), "1 to 300000")?;
        bound("nameservers", self.nameservers.len() <= 8, "at most 8 of them")?;
        bound("dns_lookups_max", (1..=100_000).contains(&self.dns_lookups_max), "1 to 100000")?;
        bound("response_bytes_max", self.response_bytes_max <= 1024 * 1024, "0 to 1048576")?;
        bound("idle_connections_per_host", self.idle_connections_per_host <= 4096, "0 to 4096")?;
        bound("connections_kept_max", self.connections_kept_max <= 1_000_000, "0 to 1000000")?;
        let issuers = &self.issuers;
        bound("issuers.timeout_ms", (100..=60_000).contains(&issuers.timeout_ms), "100 to 60000")?;
        let document = 1_024..=16 * 1024 * 1024;
        bound("issuers.document_bytes_max", document.contains(&issuers.document_bytes_max), "1024 to 16777216")?;
        let agent = &self.user_agent;
        let visible = (1..=256).contains(&agent.len()) && agent.bytes().all(|b| (b' '..=b'~').contains(&b));
        bound("user_agent", visible, "1 to 256 visible ASCII characters")
    }
}

/// A range of addresses: `<address>/<prefix length>`, or one address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// A text that is not a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a range of the form <address>/<prefix length> without bits behind the prefix")]
pub struct CidrError;

impl Cidr {
    /// True where the range holds this very address; an embedded IPv4 address is not looked for.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                network.to_bits() == address.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                network.to_bits() == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let network: IpAddr = address.parse().map_err(|_| CidrError)?;
        let longest = if network.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            // A sign or a leading zero would parse as a number, too.
            Some(text) if text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().map_err(|_| CidrError)?
            }
            Some(_) => return Err(CidrError),
        };
        let range = Self { network, prefix };
        // Bits behind the prefix are a slip of the operator: `10.1.2.3/8` may have been meant as one address.
        if prefix <= longest && range.contains(network) { Ok(range) } else { Err(CidrError) }
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(range: Cidr) -> Self {
        range.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// A name server: `<address>`, or `<address>:<port>` with an IPv6 address in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameServer(SocketAddr);

/// A text that is not the address of a name server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a name server of the form <address> or <address>:<port>, such as 1.1.1.1 or [2606:4700::1111]:53")]
pub struct NameServerError;

impl NameServer {
    /// Its address.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }

    /// Its port, by UDP and by TCP.
    pub fn port(self) -> u16 {
        self.0.port()
    }
}

impl From<IpAddr> for NameServer {
    fn from(address: IpAddr) -> Self {
        Self(SocketAddr::new(address, 53))
    }
}

impl TryFrom<String> for NameServer {
    type Error = NameServerError;

    fn try_from(text: String) -> Result<Self, NameServerError> {
        let address = text.parse::<IpAddr>().map(Self::from);
        address.or_else(|_| text.parse().map(Self)).map_err(|_| NameServerError)
    }
}

impl From<NameServer> for String {
    fn from(server: NameServer) -> Self {
        server.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_have_a_port_or_the_usual_one() {
        let parse = |text: &str| NameServer::try_from(text.to_owned()).map(String::from);
        assert_eq!(parse("1.1.1.1").as_deref(), Ok("1.1.1.1:53"));
        assert_eq!(parse("1.1.1.1:5353").as_deref(), Ok("1.1.1.1:5353"));
        assert_eq!(parse("2606:4700::1111").as_deref(), Ok("[2606:4700::1111]:53"));
        assert_eq!(parse("[::1]:5353").as_deref(), Ok("[::1]:5353"));
        for wrong in ["", "dns.example.com", "1.1.1.1:", "1.1.1.1:65536", "1.1.1", "[::1]", "udp://1.1.1.1"] {
            assert_eq!(parse(wrong), Err(NameServerError), "{wrong:?}");
        }
    }

    #[test]
    fn ranges_hold_their_addresses_and_no_others() {
        let holds = |range: &str, address: &str| {
            range.parse::<Cidr>().expect("a range").contains(address.parse().expect("an address"))
        };
        assert!(holds("127.0.0.0/8", "127.255.0.1"));
        assert!(!holds("127.0.0.0/8", "128.0.0.1"));
        assert!(holds("10.1.2.3", "10.1.2.3"));
        assert!(!holds("10.1.2.3", "10.1.2.2"));
        assert!(holds("0.0.0.0/0", "8.8.8.8"));
        assert!(!holds("0.0.0.0/0", "::1"));
        assert!(holds("fd00::/8", "fdff::1"));
        assert!(!holds("fd00::/8", "fc00::1"));
        assert!(holds("::/0", "fe80::1"));
        for wrong in
            ["", "10.0.0.0/33", "::/129", "10.0.0.1/8", "10.0.0.0/", "10.0.0.0/+8", "10/8", "x/8", "1.2.3.4/-1"]
        {
            assert_eq!(wrong.parse::<Cidr>(), Err(CidrError), "{wrong:?}");
        }
    }

    #[test]
    fn settings_out_of_bounds_name_their_key_and_unknown_ones_are_refused() {
        assert!(Config::default().check().is_ok());
        let wrong = Config { tls_timeout_ms: 0, ..Config::default() };
        assert!(wrong.check().is_err_and(|error| error.to_string().contains("tls_timeout_ms")));
        assert!(toml::from_str::<Config>("allow_private_range = []").is_err());
        let ranges = toml::from_str::<Config>(r#"allow_private_ranges = ["127.0.0.0/8", "::1/128"]"#);
        assert_eq!(ranges.expect("valid settings").allow_private_ranges.len(), 2);
    }
}
