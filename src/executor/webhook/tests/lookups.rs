//! The executor and names: whom they are looked up for, and what becomes of attempts whose names are not answered for.

use super::*;
use crate::executor::webhook::names::tests::{Said, name_server, says};
use hickory_resolver::proto::op::ResponseCode;

#[tokio::test]
async fn g9_names_that_nobody_answers_for_hold_up_no_other_tenants_attempts() {
    let (server, asked) = name_server(says).await;
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let config = Config { nameservers: vec![server], dns_lookups_max: 4, dns_timeout_ms: 60_000, ..loopback() };
    let executor = executor(&config);
    let silent: Vec<_> = (0..20)
        .map(|n| {
            let executor = executor.clone();
            tokio::spawn(async move {
                let call = call(&format!("http://a.{n}-silent.test/hook"));
                executor.execute(&call, &delivery(), Instant::now() + LONG).await
            })
        })
        .collect();
    while asked.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
    let uri = format!("http://here.test:{}/hook", receiver.address.port());
    let other = WebhookCall { tenant: TenantId(uuid::Uuid::from_u128(3)), ..call(&uri) };
    let outcome = executor.execute(&other, &delivery(), Instant::now() + LONG).await;
    assert_eq!(outcome.class, OutcomeClass::Succeeded, "{outcome:?}");
    assert!(silent.iter().all(|attempt| !attempt.is_finished()), "they wait on");
}

#[tokio::test]
async fn a_name_that_is_not_answered_for_may_be_there_a_moment_later() {
    let (server, _) = name_server(says).await;
    let (refusing, _) = name_server(|_, _| Said::Code(ResponseCode::Refused)).await;
    let cases = [
        (server, "lost.test", OutcomeClass::Timeout, Answer::Failed),
        (server, "broken.test", OutcomeClass::Unreachable, Answer::Failed),
        (refusing, "four.test", OutcomeClass::Unreachable, Answer::Failed),
        (server, "absent.test", OutcomeClass::Unreachable, Answer::Unreached),
    ];
    for (server, name, class, expected) in cases {
        let config = Config { nameservers: vec![server], dns_timeout_ms: 600, ..loopback() };
        let call = call(&format!("http://{name}/hook"));
        let (outcome, answer) = executor(&config).ask(&call, &delivery(), Instant::now() + LONG).await;
        assert_eq!((outcome.class, &answer), (class, &expected), "{name}: {outcome:?}");
    }
}
