//! JSON texts: the strictness that every payload meets before it is stored, without building a tree.
//!
//! Publish checks a payload here when its event type has no schema, and `schema` and `filter` read JSON by the same rules. Nothing
//! here keeps, rounds or rewrites a payload: what is accepted is delivered byte for byte.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// How deep arrays and objects may be nested in a payload.
pub const DEPTH_MAX: usize = 127;

/// Bytes that are not one JSON text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {message}")]
pub struct JsonError {
    /// Where, in bytes from 0.
    pub offset: usize,
    /// What is wrong, without the payload's text.
    pub message: String,
}

/// Checks that the bytes are one JSON text (RFC 8259): UTF-8 without a byte order mark, nested at most [`DEPTH_MAX`] deep, no lone
/// surrogates, nothing behind it. Numbers of any size and repeated keys are accepted.
pub fn check_json(data: &[u8]) -> Result<(), JsonError> {
    let mut parser = serde_json::Deserializer::from_slice(data);
    Check(data).deserialize(&mut parser).and_then(|()| parser.end()).map_err(|error| to_json_error(data, &error))
}

/// The place and the cause of an error of the parser.
pub(super) fn to_json_error(data: &[u8], error: &serde_json::Error) -> JsonError {
    // The parser counts lines from 1 and columns in bytes read on the line; its text ends in " at line L column C".
    let line_start = match error.line() {
        0 | 1 => 0,
        line => data
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(line - 2)
            .map_or(data.len(), |(newline, _)| newline + 1),
    };
    let offset = (line_start + error.column()).saturating_sub(1).min(data.len());
    let text = error.to_string();
    let message = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]).to_owned();
    JsonError { offset, message }
}

/// The name under which the parser hands out numbers that it keeps as text. A payload's own key of that name would be mistaken for
/// a number, so that payload is refused.
const NUMBER_KEY: &str = "$serde_json::private::Number";
/// The name under which it takes in texts that it keeps as they are. A tree holds what stands in a payload's own value of that name in place
/// of the object, however deep, so that payload is refused too.
const RAW_KEY: &str = "$serde_json::private::RawValue";

/// What a key of an object stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key<'de> {
    /// The object is the parser's wrapping of a number, whose text is the value.
    Number,
    /// A key without escapes.
    Borrowed(&'de str),
    /// A key with escapes.
    Owned(String),
}

/// Reads one key. Holds the bytes that are parsed, which tell a payload's key from the parser's own [`NUMBER_KEY`]. It never hands out [`RAW_KEY`].
#[derive(Clone, Copy)]
pub(super) struct KeySeed<'a>(pub(super) &'a [u8]);

/// What a payload with such a key is told.
const RESERVED_KEY: &str = "a reserved key ($serde_json::private::...)";

impl JsonError {
    /// True where the text is JSON, and holds a key that no payload may have.
    pub fn is_reserved_key(&self) -> bool {
        self.message == RESERVED_KEY
    }

    /// What is said of the text, with the place.
    pub fn told(&self) -> String {
        format!("{}: {self}", if self.is_reserved_key() { "cannot be taken" } else { "is not JSON" })
    }
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key<'de>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, key: &'de str) -> Result<Key<'de>, E> {
        if key != NUMBER_KEY && key != RAW_KEY {
            return Ok(Key::Borrowed(key));
        }
        let written = key == RAW_KEY || self.0.as_ptr_range().contains(&key.as_ptr());
        if written { Err(E::custom(RESERVED_KEY)) } else { Ok(Key::Number) }
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Key<'de>, E> {
        if key == NUMBER_KEY || key == RAW_KEY { Err(E::custom(RESERVED_KEY)) } else { Ok(Key::Owned(key.to_owned())) }
    }
}

/// Reads one value and keeps nothing of it.
#[derive(Clone, Copy)]
struct Check<'a>(&'a [u8]);

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // Not `deserialize_ignored_any`: that one checks neither the depth nor the strings.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while elements.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key_seed(KeySeed(self.0))? {
            if key == Key::Number {
                return members.next_value::<IgnoredAny>().map(|_| ());
            }
            members.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_json_text_is_accepted() {
        let digits = "9".repeat(100_000);
        let many = (0..1000).map(|i| format!("\"k{i}\":{i}")).collect::<Vec<_>>().join(",");
        let many = format!("{{{many}}}");
        let deep = format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        for text in [
            "null",
            " true\n",
            "\"\\u0000\"",
            "\"\\ud83d\\ude00\"",
            "9007199254740993",
            "-0.0",
            "1e400",
            "[]",
            "{}",
            r#"{"a":1,"a":2}"#,
            r#"{"a":[1,{"b":[]}],"c\u0041":"d"}"#,
            &digits,
            &many,
            &deep,
        ] {
            assert_eq!(check_json(text.as_bytes()), Ok(()), "{}", text.chars().take(40).collect::<String>());
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_the_byte() {
        let offset = |data: &[u8]| check_json(data).expect_err("not JSON").offset;
        assert_eq!(offset(b""), 0);
        assert_eq!(offset(b"\xef\xbb\xbf{}"), 0);
        assert_eq!(offset(b"{} x"), 3);
        assert_eq!(offset(b"{\n \"a\": 1,\n \"b\": nul\n}"), 20);
        assert_eq!(offset(b"[1,]"), 3);
        for wrong in
            [&b"\"\\ud800\""[..], b"\"\xff\"", b"01", b"1.", b"NaN", b"'a'", b"[1", b"{\"a\"}", b"\"\n\"", b"\0"]
        {
            assert!(check_json(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nesting_is_bounded_without_using_up_the_stack() {
        let deep = "[".repeat(DEPTH_MAX + 1) + &"]".repeat(DEPTH_MAX + 1);
        assert!(check_json(deep.as_bytes()).expect_err("too deep").message.contains("recursion limit"));
        assert!(check_json("[".repeat(1 << 20).as_bytes()).is_err());
        assert!(check_json("{\"a\":".repeat(1 << 18).as_bytes()).is_err());
    }

    #[test]
    fn an_object_cannot_pass_for_a_number() {
        for text in [
            r#"{"$serde_json::private::Number":"5"}"#,
            r#"{"\u0024serde_json::private::Number":"5"}"#,
            r#"[{"a":{"$serde_json::private::Number":"x"}}]"#,
            r#"{"$serde_json::private::RawValue":"5"}"#,
            r#"{"a":1,"\u0024serde_json::private::RawValue":5}"#,
        ] {
            let error = check_json(text.as_bytes()).expect_err("refused");
            assert!(error.is_reserved_key() && error.message.contains("reserved key"), "{text}: {error}");
        }
    }

    #[test]
    fn messages_do_not_repeat_the_payload() {
        let error = check_json(br#"{"secret-key": "secret-value" 5}"#).expect_err("not JSON");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
