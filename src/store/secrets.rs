//! Secrets at rest: AES-256-GCM with keys from the configuration, so that a copy of the database alone opens nothing.
//!
//! What is sealed is bound to its place (tenant, subscription, secret) as additional data: a row that is moved elsewhere does
//! not open there. Never log what is opened here.

use crate::domain::ids::{SubscriptionId, TenantId};
use crate::domain::webhook::SigningSecret;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use chrono::{DateTime, Utc};
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// Something sealed, and the id of the key that opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Id of the key, as in the configuration.
    pub key_id: String,
    /// Nonce, ciphertext and tag.
    pub ciphertext: Vec<u8>,
}

/// A subscription's signing secret as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSecret {
    /// Its id.
    pub id: Uuid,
    /// Id of the key that opens it.
    pub key_id: String,
    /// Nonce, ciphertext and tag.
    pub ciphertext: Vec<u8>,
    /// When it stops signing; none for the present one.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Why a secret cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// No key at all is configured.
    #[error("no encryption key is configured")]
    Empty,
    /// The configuration no longer holds the key.
    #[error("the encryption key {0:?} is not configured")]
    KeyMissing(String),
    /// Two keys carry the same id, or an id is empty or longer than 64 characters.
    #[error("key ids must be unique and 1 to 64 characters")]
    KeyId,
    /// The stored bytes were changed, moved, or sealed with another key of the same id.
    #[error("a stored secret does not open")]
    Broken,
    /// The cipher refused to seal.
    #[error("a secret cannot be sealed")]
    Seal,
}

struct Key {
    id: String,
    key: RandomizedNonceKey,
}

/// The configured keys: the first seals, all of them open. Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    keys: Arc<[Key]>,
}

impl Keyring {
    /// Takes the keys by id; the first one seals.
    ///
    /// Errors: [`KeyringError::Empty`], [`KeyringError::KeyId`].
    pub fn new(keys: Vec<(String, [u8; 32])>) -> Result<Self, KeyringError> {
        let mut parsed: Vec<Key> = Vec::with_capacity(keys.len());
        for (id, bytes) in keys {
            if id.is_empty() || id.len() > 64 || parsed.iter().any(|key| key.id == id) {
                return Err(KeyringError::KeyId);
            }
            let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| KeyringError::Seal)?;
            parsed.push(Key { id, key });
        }
        if parsed.is_empty() { Err(KeyringError::Empty) } else { Ok(Self { keys: parsed.into() }) }
    }

    /// Id of the key that seals.
    pub fn first_id(&self) -> &str {
        self.keys.first().map_or("", |key| &key.id)
    }

    /// Seals with the first key; `aad` says where the result belongs.
    pub fn seal(&self, plain: &[u8], aad: &[u8]) -> Result<Sealed, KeyringError> {
        let first = self.keys.first().ok_or(KeyringError::Empty)?;
        let mut body = plain.to_vec();
        let nonce = first.key.seal_in_place_append_tag(Aad::from(aad), &mut body).map_err(|_| KeyringError::Seal)?;
        let mut ciphertext = nonce.as_ref().to_vec();
        ciphertext.append(&mut body);
        Ok(Sealed { key_id: first.id.clone(), ciphertext })
    }

    /// Opens what [`Keyring::seal`] made for the same `aad`.
    pub fn open(&self, key_id: &str, ciphertext: &[u8], aad: &[u8]) -> Result<Vec<u8>, KeyringError> {
        let key = self.keys.iter().find(|key| key.id == key_id);
        let key = key.ok_or_else(|| KeyringError::KeyMissing(key_id.to_owned()))?;
        let (nonce, body) = ciphertext.split_at_checked(NONCE_LEN).ok_or(KeyringError::Broken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| KeyringError::Broken)?;
        let mut body = body.to_vec();
        let plain = key.key.open_in_place(nonce, Aad::from(aad), &mut body).map_err(|_| KeyringError::Broken)?;
        Ok(plain.to_vec())
    }

    /// Seals a new signing secret of a subscription.
    pub fn seal_secret(
        &self,
        tenant: TenantId,
        subscription: SubscriptionId,
        id: Uuid,
        secret: &SigningSecret,
    ) -> Result<StoredSecret, KeyringError> {
        let Sealed { key_id, ciphertext } = self.seal(&secret.to_kept(), &secret_aad(tenant, subscription, id))?;
        Ok(StoredSecret { id, key_id, ciphertext, expires_at: None })
    }

    /// Opens a stored signing secret of a subscription.
    pub fn open_secret(
        &self,
        tenant: TenantId,
        subscription: SubscriptionId,
        stored: &StoredSecret,
    ) -> Result<SigningSecret, KeyringError> {
        let aad = secret_aad(tenant, subscription, stored.id);
        let plain = self.open(&stored.key_id, &stored.ciphertext, &aad)?;
        SigningSecret::from_kept(plain).ok_or(KeyringError::Broken)
    }

    /// Seals into one run of bytes that names its key, for columns of any content.
    pub fn seal_bytes(&self, plain: &[u8], aad: &[u8]) -> Result<Vec<u8>, KeyringError> {
        let sealed = self.seal(plain, aad)?;
        let length = u8::try_from(sealed.key_id.len()).map_err(|_| KeyringError::KeyId)?;
        let mut bytes = vec![length];
        bytes.extend_from_slice(sealed.key_id.as_bytes());
        bytes.extend_from_slice(&sealed.ciphertext);
        Ok(bytes)
    }

    /// Opens what [`Keyring::seal_bytes`] made for the same `aad`.
    pub fn open_bytes(&self, sealed: &[u8], aad: &[u8]) -> Result<Vec<u8>, KeyringError> {
        let (key_id, ciphertext) = parts(sealed)?;
        self.open(key_id, ciphertext, aad)
    }

    /// Id of the key that sealed what [`Keyring::seal_bytes`] made.
    pub fn key_id_of(sealed: &[u8]) -> Result<&str, KeyringError> {
        Ok(parts(sealed)?.0)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

/// The key's id and the ciphertext of what [`Keyring::seal_bytes`] made.
fn parts(sealed: &[u8]) -> Result<(&str, &[u8]), KeyringError> {
    let (length, rest) = sealed.split_first().ok_or(KeyringError::Broken)?;
    let (key_id, ciphertext) = rest.split_at_checked(usize::from(*length)).ok_or(KeyringError::Broken)?;
    Ok((std::str::from_utf8(key_id).map_err(|_| KeyringError::Broken)?, ciphertext))
}

fn secret_aad(tenant: TenantId, subscription: SubscriptionId, secret: Uuid) -> [u8; 48] {
    let mut aad = [0_u8; 48];
    aad[..16].copy_from_slice(tenant.0.as_bytes());
    aad[16..32].copy_from_slice(subscription.0.as_bytes());
    aad[32..].copy_from_slice(secret.as_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(ids: &[(&str, u8)]) -> Keyring {
        Keyring::new(ids.iter().map(|(id, byte)| ((*id).to_owned(), [*byte; 32])).collect()).expect("keys")
    }

    fn place() -> (TenantId, SubscriptionId, Uuid) {
        (TenantId(Uuid::from_u128(1)), SubscriptionId(Uuid::from_u128(2)), Uuid::from_u128(3))
    }

    #[test]
    fn a_secret_opens_in_its_own_place_only() {
        let keyring = keyring(&[("a", 1)]);
        let (tenant, subscription, id) = place();
        let secret = SigningSecret::from_bytes(vec![9; 32]).expect("32 bytes");
        let stored = keyring.seal_secret(tenant, subscription, id, &secret).expect("sealed");
        assert_eq!(keyring.open_secret(tenant, subscription, &stored), Ok(secret));
        let elsewhere = SubscriptionId(Uuid::from_u128(7));
        assert_eq!(keyring.open_secret(tenant, elsewhere, &stored), Err(KeyringError::Broken));
        let elsewhere = TenantId(Uuid::from_u128(7));
        assert_eq!(keyring.open_secret(elsewhere, subscription, &stored), Err(KeyringError::Broken));
        for at in 0..stored.ciphertext.len() {
            let mut changed = stored.clone();
            changed.ciphertext[at] ^= 1;
            assert_eq!(keyring.open_secret(tenant, subscription, &changed), Err(KeyringError::Broken), "byte {at}");
        }
        for length in [0, 5, NONCE_LEN, NONCE_LEN + 3] {
            let cut = StoredSecret { ciphertext: stored.ciphertext[..length].to_vec(), ..stored.clone() };
            assert_eq!(keyring.open_secret(tenant, subscription, &cut), Err(KeyringError::Broken));
        }
    }

    #[test]
    fn a_new_first_key_seals_while_the_old_one_still_opens() {
        let old = keyring(&[("old", 1)]);
        let sealed = old.seal_bytes(b"x", b"place").expect("sealed");
        let rotated = keyring(&[("new", 2), ("old", 1)]);
        assert_eq!(rotated.open_bytes(&sealed, b"place"), Ok(b"x".to_vec()));
        assert_eq!(rotated.open_bytes(&sealed, b"elsewhere"), Err(KeyringError::Broken));
        assert_eq!(rotated.seal(b"y", b"").expect("sealed").key_id, "new");
        assert_eq!(
            keyring(&[("new", 2)]).open_bytes(&sealed, b"place"),
            Err(KeyringError::KeyMissing("old".to_owned()))
        );
        assert_eq!(rotated.open_bytes(&[], b""), Err(KeyringError::Broken));
        assert_eq!(rotated.open_bytes(&[200, 1], b""), Err(KeyringError::Broken));
    }

    #[test]
    fn a_keyring_needs_keys_with_ids_of_their_own() {
        let make = |ids: &[&str]| Keyring::new(ids.iter().map(|id| ((*id).to_owned(), [0; 32])).collect()).err();
        assert_eq!(make(&[]), Some(KeyringError::Empty));
        assert_eq!(make(&["a", "a"]), Some(KeyringError::KeyId));
        assert_eq!(make(&[""]), Some(KeyringError::KeyId));
        assert_eq!(format!("{:?}", keyring(&[("a", 1)])), "[\"a\"]");
    }
}
