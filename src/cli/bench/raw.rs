//! Messages as bytes, so that the client of a bench spends its time on the wire and not on decoding.

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Passes messages through as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What a `WatchResponse` holds, found without decoding the events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether it says that the watch stands.
    pub created: bool,
    /// How many events it holds.
    pub events: u64,
    /// The position of the last of them.
    pub last_position: u64,
}

/// Looks into an encoded `WatchResponse`.
pub fn look(message: &[u8]) -> Seen {
    const CREATED: u64 = 2;
    const EVENTS: u64 = 3;
    let mut seen = Seen::default();
    let mut last = None;
    for (number, value) in Fields(message) {
        match (number, value) {
            (CREATED, _) => seen.created = true,
            (EVENTS, Value::Bytes(events)) => {
                for (_, value) in Fields(events) {
                    seen.events += 1;
                    last = Some(value);
                }
            }
            _ => {}
        }
    }
    // WatchedEvent.event is field 1, Event.position is field 2.
    if let Some(Value::Bytes(watched)) = last {
        seen.last_position = position(watched).unwrap_or_default();
    }
    seen
}

fn position(watched: &[u8]) -> Option<u64> {
    let event = Fields(watched).find_map(|(number, value)| match value {
        Value::Bytes(event) if number == 1 => Some(event),
        _ => None,
    })?;
    Fields(event).find_map(|(number, value)| match value {
        Value::Number(position) if number == 2 => Some(position),
        _ => None,
    })
}

/// The fields of an encoded message; ends where it is not well formed.
struct Fields<'a>(&'a [u8]);

#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut self.0)?),
            1 => Value::Bytes(self.0.split_off(..8)?),
            2 => {
                let length = usize::try_from(varint(&mut self.0)?).ok()?;
                Value::Bytes(self.0.split_off(..length)?)
            }
            5 => Value::Bytes(self.0.split_off(..4)?),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::public::watch_response::Kind;
    use crate::proto::public::{Event, WatchCreated, WatchEvents, WatchResponse, WatchedEvent};
    use prost::Message as _;

    #[test]
    fn events_and_the_last_position_are_found() {
        let event = |position| WatchedEvent {
            event: Some(Event { id: "evt_1".to_owned(), position, ..Event::default() }),
            filters: vec!["a".to_owned()],
        };
        let kind = Kind::Events(WatchEvents { events: vec![event(7), event(300)] });
        let message = WatchResponse { cursor: "c".to_owned(), kind: Some(kind) }.encode_to_vec();
        assert_eq!(look(&message), Seen { created: false, events: 2, last_position: 300 });
        let kind = Kind::Created(WatchCreated { watch_id: "wat_1".to_owned(), filter_version: 1 });
        let message = WatchResponse { cursor: String::new(), kind: Some(kind) }.encode_to_vec();
        assert!(look(&message).created);
        assert_eq!(look(b"\xff\xff"), Seen::default());
    }
}
