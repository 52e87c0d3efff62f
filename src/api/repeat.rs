//! Mutations that are made once: a retry with the same `request_id` gets the first answer.
//!
//! Every handler of a mutation makes a [`Repeat`] of its request, asks it for the first answer before it checks anything that the
//! change itself may have made untrue, and hands it to the store, which takes the id in the transaction of the change.

use super::status::ApiError;
use crate::domain::access::Caller;
use crate::domain::ids::TenantId;
use crate::store::request_ids::{Once, Repeatable, RequestKey};
use crate::store::secrets::Keyring;
use crate::store::{Store, StoreError};
use crate::wire;
use prost::Message;

/// A call's request id, where it has one. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Repeat {
    tenant: TenantId,
    key: Option<RequestKey>,
    /// Seals answers that show a secret.
    keyring: Option<Keyring>,
}

impl Repeat {
    /// Of a public call's request whose `request_id` was taken out of it. A credential that is limited to an app has ids of its own, as its
    /// answers may be ones that another app must not see.
    ///
    /// Errors: FIELD_INVALID.
    pub fn by(caller: &Caller, method: &'static str, request_id: &str, body: &impl Message) -> Result<Self, ApiError> {
        let mut repeat = Self::of(caller.tenant, method, request_id, body)?;
        if let (Some(key), Some(app)) = (&mut repeat.key, caller.app) {
            key.id = format!("{app}/{}", key.id);
        }
        Ok(repeat)
    }

    /// Of a request of one who acts for the whole tenant.
    ///
    /// Errors: FIELD_INVALID.
    pub fn of(tenant: TenantId, method: &'static str, request_id: &str, body: &impl Message) -> Result<Self, ApiError> {
        let id = wire::request_id("request_id", request_id)?;
        let key = id.map(|id| RequestKey { id, method, body_hash: wire::sha256(&body.encode_to_vec()) });
        Ok(Self { tenant, key, keyring: None })
    }

    /// With answers that show a secret: they are kept sealed, as the secret itself is.
    pub fn sealed(self, keyring: &Keyring) -> Self {
        Self { keyring: Some(keyring.clone()), ..self }
    }

    /// The id itself, for a change that keeps its answer by itself.
    pub fn key(self) -> Option<RequestKey> {
        self.key
    }

    /// The first answer, where this call is a retry.
    ///
    /// Errors: REQUEST_ID_REUSED.
    pub async fn first<R: Message + Default>(&self, store: &Store) -> Result<Option<R>, ApiError> {
        match self.first_bytes(store).await? {
            Some(answer) => self.open(&answer).map(Some),
            None => Ok(None),
        }
    }

    /// The first answer as it is kept.
    pub async fn first_bytes(&self, store: &Store) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(key) = &self.key else { return Ok(None) };
        Ok(store.earlier_answer(self.tenant, key).await?)
    }

    /// For the store: what is made is answered by `answer`, now and to a retry.
    pub fn keeping<T, R: Message>(&self, answer: impl FnOnce(&T) -> R + Send + Sync + 'static) -> Repeatable<T> {
        let Some(key) = self.key.clone() else { return Repeatable::default() };
        let this = self.clone();
        Repeatable::new(key, move |made| this.seal(&answer(made).encode_to_vec()))
    }

    /// The answer to a change that was made now, or what is kept of the one that was made before.
    pub fn answer<T, R: Message + Default>(&self, once: Once<T>, answer: impl FnOnce(&T) -> R) -> Result<R, ApiError> {
        match once {
            Once::Made(made) => Ok(answer(&made)),
            Once::Before(kept) => self.open(&kept),
        }
    }

    /// Keeps an answer to a call that changed nothing, or that could not be known before the change was made.
    pub async fn keep(&self, store: &Store, answer: &impl Message) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        store.keep_answer(self.tenant, key, &self.seal(&answer.encode_to_vec())?).await?;
        Ok(())
    }

    /// Reads a kept answer.
    pub fn open<R: Message + Default>(&self, kept: &[u8]) -> Result<R, ApiError> {
        let unreadable = |error| ApiError::internal("read a kept answer", error);
        let Some(keyring) = &self.keyring else { return R::decode(kept).map_err(unreadable) };
        let opened = keyring.open_bytes(kept, &self.place());
        let opened = opened.map_err(|error| ApiError::internal("open a kept answer", error))?;
        R::decode(opened.as_slice()).map_err(unreadable)
    }

    fn seal(&self, answer: &[u8]) -> Result<Vec<u8>, StoreError> {
        let Some(keyring) = &self.keyring else { return Ok(answer.to_vec()) };
        keyring.seal_bytes(answer, &self.place()).map_err(|_| StoreError::Corrupt { what: "answer to keep" })
    }

    /// Where a kept answer belongs, so that it opens nowhere else.
    fn place(&self) -> Vec<u8> {
        let mut place = self.tenant.0.as_bytes().to_vec();
        if let Some(key) = &self.key {
            place.extend_from_slice(key.method.as_bytes());
            place.extend_from_slice(key.id.as_bytes());
        }
        place
    }
}
