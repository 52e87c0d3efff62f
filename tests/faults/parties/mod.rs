//! The parties of a run: publishers, a receiver, readers, a subscriber, an auditor. Each goes through the public API of
//! whichever replica answers, and writes down what it did and saw.
//!
//! None of them knows when a fault happens, and none may judge: that is the checker's.

pub mod auditor;
pub mod gate;
pub mod publisher;
pub mod reader;
pub mod receiver;
pub mod subscriber;
pub mod switcher;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use carillon::proto::internal::publish_service_client::PublishServiceClient;
use carillon::proto::public::event_service_client::EventServiceClient;
use carillon::proto::public::event_type_service_client::EventTypeServiceClient;
use carillon::proto::public::invocation_service_client::InvocationServiceClient;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::connect::{Bearer, Identity, mutual, plain};
use super::random::Random;
use super::stage::Directory;

/// The event types that publishers use.
pub const TYPES: [&str; 3] = ["CUSTOM_RED", "CUSTOM_GREEN", "CUSTOM_BLUE"];
/// How long a caller waits for an answer before it asks elsewhere.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// What happened so far, for whoever waits for it.
#[derive(Debug, Default)]
pub struct Counts {
    pub sent: AtomicU64,
    pub acknowledged: AtomicU64,
    pub unknown: AtomicU64,
    pub delivered: AtomicU64,
    /// The furthest position that was acknowledged.
    pub position: AtomicI64,
    /// The furthest number of an event that was delivered to the plain listener.
    pub delivered_n: AtomicI64,
    /// The furthest number of an event that was acknowledged.
    pub acknowledged_n: AtomicI64,
}

/// What every party knows.
#[derive(Clone)]
pub struct Scene {
    pub directory: Directory,
    pub key: String,
    pub publisher: Identity,
    pub counts: Arc<Counts>,
    /// No further event or change is begun.
    pub stop: CancellationToken,
    /// The log is complete: readers read on to its end.
    pub complete: CancellationToken,
    /// The last position of the log, once it is complete.
    pub end: Arc<AtomicI64>,
}

impl Scene {
    /// The last position of the log; none before the log is complete.
    pub fn end(&self) -> Option<i64> {
        self.complete.is_cancelled().then(|| self.end.load(Ordering::SeqCst))
    }

    /// Waits for a while, or until no further event is begun.
    pub async fn pause(&self, time: Duration) {
        let _stopped = tokio::time::timeout(time, self.stop.cancelled()).await;
    }
}

type Public = InterceptedService<Channel, Bearer>;

/// A party's way to the replicas: a channel to each, made anew where the replica moved.
pub struct Link {
    pub scene: Scene,
    pub random: Random,
    channels: HashMap<String, Channel>,
    turn: usize,
}

impl Link {
    /// Connects nowhere yet.
    pub fn new(scene: &Scene, mut random: Random) -> Self {
        let turn = random.below(8);
        Self { scene: scene.clone(), random, channels: HashMap::new(), turn }
    }

    /// Goes to another replica with the next call.
    pub fn turn(&mut self) {
        self.turn += 1;
    }

    /// The publish service.
    pub fn publisher(&mut self) -> PublishServiceClient<Channel> {
        let identity = self.scene.publisher.clone();
        PublishServiceClient::new(self.channel(|at| at.internal.clone(), |address| mutual(address, &identity)))
    }

    /// Subscriptions and the log.
    pub fn events(&mut self) -> EventServiceClient<Public> {
        let (channel, bearer) = self.public();
        EventServiceClient::with_interceptor(channel, bearer)
    }

    /// The catalogue.
    pub fn types(&mut self) -> EventTypeServiceClient<Public> {
        let (channel, bearer) = self.public();
        EventTypeServiceClient::with_interceptor(channel, bearer)
    }

    /// Invocation records.
    pub fn invocations(&mut self) -> InvocationServiceClient<Public> {
        let (channel, bearer) = self.public();
        InvocationServiceClient::with_interceptor(channel, bearer)
    }

    fn public(&mut self) -> (Channel, Bearer) {
        (self.channel(|at| at.public.clone(), plain), Bearer::new(&self.scene.key))
    }

    fn channel(
        &mut self,
        address: impl Fn(&super::stage::Addresses) -> String,
        connect: impl Fn(&str) -> Channel,
    ) -> Channel {
        let address = {
            let directory = self.scene.directory.read().expect("no writer panics");
            address(&directory[self.turn % directory.len()])
        };
        // A channel is not shared with a replica that is gone: the ports of the dead are never asked again.
        if self.channels.len() > 32 {
            self.channels.clear();
        }
        self.channels.entry(address.clone()).or_insert_with(|| connect(&address)).clone()
    }
}

/// Waits for an answer, but not for long.
pub async fn answered<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the caller does not wait any longer")),
    }
}

/// The reason that an error carries, or its code.
pub fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason)
}

/// Waits between two tries or two looks. What is checked never depends on how long.
pub async fn rest(time: Duration) {
    let _always_elapses = tokio::time::timeout(time, std::future::pending::<()>()).await;
}
