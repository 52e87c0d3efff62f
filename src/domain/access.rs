//! Who calls, and what they may do.

use super::event_type::{EventTypeName, EventTypePattern};
use super::ids::{ApiKeyId, AppId, PublisherIdentityId, TenantId};
use chrono::{DateTime, Utc};
use std::fmt;
use std::sync::Arc;

/// What a credential may do; each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Read and watch.
    Viewer,
    /// Also subscribe and retry.
    Subscriber,
    /// Also declare event types and schemas.
    Developer,
    /// Everything inside the tenant.
    Admin,
}

impl Role {
    /// The role's name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Subscriber => "subscriber",
            Self::Developer => "developer",
            Self::Admin => "admin",
        }
    }

    /// The role of that name, in lower case; none for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "viewer" => Some(Self::Viewer),
            "subscriber" => Some(Self::Subscriber),
            "developer" => Some(Self::Developer),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

/// Whom a credential of the public port stands for, however often it is renewed: what bounds count by, and the actor of audit
/// records.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// An API key.
    ApiKey(ApiKeyId),
    /// Whom an issuer's tokens name.
    Token(Arc<TokenSubject>),
}

/// Whom an issuer's tokens name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenSubject {
    /// The issuer, as its tokens spell it; without a `#`.
    pub issuer: Arc<str>,
    /// The `sub` of the tokens.
    pub sub: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey(id) => id.fmt(f),
            Self::Token(token) => write!(f, "oidc:{}#{}", token.issuer, token.sub),
        }
    }
}

/// What a token was accepted by. It is asked for again as long as something goes on that the token has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenGrounds {
    /// Thumbprint of the issuer's key that has signed it. Source: RFC 7638.
    pub key: Arc<str>,
    /// Slug of the tenant.
    pub tenant: String,
    /// Slug of the app that it is limited to.
    pub app: Option<String>,
}

/// Who calls on the public port. The tenant comes from the credential only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whom the credential stands for.
    pub subject: Subject,
    /// Its tenant.
    pub tenant: TenantId,
    /// The app it is limited to; none for the whole tenant.
    pub app: Option<AppId>,
    /// What it may do.
    pub role: Role,
    /// From then on the credential is refused.
    pub expires_at: Option<DateTime<Utc>>,
    /// What a token was accepted by; none for an API key.
    pub grounds: Option<Arc<TokenGrounds>>,
}

/// A peer's certificate identity on the internal port: every usable subject alternative name, spelled `uri:...` or `dns:...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The names, as in the certificate.
    pub subjects: Arc<[String]>,
}

/// A registered publisher.
#[derive(Debug, Clone)]
pub struct Publisher {
    /// The registration.
    pub id: PublisherIdentityId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The certificate name that was matched.
    pub subject: String,
    /// What it may publish; none means every type.
    pub event_types: Arc<[EventTypePattern]>,
}

impl Publisher {
    /// True where it may publish the type.
    pub fn may_publish(&self, name: &EventTypeName) -> bool {
        self.event_types.is_empty() || self.event_types.iter().any(|pattern| pattern.matches(name))
    }
}
