//! A subscription as the registry keeps it: with its signing secrets opened, and what its attempts need.

use crate::domain::ids::TenantId;
use crate::domain::signing::Scheme;
use crate::domain::subscription::{Subscription, Target};
use crate::domain::webhook::{SigningSecret, WebhookCall};
use chrono::{DateTime, Utc};
use std::sync::{Arc, Mutex, PoisonError};

/// A subscription with its secrets.
#[derive(Debug)]
pub struct Entry {
    /// Whose it is.
    tenant: TenantId,
    /// The subscription.
    pub subscription: Subscription,
    /// Signing secrets, oldest first, each with the time it ends.
    secrets: Vec<(SigningSecret, Option<DateTime<Utc>>)>,
    /// What attempts need, made by the first and again once a secret has ended.
    call: Mutex<Option<PreparedCall>>,
}

/// What attempts need, until the first of its secrets ends.
#[derive(Debug)]
struct PreparedCall {
    call: Arc<WebhookCall>,
    until: Option<DateTime<Utc>>,
}

impl Entry {
    /// Takes the signing secrets oldest first, each with the time it ends.
    pub fn new(
        tenant: TenantId,
        subscription: Subscription,
        secrets: Vec<(SigningSecret, Option<DateTime<Utc>>)>,
    ) -> Self {
        Self { tenant, subscription, secrets, call: Mutex::default() }
    }

    /// What an attempt at `now` needs; none where no signing secret can be opened, since nothing is sent unsigned, or the target's
    /// headers cannot.
    pub fn webhook_call(&self, now: DateTime<Utc>) -> Option<Arc<WebhookCall>> {
        let mut prepared = self.call.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(PreparedCall { call, until }) = &*prepared
            && until.is_none_or(|until| now < until)
        {
            return Some(Arc::clone(call));
        }
        let call = Arc::new(self.build_call(now)?);
        let until = self.secrets.iter().filter_map(|(_, expires_at)| *expires_at).filter(|at| *at > now).min();
        *prepared = Some(PreparedCall { call: Arc::clone(&call), until });
        Some(call)
    }

    /// How its newest secret signs.
    pub fn scheme(&self) -> Option<Scheme> {
        self.secrets.last().map(|(secret, _)| secret.scheme())
    }

    fn build_call(&self, now: DateTime<Utc>) -> Option<WebhookCall> {
        let Target::Webhook(target) = &self.subscription.target;
        let valid = self.secrets.iter().filter(|(_, expires_at)| expires_at.is_none_or(|at| at > now));
        let secrets: Arc<[SigningSecret]> = valid.map(|(secret, _)| secret.clone()).collect();
        let (tenant, subscription) = (self.tenant, self.subscription.id);
        let call = WebhookCall { tenant, subscription, target: target.clone(), secrets };
        (!call.secrets.is_empty() && call.target.headers.is_some()).then_some(call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event_type::EventTypeName;
    use crate::domain::ids::{AppId, SubscriptionId};
    use crate::domain::retry::DeliveryPolicy;
    use crate::domain::subscription::{Circuit, State};
    use crate::domain::webhook::{WebhookMode, WebhookTarget, WebhookUri};
    use chrono::TimeDelta;
    use std::time::Duration;
    use uuid::Uuid;

    fn subscription() -> Subscription {
        let second = Duration::from_secs(1);
        Subscription {
            id: SubscriptionId(Uuid::nil()),
            no: 1,
            app: AppId(Uuid::nil()),
            app_slug: "shop".to_owned(),
            event_type: EventTypeName::parse("CUSTOM_KEPT").expect("a name"),
            display_name: String::new(),
            filter: None,
            schema_version: 0,
            target: Target::Webhook(WebhookTarget {
                uri: WebhookUri::parse("https://hooks.example.com/").expect("a URI"),
                mode: WebhookMode::Structured,
                headers: Some(Vec::new()),
            }),
            policy: DeliveryPolicy::new(3, second, second, second, 1).expect("a policy"),
            pre_policy: None,
            state: State::Active,
            state_reason: String::new(),
            circuit: Circuit::default(),
            paused_until: None,
            effective_position: 0,
            registry_version: 1,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            deleted_at: None,
        }
    }

    #[test]
    fn what_attempts_need_is_made_once_until_a_secret_ends_and_once_more_after_that() {
        let at = |seconds| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let secret = |byte| SigningSecret::from_bytes(vec![byte; 32]).expect("long enough");
        let secrets = vec![(secret(1), Some(at(10))), (secret(2), Some(at(20))), (secret(3), None)];
        let entry = Entry::new(TenantId(Uuid::nil()), subscription(), secrets);
        let call = |seconds| entry.webhook_call(at(seconds)).expect("it can be called");
        let calls: Vec<_> = [0, 9, 10, 19, 20, 1_000].map(call).into();
        assert_eq!(calls.iter().map(|call| call.secrets.len()).collect::<Vec<_>>(), [3, 3, 2, 2, 1, 1]);
        for pair in calls.chunks(2) {
            assert!(Arc::ptr_eq(&pair[0], &pair[1]), "one for all until the next end");
        }
    }

    #[test]
    fn it_signs_as_its_newest_secret_does() {
        let old = SigningSecret::from_bytes(vec![1; 32]).expect("long enough");
        let new = SigningSecret::from_seed([1; 32]).expect("a seed");
        let secrets = vec![(old, Some(DateTime::UNIX_EPOCH)), (new, None)];
        assert_eq!(Entry::new(TenantId(Uuid::nil()), subscription(), secrets).scheme(), Some(Scheme::V1a));
    }
}
