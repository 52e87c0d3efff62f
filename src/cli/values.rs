//! Values of the command line: durations, times, `name=value` pairs, and data from an argument, a file or standard input.
//!
//! Clap calls the parsers; their messages end in a usage error that names the argument.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::error::CliError;
use crate::clock;
use crate::domain::webhook::{SigningSecret, VerificationKey};

/// Shorter texts are no cursors but mistyped words.
const CURSOR_BYTES_MIN: usize = 32;

/// Parses a duration: a number and `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 =
        number.parse().map_err(|_| "write a number and a unit, such as 500ms, 30s, 5m or 2h".to_owned())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86400.0,
        "" => return Err(format!("the unit is missing: write {text}s, {text}m or {text}h")),
        _ => return Err(format!("unknown unit `{unit}`: use ms, s, m, h or d")),
    };
    // Rounded, because 0.1 s and the like have no exact binary form.
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| "is too long".to_owned())?;
    Ok(Duration::from_micros(u64::try_from((duration.as_nanos() + 500) / 1000).map_err(|_| "is too long".to_owned())?))
}

/// Parses a point in time: RFC 3339 (`2026-01-31T12:00:00Z`), or how long ago it was (`15m`).
pub fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let ago = parse_duration(text)
        .map_err(|_| "write a time such as 2026-01-31T12:00:00Z, or how long ago it was, such as 15m".to_owned())?;
    let ago = chrono::TimeDelta::from_std(ago).map_err(|_| "is too long ago".to_owned())?;
    clock::now().checked_sub_signed(ago).ok_or_else(|| "is too long ago".to_owned())
}

/// Parses `name=value`.
pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write name=value".to_owned()),
    }
}

/// Where to start in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// The earliest retained event.
    Earliest,
    /// After the log's end.
    Now,
    /// The first event at or after a time.
    Time(DateTime<Utc>),
    /// After a cursor.
    Cursor(String),
}

/// Parses `earliest`, `now`, a time, how long ago, or a cursor.
pub fn parse_from(text: &str) -> Result<From, String> {
    match text {
        "earliest" => Ok(From::Earliest),
        "now" => Ok(From::Now),
        _ => match parse_time(text) {
            Ok(time) => Ok(From::Time(time)),
            Err(_) if looks_like_a_cursor(text) => Ok(From::Cursor(text.to_owned())),
            Err(_) => {
                Err("write earliest, now, a time such as 2026-01-31T12:00:00Z, how long ago, such as 15m, or a cursor \
                           that an earlier command gave"
                    .to_owned())
            }
        },
    }
}

/// Whether a text may be a cursor: whether it is one, only the server can tell.
fn looks_like_a_cursor(text: &str) -> bool {
    text.len() >= CURSOR_BYTES_MIN
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Reads what an argument names: `@file`, `-` for standard input, or the argument's own text.
pub fn read_input(argument: &str) -> Result<Vec<u8>, CliError> {
    if let Some(path) = argument.strip_prefix('@') {
        return std::fs::read(path).map_err(CliError::file("read", Path::new(path)));
    }
    if argument != "-" {
        return Ok(argument.as_bytes().to_vec());
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(CliError::file("read", "standard input"))?;
    Ok(bytes)
}

/// Reads a JSON Schema or other text, as [`read_input`] does.
pub fn read_text(argument: &str) -> Result<String, CliError> {
    let bytes = read_input(argument)?;
    String::from_utf8(bytes).map_err(|_| CliError::Usage(format!("{argument}: the text is not UTF-8")))
}

/// Reads a webhook signing secret: `whsec_...` or `whsk_...`, or `@file` that holds one.
pub fn read_secret(argument: &str) -> Result<SigningSecret, CliError> {
    let shape = "a signing secret is `whsec_` and base64 of 24 to 64 bytes, or `whsk_` and base64 of an Ed25519 private key; @file \
                 reads it from a file";
    SigningSecret::parse(secret_argument(argument)?.trim()).ok_or_else(|| CliError::Usage(shape.to_owned()))
}

/// Reads what deliveries are verified with: a signing secret, or the public key `whpk_...`, or `@file` that holds one.
pub fn read_verification_key(argument: &str) -> Result<VerificationKey, CliError> {
    let shape = "deliveries are verified with the signing secret `whsec_...`, or with the public key `whpk_...` of a signing key; @file \
                 reads it from a file";
    VerificationKey::parse(secret_argument(argument)?.trim()).ok_or_else(|| CliError::Usage(shape.to_owned()))
}

fn secret_argument(argument: &str) -> Result<String, CliError> {
    if argument.starts_with('@') { read_text(argument) } else { Ok(argument.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("0.1s"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_hours(2)));
        for wrong in ["", "s", "5", "5w", "-5s", "1e400s", "1.2.3s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_start_is_a_word_a_time_or_a_cursor() {
        assert_eq!(parse_from("earliest"), Ok(From::Earliest));
        assert_eq!(parse_from("now"), Ok(From::Now));
        assert!(matches!(parse_from("2026-01-31T12:00:00+01:00"), Ok(From::Time(_))));
        assert!(matches!(parse_from("15m"), Ok(From::Time(_))));
        let cursor = "AQGh_QFs6Hf4u0pRECdNnklAKYHmYRWL4wAAAAAAAAAIAAtKZUXiIWfyjcBj-r5nWcVqwzE";
        assert_eq!(parse_from(cursor), Ok(From::Cursor(cursor.to_owned())));
        for wrong in ["", "bogus", "earlyest", "yesterday", "15", "15 minutes", &format!("{cursor}=")] {
            assert!(parse_from(wrong).is_err_and(|why| why.contains("earliest, now")), "{wrong}");
        }
    }

    #[test]
    fn pairs_split_at_the_first_equals_sign() {
        assert_eq!(parse_pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(parse_pair("a="), Ok(("a".to_owned(), String::new())));
        assert!(parse_pair("=b").is_err());
        assert!(parse_pair("ab").is_err());
    }
}
