//! How many calls of one credential are open at the same time, and how many bytes the requests of a tenant take: bounds that no
//! number of connections gets around.
//!
//! Calls that need no credential count for the address they come from.

use super::status::ApiError;
use crate::domain::access::Subject;
use crate::domain::ids::{PublisherIdentityId, TenantId};
use crate::domain::places::{self, Places};
use bytes::Bytes;
use dashmap::DashMap;
use http_body::{Frame, SizeHint};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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

/// Who shares the room for requests. A tenant is one, however many credentials it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sharer {
    Tenant(TenantId),
    Operators,
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
    room: Places<Sharer>,
}

/// An open call's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    open: Arc<Open>,
    credential: Credential,
    /// The room that the call's request has.
    room: Mutex<Option<places::Place<Sharer>>>,
}

impl Credential {
    fn sharer(&self) -> Sharer {
        match self {
            Self::Subject(_, tenant) | Self::Publisher(_, tenant) => Sharer::Tenant(*tenant),
            Self::Operator(_) => Sharer::Operators,
            Self::Anonymous(_) => Sharer::Nobody,
        }
    }
}

impl InFlight {
    /// Takes the bound of each credential's calls, and that of the bytes of all requests together.
    pub fn new(calls_max: u32, bytes_max: usize) -> Self {
        Self { open: Arc::new(Open { calls: DashMap::new(), calls_max, room: Places::new(bytes_max) }) }
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
        let room = self.open.room.take_some(self.credential.sharer(), bytes);
        let bytes_max = u64::try_from(self.open.room.max()).unwrap_or(u64::MAX);
        let room = room.ok_or_else(|| full("server.requests_bytes_max", bytes_max))?;
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = Some(room);
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ApiKeyId;
    use http_body_util::{BodyExt as _, Full};
    use uuid::Uuid;

    fn operator(name: &str) -> Credential {
        Credential::Operator(name.to_owned())
    }

    #[test]
    fn each_credential_has_its_own_places_and_gets_them_back() {
        let calls = InFlight::new(2, 1 << 20);
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
        let calls = InFlight::new(9, 100_000);
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

    #[tokio::test]
    async fn a_message_has_room_before_it_is_read() {
        let calls = InFlight::new(9, 20_000);
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
