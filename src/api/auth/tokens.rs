//! Tokens: JWTs of the configured issuers as credentials of the public port.
//!
//! ```text
//! token -> header, issuer -> key (issuer) -> signature, iss, aud -> claims, times -> tenant and app -> Caller
//! ```
//!
//! Nothing of a token counts before its signature is checked, but for whose key to check it with. Whatever is wrong with it, the caller
//! hears what the bearer of a bad API key hears; the log says why at debug.

use super::claims::Claims;
use super::issuer::Issuer;
use super::issuers::Issuers;
use super::{CACHE_ENTRIES_MAX, CACHE_TTL};
use crate::api::status::ApiError;
use crate::domain::access::{Caller, Subject, TokenGrounds, TokenSubject};
use crate::domain::ids::{AppId, TenantId};
use crate::store::{Store, StoreError};
use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{decode, decode_header};
use moka::future::Cache;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Slug of a tenant, and of an app in it where there is one.
type Named = (String, Option<String>);
/// What is of that name; none where nothing is.
type Place = Option<(TenantId, Option<AppId>)>;

/// Checks tokens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokens {
    store: Store,
    issuers: Issuers,
    bytes_max: usize,
    places: Cache<Named, Place>,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    /// By what it is; only for the log.
    #[error("{0}")]
    Refused(&'static str),
    /// Whom it means cannot be looked up.
    #[error("the tenant cannot be looked up")]
    LookUp(#[source] Arc<StoreError>),
}

use TokenError::Refused;

/// What is read of claims to know whose key is to check them.
#[derive(Deserialize)]
struct Unverified {
    iss: String,
}

impl Tokens {
    /// Accepts tokens of up to `bytes_max` bytes; tenants and apps are looked up in a store.
    pub fn new(store: Store, issuers: Issuers, bytes_max: usize) -> Self {
        let places = Cache::builder().max_capacity(CACHE_ENTRIES_MAX).time_to_live(CACHE_TTL).build();
        Self { store, issuers, bytes_max, places }
    }

    /// Whom a token stands for.
    ///
    /// Errors: CREDENTIAL_INVALID, or the store's.
    pub(super) async fn authenticate(&self, token: &str) -> Result<Caller, ApiError> {
        self.judge(token).await.map_err(|error| match error {
            Refused(reason) => {
                tracing::debug!(reason, "a token was refused");
                ApiError::CredentialInvalid
            }
            TokenError::LookUp(error) => super::shared(&error),
        })
    }

    /// Whether the token that a caller has shown would still be accepted: not over, its key still published, its tenant and app the
    /// same.
    pub(super) async fn still_valid(&self, caller: &Caller, token: &TokenSubject) -> Result<bool, ApiError> {
        let Some(grounds) = &caller.grounds else { return Ok(false) };
        let is_over = caller.expires_at.is_none_or(|expiry| self.store.now() >= expiry);
        let holds = self.issuers.named(&token.issuer).is_some_and(|issuer| issuer.holds(&grounds.key));
        if is_over || !holds {
            return Ok(false);
        }
        let place = self.place(&grounds.tenant, grounds.app.as_deref()).await;
        Ok(place.map_err(|error| super::shared(&error))? == Some((caller.tenant, caller.app)))
    }

    async fn judge(&self, token: &str) -> Result<Caller, TokenError> {
        if token.len() > self.bytes_max {
            return Err(Refused("it is larger than auth.token_bytes_max"));
        }
        let issuer = insecure_decode_claims(token).ok().and_then(|Unverified { iss }| self.issuers.named(&iss));
        let issuer = issuer.ok_or(Refused("it is no token, or of no issuer of the settings"))?;
        let (claims, key) = self.verified(token, issuer).await?;
        claims.check_times(self.store.now()).map_err(Refused)?;
        let place = self.place(&claims.tenant, claims.app.as_deref()).await.map_err(TokenError::LookUp)?;
        let (tenant, app) = place.ok_or(Refused("there is no such tenant, or no such app in it"))?;
        let Claims { sub, role, expires_at, tenant: tenant_slug, app: app_slug, .. } = claims;
        Ok(Caller {
            subject: Subject::Token(Arc::new(TokenSubject { issuer: Arc::clone(&issuer.name), sub })),
            tenant,
            app,
            role,
            expires_at: Some(expires_at),
            grounds: Some(Arc::new(TokenGrounds { key, tenant: tenant_slug, app: app_slug })),
        })
    }

    /// The claims of a token that its issuer has signed for us, and the thumbprint of the key.
    async fn verified(&self, token: &str, issuer: &Issuer) -> Result<(Claims, Arc<str>), TokenError> {
        // A header with `alg` none, or another that the library does not know, is not readable.
        let header = decode_header(token).map_err(|_| Refused("its header is not readable"))?;
        // Whatever is critical must be understood, and nothing is here. Source: RFC 7515, section 4.1.11.
        if header.crit.is_some() {
            return Err(Refused("its header holds what must be understood and is not"));
        }
        let validation = issuer.validation(header.alg).ok_or(Refused("its algorithm is not accepted"))?;
        let key = issuer.key_for(header.kid.as_deref(), header.alg).await;
        let key = key.ok_or(Refused("its key is none of its issuer's"))?;
        let decoded = decode::<Map<String, Value>>(token, &key.public, validation);
        let decoded = decoded.map_err(|error| Refused(reason(error.kind())))?;
        let claims = Claims::read(&decoded.claims, &issuer.settings).map_err(Refused)?;
        Ok((claims, Arc::clone(&key.thumbprint)))
    }

    /// What is of these names, by the database or by a look of a few seconds ago.
    async fn place(&self, tenant: &str, app: Option<&str>) -> Result<Place, Arc<StoreError>> {
        let load = async {
            let Some(found) = self.store.tenant_by_slug(tenant).await? else { return Ok(None) };
            let Some(app) = app else { return Ok(Some((found.id, None))) };
            let app = self.store.app_by_slug(found.id, app).await?;
            Ok(app.map(|app| (found.id, Some(app.id))))
        };
        self.places.try_get_with((tenant.to_owned(), app.map(str::to_owned)), load).await
    }
}

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "its signature is not its issuer's",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::MissingRequiredClaim(_) => "iss or aud is missing, or not of its type",
        _ => "it is not a readable token",
    }
}
