//! An event as CEL values: its attributes as a map, its payload parsed straight into lists, maps and scalars that borrow from it.

use crate::domain::event::{Attribute, Event};
use crate::domain::json::{Key, KeySeed};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelTimestamp,
};
use cel::common::value::{CowVal, Val};
use chrono::{DateTime, Utc};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

type Boxed<'e> = Box<dyn Val + 'e>;

/// A string that borrows.
pub(super) fn text(text: &str) -> CowVal<'_, '_> {
    CowVal::owned(CelString::from(text))
}

/// The variable `event`.
pub(super) fn attributes(event: &Event) -> Boxed<'_> {
    fn string(text: &str) -> Boxed<'_> {
        Box::new(CelString::from(text))
    }
    let mut map: HashMap<CelMapKey<'_>, Boxed<'_>> = HashMap::with_capacity(6 + event.extensions.len());
    for (name, value) in &event.extensions {
        let value: Boxed<'_> = match value {
            Attribute::Boolean(flag) => Box::new(CelBool::from(*flag)),
            Attribute::Integer(number) => Box::new(CelInt::from(i64::from(*number))),
            Attribute::String(text) | Attribute::Uri(text) | Attribute::UriRef(text) => string(text),
            Attribute::Bytes(bytes) => Box::new(CelBytes::from(bytes.as_ref())),
            Attribute::Timestamp(time) => Box::new(timestamp(*time)),
        };
        map.insert(key(name), value);
    }
    // After the extensions, so that no extension can stand in for an attribute of the event itself.
    map.insert(key("id"), Box::new(CelString::from(event.id.to_string())));
    map.insert(key("source"), string(&event.source));
    map.insert(key("type"), string(event.event_type.as_str()));
    map.insert(key("time"), Box::new(timestamp(event.time)));
    for (name, value) in [("subject", &event.subject), ("datacontenttype", &event.content_type)] {
        match value {
            Some(text) => map.insert(key(name), string(text)),
            None => map.remove(&key(name)),
        };
    }
    Box::new(CelMap::from(map))
}

/// The variable `data`: null where the payload is not JSON.
pub(super) fn data(event: &Event) -> Boxed<'_> {
    if !event.has_json_data() {
        return Box::new(CelNull);
    }
    let bytes = event.data.as_bytes();
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    match (Json(bytes).deserialize(&mut parser), parser.end()) {
        (Ok(value), Ok(())) => value,
        _ => Box::new(CelNull),
    }
}

fn key(name: &str) -> CelMapKey<'_> {
    CelMapKey::from(name)
}

fn timestamp(time: DateTime<Utc>) -> CelTimestamp {
    CelTimestamp::from(time.fixed_offset())
}

/// Reads one JSON value. Holds the bytes that are parsed.
#[derive(Clone, Copy)]
struct Json<'a>(&'a [u8]);

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = Boxed<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Boxed<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Boxed<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Boxed<'de>, E> {
        Ok(Box::new(CelBool::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Boxed<'de>, E> {
        Ok(Box::new(CelInt::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Boxed<'de>, E> {
        Ok(match i64::try_from(value) {
            Ok(integer) => Box::new(CelInt::from(integer)),
            Err(_) => number(&value.to_string()),
        })
    }

    fn visit_f64<E>(self, value: f64) -> Result<Boxed<'de>, E> {
        Ok(Box::new(CelDouble::from(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Boxed<'de>, E> {
        Ok(Box::new(CelString::from(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Boxed<'de>, E> {
        Ok(Box::new(CelString::from(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Boxed<'de>, E> {
        Ok(Box::new(CelNull))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Boxed<'de>, A::Error> {
        let mut list: Vec<Boxed<'de>> = Vec::new();
        while let Some(element) = elements.next_element_seed(self)? {
            list.push(element);
        }
        Ok(Box::new(CelList::from(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Boxed<'de>, A::Error> {
        let mut map: HashMap<CelMapKey<'de>, Boxed<'de>> = HashMap::new();
        while let Some(name) = members.next_key_seed(KeySeed(self.0))? {
            let name: CelMapKey<'de> = match name {
                Key::Number => return members.next_value::<Cow<'de, str>>().map(|text| number(&text)),
                Key::Borrowed(name) => CelMapKey::from(name),
                Key::Owned(name) => CelMapKey::from(name),
            };
            map.insert(name, members.next_value_seed(self)?);
        }
        Ok(Box::new(CelMap::from(map)))
    }
}

/// A number by its text: an integer where it is one that fits, else a double.
fn number<'e>(text: &str) -> Boxed<'e> {
    match text.parse::<i64>() {
        Ok(integer) => Box::new(CelInt::from(integer)),
        Err(_) => Box::new(CelDouble::from(text.parse::<f64>().unwrap_or(f64::NAN))),
    }
}
