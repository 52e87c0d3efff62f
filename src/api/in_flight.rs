//! How many calls of one credential are open at the same time: a bound that no number of connections gets around.
//!
//! Calls that need no credential count for the address they come from.

use super::status::ApiError;
use crate::domain::ids::{ApiKeyId, PublisherIdentityId};
use dashmap::DashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// When it makes sense to try again: calls end all the time.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Credential {
    /// An API key.
    ApiKey(ApiKeyId),
    /// A publisher's certificate.
    Publisher(PublisherIdentityId),
    /// An operator's certificate, by its name.
    Operator(String),
    /// Nobody in particular, from an address.
    Anonymous(Option<IpAddr>),
}

/// The open calls of a port, counted by credential. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InFlight {
    open: Arc<DashMap<Credential, u32>>,
    max: u32,
}

/// An open call's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    open: Arc<DashMap<Credential, u32>>,
    credential: Credential,
}

impl InFlight {
    /// Takes the bound of each credential.
    pub fn new(max: u32) -> Self {
        Self { open: Arc::default(), max }
    }

    /// A place for one more call.
    ///
    /// Errors: QUOTA_EXCEEDED at the bound.
    pub fn admit(&self, credential: Credential) -> Result<Place, ApiError> {
        let mut count = self.open.entry(credential.clone()).or_insert(0);
        if *count >= self.max {
            return Err(ApiError::QuotaExceeded {
                quota: "server.calls_per_credential_max".to_owned(),
                limit: self.max.into(),
                retry_delay: Some(RETRY_DELAY),
            });
        }
        *count += 1;
        Ok(Place { open: Arc::clone(&self.open), credential })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Counted down and removed under one lock, so that a place taken meanwhile is not lost.
        self.open.remove_if_mut(&self.credential, |_, count| {
            *count -= 1;
            *count == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_credential_has_its_own_places_and_gets_them_back() {
        let calls = InFlight::new(2);
        let one = || calls.admit(Credential::Operator("uri:one".to_owned()));
        let (first, second) = (one().unwrap(), one().unwrap());
        assert_eq!(one().unwrap_err().reason_name(), "QUOTA_EXCEEDED");
        let other = calls.admit(Credential::Anonymous(None)).unwrap();
        drop(first);
        let third = one().unwrap();
        assert!(one().is_err());
        drop((second, third, other));
        assert!(calls.open.is_empty());
    }
}
