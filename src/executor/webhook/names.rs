//! Looks host names up for the egress guard: as the system is set up, or by name servers that the operator names.
//!
//! The name servers are asked from here, and not by the system's function: that one holds a thread for as long as the servers of a name
//! keep it waiting, so names whose servers never answer would end the look-ups of everybody else. It must never judge an address.

use super::egress::ResolveError;
use crate::executor::config::NameServer;
use futures::stream::{FuturesUnordered, StreamExt as _};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};
use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// What says how the system looks names up.
const SYSTEM_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// How old what was read of them may be.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a name server that says nothing is asked within the time of a look-up: a packet may be lost.
const ASKED: usize = 3;
/// Name servers that are asked at the same time: one that says nothing is waited for beside the next one.
const AT_ONCE: usize = 2;
/// How long one name server is waited for before the next one is asked too, at most.
const NEXT_SERVER_AFTER: Duration = Duration::from_millis(250);

/// Looks names up. Nothing is kept here.
pub(super) struct Names {
    /// None: the system's way.
    named: Option<Servers>,
    /// None before the first look-up.
    system: Mutex<Option<System>>,
    /// How long a look-up may take.
    limit: Duration,
}

/// The system's way, as its files said it.
struct System {
    way: Arc<Way>,
    files: [Option<Stamp>; 2],
    looked_at: Instant,
}

/// Whom the system asks: its file of hosts, and then name servers.
struct Way {
    hosts: Hosts,
    servers: Servers,
}

/// Name servers in the order in which they are asked, each by itself: one that refuses must not speak for the others.
struct Servers {
    each: Vec<TokioResolver>,
    /// Domains that a name may leave out.
    search: Vec<Name>,
    /// A name with fewer dots is looked for in those domains first.
    dots: usize,
    /// How long one is waited for before the next one is asked too.
    next_after: Duration,
    /// How long the questions of a look-up may take together.
    time: Duration,
}

/// Which file it was: when it was changed, its length, its inode.
type Stamp = (i64, i64, u64, u64);

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    /// Asks these name servers, or does as the system does where there are none. A look-up takes no longer than `limit`.
    pub fn new(servers: &[NameServer], limit: Duration) -> Self {
        // What an operator's own servers do not know is not known: neither this machine's files nor its search list are asked.
        let named = (!servers.is_empty()).then(|| Servers::new(configured(servers), &ResolverOpts::default(), limit));
        Self { named, system: Mutex::default(), limit }
    }

    /// What is known of a name without asking anybody: of one in the file of hosts, be it with addresses of one family alone, and of one
    /// that stands for this machine. Empty where that is nothing.
    pub fn known(&self, name: &str) -> Vec<IpAddr> {
        let known = if self.named.is_some() { Vec::new() } else { in_file(&self.system().hosts, name) };
        if known.is_empty() && is_localhost(name) {
            return vec![IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)];
        }
        known
    }

    /// Every address that the name servers know of a name, of both families, in the order in which they are to be tried; at least one.
    pub async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        match &self.named {
            Some(servers) => servers.look_up(name).await,
            None => self.system().servers.look_up(name).await,
        }
    }

    /// The system's way as its files say it now, or said it a moment ago.
    fn system(&self) -> Arc<Way> {
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &mut *system {
            if known.looked_at.elapsed() < LOOK_AGAIN {
                return known.way.clone();
            }
            known.looked_at = Instant::now();
            if known.files == stamps() {
                return known.way.clone();
            }
        }
        // Their stamps first: what changes while they are read is read again.
        let files = stamps();
        // Source: resolv.conf(5), without name servers "the default is to use the name server on the local machine".
        let local = |_| (configured(&[NameServer::from(IpAddr::V4(Ipv4Addr::LOCALHOST))]), ResolverOpts::default());
        let (config, options) = read_system_conf().unwrap_or_else(local);
        // A file that is not there knows no name.
        let hosts = Hosts::from_system().unwrap_or_default();
        let way = Arc::new(Way { hosts, servers: Servers::new(config, &options, self.limit) });
        *system = Some(System { way: way.clone(), files, looked_at: Instant::now() });
        way
    }
}

impl Servers {
    fn new(config: ResolverConfig, options: &ResolverOpts, limit: Duration) -> Self {
        let (domain, search, servers) = config.into_parts();
        let patience = limit / 4;
        let each = servers.into_iter().map(|server| resolver(server, options, patience)).collect();
        let search = domain.into_iter().chain(search).collect();
        // A little less than the look-up has: what one family has answered counts although the other one stays silent.
        let time = limit / 8 * 7;
        Self { each, search, dots: options.ndots, next_after: NEXT_SERVER_AFTER.min(patience / 2), time }
    }

    /// As [`Names::look_up`]. Source: res_search(3) of glibc, a search domain that nobody answers for does not end the search, and the
    /// name as it is written is asked for in any case.
    ///
    /// Errors: a name is not there only where every question about it was answered. One that was asked for as it is written and not
    /// answered for is not looked for in search domains: another host's would stand for it.
    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let ends = Instant::now() + self.time;
        let Ok(mut written) = Name::from_ascii(name) else { return Err(ResolveError::NotFound) };
        written.set_fqdn(true);
        let names = self.spelled_out(&written);
        let mut failed = None;
        for (tried, name) in names.iter().enumerate() {
            let now = Instant::now();
            // A domain that nobody answers for has its share of the time, and leaves theirs to those that come after it.
            let share = if *name == written { 1 } else { names.len() - tried };
            let until = now + ends.saturating_duration_since(now) / u32::try_from(share).unwrap_or(u32::MAX);
            match self.ask_for_both(name, until).await {
                Ok(found) if found.is_empty() => {}
                Ok(found) => return Ok(found),
                Err(error) if *name == written => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or(ResolveError::NotFound))
    }

    /// What a name may stand for, in the order of resolv.conf(5).
    fn spelled_out(&self, written: &Name) -> Vec<Name> {
        let in_domains = self.search.iter().filter_map(|domain| written.clone().append_domain(domain).ok());
        if usize::from(written.num_labels()) > self.dots {
            std::iter::once(written.clone()).chain(in_domains).collect()
        } else {
            in_domains.chain([written.clone()]).collect()
        }
    }

    /// The addresses of both families, always: one inner address among the others has to be seen. None where there are none.
    async fn ask_for_both(&self, name: &Name, until: Instant) -> Result<Vec<IpAddr>, ResolveError> {
        let ask = async |family| {
            let answer = timeout_at(until, self.ask(name, family)).await;
            answer.unwrap_or(Err(ResolveError::Timeout))
        };
        // Of one host, not of two: a name that lacks a family is not looked for elsewhere by that one alone.
        let (six, four) = tokio::join!(ask(RecordType::AAAA), ask(RecordType::A));
        let found = each_once([&six, &four].into_iter().flatten().flatten().copied());
        // Not answered for: a moment later it may be there.
        match (six, four) {
            _ if !found.is_empty() => Ok(found),
            (Ok(_), Ok(_)) => Ok(Vec::new()),
            (Err(ResolveError::Timeout), _) | (_, Err(ResolveError::Timeout)) => Err(ResolveError::Timeout),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// The addresses of one family; none where there are none. The servers are asked in their order, each a little after the one before,
    /// at once where that one failed; one that says nothing is asked again.
    async fn ask(&self, name: &Name, family: RecordType) -> Result<Vec<IpAddr>, ResolveError> {
        let mut next: VecDeque<&TokioResolver> = self.each.iter().collect();
        let mut questions = self.each.len().max(ASKED * self.each.len().min(AT_ONCE));
        let mut running = FuturesUnordered::new();
        let mut failed = None;
        loop {
            if running.len() < AT_ONCE
                && questions > 0
                && let Some(server) = next.pop_front()
            {
                questions -= 1;
                running.push(async move { (server, server.lookup(name.clone(), family).await) });
            }
            let Ok(answered) = timeout(self.next_after, running.next()).await else { continue };
            let Some((server, answer)) = answered else { return Err(failed.unwrap_or(ResolveError::Timeout)) };
            match read(answer) {
                Ok(found) => return Ok(found),
                Err(ResolveError::Timeout) => {
                    failed = Some(ResolveError::Timeout);
                    next.push_back(server);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
}

/// What one name server has answered: addresses, or that there are none. Errors: it did not answer, or that it cannot.
fn read(answer: Result<Lookup, NetError>) -> Result<Vec<IpAddr>, ResolveError> {
    match answer {
        Ok(found) => Ok(found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()),
        Err(NetError::Timeout) => Err(ResolveError::Timeout),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(Vec::new()),
            code => Err(ResolveError::Unanswered(code.to_str())),
        },
        Err(NetError::Dns(DnsError::ResponseCode(code))) => Err(ResolveError::Unanswered(code.to_str())),
        Err(NetError::Io(_) | NetError::NoConnections) => Err(ResolveError::Unanswered("no connection")),
        Err(_) => Err(ResolveError::Unanswered("an answer that cannot be read")),
    }
}

fn configured(servers: &[NameServer]) -> ResolverConfig {
    let server = |server: &NameServer| {
        // TCP for answers that are too long for a datagram.
        let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        for connection in &mut connections {
            connection.port = server.port();
        }
        NameServerConfig::new(server.ip(), true, connections)
    };
    ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect())
}

/// What asks one name server, once.
fn resolver(server: NameServerConfig, options: &ResolverOpts, patience: Duration) -> TokioResolver {
    let mut options = options.clone();
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = options.timeout.min(patience);
    options.attempts = 0;
    // The guard keeps answers itself.
    options.cache_size = 0;
    let config = ResolverConfig::from_name_servers(vec![server]);
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    builder.build().expect("only TLS could be refused, and there is none")
}

/// Whether a name stands for this machine. Source: RFC 6761, section 6.3.
pub(super) fn is_localhost(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

/// What the file of hosts says of a name.
fn in_file(hosts: &Hosts, name: &str) -> Vec<IpAddr> {
    let Ok(name) = Name::from_ascii(name) else { return Vec::new() };
    let of = |family| hosts.lookup_static_host(&Query::query(name.clone(), family));
    let found: Vec<_> = [RecordType::AAAA, RecordType::A].into_iter().filter_map(of).collect();
    each_once(found.iter().flat_map(Lookup::answers).filter_map(|record| record.data.ip_addr()))
}

fn each_once(found: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

fn stamps() -> [Option<Stamp>; 2] {
    SYSTEM_FILES.map(|file| {
        let read = fs::metadata(file).ok()?;
        Some((read.mtime(), read.mtime_nsec(), read.size(), read.ino()))
    })
}

#[cfg(test)]
pub(super) mod tests;
