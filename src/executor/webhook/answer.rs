//! Judges what a receiver did: status, `Retry-After`, the start of the body, or the way it failed.
//!
//! Stands between the client and the [`Outcome`] that dispatch records. Whatever it keeps of an answer is bounded, printable,
//! and free of what the request carried as a secret.

use super::connector::ConnectError;
use crate::clock;
use crate::domain::invocation::{Outcome, OutcomeClass};
use chrono::DateTime;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use hyper_util::client::legacy;
use std::error::Error;
use std::time::Duration;

/// Most bytes of an answer's body that a record shows.
const EXCERPT_BYTES_MAX: usize = 1024;
/// Bytes that are looked at for it: a secret that the cut would split must still be recognised.
pub const EXCERPT_SOURCE_BYTES: usize = 4096;
/// Shorter header values are no secrets, and removing them would only garble the excerpt.
const SECRET_BYTES_MIN: usize = 6;

/// The outcome of an answer that arrived whole, or up to the bytes that are read.
pub fn judge(status: StatusCode, retry_after: Option<Duration>, excerpt: Option<String>) -> Outcome {
    let code = status.as_u16();
    let (class, error) = match code {
        200..=299 => (OutcomeClass::Succeeded, None),
        300..=399 => (
            OutcomeClass::Failed,
            Some(format!("The receiver answered with status {code}; redirects are not followed.")),
        ),
        410 => (OutcomeClass::Gone, Some("The receiver answered with status 410: it is gone for good.".to_owned())),
        429 | 502 | 503 | 504 => {
            (OutcomeClass::Throttled, Some(format!("The receiver answered with status {code} and asks to slow down.")))
        }
        _ => (OutcomeClass::Failed, Some(format!("The receiver answered with status {code}."))),
    };
    // A wish for the next attempt means nothing where there will be none.
    let retry_after = if class.is_retryable() { retry_after } else { None };
    Outcome { class, status_code: code, retry_after, excerpt, error }
}

/// The outcome of an attempt that did not end by its deadline. `status` is 0 where not even that had arrived. Where it has and the body
/// decides nothing, a success is one.
pub fn late(status: u16, body_decides: bool) -> Outcome {
    if (200..300).contains(&status) && !body_decides {
        return Outcome {
            class: OutcomeClass::Succeeded,
            status_code: status,
            retry_after: None,
            excerpt: None,
            error: None,
        };
    }
    let error = match status {
        0 => "The receiver did not answer in time.",
        _ => "The receiver did not finish its answer in time.",
    };
    failed(OutcomeClass::Timeout, status, error)
}

/// The outcome of a connection that broke after the status.
pub fn cut_off(status: StatusCode) -> Outcome {
    failed(OutcomeClass::Unreachable, status.as_u16(), "The connection broke before the answer was complete.")
}

/// The outcome of a request that got no answer.
pub fn unanswered(error: &legacy::Error) -> Outcome {
    if let Some(connect) = connect_error(error) {
        return unconnected(connect);
    }
    let parses =
        |cause: &(dyn Error + 'static)| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
    if causes(error).any(parses) {
        return failed(
            OutcomeClass::Failed,
            0,
            "The receiver's answer is not valid HTTP, or its headers are too large.",
        );
    }
    failed(OutcomeClass::Unreachable, 0, "The connection broke before an answer arrived.")
}

/// True where there is no way to the receiver: its name or its port is not there, or its certificate is not to be trusted. A connection
/// that was made and broke is none of that.
pub fn is_unreached(error: &legacy::Error) -> bool {
    connect_error(error).is_some_and(ConnectError::is_lasting)
}

fn connect_error(error: &legacy::Error) -> Option<&ConnectError> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn causes<'e>(error: &'e legacy::Error) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    let first: &'e (dyn Error + 'static) = error;
    std::iter::successors(Some(first), |cause: &&'e (dyn Error + 'static)| (*cause).source())
}

fn unconnected(error: &ConnectError) -> Outcome {
    let class = match error {
        ConnectError::Blocked(_) => OutcomeClass::BlockedAddress,
        ConnectError::Timeout(_) => OutcomeClass::Timeout,
        ConnectError::NotFound | ConnectError::Unanswered(_) | ConnectError::Refused(_) | ConnectError::Tls(..) => {
            OutcomeClass::Unreachable
        }
    };
    failed(class, 0, &format!("The receiver was not called: {error}."))
}

fn failed(class: OutcomeClass, status_code: u16, error: &str) -> Outcome {
    Outcome { class, status_code, retry_after: None, excerpt: None, error: Some(error.to_owned()) }
}

/// The receiver's wish for the next attempt: seconds, or a date. What is neither is no wish.
///
/// Units: at most 2^32 - 1 seconds, so that nobody's arithmetic overflows; the policy clamps it further.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let longest = u64::from(u32::MAX);
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are a very long wait, too.
        return Some(Duration::from_secs(text.parse().unwrap_or(longest).min(longest)));
    }
    let date = DateTime::parse_from_rfc2822(text).ok()?;
    let seconds = date.signed_duration_since(clock::now()).num_seconds();
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(longest)))
}

/// True where the body is JSON by its content type.
pub fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(crate::domain::event::is_json)
}

/// What a request carried that nobody may read where its receiver sends it back.
#[derive(Clone, Copy)]
pub struct Secrets<'a> {
    /// The target's own header fields.
    pub headers: &'a [(String, String)],
    pub signature: &'a str,
}

impl Secrets<'_> {
    /// A text of the receiver's without them. It is cut only afterwards: half a secret is not recognised.
    pub fn redact(self, mut text: String) -> String {
        // The whole value first, then each word of it: a receiver may send back what stands behind `Bearer`.
        let headers =
            self.headers.iter().flat_map(|(_, value)| std::iter::once(value.as_str()).chain(value.split(' ')));
        for secret in headers.chain(self.signature.split(' ')).filter(|secret| secret.len() >= SECRET_BYTES_MIN) {
            if text.contains(secret) {
                text = text.replace(secret, "[redacted]");
            }
        }
        text
    }
}

/// The start of a body as printable text, without anything secret that the request carried and the receiver sent back.
pub fn excerpt(body: &[u8], secrets: Secrets<'_>) -> Option<String> {
    if body.is_empty() {
        return None;
    }
    let mut text = secrets.redact(String::from_utf8_lossy(body).into_owned());
    text.truncate(text.floor_char_boundary(EXCERPT_BYTES_MAX));
    if text.contains(char::is_control) {
        text = text.replace(char::is_control, " ");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::egress::Blocked;
    use super::*;

    fn wish(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().expect("a header value"));
        retry_after(&headers)
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_never_overflows() {
        assert_eq!(wish("121"), Some(Duration::from_secs(121)));
        assert_eq!(wish("0"), Some(Duration::ZERO));
        let longest = Some(Duration::from_secs(u64::from(u32::MAX)));
        assert_eq!(wish("99999999999999999999999999"), longest);
        assert_eq!(wish("18446744073709551615"), longest);
        assert_eq!(wish("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let soon = (clock::now() + chrono::Duration::seconds(90)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        assert!(wish(&soon).is_some_and(|wait| (80..=90).contains(&wait.as_secs())), "{soon}");
        assert!(wish("Fri, 31 Dec 9999 23:59:59 GMT").is_some());
        for nonsense in ["", "-1", "1.5", "soon", "1e9", "0x10"] {
            assert_eq!(wish(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn the_status_decides_the_class() {
        use OutcomeClass::{Failed, Gone, Succeeded, Throttled};
        let cases = [
            (101, Failed),
            (200, Succeeded),
            (204, Succeeded),
            (299, Succeeded),
            (301, Failed),
            (304, Failed),
            (307, Failed),
            (400, Failed),
            (404, Failed),
            (410, Gone),
            (429, Throttled),
            (500, Failed),
            (501, Failed),
            (502, Throttled),
            (503, Throttled),
            (504, Throttled),
            (599, Failed),
            (999, Failed),
        ];
        for (code, class) in cases {
            let outcome = judge(StatusCode::from_u16(code).expect("a status"), Some(Duration::from_secs(5)), None);
            assert_eq!((outcome.class, outcome.status_code), (class, code));
            assert_eq!(outcome.error.is_none(), class == Succeeded, "{code}");
            assert_eq!(outcome.retry_after.is_some(), class.is_retryable(), "{code}");
        }
    }

    #[test]
    fn receivers_that_cannot_be_called_are_told_apart() {
        use OutcomeClass::{BlockedAddress, Timeout, Unreachable};
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let cases = [
            (ConnectError::NotFound, Unreachable, "the host name cannot be resolved"),
            (
                ConnectError::Unanswered("Query Refused"),
                Unreachable,
                "the name servers failed to answer: Query Refused",
            ),
            (ConnectError::Refused(refused()), Unreachable, "no connection could be made"),
            (ConnectError::Tls("it broke", refused()), Unreachable, "the TLS handshake failed: it broke"),
            (ConnectError::Timeout("connecting"), Timeout, "connecting took too long"),
            (ConnectError::Blocked(Blocked::Address), BlockedAddress, "its host is not a public address"),
        ];
        for (error, class, text) in cases {
            let outcome = unconnected(&error);
            assert_eq!((outcome.class, outcome.status_code), (class, 0));
            assert_eq!(outcome.error, Some(format!("The receiver was not called: {text}.")));
        }
    }

    #[test]
    fn excerpts_are_short_printable_and_free_of_the_requests_secrets() {
        let headers = [("authorization", "Bearer abcdef"), ("x", "e")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let secrets = Secrets { headers: &headers, signature: "v1,AAAA v1,BBBB" };
        let excerpt = |body: &[u8]| excerpt(body, secrets).unwrap_or_default();
        assert_eq!(excerpt(b""), "");
        assert_eq!(excerpt(b"a\r\n\x1b[31mb\0\xff"), "a   [31mb \u{fffd}");
        assert_eq!(excerpt(b"got Bearer abcdef and v1,BBBB"), "got [redacted] and [redacted]");
        assert_eq!(excerpt(b"bad token abcdef"), "bad token [redacted]");
        assert_eq!(excerpt("\u{20ac}".repeat(1000).as_bytes()).len(), 1023);
    }
}
