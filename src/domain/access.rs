//! Who calls, and what they may do.

use super::event_type::{EventTypeName, EventTypePattern};
use super::ids::{ApiKeyId, AppId, PublisherIdentityId, TenantId};
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

/// The holder of an API key on the public port. The tenant comes from the credential only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key.
    pub api_key: ApiKeyId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The app it is limited to; none for the whole tenant.
    pub app: Option<AppId>,
    /// What it may do.
    pub role: Role,
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
