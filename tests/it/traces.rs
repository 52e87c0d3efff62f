//! Traces: spans reach an OTLP collector, a publisher's trace goes through the service and out to its receivers, and nothing of it
//! happens where no collector is set.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::harness::tenant::publish_request;
use crate::harness::{Receiver, Tenant, World, eventually};
use carillon::proto::internal::PublishResponse;
use carillon::proto::public::InvocationState;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
/// The span of a publish.
const PUBLISH: &str = "carillon.internal.v1.PublishService/Publish";

/// An OTLP collector that keeps what it is sent.
#[derive(Clone, Default)]
pub(crate) struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    resources: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource_spans in request.into_inner().resource_spans {
            let attributes = resource_spans.resource.into_iter().flat_map(|resource| resource.attributes);
            let text = attributes.map(|one| format!("{}={:?}", one.key, one.value)).collect::<Vec<_>>().join(" ");
            self.resources.lock().expect("nobody panics with it").push(text);
            let spans = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().expect("nobody panics with it").extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts on a free port, for as long as the test runs.
    pub(crate) async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(async move { Server::builder().add_service(service).serve_with_incoming(incoming).await });
        (collector, format!("http://{address}"))
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("nobody panics with it").clone()
    }

    /// The spans of a trace by name, once every name is there.
    async fn trace(&self, trace: &str, names: &[&str]) -> HashMap<String, Vec<Span>> {
        eventually("the spans are exported", || async {
            let mut found: HashMap<String, Vec<Span>> = HashMap::new();
            for span in self.spans().into_iter().filter(|span| hex(&span.trace_id) == trace) {
                found.entry(span.name.clone()).or_default().push(span);
            }
            if names.iter().all(|name| found.contains_key(*name)) {
                Ok(found)
            } else {
                Err(format!("{:?}", found.keys()))
            }
        })
        .await
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}

/// An attribute's value as text.
fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|one| one.key == key).and_then(|one| one.value.as_ref()?.value.clone());
    match found {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

async fn publish_traced(tenant: &Tenant, event_type: &str) -> PublishResponse {
    let mut request = Request::new(publish_request(event_type, &json!({"n": 1})));
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().expect("it is ASCII"));
    tenant.publisher().publish(request).await.expect("valid").into_inner()
}

#[tokio::test]
async fn a_publishers_trace_goes_through_the_commit_to_each_attempt_and_its_receiver() {
    let (collector, endpoint) = Collector::start().await;
    let world = World::start_with(2, &format!("[traces]\nendpoint = \"{endpoint}\"\n")).await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    receiver.answers("/hook", [crate::harness::Answer::Status(500), crate::harness::Answer::Status(200)]);
    tenant.declare("CUSTOM_TRACED").await;
    tenant.subscribe("CUSTOM_TRACED", &receiver, "/hook").await;
    let published = publish_traced(&tenant, "CUSTOM_TRACED").await;
    tenant.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;

    let spans = eventually("both attempts are exported", || async {
        let spans = collector.trace(TRACE, &[PUBLISH, "publish commit", "deliver"]).await;
        if spans["deliver"].len() == 2 { Ok(spans) } else { Err(spans) }
    })
    .await;
    let publish = &spans[PUBLISH][0];
    assert_eq!(hex(&publish.parent_span_id), PARENT, "the call is part of the publisher's trace");
    assert_eq!(attribute(publish, "rpc.grpc.status_code"), "0");
    let commit = &spans["publish commit"][0];
    assert_eq!(commit.parent_span_id, publish.span_id);
    assert_eq!(attribute(commit, "events"), "1");
    let mut attempts = spans["deliver"].clone();
    attempts.sort_by_key(|span| span.start_time_unix_nano);
    let invocation = &published.invocations[0].invocation_id;
    for (attempt, (outcome, status)) in attempts.iter().zip([("failed", "500"), ("succeeded", "200")]) {
        assert_eq!(attempt.parent_span_id, publish.span_id);
        assert_eq!(attribute(attempt, "carillon.outcome"), outcome);
        assert_eq!(attribute(attempt, "http.response.status_code"), status);
        assert_eq!(&attribute(attempt, "carillon.invocation"), invocation);
        assert_eq!(attribute(attempt, "carillon.event_type"), "CUSTOM_TRACED");
    }
    // Each attempt tells its receiver its own place in the trace.
    let received = receiver.receives("/hook", 2).await;
    for (received, attempt) in received.iter().zip(&attempts) {
        assert_eq!(received.header("traceparent"), format!("00-{TRACE}-{}-01", hex(&attempt.span_id)));
    }
    // The event says which trace it belongs to, as CloudEvents' extension has it.
    assert_eq!(received[0].json()["traceparent"], format!("00-{TRACE}-{}-01", hex(&publish.span_id)));
    let resource = collector.resources.lock().expect("nobody panics with it")[0].clone();
    assert!(resource.contains("service.name") && resource.contains("carillon"), "{resource}");
    // No span holds what nobody but the tenant may see.
    let everything = format!("{:?}", collector.spans());
    assert!(!everything.contains(&tenant.key) && !everything.contains("/hook"), "{everything}");
}

#[tokio::test]
async fn a_caller_that_is_not_sampled_leaves_no_span() {
    let (collector, endpoint) = Collector::start().await;
    let world = World::start_with(1, &format!("[traces]\nendpoint = \"{endpoint}\"\nsample_ratio = 0.0\n")).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_TRACED").await;
    tenant.publish("CUSTOM_TRACED", &json!({"n": 1})).await;
    // The caller's own decision counts more than the ratio, and its spans come after any that the calls before had left.
    publish_traced(&tenant, "CUSTOM_TRACED").await;
    collector.trace(TRACE, &["publish commit"]).await;
    let others: Vec<_> = collector.spans().into_iter().filter(|span| hex(&span.trace_id) != TRACE).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test]
async fn what_is_not_sent_yet_is_sent_when_the_replica_ends_and_a_missing_collector_harms_nobody() {
    let (collector, endpoint) = Collector::start().await;
    let mut world = World::start_with(1, &format!("[traces]\nendpoint = \"{endpoint}\"\n")).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_TRACED").await;
    publish_traced(&tenant, "CUSTOM_TRACED").await;
    world.replicas[0].process.signal(rustix::process::Signal::TERM);
    assert!(world.replicas[0].process.ended("the replica drains").await.success());
    let spans = collector.spans();
    assert!(spans.iter().any(|span| hex(&span.trace_id) == TRACE && span.name == "publish commit"), "{spans:?}");

    let mut lonely = World::start_with(1, "[traces]\nendpoint = \"http://127.0.0.1:1\"\ntimeout_ms = 100\n").await;
    let tenant = lonely.tenant().await;
    tenant.declare("CUSTOM_TRACED").await;
    publish_traced(&tenant, "CUSTOM_TRACED").await;
    eventually("the log says so", || async {
        let log = lonely.replicas[0].process.log_tail();
        if log.contains("spans cannot be exported") { Ok(()) } else { Err(log) }
    })
    .await;
    lonely.replicas[0].process.signal(rustix::process::Signal::TERM);
    assert!(lonely.replicas[0].process.ended("the replica drains").await.success());
}

#[tokio::test]
async fn nothing_is_traced_unless_a_collector_is_set() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_TRACED").await;
    tenant.subscribe("CUSTOM_TRACED", &receiver, "/hook").await;
    publish_traced(&tenant, "CUSTOM_TRACED").await;
    let received = receiver.receives("/hook", 1).await;
    assert!(!received[0].headers.contains_key("traceparent"));
    assert!(received[0].json().get("traceparent").is_none(), "the event is as it was published");
}
