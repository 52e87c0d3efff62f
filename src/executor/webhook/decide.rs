//! What a webhook's answer to a PRE event says: agreement, perhaps with an enrichment, or a refusal with its reason.
//!
//! Shape (`docs/pre-events.md`): a body that says `{"decision": "reject", "reason": "..."}` refuses, and so do 409 and 422, whatever
//! becomes of their body. Any other 2xx agrees; it may carry `{"patch": {...}}`, a JSON merge patch. Everything else is a failure. Must
//! never take an answer that it does not understand for agreement, nor a refusal for a failure, which may be ignored.

use super::answer::Secrets;
use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::domain::json::check_json;
use crate::domain::pre::{Answer, shown};
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Most characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 256;

/// Judges an answer. `body` is the whole body, none where it is too long, was cut off or did not arrive in time; `secrets` are those of the
/// request, which a reason may repeat.
pub fn decide(outcome: Outcome, json: bool, body: Option<&[u8]>, secrets: Secrets<'_>) -> (Outcome, Answer) {
    let text = String::from_utf8_lossy(body.unwrap_or_default());
    let members = members(&text);
    let values = |name: &'static str| members.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.get());
    let mut decisions = values("decision").map(string);
    // Whatever stands beside it, and under any status and content type: a refusal that is taken for agreement, or for a failure that
    // is ignored, lets an event through.
    let refuses = decisions.clone().flatten().any(|decision| decision.trim().eq_ignore_ascii_case("reject"));
    if refuses || matches!(outcome.status_code, 409 | 422) {
        let reason = values("reason").find_map(string).map(|reason| secrets.redact(reason));
        // A text is itself the reason.
        let reason = reason.or_else(|| outcome.excerpt.clone().filter(|_| !json && !refuses));
        return rejected(outcome, reason);
    }
    if outcome.class != OutcomeClass::Succeeded {
        return (outcome, Answer::Failed);
    }
    let Some(bytes) = body else { return failed(outcome, "The receiver's answer is too long to be read.") };
    let patches: Vec<&str> = values("patch").collect();
    let decides = decisions.clone().next().is_some() || !patches.is_empty();
    if bytes.is_empty() || !(json || decides) {
        return (outcome, Answer::Agreed(None));
    }
    if let Err(error) = check_json(bytes) {
        let what = if error.is_reserved_key() { format!("has {}", error.message) } else { "is not JSON".to_owned() };
        return failed(outcome, &format!("The receiver's answer {what}."));
    }
    if decisions.any(|decision| decision.as_deref() != Some("accept")) {
        return failed(outcome, "The receiver's decision is neither accept nor reject.");
    }
    if values("reason").any(|reason| reason != "null" && string(reason).is_none()) {
        return failed(outcome, "The receiver's reason is not a text.");
    }
    match patches.as_slice() {
        [] | ["null"] => (outcome, Answer::Agreed(None)),
        [patch] if patch.starts_with('{') => (outcome, Answer::Agreed(Some((*patch).to_owned()))),
        _ => failed(outcome, "The receiver's patch is not one JSON object."),
    }
}

/// The members of an object, each value as its text, as far as they can be read: what is broken further on undoes no refusal. None where
/// it is no object.
fn members(text: &str) -> Vec<(String, &RawValue)> {
    struct Members<'m, 'de>(&'m mut Vec<(String, &'de RawValue)>);
    impl<'de> Visitor<'de> for Members<'_, 'de> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            // A name that is no text is none of ours, and must not end the reading.
            while let Some((name, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
                self.0.push((string(name.get()).unwrap_or_default(), value));
            }
            Ok(())
        }
    }
    let mut members = Vec::new();
    let text = text.trim_start_matches('\u{feff}');
    let _broken_further_on = serde_json::Deserializer::from_str(text).deserialize_map(Members(&mut members));
    members
}

/// The value of a JSON string.
fn string(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
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

    const NONE: Secrets<'static> = Secrets { headers: &[], signature: "" };

    fn answered(status: u16, json: bool, body: &str) -> (OutcomeClass, Answer) {
        let class = if (200..300).contains(&status) { OutcomeClass::Succeeded } else { OutcomeClass::Failed };
        let excerpt = (!body.is_empty()).then(|| body.to_owned());
        let outcome = Outcome { class, status_code: status, retry_after: None, excerpt, error: None };
        let (outcome, answer) = decide(outcome, json, Some(body.as_bytes()), NONE);
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
    fn a_reason_is_free_of_the_requests_secrets_before_it_is_cut() {
        let headers = [("authorization".to_owned(), "Bearer abcdef".to_owned())];
        let secrets = Secrets { headers: &headers, signature: "" };
        let said = |reason: &str| {
            let (class, status_code) = (OutcomeClass::Succeeded, 200);
            let outcome = Outcome { class, status_code, retry_after: None, excerpt: None, error: None };
            let body = serde_json::json!({"decision": "reject", "reason": reason}).to_string();
            decide(outcome, true, Some(body.as_bytes()), secrets).1
        };
        assert_eq!(said("not Bearer abcdef"), Answer::Rejected("not [redacted]".to_owned()));
        let long = "x".repeat(REASON_CHARS_MAX - 3);
        assert_eq!(said(&format!("{long}abcdef")), Answer::Rejected(format!("{long}[re")));
    }

    #[test]
    fn a_decision_that_rejects_is_a_refusal_whatever_stands_beside_it() {
        let no_reason = "no reason given";
        for (body, reason) in [
            (r#"{"decision":"reject","reason":{"code":7}}"#, no_reason),
            (r#"{"decision":"reject","reason":5}"#, no_reason),
            (r#"{"decision":"reject","reason":5,"reason":"b"}"#, "b"),
            (r#"{"decision":"reject","reason":"a","reason":"b"}"#, "a"),
            (r#"{"decision":"accept","decision":"reject"}"#, no_reason),
            (r#"{"decision":"reject","decision":true}"#, no_reason),
            (r#"{"d\u0065cision":"r\u0065ject","patch":[1],"patch":2}"#, no_reason),
            (r#"{"decision":" Reject ","reason":"no"}"#, "no"),
            (r#"{"decision":"reject","reason":"no"} or so"#, "no"),
            (r#"{"decision":"reject","reason":"cut o"#, no_reason),
            ("{\"decision\":\"reject\",\"reason\":\"two\nlines\"}", no_reason),
            (r#"{"\ud800":"\ud800","decision":"reject","reason":"\ud800"}"#, no_reason),
            ("\u{feff}{\"decision\":\"reject\"}", no_reason),
        ] {
            for (status, json) in [(200, true), (200, false), (403, true), (500, false)] {
                let rejected = (OutcomeClass::Rejected, Answer::Rejected(reason.to_owned()));
                assert_eq!(answered(status, json, body), rejected, "{status} {body}");
            }
        }
        let deep = format!(r#"{{"x":{}{},"decision":"reject"}}"#, "[".repeat(1_000), "]".repeat(1_000));
        assert_eq!(answered(200, true, &deep).0, OutcomeClass::Rejected, "deeper than payloads may be");
        let latin = b"{\"reason\":\"gesch\xfctzt\",\"decision\":\"reject\"}";
        let answered =
            Outcome { class: OutcomeClass::Succeeded, status_code: 200, retry_after: None, excerpt: None, error: None };
        assert_eq!(decide(answered, true, Some(latin), NONE).1, Answer::Rejected("gesch\u{fffd}tzt".to_owned()));
    }

    #[test]
    fn a_refusal_is_one_whatever_becomes_of_its_body() {
        use OutcomeClass::{Failed, Timeout, Unreachable};
        for (class, status_code) in [(Failed, 409), (Failed, 422), (Timeout, 409), (Unreachable, 422)] {
            let outcome = Outcome { class, status_code, retry_after: None, excerpt: None, error: None };
            let (outcome, answer) = decide(outcome, true, None, NONE);
            assert_eq!(answer, Answer::Rejected("no reason given".to_owned()), "{class:?} {status_code}");
            assert_eq!(outcome.class, OutcomeClass::Rejected);
        }
        let (class, excerpt) = (Failed, Some("x".repeat(1_000)));
        let long = Outcome { class, status_code: 409, retry_after: None, excerpt, error: None };
        assert_eq!(decide(long, false, None, NONE).1, Answer::Rejected("x".repeat(REASON_CHARS_MAX)));
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
            r#"{"decision":"Accept"}"#,
            r#"{"decision":"accept","decision":"maybe"}"#,
            r#"{"decision":"accept"} or so"#,
            r#"{"x":nothing,"decision":"reject"}"#,
            r#"{"reason":5}"#,
            r#"{"patch":{"a":1},"patch":{"a":2}}"#,
            r#"{"patch":[1]}"#,
            r#"{"patch":"x"}"#,
        ] {
            assert_eq!(answered(200, true, body), failed, "{body}");
        }
        assert_eq!(answered(200, false, r#"{"decision":true}"#), failed);
        assert_eq!(
            answered(200, false, r#"{"patch":{"a":1}} or so"#),
            failed,
            "it may not pass without what it asks for"
        );
        for status in [301, 400, 404, 410, 500, 503] {
            assert_eq!(answered(status, true, "{}"), failed, "{status}");
        }
        let (class, status_code) = (OutcomeClass::Succeeded, 200);
        let outcome = Outcome { class, status_code, retry_after: None, excerpt: None, error: None };
        assert_eq!(decide(outcome, true, None, NONE).1, Answer::Failed, "longer than is read");
    }
}
