//! ListInvocations: newest event first, by event, subscription, state and time.

use super::InvocationDeps;
use crate::api::registry::{authorised, invalid, principal, wrong_page};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{ListInvocationsRequest, ListInvocationsResponse};
use crate::store::dispatch::Place;
use crate::store::invocations::{InvocationFilter, InvocationKey};
use crate::wire::invocation::{parse_event, parse_states, parse_subscription, parse_time, to_proto};
use crate::wire::page::{PageScope, page_size};
use chrono::{Datelike as _, NaiveDate};
use tonic::Request;

pub(super) async fn handle(
    deps: &InvocationDeps,
    request: Request<ListInvocationsRequest>,
) -> Result<ListInvocationsResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let size = page_size("page_size", request.page_size, 50, 1_000).map_err(invalid)?;
    let subscription = parse_subscription("subscription_id", &request.subscription_id).map_err(invalid)?;
    let filter = InvocationFilter {
        event: parse_event("event_id", &request.event_id).map_err(invalid)?,
        states: parse_states("states", &request.states).map_err(invalid)?,
        from: parse_time("start_time", request.start_time.as_ref()).map_err(invalid)?,
        to: parse_time("end_time", request.end_time.as_ref()).map_err(invalid)?,
        ..InvocationFilter::default()
    };
    let scope = PageScope::new("ListInvocations", caller.tenant)
        .with(caller.app.map(|app| app.to_string()).unwrap_or_default())
        .with(&request.event_id)
        .with(&request.subscription_id)
        .with(request.states.iter().flat_map(|state| state.to_be_bytes()).collect::<Vec<_>>())
        .with(format!("{:?} {:?}", filter.from, filter.to));
    let place = deps.page_tokens.open(&scope, &request.page_token).map_err(wrong_page)?;
    let key = place.map(|bytes| read(&bytes).ok_or(ApiError::PageTokenInvalid)).transpose()?;
    let by = principal(&caller);
    let filter = InvocationFilter { subscription: deps.named(&by, subscription).await?, ..filter };
    let (page, next) = deps.store.list_invocations(&by, &filter, key, size).await?;
    Ok(ListInvocationsResponse {
        invocations: page.iter().map(to_proto).collect(),
        next_page_token: next.map(|key| deps.page_tokens.seal(&scope, &write(&key))).unwrap_or_default(),
    })
}

fn write(key: &InvocationKey) -> Vec<u8> {
    let (day, Place { position, subscription_no }) = (key.day.num_days_from_ce(), key.place);
    [&day.to_be_bytes()[..], &position.to_be_bytes(), &subscription_no.to_be_bytes()].concat()
}

fn read(bytes: &[u8]) -> Option<InvocationKey> {
    let (day, rest) = bytes.split_first_chunk::<4>()?;
    let (position, number) = rest.split_first_chunk::<8>()?;
    Some(InvocationKey {
        day: NaiveDate::from_num_days_from_ce_opt(i32::from_be_bytes(*day))?,
        place: Place {
            position: i64::from_be_bytes(*position),
            subscription_no: i32::from_be_bytes(number.try_into().ok()?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pages_end_survives_its_token_and_other_bytes_are_no_end() {
        let key = InvocationKey {
            day: NaiveDate::from_ymd_opt(2026, 2, 28).expect("a date"),
            place: Place { position: 1 << 40, subscription_no: 7 },
        };
        assert_eq!(read(&write(&key)), Some(key));
        for length in [0, 3, 4, 11, 12, 15, 17] {
            assert_eq!(read(&vec![0; length]), None, "{length}");
        }
    }
}
