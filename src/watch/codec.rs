//! Messages of a watch as bytes: whole gRPC frames, put together from events that were encoded once.
//!
//! A frame is what travels: one byte "not compressed", four bytes of length, and a `WatchResponse`. Frames are immutable and
//! shared: a thousand streams at the same place send the same bytes.

use super::ring::RingEntry;
use crate::proto::public::{EventView, WatchResponse, watch_response::Kind};
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use std::sync::Arc;

/// `cursor = 1` of WatchResponse; also `events = 1` of WatchEvents and `event = 1` of WatchedEvent: length-delimited field 1.
const FIELD_1: u8 = 0x0a;
/// `filters = 2` of WatchedEvent.
const FILTERS: u8 = 0x12;
/// `events = 3` of WatchResponse.
const EVENTS: u8 = 0x1a;
/// One byte for the compression flag, four for the length.
const PREFIX: usize = 5;

/// An event to deliver, with the names of the filters that selected it.
#[derive(Debug)]
pub(super) struct Delivery<'a> {
    pub(super) entry: &'a Arc<RingEntry>,
    pub(super) names: Vec<&'a str>,
}

/// A frame with events.
pub(super) fn events_frame(cursor: &str, deliveries: &[Delivery<'_>], view: EventView) -> Bytes {
    let sizes: Vec<(usize, usize)> = deliveries.iter().map(|delivery| watched_sizes(delivery, view)).collect();
    let list: usize = sizes.iter().map(|(_, whole)| *whole).sum();
    let length = field_size(cursor.len()) + field_size(list);
    let mut frame = prefixed(length);
    put_field(&mut frame, FIELD_1, cursor.as_bytes());
    frame.put_u8(EVENTS);
    encode_varint(list as u64, &mut frame);
    for (delivery, (inner, _)) in deliveries.iter().zip(&sizes) {
        frame.put_u8(FIELD_1);
        encode_varint(*inner as u64, &mut frame);
        put_field(&mut frame, FIELD_1, delivery.entry.encoded(view));
        for name in &delivery.names {
            put_field(&mut frame, FILTERS, name.as_bytes());
        }
    }
    debug_assert_eq!(frame.len(), PREFIX + length, "the sizes are computed as the bytes are written");
    frame.freeze()
}

/// Bytes that an entry adds to a message, names apart.
pub(super) fn entry_size(entry: &RingEntry, view: EventView) -> usize {
    field_size(field_size(entry.encoded(view).len()))
}

/// A frame of any other kind.
pub(super) fn frame(cursor: String, kind: Kind) -> Bytes {
    let message = WatchResponse { cursor, kind: Some(kind) };
    let mut frame = prefixed(message.encoded_len());
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// Reads a frame back, for callers that want messages instead of bytes.
pub fn decode(frame: &Bytes) -> Result<WatchResponse, prost::DecodeError> {
    WatchResponse::decode(frame.slice(PREFIX.min(frame.len())..))
}

/// Sizes of a WatchedEvent: its content, and the whole with the field header in WatchEvents.
fn watched_sizes(delivery: &Delivery<'_>, view: EventView) -> (usize, usize) {
    let names: usize = delivery.names.iter().map(|name| field_size(name.len())).sum();
    let inner = field_size(delivery.entry.encoded(view).len()) + names;
    (inner, field_size(inner))
}

/// Size of a length-delimited field with a one-byte tag.
fn field_size(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn put_field(frame: &mut BytesMut, tag: u8, content: &[u8]) {
    frame.put_u8(tag);
    encode_varint(content.len() as u64, frame);
    frame.put_slice(content);
}

fn prefixed(length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("messages are bounded far below 4 GiB"));
    frame
}
