//! The veto of PRE listeners: what a subscription may do, what a listener answered, and how enrichments become one document.
//!
//! An enrichment is a JSON merge patch (RFC 7386). It is applied to the text of the data: what no patch touches stays byte for byte as
//! published, in its place.

use super::ids::{EventId, SubscriptionId, SubscriptionNo};
use super::invocation::{Attempt, Outcome};
use super::json::check_json;
use chrono::{DateTime, Utc};
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

/// Places that one subscription may enrich, at most.
pub const ENRICH_PATHS_MAX: usize = 16;
/// Characters of such a place, at most.
pub const ENRICH_PATH_CHARS_MAX: usize = 256;
/// Priorities, in both directions.
pub const PRIORITY_MAX: i32 = 1_000;

/// What a listener's failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// The event is aborted.
    #[default]
    Fail,
    /// The listener is left out.
    Ignore,
}

/// How a listener of a PRE event type takes part in the decision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrePolicy {
    /// What its failure means.
    pub failure_policy: FailurePolicy,
    /// Enrichments are applied lowest first.
    pub priority: i32,
    /// The places that it may change.
    pub enrich_paths: Vec<EnrichPath>,
}

/// A JSON pointer (RFC 6901) to a member that an enrichment may change, with everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrichPath(Vec<String>);

/// A text that is not such a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a JSON pointer such as /user/name, of at most {ENRICH_PATH_CHARS_MAX} characters")]
pub struct EnrichPathError;

impl EnrichPath {
    /// Parses a pointer; the empty one means the whole document.
    pub fn parse(text: &str) -> Result<Self, EnrichPathError> {
        if text.chars().count() > ENRICH_PATH_CHARS_MAX || text.contains('\0') {
            return Err(EnrichPathError);
        }
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let tokens = text.strip_prefix('/').ok_or(EnrichPathError)?.split('/');
        tokens.map(unescape).collect::<Option<_>>().map(Self).ok_or(EnrichPathError)
    }

    /// True where one of the two lies within the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(one, another)| one == another)
    }

    /// True for a place at or below this one.
    fn covers(&self, place: &[String]) -> bool {
        self.0.len() <= place.len() && self.0.iter().zip(place).all(|(one, another)| one == another)
    }
}

impl fmt::Display for EnrichPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

fn unescape(token: &str) -> Option<String> {
    let mut text = String::with_capacity(token.len());
    let mut characters = token.chars();
    while let Some(character) = characters.next() {
        match character {
            '~' => text.push(match characters.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            }),
            other => text.push(other),
        }
    }
    Some(text)
}

impl PrePolicy {
    /// The first place that both may change.
    pub fn shared_path<'a>(&'a self, other: &Self) -> Option<&'a EnrichPath> {
        self.enrich_paths.iter().find(|path| other.enrich_paths.iter().any(|another| path.overlaps(another)))
    }
}

/// What became of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictKind {
    /// It agreed.
    Succeeded,
    /// It refused the event.
    Rejected,
    /// It failed, or did not answer in time.
    Failed,
    /// It was still asked when another one decided.
    Cancelled,
    /// It was not asked: it is not active any more.
    Skipped,
}

impl VerdictKind {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "SUCCEEDED",
            Self::Rejected => "REJECTED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Skipped => "SKIPPED",
        }
    }
}

/// What a listener of a PRE event came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The subscription's number.
    pub subscription_no: SubscriptionNo,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// What became of it.
    pub kind: VerdictKind,
    /// Attempts that were made; their number of the last one.
    pub attempt: i32,
    /// When the last attempt started.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: Duration,
    /// How it ended; none where none was made or none has ended.
    pub outcome: Option<Outcome>,
    /// Its reason, or what went wrong; empty where it agreed.
    pub message: String,
    /// Its enrichment, JSON text.
    pub patch: Option<String>,
    /// Attempts before the last one that the owner made who heard it.
    pub failed: Vec<Attempt>,
    /// Whether it was this owner's deadline for all listeners that ended a silence, rather than the policy of the one.
    pub late: bool,
}

/// Why a PRE event was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortReason {
    /// A listener refused it.
    Rejected,
    /// A listener that must not fail has failed.
    ListenerFailed,
    /// The time was up.
    Deadline,
    /// Nobody waited for the answer any more.
    Abandoned,
    /// A delayed event that could not be published when it was due.
    Unpublishable,
}

impl AbortReason {
    /// Its name in events: the reason of the error that a publisher who waits gets, where there is one of its own.
    pub fn code(self) -> &'static str {
        match self {
            Self::Rejected => "PRE_REJECTED",
            Self::ListenerFailed => "PRE_LISTENER_UNAVAILABLE",
            Self::Deadline | Self::Abandoned => "PRE_DEADLINE",
            Self::Unpublishable => "UNPUBLISHABLE",
        }
    }
}

/// A PRE event that will never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aborted {
    /// Its id.
    pub event: EventId,
    /// Why.
    pub reason: AbortReason,
    /// One sentence for people.
    pub message: String,
    /// One per listener, by subscription number.
    pub verdicts: Vec<Verdict>,
}

/// What one answer of a listener says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It agrees, perhaps with an enrichment: the text of a JSON object.
    Agreed(Option<String>),
    /// It refuses, with its reason.
    Rejected(String),
    /// There is no usable answer; the outcome says why.
    Failed,
    /// There is no way to it, now or in a moment; the outcome says why.
    Unreached,
}

/// Why an enrichment is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrichError {
    /// The data has no members that could be changed.
    #[error("the event's data is not a JSON object, so it cannot be enriched")]
    NotAnObject,
    /// The patch is not a JSON object.
    #[error("the patch is not a JSON object")]
    Patch,
    /// It changes what the subscription has not declared.
    #[error("the patch changes {0}, which is not among the subscription's enrich_paths")]
    Undeclared(String),
}

/// Applies a merge patch to the text of an event's data, within the declared places.
pub fn enrich(data: &[u8], patch: &str, paths: &[EnrichPath]) -> Result<Vec<u8>, EnrichError> {
    check_json(patch.as_bytes()).map_err(|_| EnrichError::Patch)?;
    if members(patch).is_none() {
        return Err(EnrichError::Patch);
    }
    let text = std::str::from_utf8(data).map_err(|_| EnrichError::NotAnObject)?;
    if members(text).is_none() {
        return Err(EnrichError::NotAnObject);
    }
    merge(Some(text), patch.trim(), paths, &mut Vec::new()).map(String::into_bytes)
}

fn merge(
    target: Option<&str>,
    patch: &str,
    paths: &[EnrichPath],
    place: &mut Vec<String>,
) -> Result<String, EnrichError> {
    let covers = |place: &[String]| paths.iter().any(|path| path.covers(place));
    let free = covers(place);
    let Some(changes) = members(patch) else {
        return if free { Ok(patch.to_owned()) } else { Err(undeclared(place)) };
    };
    let mut merged = match target.map(members) {
        Some(Some(members)) => members,
        // What is not there, or is no object, becomes one: that changes this very place.
        None if free || !changes.is_empty() => Vec::new(),
        Some(None) if free => Vec::new(),
        _ => return Err(undeclared(place)),
    };
    // One pass over many members, whatever the number of changes. Of a name that stands there twice the last one counts, as readers
    // have it.
    let (last, latest) = (last_of(&merged), last_of(&changes));
    let mut removed = HashSet::new();
    for (_, (name, change)) in changes.iter().enumerate().filter(|(index, (name, _))| latest[name] == *index) {
        place.push(name.clone());
        if change == "null" {
            if !covers(place) {
                return Err(undeclared(place));
            }
            removed.insert(name.as_str());
        } else {
            let last = last.get(name).copied();
            let value = merge(last.map(|index| merged[index].1.as_str()), change, paths, place)?;
            match last {
                Some(index) => merged[index].1 = value,
                None => merged.push((name.clone(), value)),
            }
        }
        place.pop();
    }
    let mut text = String::from("{");
    for (name, value) in merged.iter().filter(|(name, _)| !removed.contains(name.as_str())) {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push(':');
        text.push_str(value);
    }
    text.push('}');
    Ok(text)
}

/// The first of these places (JSON pointers) that a merge patch changes, or changes something above or below. The whole document counts
/// as none: every patch changes that.
pub fn first_changed(patch: &str, pointers: &[String]) -> Option<usize> {
    let place = |pointer: &String| pointer.split('/').skip(1).map(unescape).collect::<Option<Vec<_>>>();
    let places: Vec<_> =
        pointers.iter().enumerate().filter_map(|(index, pointer)| Some((index, place(pointer)?))).collect();
    let within: Vec<_> =
        places.iter().filter(|(_, place)| !place.is_empty()).map(|(index, place)| (*index, &place[..])).collect();
    first_within(patch, &within)
}

fn first_within(patch: &str, places: &[(usize, &[String])]) -> Option<usize> {
    let Some(changes) = members(patch) else {
        // It replaces what the places are in.
        return places.iter().map(|(index, _)| *index).min();
    };
    let here = places.iter().filter(|(_, place)| place.is_empty()).map(|(index, _)| *index);
    let below = |(name, change): &(String, String)| {
        let in_it = places.iter().filter_map(|&(index, place)| match place {
            [first, rest @ ..] if first == name => Some((index, rest)),
            _ => None,
        });
        let in_it: Vec<_> = in_it.collect();
        if in_it.is_empty() { None } else { first_within(change, &in_it) }
    };
    here.chain(changes.iter().filter_map(below)).min()
}

/// Where each name stands last.
fn last_of(members: &[(String, String)]) -> HashMap<String, usize> {
    members.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect()
}

/// A text of a receiver's own as it is told and stored: its first characters, and spaces for those that control something.
pub fn shown(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

fn undeclared(place: &[String]) -> EnrichError {
    // The names are the receiver's, as long as its answer and with any character that JSON can write.
    let place = shown(&EnrichPath(place.to_vec()).to_string(), ENRICH_PATH_CHARS_MAX);
    EnrichError::Undeclared(if place.is_empty() { "the whole document".to_owned() } else { place })
}

/// The members of an object in their order, each value as its text; none where it is no object.
fn members(text: &str) -> Option<Vec<(String, String)>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                members.push((name, value.get().to_owned()));
            }
            Ok(members)
        }
    }
    // A number would be handed out as a map, too.
    if !text.trim_start().starts_with('{') {
        return None;
    }
    serde_json::Deserializer::from_str(text).deserialize_map(Members).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EnrichPath {
        EnrichPath::parse(text).expect("a pointer")
    }

    fn enriched(data: &str, patch: &str, paths: &[&str]) -> Result<String, EnrichError> {
        let paths: Vec<EnrichPath> = paths.iter().map(|text| path(text)).collect();
        enrich(data.as_bytes(), patch, &paths).map(|data| String::from_utf8(data).expect("text"))
    }

    #[test]
    fn pointers_are_parsed_and_written_back() {
        for text in ["", "/a", "/a/b", "/", "/a~0b/c~1d", "/0"] {
            assert_eq!(path(text).to_string(), text);
        }
        let long = format!("/{}", "x".repeat(ENRICH_PATH_CHARS_MAX));
        for wrong in ["a", "#/a", "/~2", "/~", "/\0", long.as_str()] {
            assert_eq!(EnrichPath::parse(wrong), Err(EnrichPathError), "{wrong:?}");
        }
    }

    #[test]
    fn places_overlap_where_one_lies_within_the_other() {
        assert!(path("/a").overlaps(&path("/a")));
        assert!(path("/a").overlaps(&path("/a/b")));
        assert!(path("/a/b").overlaps(&path("/a")));
        assert!(path("").overlaps(&path("/a")));
        assert!(!path("/a").overlaps(&path("/ab")));
        assert!(!path("/a/b").overlaps(&path("/a/c")));
        let policy = |paths: &[&str]| PrePolicy {
            enrich_paths: paths.iter().map(|text| path(text)).collect(),
            ..PrePolicy::default()
        };
        let (one, other) = (policy(&["/x", "/a/b"]), policy(&["/a"]));
        assert_eq!(one.shared_path(&other), Some(&path("/a/b")));
        assert_eq!(one.shared_path(&policy(&["/a/c"])), None);
    }

    #[test]
    fn a_patch_changes_what_it_names_with_what_is_above_and_below() {
        let patch = r#"{"n":"x","user":{"a~/b":1e400,"tags":[1]},"gone":null}"#;
        for place in ["/n", "/user", "/user/a~0~1b", "/user/tags/0", "/gone", "/gone/below"] {
            assert_eq!(first_changed(patch, &[String::new(), "/m".to_owned(), place.to_owned()]), Some(2), "{place}");
        }
        for place in ["", "/m", "/user/name", "/a~0~1b", "/~2"] {
            assert_eq!(first_changed(patch, &[place.to_owned()]), None, "{place}");
        }
    }

    #[test]
    fn what_a_patch_does_not_touch_stays_byte_for_byte() {
        let data = r#"{"z": 9007199254740993, "big":1e400 , "user":{"name" : "Ada","x":[1, 2]},"a":1}"#;
        let merged = enriched(data, r#"{"user":{"group":"staff"},"a":2}"#, &["/user/group", "/a"]);
        let expected = r#"{"z":9007199254740993,"big":1e400,"user":{"name":"Ada","x":[1, 2],"group":"staff"},"a":2}"#;
        assert_eq!(merged.expect("declared"), expected);
        let ordered = enriched("{}", r#"{"z":1.50,"a":{"y": [2 ],"b":1e400},"z":2}"#, &[""]);
        assert_eq!(
            ordered.expect("declared"),
            r#"{"a":{"y":[2 ],"b":1e400},"z":2}"#,
            "a patch keeps its order and its texts"
        );
    }

    #[test]
    fn the_examples_of_the_merge_patch_rfc_hold() {
        // RFC 7386, appendix A, those whose patch and target are objects.
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(enriched(target, patch, &[""]).expect("everything is declared"), result, "{target} {patch}");
        }
    }

    #[test]
    fn a_patch_outside_its_places_is_refused_with_the_place() {
        let undeclared = |data, patch, paths: &[&str]| match enriched(data, patch, paths) {
            Err(EnrichError::Undeclared(place)) => place,
            other => panic!("{other:?}"),
        };
        assert_eq!(undeclared(r#"{"a":1}"#, r#"{"b":1}"#, &["/a"]), "/b");
        assert_eq!(undeclared(r#"{"a":1}"#, r#"{"a":null}"#, &[]), "/a");
        assert_eq!(undeclared(r#"{"a":{}}"#, r#"{"a":{"c":1,"b":2}}"#, &["/a/b"]), "/a/c");
        assert_eq!(undeclared(r#"{"a":"text"}"#, r#"{"a":{"b":2}}"#, &["/a/b"]), "/a", "a text would be replaced");
        assert_eq!(undeclared(r"{}", r#"{"x":{}}"#, &["/x/y"]), "/x");
        assert_eq!(undeclared(r"{}", r#"{"a\u0000b\n":1}"#, &[]), "/a b ", "it can be stored as text");
        let long = format!(r#"{{"{}":1}}"#, "\u{20ac}".repeat(60_000));
        assert_eq!(undeclared(r"{}", &long, &[]).chars().count(), ENRICH_PATH_CHARS_MAX);
        assert_eq!(enriched(r#"{"a":{}}"#, r#"{"a":{"b":2}}"#, &["/a/b"]).as_deref(), Ok(r#"{"a":{"b":2}}"#));
        assert_eq!(enriched(r"{}", r#"{"a":{"b":2}}"#, &["/a/b"]).as_deref(), Ok(r#"{"a":{"b":2}}"#));
    }

    #[test]
    fn only_objects_are_enriched_and_only_by_objects() {
        for data in ["", "5", "[1]", "null", "\"x\"", "1e400"] {
            assert_eq!(enriched(data, "{}", &[""]), Err(EnrichError::NotAnObject), "{data}");
        }
        for patch in ["", "5", "[1]", "null", "{", r#"{"a":"\ud800"}"#] {
            assert_eq!(enriched("{}", patch, &[""]), Err(EnrichError::Patch), "{patch}");
        }
    }
}
