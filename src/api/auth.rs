//! Who calls: checks credentials and tells handlers whom they serve.
//!
//! The public port takes API keys and tokens and leaves a [`Caller`] in the request's extensions; the internal port takes certificates
//! and leaves a [`Publisher`] or an [`Operator`]. Tenants come from here and nowhere else: no header names one. Every bad credential
//! gets the same answer.

mod claims;
pub mod config;
mod issuer;
mod issuers;
mod key_set;
mod tokens;

pub use issuer::FetchDocument;
pub use issuers::{IssuerError, Issuers};
pub use tokens::Tokens;

use super::in_flight::{Credential, InFlight};
use super::status::ApiError;
use crate::clock;
use crate::domain::access::{Caller, PeerIdentity, Publisher, Role, Subject};
use crate::domain::ids::ApiKeyId;
use crate::store::api_keys::ApiKey;
use crate::store::{Store, StoreError};
use crate::turnstile::Turnstile;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Extensions, HeaderMap, header};
use moka::future::Cache;
use secrecy::SecretString;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use tonic::Request;

/// How long a credential may be believed after it was looked up.
const CACHE_TTL: Duration = Duration::from_secs(5);
const CACHE_ENTRIES_MAX: u64 = 10_000;
/// Keys that are looked up at the same time: some of the database's connections, so that strangers never have them all.
const LOOK_UPS_MAX: usize = 4;
/// For how long a key counts as known after it was last used.
const KNOWN_FOR: Duration = Duration::from_hours(1);
/// What every API key begins with.
const KEY_PREFIX: &str = "car_";

/// An operator's certificate name, which may call AdminService.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The certificate's name, as in the configuration; the actor of audit records.
    pub subject: String,
}

/// Slug of the app that a caller is limited to; empty where that app is gone, of which nothing is told any more.
pub async fn app_of(store: &Store, caller: &Caller) -> Result<Option<String>, ApiError> {
    let Some(id) = caller.app else { return Ok(None) };
    Ok(Some(store.app(caller.tenant, id).await?.map(|app| app.slug).unwrap_or_default()))
}

/// Whom the credential stands for that the request carries.
///
/// Errors: CREDENTIAL_INVALID where there is none.
pub fn caller<T>(request: &Request<T>) -> Result<&Caller, ApiError> {
    request.extensions().get::<Caller>().ok_or(ApiError::CredentialInvalid)
}

/// The registered publisher whose certificate the peer has shown.
///
/// Errors: CREDENTIAL_INVALID where there is none.
pub fn publisher<T>(request: &Request<T>) -> Result<&Publisher, ApiError> {
    request.extensions().get::<Publisher>().ok_or(ApiError::CredentialInvalid)
}

/// The operator whose certificate the peer has shown.
///
/// Errors: CREDENTIAL_INVALID where there is none.
pub fn operator<T>(request: &Request<T>) -> Result<&Operator, ApiError> {
    request.extensions().get::<Operator>().ok_or(ApiError::CredentialInvalid)
}

impl Caller {
    /// The caller, where its role is at least `role`: asked before anything is looked up, so that a refusal says nothing of
    /// what exists.
    ///
    /// Errors: ROLE_INSUFFICIENT.
    pub fn require(&self, role: Role) -> Result<&Self, ApiError> {
        if self.role >= role { Ok(self) } else { Err(ApiError::RoleInsufficient { required: role }) }
    }
}

/// A new API key's secret, and the hash that is stored of it.
pub fn new_secret() -> (NewSecret, [u8; 32]) {
    let secret = URL_SAFE_NO_PAD.encode(clock::random_bytes::<32>());
    let hash = hash_of(&secret);
    (NewSecret(secret), hash)
}

/// A secret that was just made; its key's id completes it.
pub struct NewSecret(String);

impl NewSecret {
    /// `car_<id>_<secret>`, as the caller sends it.
    pub fn token(&self, id: ApiKeyId) -> SecretString {
        let id = id.to_string();
        let bare = id.strip_prefix("key_").unwrap_or(&id);
        format!("car_{bare}_{}", self.0).into()
    }
}

/// A key and the SHA-256 of its secret.
type KeyAndHash = Arc<(ApiKey, [u8; 32])>;

/// Checks what callers of the public port show: an API key, or a token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Credentials {
    keys: ApiKeys,
    tokens: Tokens,
}

impl Credentials {
    /// Puts both kinds together.
    pub fn new(keys: ApiKeys, tokens: Tokens) -> Self {
        Self { keys, tokens }
    }

    /// The caller of a request with these headers. Until it is known whose key it is, the call is one of its address.
    ///
    /// Errors: CREDENTIAL_INVALID, QUOTA_EXCEEDED where the address has too many calls open, or the store's.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        address: Option<IpAddr>,
        in_flight: &InFlight,
    ) -> Result<Caller, ApiError> {
        let text = bearer(headers).ok_or(ApiError::CredentialInvalid)?;
        // A token begins with the base64 of a brace; it is judged by what is known in memory.
        if !text.starts_with(KEY_PREFIX) {
            return self.tokens.authenticate(text).await;
        }
        let (id, secret) = key_parts(text).ok_or(ApiError::CredentialInvalid)?;
        let stranger = !self.keys.known.contains_key(&id);
        let _place = stranger.then(|| in_flight.admit(Credential::Anonymous(address))).transpose()?;
        self.keys.authenticate(id, secret, address).await
    }

    /// Whether a caller's credential still counts: asked once in a while by streams that outlive their first check.
    pub async fn still_valid(&self, caller: &Caller) -> Result<bool, ApiError> {
        match &caller.subject {
            Subject::ApiKey(id) => self.keys.still_valid(*id).await,
            Subject::Token(token) => self.tokens.still_valid(caller, token).await,
        }
    }
}

/// Checks API keys. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiKeys {
    store: Store,
    cache: Cache<ApiKeyId, Option<KeyAndHash>>,
    /// Keys that were good not long ago. Who shows one of these is no stranger: behind a proxy all come from one address.
    known: Cache<ApiKeyId, ()>,
    /// Look-ups of other keys, by where callers come from: whoever shows one key after the other waits for himself.
    look_ups: Turnstile<Option<IpAddr>>,
}

impl ApiKeys {
    /// Looks keys up in a store.
    pub fn new(store: Store) -> Self {
        let cache = Cache::builder().max_capacity(CACHE_ENTRIES_MAX).time_to_live(CACHE_TTL).build();
        let known = Cache::builder().max_capacity(CACHE_ENTRIES_MAX).time_to_idle(KNOWN_FOR).build();
        Self { store, cache, known, look_ups: Turnstile::new(LOOK_UPS_MAX) }
    }

    /// The holder of a key.
    ///
    /// Errors: CREDENTIAL_INVALID, or the store's.
    async fn authenticate(&self, id: ApiKeyId, secret: &str, address: Option<IpAddr>) -> Result<Caller, ApiError> {
        let hash = hash_of(secret);
        let found = self.look_up(id, address).await?;
        let (key, stored) = found.as_deref().ok_or(ApiError::CredentialInvalid)?;
        if bool::from(stored.ct_eq(&hash)) && self.is_live(key) {
            if self.known.get(&id).await.is_none() {
                self.known.insert(id, ()).await;
            }
            Ok(Caller {
                subject: Subject::ApiKey(key.id),
                tenant: key.tenant,
                app: key.app,
                role: key.role,
                expires_at: key.expires_at,
                grounds: None,
            })
        } else {
            Err(ApiError::CredentialInvalid)
        }
    }

    async fn still_valid(&self, id: ApiKeyId) -> Result<bool, ApiError> {
        let found = self.look_up(id, None).await?;
        Ok(found.is_some_and(|found| self.is_live(&found.0)))
    }

    /// Forgets a key that has just been changed here.
    pub async fn forget(&self, id: ApiKeyId) {
        self.cache.invalidate(&id).await;
    }

    fn is_live(&self, key: &ApiKey) -> bool {
        key.revoked_at.is_none() && key.expires_at.is_none_or(|at| self.store.now() < at)
    }

    async fn look_up(&self, id: ApiKeyId, address: Option<IpAddr>) -> Result<Option<KeyAndHash>, ApiError> {
        let load = async {
            let known = self.known.contains_key(&id);
            let _pass = if known { None } else { Some(self.look_ups.enter(address).await) };
            Ok(self.store.api_key_and_hash(id).await?.map(Arc::new))
        };
        self.cache.try_get_with(id, load).await.map_err(|error: Arc<StoreError>| shared(&error))
    }
}

/// Checks the certificates of the internal port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Certificates {
    store: Store,
    operators: Arc<[String]>,
    cache: Cache<Arc<[String]>, Option<Publisher>>,
}

impl Certificates {
    /// Looks publishers up in a store; operators are those of the configuration.
    pub fn new(store: Store, operators: Vec<String>) -> Self {
        let cache = Cache::builder().max_capacity(CACHE_ENTRIES_MAX).time_to_live(CACHE_TTL).build();
        Self { store, operators: operators.into(), cache }
    }

    /// The publisher whose certificate the peer has shown: exactly one of its names is registered.
    ///
    /// Errors: CREDENTIAL_INVALID, or the store's.
    pub async fn publisher(&self, extensions: &Extensions) -> Result<Publisher, ApiError> {
        let subjects = subjects(extensions)?;
        let load = async {
            let mut found = self.store.publishers_of(&subjects).await?;
            // A certificate that is two publishers at once is none: whose event would it be?
            Ok(if found.len() == 1 { found.pop() } else { None })
        };
        let found = self.cache.try_get_with(Arc::clone(&subjects), load).await;
        found.map_err(|error: Arc<StoreError>| shared(&error))?.ok_or(ApiError::CredentialInvalid)
    }

    /// The operator whose certificate the peer has shown.
    ///
    /// Errors: CREDENTIAL_INVALID.
    pub fn operator(&self, extensions: &Extensions) -> Result<Operator, ApiError> {
        let subjects = subjects(extensions)?;
        let subject = subjects.iter().find(|subject| self.operators.contains(subject));
        subject.map(|subject| Operator { subject: subject.clone() }).ok_or(ApiError::CredentialInvalid)
    }

    /// Forgets every publisher, after one has just been changed here.
    pub fn forget(&self) {
        self.cache.invalidate_all();
    }
}

fn subjects(extensions: &Extensions) -> Result<Arc<[String]>, ApiError> {
    let identity = extensions.get::<PeerIdentity>().ok_or(ApiError::CredentialInvalid)?;
    if identity.subjects.is_empty() { Err(ApiError::CredentialInvalid) } else { Ok(Arc::clone(&identity.subjects)) }
}

/// The same failure for each caller that waited for it.
fn shared(error: &Arc<StoreError>) -> ApiError {
    StoreError::clone(error).into()
}

/// The one bearer credential; none for anything else.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, text) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(text)
}

/// The id and secret of an API key's text.
fn key_parts(text: &str) -> Option<(ApiKeyId, &str)> {
    let (id, secret) = text.strip_prefix(KEY_PREFIX)?.split_once('_')?;
    let fits = id.len() == 26 && secret.len() == 43;
    if fits { Some((ApiKeyId::parse(&format!("key_{id}")).ok()?, secret)) } else { None }
}

fn hash_of(secret: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use secrecy::ExposeSecret as _;
    use uuid::Uuid;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn only_one_well_formed_bearer_token_counts() {
        let id = ApiKeyId(Uuid::from_u128(7));
        let (secret, hash) = new_secret();
        let token = secret.token(id);
        let token = token.expose_secret();
        let good = format!("Bearer {token}");
        let with_good = headers(&[&good]);
        let (parsed, text) = bearer(&with_good).and_then(key_parts).unwrap();
        assert_eq!((parsed, hash_of(text)), (id, hash));
        assert_eq!(bearer(&headers(&[&format!("bearer {token}")])), Some(token));
        let long = format!("Bearer car_{}", "a".repeat(65_536));
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Basic dXNlcjpwYXNz",
            token,
            "Bearer car__",
            "Bearer car_x_y",
            &long,
            &format!("Bearer  {token}"),
            &format!("{good} "),
            &format!("{good}a"),
            &good.to_uppercase(),
        ] {
            assert!(bearer(&headers(&[bad])).and_then(key_parts).is_none(), "{bad:?}");
        }
        assert!(bearer(&HeaderMap::new()).is_none());
        assert!(bearer(&headers(&[&good, &good])).is_none());
    }

    #[test]
    fn roles_include_those_before_them() {
        let caller = Caller {
            subject: Subject::ApiKey(ApiKeyId(Uuid::nil())),
            tenant: crate::domain::ids::TenantId(Uuid::nil()),
            app: None,
            role: Role::Subscriber,
            expires_at: None,
            grounds: None,
        };
        assert!(caller.require(Role::Viewer).is_ok() && caller.require(Role::Subscriber).is_ok());
        assert_eq!(caller.require(Role::Developer).unwrap_err().reason_name(), "ROLE_INSUFFICIENT");
    }
}
