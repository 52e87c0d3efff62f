//! Between proto and domain: pure conversions, with the path of the field that is wrong. No I/O, no async, no state.

pub mod admin;
pub mod event;
pub mod event_type;
pub mod explain;
pub mod invocation;
pub mod page;
pub mod pre;
pub mod subscription;
pub mod time;

use aws_lc_rs::digest;

const DISPLAY_NAME_CHARS_MAX: usize = 128;
const DESCRIPTION_CHARS_MAX: usize = 4_096;

/// A field of a request that breaks its documented shape or bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct FieldError {
    /// Path in the request, e.g. `event.source`.
    pub field: String,
    /// What is wrong, without the value.
    pub description: String,
}

impl FieldError {
    /// Names a field and what is wrong with it.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// Checks a name for people: empty, or 1 to 128 characters of one line that can be seen for what they are.
///
/// None is a control character (Unicode's Cc), ends a line, turns the direction of text, or has no width; joiners are let through, since
/// scripts and emoji need them, but are not all there is.
pub fn display_name(field: &str, value: String) -> Result<String, FieldError> {
    if value.contains(char::is_control) {
        return Err(FieldError::new(field, "must not contain control characters"));
    }
    if value.contains(|c| turns(c) || is_unseen(c) || matches!(c, '\u{2028}' | '\u{2029}')) {
        let rule = "must not contain characters of no width, nor any that end a line or turn the direction of text";
        return Err(FieldError::new(field, rule));
    }
    if !value.is_empty() && value.chars().all(is_blank) {
        return Err(FieldError::new(field, "must not be blank"));
    }
    bounded(field, value, DISPLAY_NAME_CHARS_MAX)
}

/// Checks a text for people: at most 4,096 characters, of control characters only line feeds and tabs, none that turns the direction of
/// text.
pub fn description(field: &str, value: String) -> Result<String, FieldError> {
    if value.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')) {
        return Err(FieldError::new(field, "must not contain control characters other than line feeds and tabs"));
    }
    if value.contains(turns) {
        return Err(FieldError::new(field, "must not contain characters that turn the direction of text"));
    }
    bounded(field, value, DESCRIPTION_CHARS_MAX)
}

/// True for what makes text read otherwise than it is stored: Unicode's `Bidi_Control`.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// True for what is not seen and does nothing to what is beside it: Unicode's `Default_Ignorable_Code_Point` and the marks of annotations,
/// but for what scripts and emoji need and the fillers of Hangul.
fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    ) || matches!(c, '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}')
        || (matches!(c, '\u{e0000}'..='\u{e0fff}') && !is_of_emoji(c))
}

/// True for the variation selectors and tags that emoji are made with.
fn is_of_emoji(c: char) -> bool {
    matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{e0020}'..='\u{e007f}' | '\u{e0100}'..='\u{e01ef}')
}

/// True for what shows nothing by itself: spaces, joiners, selectors, and the letters and patterns that are empty.
fn is_blank(c: char) -> bool {
    c.is_whitespace()
        || is_of_emoji(c)
        || matches!(c, '\u{200c}' | '\u{200d}' | '\u{115f}' | '\u{1160}' | '\u{180b}'..='\u{180f}')
        || matches!(c, '\u{2800}' | '\u{3164}' | '\u{ffa0}')
}

fn bounded(field: &str, value: String, chars_max: usize) -> Result<String, FieldError> {
    if value.len() > chars_max && value.chars().count() > chars_max {
        return Err(FieldError::new(field, format!("must be at most {chars_max} characters")));
    }
    Ok(value)
}

/// Checks a slug: `[a-z][a-z0-9-]{0,62}`.
pub fn slug(field: &str, value: String) -> Result<String, FieldError> {
    let mut bytes = value.bytes();
    let head = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
    let tail = bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if value.is_empty() {
        Err(FieldError::new(field, "is required"))
    } else if head && tail && value.len() <= 63 {
        Ok(value)
    } else {
        Err(FieldError::new(field, "must match [a-z][a-z0-9-]{0,62}"))
    }
}

/// Checks a request id: at most 256 printable ASCII characters; none where it is empty.
pub fn request_id(field: &str, value: &str) -> Result<Option<String>, FieldError> {
    if value.len() > 256 || !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(FieldError::new(field, "must be at most 256 printable ASCII characters"));
    }
    Ok((!value.is_empty()).then(|| value.to_owned()))
}

/// SHA-256, as what is sent twice is compared by.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Reads an etag: the registry version of the last change; none where it is empty.
///
/// What this service never sent reads as a version that no resource has, so that it never matches.
pub fn etag(value: &str) -> Option<i64> {
    if value.is_empty() {
        return None;
    }
    let version = value.parse::<i64>().ok().filter(|version| version.to_string() == value);
    Some(version.unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_for_people_are_bounded_in_characters_and_hold_no_control_characters() {
        assert!(display_name("f", "ü".repeat(128)).is_ok());
        assert!(display_name("f", "ü".repeat(129)).is_err());
        assert!(description("f", "ü".repeat(4_096)).is_ok());
        assert!(description("f", "ü".repeat(4_097)).is_err());
        for control in (0..=0x9f).filter_map(char::from_u32).filter(|c| c.is_control()) {
            let text = format!("a{control}b");
            let refused = |checked: Result<String, FieldError>| checked.err().map(|error| error.field);
            assert_eq!(refused(display_name("a.b", text.clone())), Some("a.b".to_owned()), "{text:?}");
            let kept = matches!(control, '\n' | '\t');
            assert_eq!(refused(description("a.b", text.clone())), (!kept).then(|| "a.b".to_owned()), "{text:?}");
        }
    }

    #[test]
    fn names_for_people_can_be_seen_for_what_they_are() {
        for blank in [" ", "\t", "\u{a0}\u{3000}", "\u{200d}", " \u{200c} ", "\u{3164}", "\u{2800}"] {
            assert!(display_name("f", blank.to_owned()).is_err(), "{blank:?}");
        }
        for hidden in
            [0xad, 0x34f, 0x17b4, 0x180e, 0x200b, 0x2028, 0x2029, 0x2060, 0x206a, 0xfeff, 0xfff9, 0x1d173, 0xe0001]
                .into_iter()
                .filter_map(char::from_u32)
        {
            assert!(display_name("f", format!("a{hidden}b")).is_err(), "{hidden:?}");
            assert!(description("f", format!("a{hidden}b")).is_ok(), "{hidden:?}");
        }
        let turning = [0x61c, 0x200e, 0x200f].into_iter().chain(0x202a..=0x202e).chain(0x2066..=0x2069);
        for turning in turning.filter_map(char::from_u32) {
            assert!(display_name("f", format!("a{turning}b")).is_err(), "{turning:?}");
            assert!(description("f", format!("a{turning}b")).is_err(), "{turning:?}");
        }
        // What scripts and emoji need, and what is written from right to left by itself.
        for name in ["", "a b", "می\u{200c}خواهم", "👩\u{200d}🚀", "שלום", "क्\u{200d}ष"] {
            assert_eq!(display_name("f", name.to_owned()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn slugs_and_request_ids_have_one_shape() {
        assert!(slug("app", "a-1".to_owned()).is_ok());
        for wrong in ["", "A", "1a", "a_b", "a\0", "-a", "ä"] {
            assert!(slug("app", wrong.to_owned()).is_err(), "{wrong:?}");
        }
        assert!(slug("app", "a".repeat(64)).is_err());
        assert_eq!(request_id("request_id", ""), Ok(None));
        assert_eq!(request_id("request_id", "a b~"), Ok(Some("a b~".to_owned())));
        for wrong in ["\n", "ä", "\0", &"x".repeat(257)] {
            assert!(request_id("request_id", wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_etag_that_was_never_sent_matches_nothing() {
        assert_eq!(etag(""), None);
        assert_eq!(etag("17"), Some(17));
        for foreign in ["+17", "017", "x", "9999999999999999999999", "\0"] {
            assert_eq!(etag(foreign), Some(-1), "{foreign:?}");
        }
    }
}
