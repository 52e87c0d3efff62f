//! Looks host names up for the egress guard: as the system is set up, or by name servers that the operator names.
//!
//! The name servers are asked from here, and not by the system's function: that one holds a thread for as long as the servers of a name
//! keep it waiting, so names whose servers never answer would end the look-ups of everybody else. It must never judge an address.

use super::egress::ResolveError;
use crate::executor::config::NameServer;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What says how the system looks names up.
const SYSTEM_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// How old what was read of them may be.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a name server is asked within the time of a look-up: a packet may be lost.
const ASKED: u32 = 3;

/// Looks names up. Nothing is kept here.
pub(super) struct Names {
    /// None: the system's way.
    named: Option<TokioResolver>,
    /// None before the first look-up.
    system: Mutex<Option<System>>,
    /// For how long one answer is waited for.
    patience: Duration,
}

/// The system's way, as its files said it.
struct System {
    way: Way,
    files: [Option<Stamp>; 2],
    looked_at: Instant,
}

/// Whom the system asks: its file of hosts, and then name servers.
#[derive(Clone)]
struct Way {
    hosts: Arc<Hosts>,
    resolver: TokioResolver,
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
        // A little less than the look-up has: what one family has answered counts although the other one stays silent.
        let patience = limit / (ASKED + 1);
        // What an operator's own servers do not know is not known: neither this machine's files nor its search list are asked.
        let named = (!servers.is_empty()).then(|| {
            build((configured(servers), ResolverOpts::default()), patience)
                .expect("only TLS could be refused, and there is none")
        });
        Self { named, system: Mutex::default(), patience }
    }

    /// Every address of a name, of both families, in the order in which they are to be tried; at least one.
    pub async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let found = match &self.named {
            Some(resolver) => resolver.lookup_ip(format!("{name}.")).await,
            None => {
                let Way { hosts, resolver } = self.system().map_err(|_| ResolveError::NotFound)?;
                // Of a name that is in the file, be it with addresses of one family alone, nobody is asked.
                let known = in_file(&hosts, name);
                if !known.is_empty() {
                    return Ok(known);
                }
                resolver.lookup_ip(name).await
            }
        };
        let found = found.map_err(|error| match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code != ResponseCode::ServFail => {
                ResolveError::NotFound
            }
            NetError::Proto(_) => ResolveError::NotFound,
            // Not answered for: a moment later it may be there.
            _ => ResolveError::Timeout,
        })?;
        let addresses = each_once(found.iter());
        if addresses.is_empty() { Err(ResolveError::NotFound) } else { Ok(addresses) }
    }

    /// The system's way as its files say it now, or said it a moment ago.
    fn system(&self) -> Result<Way, NetError> {
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &mut *system {
            if known.looked_at.elapsed() < LOOK_AGAIN {
                return Ok(known.way.clone());
            }
            known.looked_at = Instant::now();
            if known.files == stamps() {
                return Ok(known.way.clone());
            }
        }
        // Their stamps first: what changes while they are read is read again.
        let files = stamps();
        let said = read_system_conf();
        // Source: resolv.conf(5), without name servers "the default is to use the name server on the local machine".
        let local = || (configured(&[NameServer::from(IpAddr::V4(Ipv4Addr::LOCALHOST))]), ResolverOpts::default());
        let resolver = build(said.unwrap_or_else(|_| local()), self.patience)?;
        // A file that is not there knows no name.
        let way = Way { hosts: Arc::new(Hosts::from_system().unwrap_or_default()), resolver };
        *system = Some(System { way: way.clone(), files, looked_at: Instant::now() });
        Ok(way)
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

fn build((config, mut options): (ResolverConfig, ResolverOpts), patience: Duration) -> Result<TokioResolver, NetError> {
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = options.timeout.min(patience);
    // Both families always: one inner address among the others has to be seen.
    options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    // The guard keeps answers itself.
    options.cache_size = 0;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
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
mod tests {
    use super::*;
    use hickory_resolver::proto::op::Message;
    use hickory_resolver::proto::rr::{RData, Record};
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::UdpSocket;
    use tokio::time::timeout;

    /// What a name server of ours says of a name: nothing, or these addresses; of no address, that there is no such name.
    type Says = fn(&str) -> Option<&'static [&'static str]>;

    /// A name server on loopback, and how often it was asked for IPv4 addresses.
    async fn name_server(says: Says) -> (NameServer, Arc<AtomicUsize>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address: SocketAddr = socket.local_addr().expect("it is bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            let mut packet = [0; 4_096];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let question = Message::from_vec(&packet[..length]).expect("a question");
                let query = question.queries[0].clone();
                count.fetch_add(usize::from(query.query_type() == RecordType::A), Ordering::SeqCst);
                let Some(addresses) = says(query.name().to_string().trim_end_matches('.')) else { continue };
                let mut answer = Message::response(question.id, question.op_code);
                answer.add_query(query.clone());
                if addresses.is_empty() {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                for address in addresses.iter().map(|address| address.parse::<IpAddr>().expect("an address")) {
                    if address.is_ipv4() == (query.query_type() == RecordType::A) {
                        answer.add_answer(Record::from_rdata(query.name().clone(), 60, RData::from(address)));
                    }
                }
                socket.send_to(&answer.to_vec().expect("an answer"), from).await.expect("it is sent");
            }
        });
        (NameServer::try_from(address.to_string()).expect("an address with a port"), asked)
    }

    fn says(name: &str) -> Option<&'static [&'static str]> {
        match name {
            "both.test" => Some(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.1"]),
            "four.test" => Some(&["192.0.2.1"]),
            "six.test" => Some(&["2001:db8::1"]),
            _ if name.ends_with("silent.test") => None,
            _ => Some(&[]),
        }
    }

    #[tokio::test]
    async fn both_families_are_found_and_each_address_once() {
        let (server, _) = name_server(says).await;
        let names = Names::new(&[server], Duration::from_secs(20));
        let found = async |name| {
            let mut found = names.look_up(name).await?;
            found.sort_unstable();
            Ok::<_, ResolveError>(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(found("both.test").await.as_deref(), Ok("192.0.2.1 192.0.2.2 2001:db8::1"));
        assert_eq!(found("four.test").await.as_deref(), Ok("192.0.2.1"));
        assert_eq!(found("six.test").await.as_deref(), Ok("2001:db8::1"));
        assert_eq!(found("absent.test").await, Err(ResolveError::NotFound));
        // Where the operator names the servers, this machine's own names are nobody's.
        assert_eq!(found("localhost.test").await, Err(ResolveError::NotFound));
    }

    #[tokio::test]
    async fn a_name_server_that_says_nothing_is_asked_again_and_the_look_up_ends() {
        let (server, asked) = name_server(says).await;
        let names = Names::new(&[server], Duration::from_millis(600));
        assert_eq!(names.look_up("silent.test").await, Err(ResolveError::Timeout));
        assert!((2..=3).contains(&asked.load(Ordering::SeqCst)), "{asked:?}");
    }

    #[tokio::test]
    async fn g9_names_that_nobody_answers_for_hold_up_no_other_name() {
        let (server, asked) = name_server(says).await;
        let names = Arc::new(Names::new(&[server], Duration::from_secs(60)));
        let silent: Vec<_> = (0..300)
            .map(|n| {
                let names = names.clone();
                tokio::spawn(async move { names.look_up(&format!("{n}.silent.test")).await })
            })
            .collect();
        while asked.load(Ordering::SeqCst) < silent.len() {
            tokio::task::yield_now().await;
        }
        let found =
            timeout(Duration::from_secs(15), names.look_up("four.test")).await.expect("it does not wait for them");
        assert_eq!(found.map(|found| found.len()), Ok(1));
        assert!(silent.iter().all(|look_up| !look_up.is_finished()), "they wait on");
    }

    #[tokio::test]
    async fn without_name_servers_of_its_own_it_does_as_the_system_does() {
        let names = Names::new(&[], Duration::from_secs(5));
        let found = names.look_up("localhost").await.expect("every system knows it");
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }

    #[test]
    fn of_a_name_in_the_file_of_hosts_nobody_else_is_asked_for_another_family() {
        let mut hosts = Hosts::default();
        let file = "192.0.2.1 four.test Both.test\n2001:db8::1 both.test\n192.0.2.1 four.test # twice\n";
        hosts.read_hosts_conf(file.as_bytes()).expect("it is read");
        let found = |name| in_file(&hosts, name).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!((found("four.test").as_str(), found("both.test").as_str()), ("192.0.2.1", "2001:db8::1 192.0.2.1"));
        assert_eq!((found("FOUR.test.").as_str(), found("absent.test").as_str()), ("192.0.2.1", ""));
    }
}
