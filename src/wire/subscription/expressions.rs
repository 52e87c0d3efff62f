//! The expressions of a subscription: its filter and its ordering key. Pure.

use super::SubscriptionError;
use crate::domain::filter::{Filter, FilterError};
use crate::proto::public as proto;

/// How long the expressions of a subscription are, in bytes.
pub fn expression_bytes(filter: &str, policy: Option<&proto::DeliveryPolicy>) -> usize {
    let ordering = policy.and_then(|policy| policy.ordering.as_ref());
    filter.len() + ordering.map_or(0, |ordering| ordering.key.len())
}

/// Compiles a filter; none where it is empty.
pub fn parse_filter(field: &str, filter: &str) -> Result<Option<Filter>, SubscriptionError> {
    if filter.is_empty() {
        return Ok(None);
    }
    compiled(field, Filter::parse(filter))
}

/// Compiles an expression that is wanted for its value; none where it is empty.
pub(super) fn parse_key(field: &str, expression: &str) -> Result<Option<Filter>, SubscriptionError> {
    if expression.is_empty() {
        return Ok(None);
    }
    compiled(field, Filter::parse_key(expression))
}

fn compiled(field: &str, parsed: Result<Filter, FilterError>) -> Result<Option<Filter>, SubscriptionError> {
    parsed.map(Some).map_err(|error| SubscriptionError::Filter { field: field.to_owned(), error })
}

/// A key that was parsed before; none where it is empty.
#[expect(clippy::unnecessary_wraps, reason = "it stands in for parse_key")]
pub(super) fn stored_key(_: &str, expression: &str) -> Result<Option<Filter>, SubscriptionError> {
    Ok((!expression.is_empty()).then(|| Filter::stored(expression)))
}
