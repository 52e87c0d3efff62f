//! The answers of a connection that its peer has not taken yet, and since when.
//!
//! A peer that opens calls and no window for their answers makes the server hold every one of them. Deadlines do not help: the call
//! is over. So each connection knows the oldest answer it still holds, and ends when that is too old; and each answer keeps the place of
//! its call, with the room that it takes, until its bytes are written. A stream may last; one whose peer takes nothing of it is reset.

use super::connections::OpenCall;
use super::in_flight::Place;
use super::stalls::Stream;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

/// Marks a response whose body may last, so that its age says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Streaming;

/// The answers that a connection holds. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// Oldest first.
    since: BTreeMap<u64, Instant>,
    streams: BTreeMap<u64, Arc<Stream>>,
}

/// What a look at a connection's streams has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stalled {
    /// None of them.
    Nothing,
    /// Some, which are reset.
    Part,
    /// Everything that the connection carries.
    Everything,
}

/// A response's body, which knows when the connection has let go of it.
pub struct Answer {
    body: Body,
    /// None for an answer without a body.
    held: Option<(Answers, u64)>,
    /// Only of streams.
    stream: Option<Arc<Stream>>,
    /// The place of the call, where it is not a stream.
    place: Option<Arc<Place>>,
    /// The connection is not idle while it holds this.
    _call: OpenCall,
}

/// Bytes of an answer. The transport may keep them for long after it has let go of the body.
struct Written {
    bytes: Bytes,
    /// Given back with the last of them.
    _place: Arc<Place>,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Answers {
    /// Watches over the body of a response, to which the call is open until then.
    pub fn hold(&self, mut response: http::Response<Body>, call: OpenCall) -> http::Response<Answer> {
        let place = response.extensions_mut().remove::<Arc<Place>>();
        if response.body().is_end_stream() {
            return response.map(|body| Answer { body, held: None, stream: None, place: None, _call: call });
        }
        let stream = response.extensions().get::<Streaming>().map(|_| Arc::new(Stream::new()));
        let mut held = self.lock();
        let id = held.next;
        held.next += 1;
        match &stream {
            Some(stream) => {
                held.streams.insert(id, Arc::clone(stream));
            }
            None => {
                held.since.insert(id, Instant::now());
            }
        }
        drop(held);
        response.map(|body| Answer { body, held: Some((self.clone(), id)), stream, place, _call: call })
    }

    /// Resets the streams of which the peer has taken nothing for longer than the limit.
    pub fn reset_stalled(&self, limit: Duration) -> Stalled {
        let held = self.lock();
        let stalled = held.streams.values().filter(|stream| stream.is_stalled(limit));
        let count = stalled.map(|stream| stream.reset()).count();
        match count {
            0 => Stalled::Nothing,
            _ if count == held.streams.len() && held.since.is_empty() => Stalled::Everything,
            _ => Stalled::Part,
        }
    }

    /// Since when the oldest is held.
    pub fn oldest(&self) -> Option<Instant> {
        self.lock().since.first_key_value().map(|(_, since)| *since)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some((answers, id)) = &self.held {
            let mut held = answers.lock();
            held.since.remove(id);
            held.streams.remove(id);
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Some(stream) = &self.stream {
            if polled.is_ready() { stream.note_handed() } else { stream.note_waiting() }
        }
        match &self.place {
            Some(place) => polled.map_ok(|frame| {
                frame.map_data(|bytes| Bytes::from_owner(Written { bytes, _place: Arc::clone(place) }))
            }),
            None => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::connections::Connections;
    use super::super::in_flight::{Credential, InFlight};
    use super::*;
    use http_body_util::{BodyExt as _, Full};

    fn call() -> OpenCall {
        Connections::new(1, 1).admit([10, 0, 0, 1].into()).unwrap().open_call()
    }

    fn response() -> http::Response<Body> {
        http::Response::new(Body::new(Full::new(Bytes::from_static(b"x"))))
    }

    #[tokio::test]
    async fn the_oldest_answer_is_known_until_it_is_let_go() {
        let answers = Answers::default();
        let first = answers.hold(response(), call());
        let since = answers.oldest().unwrap();
        let second = answers.hold(response(), call());
        assert_eq!(answers.oldest(), Some(since));
        drop(first);
        assert!(answers.oldest().unwrap() >= since);
        drop(second);
        let mut stream = response();
        stream.extensions_mut().insert(Streaming);
        let held = answers.hold(stream, call());
        assert!(answers.oldest().is_none());
        assert_eq!(answers.reset_stalled(Duration::ZERO), Stalled::Nothing, "nothing of it was asked for");
        drop(held);
        let empty = answers.hold(http::Response::new(Body::empty()), call());
        assert!(answers.oldest().is_none() && empty.body().is_end_stream());
    }

    #[tokio::test]
    async fn a_call_is_open_until_the_last_byte_of_its_answer_is_gone() {
        let calls = InFlight::new(1, 1 << 20, 1 << 20);
        let admit = || calls.admit(Credential::Anonymous(None));
        let mut answer = response();
        answer.extensions_mut().insert(Arc::new(admit().unwrap()));
        let mut held = Answers::default().hold(answer, call());
        let bytes = held.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        drop(held);
        assert!(bytes == "x" && admit().is_err());
        drop(bytes);
        let mut empty = http::Response::new(Body::empty());
        empty.extensions_mut().insert(Arc::new(admit().unwrap()));
        let _empty = Answers::default().hold(empty, call());
        assert!(admit().is_ok(), "there is nothing to write");
    }
}
