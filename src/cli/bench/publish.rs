//! T1 to T3: what a durable publish costs, beside a bare gRPC echo and beside raw Postgres.
//!
//! Value and limit are measured in turns, in rounds, so that a machine whose speed drifts moves both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message as _;
use tonic::client::Grpc;
use tonic::transport::Channel;

use super::load::{Done, closed, per_second, percentile_ms};
use super::raw::RawCodec;
use super::report::{Figure, Target};
use super::service::{Echo, PAYLOAD_BYTES, event};
use super::{Bench, echo};
use crate::cli::client::{self, InternalClient, call};
use crate::cli::error::CliError;
use crate::proto::internal::{PublishBatchRequest, PublishResponse};

/// Value and limit in turns.
pub const ROUNDS: usize = 3;
/// Events of one PublishBatch.
pub const BATCH: u64 = 100;
/// Callers that publish batches at the same time.
const BATCH_CALLERS: usize = 8;
/// The most connections that callers share.
const CONNECTIONS: usize = 4;

/// Deadline of each call, as clients set one.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// The event type that is published here. One subscription's filter looks at every event and lets none through.
pub const EVENT_TYPE: &str = "CUSTOM_bench.publish";

/// Numbers events over every run.
static SEQ: AtomicU64 = AtomicU64::new(0);

/// The next event's number.
pub fn next_seq() -> u64 {
    SEQ.fetch_add(1, Ordering::Relaxed)
}

/// T1: single events over mutual TLS.
pub async fn single(bench: &Bench, id: &str, callers: usize) -> Result<Vec<Figure>, CliError> {
    let publishers = bench.publishers(callers.min(CONNECTIONS)).await?;
    let bare = bare_channels(bench, callers.min(CONNECTIONS)).await?;
    let mut turns = Vec::new();
    for _ in 0..ROUNDS {
        let limit = echoes(&bare, callers, bench.round(ROUNDS)).await?.rate();
        turns.push((publishes(&publishers, EVENT_TYPE, callers, bench.round(ROUNDS)).await?.rate(), limit));
    }
    let target = if callers == 64 { Target::RatioAtLeast(0.5) } else { Target::None };
    let name = format!("durable Publish over mTLS, {callers} caller(s)");
    let limit_name = format!("tonic's own mTLS echo of the same bytes, {callers} caller(s)");
    Ok(vec![Figure::in_turns(id, name, "1/s", limit_name, &turns).wants(target)])
}

/// T2: batches of a hundred. Judged by the ratio alone: a rate that was wanted of another machine says nothing of this one.
pub async fn batches(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let publishers = bench.publishers(CONNECTIONS).await?;
    let payload = [b'x'; PAYLOAD_BYTES];
    let mut turns = Vec::new();
    for _ in 0..ROUNDS {
        let raw = bench.meter.insert_event_rows(bench.round(ROUNDS), &payload).await.map_err(super::store)?;
        let limit = per_second(raw.rows, raw.elapsed);
        turns.push((publish_batches(&publishers, EVENT_TYPE, BATCH_CALLERS, bench.round(ROUNDS)).await?.rate(), limit));
    }
    let limit_name = "raw UNNEST inserts of the same rows, 4 connections x 100, primary key only";
    let figure = Figure::in_turns("T2", "durable PublishBatch of 100, 8 callers", "events/s", limit_name, &turns);
    Ok(vec![figure.wants(Target::RatioAtLeast(0.35))])
}

/// T3: how long one caller waits for its answer.
pub async fn ack(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let publishers = bench.publishers(1).await?;
    let payload = [b'x'; PAYLOAD_BYTES];
    let (mut value, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let commits = bench.meter.commit_single_rows(bench.round(ROUNDS), &payload).await.map_err(super::store)?;
        limit.extend(commits);
        value.extend(publishes(&publishers, EVENT_TYPE, 1, bench.round(ROUNDS)).await?.latencies);
    }
    value.sort_unstable();
    limit.sort_unstable();
    let figure = |id, percent, wanted| {
        Figure::new(id, format!("Publish ack, 1 caller, p{percent}"), percentile_ms(&value, percent), "ms")
            .beside(format!("raw single-row commit, p{percent}"), percentile_ms(&limit, percent))
            .wants(Target::RatioAtMost(wanted))
    };
    Ok(vec![figure("T3a", 50, 3.5), figure("T3b", 99, 5.0)])
}

/// Publishes single events in a closed loop.
pub async fn publishes(
    publishers: &[InternalClient],
    event_type: &str,
    callers: usize,
    time: Duration,
) -> Result<Done, CliError> {
    let channels = publishers.iter().map(InternalClient::channel).collect();
    // The same bytes each time, encoded once, as the echo's: what is measured is the service, not this client.
    let message = Bytes::from(event(event_type, next_seq()).encode_to_vec());
    unary("Publish", "/carillon.internal.v1.PublishService/Publish", message, channels, callers, time).await
}

/// Publishes batches of a hundred in a closed loop.
pub async fn publish_batches(
    publishers: &[InternalClient],
    event_type: &str,
    callers: usize,
    time: Duration,
) -> Result<Done, CliError> {
    let (publishers, event_type): (Arc<[InternalClient]>, Arc<str>) = (publishers.into(), event_type.into());
    closed(callers, time, move |caller| {
        let client = publishers[caller % publishers.len()].clone();
        let event_type = Arc::clone(&event_type);
        async move { publish_batch(&client, &event_type, BATCH).await.map(|positions| positions.len() as u64) }
    })
    .await
}

/// Publishes one batch.
pub async fn publish_batch(
    client: &InternalClient,
    event_type: &str,
    events: u64,
) -> Result<Vec<PublishResponse>, CliError> {
    let requests = (0..events).map(|_| event(event_type, next_seq())).collect();
    let request = client.request(PublishBatchRequest { requests });
    Ok(call("PublishBatch", client.publish().publish_batch(request)).await?.responses)
}

/// Connections to the bare server over mutual TLS.
async fn bare_channels(bench: &Bench, count: usize) -> Result<Vec<Channel>, CliError> {
    let Echo { mutual, .. } = &bench.echo;
    let access = &bench.service.access;
    let mut channels = Vec::new();
    for _ in 0..count {
        channels.push(client::connect(mutual, access.publisher.as_ref(), access.ca.as_deref()).await?);
    }
    Ok(channels)
}

/// Echoes the bytes of a publish in a closed loop.
async fn echoes(channels: &[Channel], callers: usize, time: Duration) -> Result<Done, CliError> {
    let message = Bytes::from(event(EVENT_TYPE, 1_000_000).encode_to_vec());
    unary("Echo", echo::ECHO, message, channels.to_vec(), callers, time).await
}

/// Makes calls of one message in a closed loop; answers are not decoded.
async fn unary(
    rpc: &'static str,
    path: &'static str,
    message: Bytes,
    channels: Vec<Channel>,
    callers: usize,
    time: Duration,
) -> Result<Done, CliError> {
    let channels: Arc<[Channel]> = channels.into();
    closed(callers, time, move |caller| {
        let mut grpc = Grpc::new(channels[caller % channels.len()].clone());
        let message = message.clone();
        async move {
            grpc.ready().await.map_err(|error| CliError::Result(format!("the server is gone: {error}")))?;
            let mut request = tonic::Request::new(message);
            request.set_timeout(CALL_DEADLINE);
            call(rpc, grpc.unary(request, PathAndQuery::from_static(path), RawCodec)).await.map(|_| 1)
        }
    })
    .await
}
