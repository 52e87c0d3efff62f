//! How many calls of one credential are open at the same time, and how many bytes the requests and the answers of a tenant take: bounds
//! that no number of connections gets around.
//!
//! A call is open, and its answer has its room, until the last byte of the answer is written: a peer may open no window for it. Calls that
//! need no credential count for the address they come from.

use super::status::ApiError;
use crate::domain::access::Subject;
use crate::domain::ids::{PublisherIdentityId, TenantId};
use crate::domain::places::{self, Places};
use bytes::Bytes;
use dashmap::DashMap;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;

/// When it makes sense to try again: calls end all the time.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Messages up to this size are not counted: the number of calls bounds them.
const SMALL_BYTES: usize = 4 * 1024;
/// What stands before a gRPC message: a flag and its length, four bytes.
const PREFIX_BYTES: usize = 5;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Credential {
    /// Whom an API key or a token stands for, and the tenant.
    Subject(Subject, TenantId),
    /// A publisher's certificate, and the tenant.
    Publisher(PublisherIdentityId, TenantId),
    /// An operator's certificate, by its name.
    Operator(String),
    /// Nobody in particular, from an address.
    Anonymous(Option<IpAddr>),
}

/// Who shares the room for requests and answers, and the connections. A tenant is one, however many credentials it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sharer {
    /// A tenant.
    Tenant(TenantId),
    /// All operators together.
    Operators,
    /// All who have shown no credential.
    Nobody,
}

/// The open calls of a port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InFlight {
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    calls: DashMap<Credential, u32>,
    calls_max: u32,
    /// Bytes of requests.
    requests: Places<Sharer>,
    /// Bytes of answers.
    answers: Places<Sharer>,
}

/// An open call's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    open: Arc<Open>,
    credential: Credential,
    /// The room that the call has: for its request, and then for its answer.
    room: Mutex<Option<places::Place<Sharer>>>,
}

impl Credential {
    /// Whom it counts for.
    pub fn sharer(&self) -> Sharer {
        match self {
            Self::Subject(_, tenant) | Self::Publisher(_, tenant) => Sharer::Tenant(*tenant),
            Self::Operator(_) => Sharer::Operators,
            Self::Anonymous(_) => Sharer::Nobody,
        }
    }
}

impl InFlight {
    /// Takes the bound of each credential's calls, and those of the bytes of all requests and of all answers together.
    pub fn new(calls_max: u32, requests_bytes_max: usize, answers_bytes_max: usize) -> Self {
        let (requests, answers) = (Places::new(requests_bytes_max), Places::new(answers_bytes_max));
        Self { open: Arc::new(Open { calls: DashMap::new(), calls_max, requests, answers }) }
    }

    /// A place for one more call.
    ///
    /// Errors: QUOTA_EXCEEDED at the bound.
    pub fn admit(&self, credential: Credential) -> Result<Place, ApiError> {
        let mut calls = self.open.calls.entry(credential.clone()).or_default();
        if *calls >= self.open.calls_max {
            return Err(full("server.calls_per_credential_max", self.open.calls_max.into()));
        }
        *calls += 1;
        drop(calls);
        Ok(Place { open: Arc::clone(&self.open), credential, room: Mutex::default() })
    }
}

impl Place {
    /// Room for so many bytes of the call's request; see [`Places`] for how much of it one tenant gets.
    ///
    /// Errors: QUOTA_EXCEEDED where there is none.
    fn make_room(&self, bytes: usize) -> Result<(), ApiError> {
        let room = self.open.requests.take_some(self.credential.sharer(), bytes);
        *self.room() = Some(room.ok_or_else(|| no_room("server.requests_bytes_max", &self.open.requests))?);
        Ok(())
    }

    /// Room for so many bytes that the call answers, or has read for its answer, in place of the room that it had. A tenant that has
    /// nothing else there gets it while any is left.
    ///
    /// Errors: QUOTA_EXCEEDED where there is none.
    pub fn make_room_to_answer(&self, bytes: usize) -> Result<(), ApiError> {
        let mut room = self.room();
        // Given back first: the call needs no more than the new one.
        *room = None;
        if bytes > SMALL_BYTES {
            let taken = self.open.answers.take_some_or_first(self.credential.sharer(), bytes);
            *room = Some(taken.ok_or_else(|| no_room("server.answers_bytes_max", &self.open.answers))?);
        }
        Ok(())
    }

    /// The same for the answer of a call that has changed something, which cannot be refused any more: what its tenant asks for next waits for it.
    pub fn make_room_for_what_is_owed(&self, bytes: usize) {
        let mut room = self.room();
        *room = (bytes > SMALL_BYTES).then(|| self.open.answers.take_owed(self.credential.sharer(), bytes));
    }

    /// Asked before a call changes something, as its answer cannot be refused after that.
    ///
    /// Errors: QUOTA_EXCEEDED where answers that nobody takes fill the tenant's part of the room.
    pub fn may_answer(&self) -> Result<(), ApiError> {
        let is_full = self.open.answers.is_full(self.credential.sharer());
        if is_full { Err(no_room("server.answers_bytes_max", &self.open.answers)) } else { Ok(()) }
    }

    fn room(&self) -> MutexGuard<'_, Option<places::Place<Sharer>>> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Counted down and removed under one lock, so that a place taken meanwhile is not lost.
        self.open.calls.remove_if_mut(&self.credential, |_, calls| {
            *calls -= 1;
            *calls == 0
        });
    }
}

fn full(quota: &str, limit: u64) -> ApiError {
    ApiError::QuotaExceeded { quota: quota.to_owned(), limit, retry_delay: Some(RETRY_DELAY) }
}

fn no_room(setting: &str, room: &Places<Sharer>) -> ApiError {
    full(setting, u64::try_from(room.max()).unwrap_or(u64::MAX))
}

/// A request's body that has room for its message before it is read: as much as its prefix announces.
pub struct Counted {
    body: Body,
    place: Arc<Place>,
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    message_bytes_max: usize,
}

impl Counted {
    /// Counts a body for a place. A message of more than `message_bytes_max` is refused elsewhere before it is read.
    pub fn new(body: Body, place: Arc<Place>, message_bytes_max: usize) -> Self {
        Self { body, place, prefix: [0; PREFIX_BYTES], prefix_bytes: 0, message_bytes_max }
    }

    /// Makes room once the prefix is whole.
    fn look_at(&mut self, data: &[u8]) -> Result<(), ApiError> {
        let missing = &mut self.prefix[self.prefix_bytes..];
        if missing.is_empty() {
            return Ok(());
        }
        let found = missing.len().min(data.len());
        missing[..found].copy_from_slice(&data[..found]);
        self.prefix_bytes += found;
        let [_, length @ ..] = self.prefix;
        let announced = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if self.prefix_bytes < PREFIX_BYTES || announced <= SMALL_BYTES || announced > self.message_bytes_max {
            return Ok(());
        }
        self.place.make_room(announced)
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(error) = self.look_at(data)
        {
            return Poll::Ready(Some(Err(error.into())));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer whose message, its first frame, is encoded already, so that it is known how large it is.
pub struct Encoded {
    message: Option<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl Encoded {
    /// Encodes the message of an answer that is not a stream, and says how many bytes it has.
    pub async fn of(response: Response<Body>) -> (Response<Body>, usize) {
        if response.body().is_end_stream() {
            return (response, 0);
        }
        let (parts, mut rest) = response.into_parts();
        let message = rest.frame().await;
        let data = message.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        let bytes = data.map_or(0, Bytes::len);
        (Response::from_parts(parts, Body::new(Self { message, rest })), bytes)
    }
}

impl http_body::Body for Encoded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.message.take() {
            Some(message) => Poll::Ready(Some(message)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ApiKeyId;
    use http_body_util::Full;
    use uuid::Uuid;

    fn operator(name: &str) -> Credential {
        Credential::Operator(name.to_owned())
    }

    #[test]
    fn each_credential_has_its_own_places_and_gets_them_back() {
        let calls = InFlight::new(2, 1 << 20, 1 << 20);
        let one = || calls.admit(operator("uri:one"));
        let (first, second) = (one().unwrap(), one().unwrap());
        assert_eq!(one().unwrap_err().reason_name(), "QUOTA_EXCEEDED");
        let other = calls.admit(Credential::Anonymous(None)).unwrap();
        drop(first);
        let third = one().unwrap();
        assert!(one().is_err());
        drop((second, third, other));
        assert!(calls.open.calls.is_empty());
    }

    #[test]
    fn tenants_share_the_room_and_none_keeps_the_others_out() {
        let calls = InFlight::new(9, 100_000, 1 << 20);
        let (first, second) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
        let key = |tenant| {
            let subject = Subject::ApiKey(ApiKeyId(Uuid::new_v4()));
            calls.admit(Credential::Subject(subject, tenant)).unwrap()
        };
        let (one, more, other, operator) =
            (key(first), key(first), key(second), calls.admit(operator("uri:one")).unwrap());
        one.make_room(40_000).unwrap();
        let refused = more.make_room(20_000).unwrap_err();
        assert_eq!(refused.reason_name(), "QUOTA_EXCEEDED", "another key of the tenant takes of the same share");
        more.make_room(10_000).unwrap();
        other.make_room(25_000).unwrap();
        operator.make_room(12_500).unwrap();
        assert!(key(second).make_room(1).is_err());
        drop(one);
        let further = key(second);
        further.make_room(10_000).unwrap();
        drop((more, other, further, operator));
        key(first).make_room(1 << 20).expect("alone there is room for any");
    }

    #[test]
    fn answers_have_a_room_of_their_own_and_what_is_owed_is_never_refused() {
        let calls = InFlight::new(9, 1 << 20, 100_000);
        let [one, more, other] = ["uri:one", "uri:more", "uri:other"].map(|name| calls.admit(operator(name)).unwrap());
        let stranger = calls.admit(Credential::Anonymous(None)).unwrap();
        one.make_room(1 << 20).unwrap();
        one.make_room_to_answer(30_000).unwrap();
        more.make_room(1 << 20).expect("a call that is answered needs no room for its request");
        let refused = more.make_room_to_answer(30_000).unwrap_err();
        assert!(refused.to_string().contains("server.answers_bytes_max"), "{refused}");
        more.make_room_to_answer(SMALL_BYTES).expect("a small one needs none");
        stranger.make_room_to_answer(60_000).expect("who has none gets one while any is left");
        one.may_answer().unwrap_err();
        other.make_room_for_what_is_owed(30_000);
        stranger.make_room_to_answer(0).unwrap();
        one.may_answer().unwrap_err();
        stranger.may_answer().unwrap();
        drop(other);
        one.may_answer().unwrap();
    }

    #[tokio::test]
    async fn a_message_has_room_before_it_is_read() {
        let calls = InFlight::new(9, 20_000, 1 << 20);
        let message = |bytes: usize| {
            let mut text = vec![0];
            text.extend(u32::try_from(bytes).unwrap().to_be_bytes());
            text.resize(PREFIX_BYTES + bytes, b'x');
            text
        };
        let read = async |place: &Arc<Place>, bytes| {
            let body = Body::new(Full::new(Bytes::from(message(bytes))));
            Counted::new(body, place.clone(), 1 << 20).collect().await.map(|read| read.to_bytes().len())
        };
        let one = Arc::new(calls.admit(operator("uri:one")).unwrap());
        let other = Arc::new(calls.admit(Credential::Anonymous(None)).unwrap());
        assert_eq!(read(&one, 9_000).await.unwrap(), 9_005);
        assert_eq!(read(&other, SMALL_BYTES).await.unwrap(), SMALL_BYTES + PREFIX_BYTES, "a small one needs none");
        let status = read(&one, 9_000).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(read(&other, 5_000).await.unwrap(), 5_005);
        drop(one);
        let third = Arc::new(calls.admit(operator("uri:three")).unwrap());
        assert_eq!(read(&third, 7_500).await.unwrap(), 7_505);
    }
}
