//! `InvocationService.ListInvocations`: pages by state, newest first.

use carillon::proto::public::{InvocationState, ListInvocationsRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Answer, Tenant};

#[tokio::test]
async fn lists_filter_by_state_and_page_newest_first() {
    let (tenant, _receiver) = Tenant::with_listener(vec![Answer::Status(200)]).await;
    let mut events = Vec::new();
    for n in 0..5 {
        events.push(tenant.publish("CUSTOM_RUN", &json!({"n": n})).await.event_id);
    }
    for event_id in &events {
        tenant.all_invocations_become(event_id, InvocationState::Succeeded).await;
    }
    let mut request =
        ListInvocationsRequest { page_size: 2, states: vec![InvocationState::Succeeded.into()], ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = tenant.invocations().list_invocations(request.clone()).await.expect("a page").into_inner();
        listed.extend(page.invocations.into_iter().map(|invocation| invocation.event_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    events.reverse();
    assert_eq!(listed, events);
    let request = ListInvocationsRequest { states: vec![InvocationState::DeadLettered.into()], ..Default::default() };
    let none = tenant.invocations().list_invocations(request).await.expect("a page").into_inner().invocations;
    assert!(none.is_empty());
    let request = ListInvocationsRequest { page_token: "bm9uc2Vuc2U".to_owned(), ..Default::default() };
    assert_refused(tenant.invocations().list_invocations(request).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}

#[tokio::test]
async fn lists_begin_at_a_time_and_end_before_another() {
    let (tenant, _receiver) = Tenant::with_listener(vec![Answer::Status(200)]).await;
    let mut events = Vec::new();
    for n in 0..3 {
        let event_id = tenant.publish("CUSTOM_RUN", &json!({"n": n})).await.event_id;
        let made = tenant.all_invocations_become(&event_id, InvocationState::Succeeded).await;
        events.push((event_id, made[0].create_time));
    }
    let [(first, _), (second, at_second), (third, at_third)] = &events[..] else { panic!("three events") };
    for states in [vec![], vec![InvocationState::Succeeded.into()]] {
        for (start_time, end_time, wanted) in [
            (*at_second, None, vec![third, second]),
            (None, *at_second, vec![first]),
            (*at_second, *at_third, vec![second]),
            (*at_third, *at_third, vec![]),
        ] {
            let request = ListInvocationsRequest { states: states.clone(), start_time, end_time, ..Default::default() };
            let page = tenant.invocations().list_invocations(request).await.expect("a page").into_inner();
            let listed: Vec<_> = page.invocations.iter().map(|invocation| &invocation.event_id).collect();
            assert_eq!(listed, wanted, "{states:?} {start_time:?} {end_time:?}");
        }
    }
}
