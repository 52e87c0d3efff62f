//! Look-ups against name servers on loopback, those included that say nothing or refuse.

use super::*;
use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{RData, Record};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UdpSocket;

/// What a name server of ours says to a question.
#[derive(Clone, Copy)]
pub enum Said {
    /// Those of these addresses that are of the family that is asked for.
    Addresses(&'static [&'static str]),
    /// No answer but this.
    Code(ResponseCode),
    Nothing,
}

/// What it says of a name, asked for a family.
pub type Says = fn(&str, RecordType) -> Said;

/// A name server on loopback, and how often it was asked for IPv4 addresses.
pub async fn name_server(says: Says) -> (NameServer, Arc<AtomicUsize>) {
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
            let mut answer = Message::response(question.id, question.op_code);
            answer.add_query(query.clone());
            match says(query.name().to_string().trim_end_matches('.'), query.query_type()) {
                Said::Nothing => continue,
                Said::Code(code) => answer.metadata.response_code = code,
                Said::Addresses(addresses) => {
                    for address in addresses.iter().map(|address| address.parse::<IpAddr>().expect("an address")) {
                        if address.is_ipv4() == (query.query_type() == RecordType::A) {
                            answer.add_answer(Record::from_rdata(query.name().clone(), 60, RData::from(address)));
                        }
                    }
                }
            }
            socket.send_to(&answer.to_vec().expect("an answer"), from).await.expect("it is sent");
        }
    });
    (NameServer::try_from(address.to_string()).expect("an address with a port"), asked)
}

pub fn says(name: &str, family: RecordType) -> Said {
    match name {
        "both.test" => Said::Addresses(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.1"]),
        "four.test" => Said::Addresses(&["192.0.2.1"]),
        "here.test" => Said::Addresses(&["127.0.0.1"]),
        "in.office.test" => Said::Addresses(&["192.0.2.3"]),
        "lost.test" | "half.test" if family == RecordType::A => Said::Nothing,
        "broken.test" if family == RecordType::A => Said::Code(ResponseCode::ServFail),
        "six.test" | "half.test" => Said::Addresses(&["2001:db8::1"]),
        "lost.test" | "broken.test" => Said::Addresses(&[]),
        _ if name.ends_with("silent.test") => Said::Nothing,
        _ if name.ends_with("failing.test") => Said::Code(ResponseCode::ServFail),
        _ => Said::Code(ResponseCode::NXDomain),
    }
}

fn refuses(_: &str, _: RecordType) -> Said {
    Said::Code(ResponseCode::Refused)
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
    let found = timeout(Duration::from_secs(15), names.look_up("four.test")).await.expect("it does not wait for them");
    assert_eq!(found.map(|found| found.len()), Ok(1));
    assert!(silent.iter().all(|look_up| !look_up.is_finished()), "they wait on");
}

#[tokio::test]
async fn a_name_is_not_there_only_where_every_question_about_it_was_answered() {
    let (server, asked) = name_server(says).await;
    let names = Names::new(&[server], Duration::from_millis(600));
    // No IPv6 address, and the question for an IPv4 one is lost each time.
    assert_eq!(names.look_up("lost.test").await, Err(ResolveError::Timeout));
    assert!(asked.load(Ordering::SeqCst) >= 2, "{asked:?}");
    // One that a server cannot answer is not there a moment later either, and nobody was slow.
    let failed = names.look_up("broken.test").await.expect_err("it has no answer");
    assert_eq!(failed.to_string(), "the name servers failed to answer: Server Failure");
    // What one family has answered counts.
    assert_eq!(names.look_up("half.test").await.map(|found| found.len()), Ok(1));
}

/// Servers with a search list, which a name with fewer dots is looked for in first.
fn searching(server: NameServer, domains: &[&str], ndots: usize, limit: Duration) -> Servers {
    let (_, _, servers) = configured(&[server]).into_parts();
    let domains = domains.iter().map(|domain| Name::from_ascii(domain).expect("a name")).collect();
    let config = ResolverConfig::from_parts(None, domains, servers);
    let mut options = ResolverOpts::default();
    options.ndots = ndots;
    Servers::new(config, &options, limit)
}

#[tokio::test]
async fn no_other_name_of_the_search_list_stands_for_one_that_was_not_answered_for() {
    let (server, _) = name_server(says).await;
    let servers = searching(server, &["office.test."], 1, Duration::from_millis(600));
    assert_eq!(servers.look_up("lost.test").await, Err(ResolveError::Timeout));
    assert_eq!(servers.look_up("absent.test").await, Err(ResolveError::NotFound));
    assert_eq!(servers.look_up("four.test").await.map(|found| found.len()), Ok(1));
    assert_eq!(servers.look_up("in").await.map(|found| found.len()), Ok(1));
    let spelled = |name| {
        let names = servers.spelled_out(&Name::from_ascii(name).expect("a name"));
        names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(spelled("in."), "in.office.test. in.");
    assert_eq!(spelled("a.test."), "a.test. a.test.office.test.");
}

#[tokio::test]
async fn a_search_domain_that_nobody_answers_for_keeps_no_name_from_being_found() {
    let (server, _) = name_server(says).await;
    let limit = Duration::from_secs(2);
    for domains in [&["failing.test."][..], &["silent.test.", "failing.test.", "a.silent.test."]] {
        // As in a pod of Kubernetes: a name with fewer than five dots is looked for in the domains first.
        let servers = searching(server, domains, 5, limit);
        let found = async |name| {
            let found = timeout(limit, servers.look_up(name)).await.expect("it ends within its time");
            found.map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(found("four.test").await.as_deref(), Ok("192.0.2.1"), "{domains:?}");
        // What one family has answered counts here too, although the other one has all the time that is left.
        assert_eq!(found("half.test").await.as_deref(), Ok("2001:db8::1"), "{domains:?}");
        // A domain of the list comes after one that failed, too.
        let servers = searching(server, &[domains, &["office.test."]].concat(), 5, limit);
        assert_eq!(servers.look_up("in").await.map(|found| found.len()), Ok(1), "{domains:?}");
    }
}

#[tokio::test]
async fn a_name_is_not_there_only_where_every_search_domain_was_answered_for() {
    let (server, _) = name_server(says).await;
    let failed = ResolveError::Unanswered(ResponseCode::ServFail.to_str());
    let limit = Duration::from_millis(600);
    for (ndots, domains, expected) in [
        (5, &["office.test."][..], ResolveError::NotFound),
        (5, &["failing.test.", "office.test."], failed),
        (5, &["silent.test."], ResolveError::Timeout),
        // Asked for as it is written first, which is answered: it may be in the domain.
        (1, &["failing.test."], failed),
    ] {
        assert_eq!(searching(server, domains, ndots, limit).look_up("absent.test").await, Err(expected), "{domains:?}");
    }
}

#[tokio::test]
async fn a_name_server_that_refuses_or_says_nothing_leaves_the_question_to_the_next_one() {
    let ((good, _), (refusing, refused)) = (name_server(says).await, name_server(refuses).await);
    let (silent, unheard) = name_server(|_, _| Said::Nothing).await;
    for servers in [[refusing, good], [silent, good], [good, refusing]] {
        let names = Names::new(&servers, Duration::from_secs(20));
        assert_eq!(names.look_up("four.test").await.map(|found| found.len()), Ok(1));
        assert_eq!(names.look_up("absent.test").await, Err(ResolveError::NotFound));
    }
    assert!(refused.load(Ordering::SeqCst) >= 2 && unheard.load(Ordering::SeqCst) >= 2, "{refused:?} {unheard:?}");
    let names = Names::new(&[refusing, refusing], Duration::from_secs(20));
    let failed = names.look_up("four.test").await.expect_err("nobody answers it");
    assert_eq!(failed.to_string(), "the name servers failed to answer: Query Refused");
    // A server that said nothing may have known it.
    let names = Names::new(&[refusing, silent], Duration::from_millis(600));
    assert_eq!(names.look_up("four.test").await, Err(ResolveError::Timeout));
}

#[tokio::test]
async fn without_name_servers_of_its_own_it_does_as_the_system_does() {
    let names = Names::new(&[], Duration::from_secs(5));
    let known = names.known("localhost");
    assert!(!known.is_empty() && known.iter().all(IpAddr::is_loopback), "{known:?}");
    assert_eq!(names.known("absent.test"), Vec::<IpAddr>::new());
}

#[tokio::test]
async fn what_stands_for_this_machine_is_known_whoever_is_asked_for_names() {
    let (server, asked) = name_server(says).await;
    let names = Names::new(&[server], Duration::from_secs(5));
    for name in ["localhost", "a.LOCALHOST"] {
        let known = names.known(name);
        assert!(known.len() == 2 && known.iter().all(IpAddr::is_loopback), "{known:?}");
    }
    assert_eq!((names.known("localhost.test"), asked.load(Ordering::SeqCst)), (Vec::new(), 0));
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
