//! What a webhook's answer to a PRE event says: agreement, perhaps with an enrichment, or a refusal with its reason.
//!
//! Shape (`docs/pre-events.md`): 2xx agrees, unless its body says `{"decision": "reject", "reason": "..."}`; it may carry
//! `{"patch": {...}}`, a JSON merge patch. 409 and 422 refuse, whatever becomes of their body. Everything else is a failure. Must never
//! take an answer that it does not understand for agreement, nor a refusal for a failure, which may be ignored.

use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::domain::json::check_json;
use crate::domain::pre::{Answer, shown};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::HashMap;

/// Most characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 256;

/// The members that count; others are ignored.
#[derive(Deserialize)]
struct Body<'a> {
    /// Also where it is null, which is neither of the two.
    #[serde(borrow, default, deserialize_with = "present")]
    decision: Option<&'a RawValue>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(borrow, default)]
    patch: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(value).map(Some)
}

/// Judges an answer. `body` is the whole body, none where it is too long, was cut off or did not arrive in time.
pub fn decide(outcome: Outcome, json: bool, body: Option<&[u8]>) -> (Outcome, Answer) {
    // What says that it decides does so under any content type, since a refusal that is taken for agreement lets an event through.
    let members = |bytes| if json || decides(bytes) { parse(bytes) } else { Ok(None) };
    if matches!(outcome.status_code, 409 | 422) {
        // The status alone refuses; the body is only its reason.
        let reason = body.and_then(|bytes| members(bytes).ok().flatten()).and_then(|body| body.reason);
        let reason = reason.or_else(|| outcome.excerpt.clone().filter(|_| !json));
        return rejected(outcome, reason);
    }
    if outcome.class != OutcomeClass::Succeeded {
        return (outcome, Answer::Failed);
    }
    let Some(bytes) = body else { return failed(outcome, "The receiver's answer is too long to be read.") };
    let body = match members(bytes) {
        Ok(Some(body)) => body,
        Ok(None) => return (outcome, Answer::Agreed(None)),
        Err(message) => return failed(outcome, message),
    };
    match body.decision.map(|decision| serde_json::from_str::<String>(decision.get()).unwrap_or_default()).as_deref() {
        None | Some("accept") => {}
        Some("reject") => return rejected(outcome, body.reason),
        Some(_) => return failed(outcome, "The receiver's decision is neither accept nor reject."),
    }
    match body.patch.map(RawValue::get) {
        None | Some("null") => (outcome, Answer::Agreed(None)),
        Some(patch) if patch.starts_with('{') => (outcome, Answer::Agreed(Some(patch.to_owned()))),
        Some(_) => failed(outcome, "The receiver's patch is not a JSON object."),
    }
}

/// True for a JSON object with a member that decides.
fn decides(bytes: &[u8]) -> bool {
    let members = serde_json::from_slice::<HashMap<String, &RawValue>>(bytes);
    members.is_ok_and(|members| members.contains_key("decision") || members.contains_key("patch"))
}

/// The members of a JSON body; none where it is empty, or no object.
fn parse(bytes: &[u8]) -> Result<Option<Body<'_>>, &'static str> {
    if bytes.is_empty() {
        return Ok(None);
    }
    check_json(bytes).map_err(|_| "The receiver's answer is not the JSON that its content type says.")?;
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Ok(None);
    }
    serde_json::from_slice(bytes).map(Some).map_err(|_| "A member of the receiver's answer has the wrong type.")
}

fn rejected(mut outcome: Outcome, reason: Option<String>) -> (Outcome, Answer) {
    let reason = shown(&reason.unwrap_or_default(), REASON_CHARS_MAX);
    let reason = if reason.trim().is_empty() { "no reason given".to_owned() } else { reason };
    outcome.class = OutcomeClass::Rejected;
    outcome.retry_after = None;
    outcome.error = Some("The receiver refuses the event.".to_owned());
    (outcome, Answer::Rejected(reason))
}

fn failed(mut outcome: Outcome, error: &str) -> (Outcome, Answer) {
    outcome.class = OutcomeClass::Failed;
    outcome.error = Some(error.to_owned());
    (outcome, Answer::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, json: bool, body: &str) -> (OutcomeClass, Answer) {
        let class = if (200..300).contains(&status) { OutcomeClass::Succeeded } else { OutcomeClass::Failed };
        let excerpt = (!body.is_empty()).then(|| body.to_owned());
        let outcome = Outcome { class, status_code: status, retry_after: None, excerpt, error: None };
        let (outcome, answer) = decide(outcome, json, Some(body.as_bytes()));
        (outcome.class, answer)
    }

    #[test]
    fn a_success_agrees_unless_its_body_says_otherwise() {
        use OutcomeClass::Succeeded;
        for (json, body) in [(false, ""), (true, ""), (false, "ok"), (true, "null"), (true, "\"ok\""), (true, "{}")] {
            assert_eq!(answered(200, json, body), (Succeeded, Answer::Agreed(None)), "{body}");
        }
        assert_eq!(answered(204, true, r#"{"decision":"accept","x":1}"#), (Succeeded, Answer::Agreed(None)));
        assert_eq!(answered(200, true, r#"{"patch":null}"#), (Succeeded, Answer::Agreed(None)));
        let patched = answered(200, true, r#"{"patch": {"a" : 1e400}}"#);
        assert_eq!(patched, (Succeeded, Answer::Agreed(Some(r#"{"a" : 1e400}"#.to_owned()))));
        let text = answered(200, false, r#"{"reason":"none"}"#);
        assert_eq!(text, (Succeeded, Answer::Agreed(None)), "not JSON by its content type, and it decides nothing");
    }

    #[test]
    fn a_refusal_carries_its_reason() {
        let rejected = |reason: &str| (OutcomeClass::Rejected, Answer::Rejected(reason.to_owned()));
        let body = r#"{"decision":"reject","reason":"on the\nlist","patch":{"a":1}}"#;
        assert_eq!(answered(200, true, body), rejected("on the list"));
        assert_eq!(answered(200, true, r#"{"decision":"reject"}"#), rejected("no reason given"));
        assert_eq!(answered(200, false, r#"{"decision":"reject","reason":"no"}"#), rejected("no"), "as any type");
        assert_eq!(answered(409, true, r#"{"reason":"taken"}"#), rejected("taken"));
        assert_eq!(answered(422, false, "too young"), rejected("too young"));
        assert_eq!(answered(422, true, "{broken"), rejected("no reason given"));
        assert_eq!(answered(409, false, ""), rejected("no reason given"));
        let long = format!(r#"{{"decision":"reject","reason":"{}"}}"#, "\u{20ac}".repeat(1_000));
        assert_eq!(answered(200, true, &long), rejected(&"\u{20ac}".repeat(REASON_CHARS_MAX)));
    }

    #[test]
    fn a_refusal_is_one_whatever_becomes_of_its_body() {
        use OutcomeClass::{Failed, Timeout, Unreachable};
        for (class, status_code) in [(Failed, 409), (Failed, 422), (Timeout, 409), (Unreachable, 422)] {
            let outcome = Outcome { class, status_code, retry_after: None, excerpt: None, error: None };
            let (outcome, answer) = decide(outcome, true, None);
            assert_eq!(answer, Answer::Rejected("no reason given".to_owned()), "{class:?} {status_code}");
            assert_eq!(outcome.class, OutcomeClass::Rejected);
        }
        let (class, excerpt) = (Failed, Some("x".repeat(1_000)));
        let long = Outcome { class, status_code: 409, retry_after: None, excerpt, error: None };
        assert_eq!(decide(long, false, None).1, Answer::Rejected("x".repeat(REASON_CHARS_MAX)));
    }

    #[test]
    fn what_is_not_understood_is_no_agreement() {
        let failed = (OutcomeClass::Failed, Answer::Failed);
        for body in [
            "{",
            "[1] x",
            r#"{"decision":"maybe"}"#,
            r#"{"decision":true}"#,
            r#"{"decision":null}"#,
            r#"{"reason":5}"#,
            r#"{"patch":[1]}"#,
            r#"{"patch":"x"}"#,
        ] {
            assert_eq!(answered(200, true, body), failed, "{body}");
        }
        assert_eq!(answered(200, false, r#"{"decision":true}"#), failed);
        for status in [301, 400, 404, 410, 500, 503] {
            assert_eq!(answered(status, true, "{}"), failed, "{status}");
        }
        let (class, status_code) = (OutcomeClass::Succeeded, 200);
        let outcome = Outcome { class, status_code, retry_after: None, excerpt: None, error: None };
        assert_eq!(decide(outcome, true, None).1, Answer::Failed, "longer than is read");
    }
}
