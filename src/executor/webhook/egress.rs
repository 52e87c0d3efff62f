//! The egress guard: the one judge of every address that a tenant lets the service connect to.
//!
//! It is asked twice: when a target is saved ([`EgressGuard::check_uri`], no network), and whenever a connection is opened
//! ([`EgressGuard::resolve`], which returns the only addresses that may be connected to). Whatever is not known to be public is
//! refused, unless the operator allowed its range. It must never name a resolved address in an error: a tenant could map the
//! network by it.
//!
//! Source: the IANA IPv4 and IPv6 Special-Purpose Address Registries; RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo).

use super::names::{Names, is_localhost};
use crate::domain::ids::TenantId;
use crate::domain::webhook::WebhookUri;
use crate::executor::config::{Cidr, Config};
use crate::turnstile::Turnstile;
use moka::future::Cache;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;
/// How long the answer for a name serves further connections, and for how many names.
const NAME_KEPT: Duration = Duration::from_secs(5);
const NAMES_MAX: u64 = 4096;

/// Ports of other protocols that an HTTP request could be smuggled into. Source: Fetch Standard, "bad port".
const FOREIGN_PORTS: [u16; 82] = [
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110,
    111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532,
    540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061,
    6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

/// Judges outbound addresses and resolves outbound names.
#[derive(Debug)]
pub struct EgressGuard {
    allow_http: bool,
    allowed: Vec<Cidr>,
    lookup_timeout: Duration,
    /// In turns of the tenants that names are looked up for: names that nobody answers for hold up no other tenant.
    lookups: Turnstile<Option<TenantId>>,
    names: Names,
    /// Addresses by whom they were looked up for and name, before they are judged. One look-up serves all of a tenant who ask at the same
    /// time, and none waits for the turn of another tenant.
    kept: Cache<(Option<TenantId>, String), Arc<[IpAddr]>>,
}

/// Why a target must not be called. No text names an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// Plain text.
    #[error("only https is allowed")]
    Scheme,
    /// Neither a name nor an address.
    #[error("its host is not a valid host name")]
    Host,
    /// A number that some resolvers read as an address: octal, hexadecimal, short, or otherwise unusual.
    #[error("its host is an IP address in an unusual spelling")]
    Spelling,
    /// Not public, and not in an allowed range.
    #[error("its host is not a public address")]
    Address,
    /// Another protocol's.
    #[error("its port belongs to another protocol")]
    Port,
}

/// Why a host has no address to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The guard refuses it.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// The name does not resolve.
    #[error("the host name cannot be resolved")]
    NotFound,
    /// The name's servers do not answer.
    #[error("the host name was not resolved in time")]
    Timeout,
    /// The name servers answer that they cannot, or are not to be had.
    #[error("the name servers failed to answer: {0}")]
    Unanswered(&'static str),
}

/// What the host of a URI is.
enum Host<'a> {
    Address(IpAddr),
    /// Without the dot of the root.
    Name(&'a str),
}

impl EgressGuard {
    /// A guard by the executor's settings.
    pub fn new(config: &Config) -> Self {
        let lookup_timeout = Duration::from_millis(config.dns_timeout_ms);
        Self {
            allow_http: config.allow_http,
            allowed: config.allow_private_ranges.clone(),
            lookup_timeout,
            lookups: Turnstile::new(config.dns_lookups_max),
            names: Names::new(&config.nameservers, lookup_timeout),
            kept: Cache::builder().max_capacity(NAMES_MAX).time_to_live(NAME_KEPT).build(),
        }
    }

    /// Checks whatever can be checked without resolving a name. For the moment a target is saved.
    pub fn check_uri(&self, uri: &WebhookUri) -> Result<(), Blocked> {
        self.check(uri.as_uri())
    }

    /// As [`Self::check_uri`], for a URI that a connection is opened for.
    pub(super) fn check(&self, uri: &http::Uri) -> Result<(), Blocked> {
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if self.allow_http => {}
            _ => return Err(Blocked::Scheme),
        }
        let own_network = match parse_host(uri.host().unwrap_or_default())? {
            Host::Address(address) if !self.permits(address) => return Err(Blocked::Address),
            Host::Address(address) => self.allows(address),
            Host::Name(name) if is_localhost(name) => {
                let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                if !loopback.iter().any(|address| self.permits(*address)) {
                    return Err(Blocked::Address);
                }
                true
            }
            Host::Name(_) => false,
        };
        match uri.port_u16() {
            Some(port) if !own_network => check_port(port),
            _ => Ok(()),
        }
    }

    /// The addresses that may be connected to for this host, at least one, in the resolver's order of preference. `tenant` is whom they
    /// are looked up for; none for the service itself.
    ///
    /// Shape: `host` as a URI spells it, IPv6 in brackets. Errors: one address that is not permitted blocks them all, since a
    /// name with mixed records is an attempt to get inside.
    pub async fn resolve(
        &self,
        tenant: Option<TenantId>,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        match parse_host(host)? {
            Host::Address(address) => self.judge(&[address], port),
            Host::Name(name) => self.judge(&self.look_up(tenant, name).await?, port),
        }
    }

    async fn look_up(&self, tenant: Option<TenantId>, name: &str) -> Result<Arc<[IpAddr]>, ResolveError> {
        let known = self.names.known(name);
        if !known.is_empty() {
            return Ok(known.into());
        }
        let answer = self.kept.try_get_with((tenant, name.to_owned()), async {
            let _pass = self.lookups.enter(tenant).await;
            self.names.look_up(name).await.map(Arc::from)
        });
        match timeout(self.lookup_timeout, answer).await {
            Ok(answer) => answer.map_err(|error| *error),
            Err(_) => Err(ResolveError::Timeout),
        }
    }

    fn judge(&self, addresses: &[IpAddr], port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        if !addresses.iter().all(|address| self.permits(*address)) {
            return Err(Blocked::Address.into());
        }
        if !addresses.iter().all(|address| self.allows(*address)) {
            check_port(port)?;
        }
        Ok(addresses.iter().take(ADDRESSES_MAX).map(|address| SocketAddr::new(*address, port)).collect())
    }

    /// True where the operator allowed the address, though it may be private.
    fn allows(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|range| range.contains(address))
    }

    fn permits(&self, address: IpAddr) -> bool {
        self.allows(address)
            || match address {
                IpAddr::V4(v4) => is_public_v4(v4),
                IpAddr::V6(v6) => match embedded(v6) {
                    Some(inner) => inner.iter().all(|v4| self.permits(IpAddr::V4(*v4))),
                    None => is_public_v6(v6),
                },
            }
    }
}

fn check_port(port: u16) -> Result<(), Blocked> {
    if port == 0 || FOREIGN_PORTS.contains(&port) { Err(Blocked::Port) } else { Ok(()) }
}

/// Tells names from addresses, and refuses every spelling that one resolver reads as a name and another as an address.
fn parse_host(host: &str) -> Result<Host<'_>, Blocked> {
    if let Some(bracketed) = host.strip_prefix('[') {
        // A zone id does not parse: it names an interface of this machine.
        let address = bracketed.strip_suffix(']').and_then(|text| text.parse::<Ipv6Addr>().ok());
        return address.map(|v6| Host::Address(IpAddr::V6(v6))).ok_or(Blocked::Spelling);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    // Whatever ends in a number is an address to `inet_aton`: 2130706433, 0x7f.1, 0177.0.0.1, 127.1, 127.0.0.1 with a dot.
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let is_number = match hexadecimal {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()),
    };
    if is_number {
        return host.parse::<Ipv4Addr>().map(|v4| Host::Address(IpAddr::V4(v4))).map_err(|_| Blocked::Spelling);
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() <= 253 && name.split('.').all(is_label) { Ok(Host::Name(name)) } else { Err(Blocked::Host) }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    // This network, private use, loopback; multicast, reserved and broadcast.
    let blocks = matches!(a, 0 | 10 | 127 | 224..);
    // Carriers' own, link-local, private use, benchmarks.
    let wide = matches!((a, b), (100, 64..=127) | (169, 254) | (172, 16..=31) | (192, 168) | (198, 18 | 19));
    // Protocol assignments, documentation, 6to4 relays.
    let narrow = matches!((a, b, c), (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113));
    !(blocks || wide || narrow)
}

/// True for global unicast that no registry sets aside. Everything outside 2000::/3 is special or unassigned.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // 2001::/23 holds protocol assignments; 2001:db8::/32 and 3fff::/20 are documentation.
    let special = matches!((a, b), (0x2001, 0..=0x1ff | 0xdb8) | (0x3fff, 0..=0xfff));
    a & 0xe000 == 0x2000 && !special
}

/// The IPv4 addresses that packets to this address end up at, where it is a translated or tunnelled one.
///
/// The local NAT64 prefix 64:ff9b:1::/48 is not unwrapped but refused as a whole: where in it the IPv4 address stands is the
/// network's own choice.
fn embedded(address: Ipv6Addr) -> Option<[Ipv4Addr; 2]> {
    let octets = address.octets();
    let at = |start: usize| Ipv4Addr::new(octets[start], octets[start + 1], octets[start + 2], octets[start + 3]);
    match address.segments() {
        // IPv4-compatible (with :: and ::1), IPv4-mapped, NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some([at(12); 2]),
        // 6to4.
        [0x2002, ..] => Some([at(2); 2]),
        // Teredo: the server, and the client with its bits turned over.
        [0x2001, 0, ..] => Some([at(4), Ipv4Addr::from_bits(!at(12).to_bits())]),
        // ISATAP in a public prefix; in another one, the prefix decides.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] if is_public_v6(address) => Some([at(12); 2]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::webhook::names::tests::{name_server, says};
    use std::sync::atomic::Ordering;
    use uuid::Uuid;

    fn guard(allow_http: bool, ranges: &[&str]) -> EgressGuard {
        let ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        EgressGuard::new(&Config { allow_http, allow_private_ranges: ranges, ..Config::default() })
    }

    fn check(guard: &EgressGuard, uri: &str) -> Result<(), Blocked> {
        guard.check_uri(&WebhookUri::parse(uri).expect("a webhook URI"))
    }

    #[test]
    fn public_names_and_addresses_pass() {
        let guard = guard(false, &[]);
        let hosts = "example.com example.com. a_b.example xn--pple-43d.example 8.8.8.8 1.1.1.1 9.255.255.255 11.0.0.0 \
            100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.0.1 172.15.0.1 172.32.0.0 192.0.1.1 \
            192.88.98.1 192.167.0.1 198.17.0.1 198.20.0.1 223.255.255.255 [2606:4700:4700::1111] [2001:200::1] \
            [2001:4860:4860::8888] [::ffff:8.8.8.8] [64:ff9b::8.8.8.8] [2002:808:808::1] \
            [2001:0:808:808::f7f7:f7f7] 127.0.0.1.example.com 0x7f.example";
        for host in hosts.split(' ') {
            assert_eq!(check(&guard, &format!("https://{host}/hook")), Ok(()), "{host}");
        }
    }

    #[test]
    fn special_addresses_are_refused_in_every_spelling() {
        use Blocked::{Address, Host, Spelling};
        let guard = guard(true, &[]);
        let addresses = "0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.1.2.3 \
            169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 \
            198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 \
            255.255.255.255 [::] [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:a9fe:a9fe] \
            [::127.0.0.1] [::10.0.0.1] [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1] [64:ff9b::a9fe:a9fe] \
            [64:ff9b:1::8.8.8.8] [64:ff9b:1::10.0.0.1] [2002:7f00:1::] [2002:a00:1::1] [2002:c0a8:101::] \
            [2001:0:808:808::80ff:fffe] [2001:0:a00:1::f7f7:f7f7] [2001::1] [2001:1::1] [2001:db8::1] \
            [2001:20::1] [100::1] [3fff::1] [5f00::1] [fc00::1] [fd00:ec2::254] [fe80::1] [fec0::1] [ff02::1] \
            [4000::1] [2606:4700::200:5efe:10.0.0.1] [2606::5efe:127.0.0.1] localhost LOCALHOST localhost. \
            a.localhost a.b.localhost.";
        let spellings = "2130706433 017700000001 0x7f000001 0X7F000001 127.1 127.0.1 0177.0.0.1 0x7f.0.0.1 127.0.0.0x1 \
            127.0.0.01 0127.0.0.1 127.0.0.1. 8.8.8.8. 08.8.8.8 134744072 256.1.1.1 0 0x 1.2.3.4.5 a.1 a.0x1 \
            4294967296 99999999999999999999 10.1 0xa9fea9fe 0251.0376.0251.0376";
        let hosts = ["a..b", "..", ".", "-%31", "%6c%6fcalhost", "a.b..", "a!b", "127.0.0.1%2f.example"];
        let cases = addresses.split(' ').map(|host| (host, Address));
        let cases = cases.chain(spellings.split(' ').map(|host| (host, Spelling)));
        for (host, blocked) in cases {
            assert_eq!(check(&guard, &format!("http://{host}/")), Err(blocked), "{host}");
            assert_eq!(check(&guard, &format!("https://{host}:8443/")), Err(blocked), "{host}");
        }
        for host in hosts {
            // Some of these are no URI at all, which is as good.
            let Ok(uri) = WebhookUri::parse(&format!("https://{host}/")) else { continue };
            assert_eq!(guard.check_uri(&uri), Err(Host), "{host}");
        }
        for host in ["[fe80::1%25eth0]", "[fe80::1%eth0]", "[v1.fe80]", "[::1", "[]", "[127.0.0.1]", "[::1%25lo]"] {
            assert!(parse_host(host).is_err(), "{host}");
        }
    }

    #[test]
    fn schemes_and_ports_of_other_protocols_are_refused() {
        let guard = guard(false, &["127.0.0.0/8"]);
        assert_eq!(check(&guard, "http://example.com/"), Err(Blocked::Scheme));
        assert_eq!(check(&guard, "http://127.0.0.1/"), Err(Blocked::Scheme));
        assert_eq!(check(&guard, "https://example.com:25/"), Err(Blocked::Port));
        assert_eq!(check(&guard, "https://8.8.8.8:22/"), Err(Blocked::Port));
        assert_eq!(check(&guard, "https://example.com:8443/"), Ok(()));
        assert_eq!(check(&guard, "https://127.0.0.1:9/"), Ok(()));
    }

    #[test]
    fn allowed_ranges_open_themselves_and_nothing_else() {
        let guard = guard(true, &["127.0.0.0/8", "fd12::/16"]);
        for host in ["127.0.0.1:8080", "localhost:8080", "a.localhost", "[::ffff:127.0.0.1]", "[fd12::1]"] {
            assert_eq!(check(&guard, &format!("http://{host}/")), Ok(()), "{host}");
        }
        for host in ["10.0.0.1", "[::1]", "[fd13::1]", "169.254.169.254", "[::ffff:10.0.0.1]"] {
            assert_eq!(check(&guard, &format!("http://{host}/")), Err(Blocked::Address), "{host}");
        }
        assert_eq!(check(&guard, "http://127.1/"), Err(Blocked::Spelling));
    }

    #[test]
    fn a_name_with_one_inner_record_among_public_ones_is_blocked() {
        let guard = guard(false, &[]);
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>();
        let blocked = Err(ResolveError::Blocked(Blocked::Address));
        assert_eq!(guard.judge(&addresses(&["8.8.8.8", "10.0.0.1"]), 443), blocked);
        assert_eq!(guard.judge(&addresses(&["2606:4700::1", "::ffff:127.0.0.1"]), 443), blocked);
        let many: Vec<IpAddr> = (0..40).map(|n| IpAddr::V4(Ipv4Addr::new(8, 8, 8, n))).collect();
        assert_eq!(guard.judge(&many, 443).map(|allowed| allowed.len()), Ok(ADDRESSES_MAX));
        let hidden = [many, addresses(&["192.168.0.1"])].concat();
        assert_eq!(guard.judge(&hidden, 443), blocked);
        assert_eq!(guard.judge(&addresses(&["8.8.8.8"]), 25), Err(ResolveError::Blocked(Blocked::Port)));
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_loopback_is_blocked_where_it_is_connected_to() {
        let blocked = Err(ResolveError::Blocked(Blocked::Address));
        assert_eq!(guard(true, &[]).resolve(None, "localhost", 8080).await, blocked);
        let open = guard(true, &["127.0.0.0/8", "::1/128"]);
        let addresses = open.resolve(None, "localhost", 8080).await.expect("loopback addresses");
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn g9_names_that_nobody_answers_for_hold_up_no_other_tenant_and_nothing_that_is_known() {
        let (server, asked) = name_server(says).await;
        let ranges = ["192.0.2.0/24", "127.0.0.0/8", "::1/128"].map(|range| range.parse().expect("a range")).to_vec();
        let guard = Arc::new(EgressGuard::new(&Config {
            allow_private_ranges: ranges,
            nameservers: vec![server],
            dns_lookups_max: 4,
            dns_timeout_ms: 60_000,
            ..Config::default()
        }));
        let tenant = |number| Some(TenantId(Uuid::from_u128(number)));
        // Each under a domain of its own, and far more than there are places.
        let silent: Vec<_> = (0..40)
            .map(|n| {
                let guard = guard.clone();
                tokio::spawn(async move { guard.resolve(tenant(1), &format!("a.{n}-silent.test"), 443).await })
            })
            .collect();
        while asked.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        for (whose, name) in [(2, "four.test"), (2, "four.test"), (1, "localhost"), (3, "localhost"), (3, "four.test")]
        {
            let found = timeout(Duration::from_secs(15), guard.resolve(tenant(whose), name, 443)).await;
            assert!(found.is_ok_and(|found| found.is_ok()), "{name} of {whose}");
        }
        assert!(silent.iter().all(|look_up| !look_up.is_finished()), "they wait on");
    }

    #[test]
    fn no_refusal_names_an_address() {
        for blocked in [Blocked::Scheme, Blocked::Host, Blocked::Spelling, Blocked::Address, Blocked::Port] {
            assert!(!blocked.to_string().contains(|c: char| c.is_ascii_digit()), "{blocked}");
        }
    }
}
