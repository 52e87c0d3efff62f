//! The subscriber: makes the subscriptions of a run and changes some of them while it goes on.
//!
//! A change whose answer is lost is looked up: each carries the etag that it was decided on, so it happens at most once,
//! however late a frozen replica carries it out. So every change and its exact position are known.

use std::time::Duration;

use carillon::proto::public::{
    CreateEventTypeRequest, DeliveryPolicy, DisableSubscriptionRequest, EnableSubscriptionRequest,
    GetSubscriptionRequest, OrderingPolicy, SubscribeRequest, Subscription, SubscriptionState, Target,
    UnsubscribeRequest, UpdateSubscriptionRequest, WebhookTarget, target,
};
use pbjson_types::{Duration as ProtoDuration, FieldMask};

use super::receiver::{Receiver, SECRET};
use super::{Link, TYPES, answered, rest};
use crate::record::{Log, Record, Share};
use crate::stage::APP;

/// Between two changes.
const PACE: Duration = Duration::from_millis(700);
const AGAIN: Duration = Duration::from_millis(100);
/// The path of the subscription with an ordering key, and how many keys it has.
const ORDERED: &str = "/ordered";
const ORDERED_KEYS: i64 = 7;

/// A subscription as its subscriber knows it.
struct Held {
    id: String,
    etag: String,
    event_type: &'static str,
    share: Share,
    active: bool,
}

/// What is done to a subscription.
#[derive(Debug, Clone, Copy)]
enum Change {
    Enable,
    Disable,
    Filter(Share),
    End,
}

/// Makes the event types and the subscriptions that stay as they are. Called before anything can fail.
pub async fn prepare(link: &mut Link, log: &Log, receiver: &Receiver) -> anyhow::Result<()> {
    for event_type in TYPES {
        let request = CreateEventTypeRequest { name: event_type.to_owned(), ..Default::default() };
        answered(link.types().create_event_type(request)).await?;
    }
    let [red, green, blue] = TYPES;
    let some = |modulus, remainder| Share { modulus, remainder };
    // Retries go on for as long as a fault may last, except where every attempt fails.
    let fixed = [
        ("/plain", red, Share::ALL, 50),
        ("/third", red, some(3, 1), 50),
        ("/slow", green, some(2, 0), 50),
        ("/flaky", green, Share::ALL, 50),
        ("/turn", blue, Share::ALL, 50),
        ("/poison", blue, some(53, 7), 3),
    ];
    for (path, event_type, share, attempts) in fixed {
        let request = request(&receiver.url(path), event_type, share, attempts, path);
        let made = answered(link.events().subscribe(request)).await?.subscription.unwrap_or_default();
        write(log, &made, event_type, share);
    }
    let mut request = request(&receiver.url(ORDERED), green, Share::ALL, 50, ORDERED);
    if let Some(policy) = &mut request.delivery_policy {
        let key = format!("data.n % {ORDERED_KEYS}");
        policy.ordering = Some(OrderingPolicy { key, ..Default::default() });
    }
    let made = answered(link.events().subscribe(request)).await?.subscription.unwrap_or_default();
    write(log, &made, green, Share::ALL);
    log.write(&Record::Ordered { subscription: made.id, keys: ORDERED_KEYS });
    Ok(())
}

/// Changes subscriptions of its own until it is told to stop.
pub async fn run(mut link: Link, log: Log, receiver: std::sync::Arc<Receiver>) {
    let mut held: Option<Held> = None;
    let mut made = 0;
    while !link.scene.stop.is_cancelled() {
        let Some(now) = held.take() else {
            made += 1;
            held = subscribe(&mut link, &log, &receiver.url(&format!("/changing-{made}")), made).await;
            continue;
        };
        let change = match link.random.below(8) {
            0 => Change::End,
            1..=3 => {
                let modulus = i64::try_from(2 + link.random.below(4)).expect("it is small");
                let remainder = i64::try_from(link.random.below(2)).expect("it is small");
                Change::Filter(Share { modulus, remainder })
            }
            _ if now.active => Change::Disable,
            _ => Change::Enable,
        };
        let after = apply(&mut link, &log, now, change).await;
        if !matches!(change, Change::End) {
            held = Some(after);
        }
        link.scene.pause(PACE).await;
    }
}

async fn subscribe(link: &mut Link, log: &Log, uri: &str, number: usize) -> Option<Held> {
    let event_type = TYPES[number % TYPES.len()];
    let request = request(uri, event_type, Share::ALL, 50, &format!("subscribe-{number}"));
    loop {
        match answered(link.events().subscribe(request.clone())).await {
            // A retry gets the first answer, by its request id.
            Ok(answer) => {
                let made = answer.subscription?;
                write(log, &made, event_type, Share::ALL);
                return Some(Held { id: made.id, etag: made.etag, event_type, share: Share::ALL, active: true });
            }
            Err(_) => {
                link.turn();
                rest(AGAIN).await;
            }
        }
    }
}

/// Makes a change, exactly once, and writes down from where on it applies.
async fn apply(link: &mut Link, log: &Log, now: Held, change: Change) -> Held {
    loop {
        if let Ok(after) = send(link, &now, change).await {
            return adopt(log, &now, change, &after);
        }
        link.turn();
        rest(AGAIN).await;
        let request = GetSubscriptionRequest { subscription_id: now.id.clone() };
        match answered(link.events().get_subscription(request)).await.map(|answer| answer.subscription) {
            Ok(Some(found)) if found.etag != now.etag => return adopt(log, &now, change, &found),
            _ => {}
        }
    }
}

async fn send(link: &mut Link, now: &Held, change: Change) -> Result<Subscription, tonic::Status> {
    let (subscription_id, etag) = (now.id.clone(), now.etag.clone());
    let mut events = link.events();
    let found = match change {
        Change::Enable => {
            let request =
                EnableSubscriptionRequest { subscription_id, etag, replay_missed: false, ..Default::default() };
            answered(events.enable_subscription(request)).await?.subscription
        }
        Change::Disable => {
            let request = DisableSubscriptionRequest { subscription_id, etag, ..Default::default() };
            answered(events.disable_subscription(request)).await?.subscription
        }
        Change::End => {
            let request = UnsubscribeRequest { subscription_id, etag, ..Default::default() };
            answered(events.unsubscribe(request)).await?.subscription
        }
        Change::Filter(share) => {
            let filter = share.expression();
            let subscription = Subscription { id: subscription_id, etag, filter, ..Default::default() };
            let update_mask = Some(FieldMask { paths: vec!["filter".to_owned()] });
            let request =
                UpdateSubscriptionRequest { subscription: Some(subscription), update_mask, ..Default::default() };
            answered(events.update_subscription(request)).await?.subscription
        }
    };
    found.ok_or_else(|| tonic::Status::internal("an answer without a subscription"))
}

fn adopt(log: &Log, now: &Held, change: Change, after: &Subscription) -> Held {
    let share = if let Change::Filter(share) = change { share } else { now.share };
    write(log, after, now.event_type, share);
    let active = after.state() == SubscriptionState::Active;
    Held { id: after.id.clone(), etag: after.etag.clone(), event_type: now.event_type, share, active }
}

/// Writes down how a subscription is.
pub(super) fn write(log: &Log, subscription: &Subscription, event_type: &str, share: Share) {
    log.write(&Record::Subscribed {
        at: log.now(),
        subscription: subscription.id.clone(),
        event_type: event_type.to_owned(),
        share,
        active: subscription.state() == SubscriptionState::Active,
        after: subscription.effective_position,
    });
}

/// A subscription that retries soon.
pub(super) fn request(
    uri: &str,
    event_type: &str,
    share: Share,
    max_attempts: i32,
    request_id: &str,
) -> SubscribeRequest {
    let webhook = WebhookTarget { uri: uri.to_owned(), ..Default::default() };
    let millis = |millis: i32| Some(ProtoDuration { seconds: 0, nanos: millis * 1_000_000 });
    SubscribeRequest {
        app: APP.to_owned(),
        event_type: event_type.to_owned(),
        target: Some(Target { kind: Some(target::Kind::Webhook(webhook)) }),
        filter: share.expression(),
        delivery_policy: Some(DeliveryPolicy {
            max_attempts,
            initial_backoff: millis(50),
            max_backoff: millis(500),
            timeout: Some(ProtoDuration { seconds: 3, nanos: 0 }),
            ..DeliveryPolicy::default()
        }),
        signing_secret: SECRET.to_owned(),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}
