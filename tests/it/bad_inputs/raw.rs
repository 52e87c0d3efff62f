//! Calls whose request is any bytes, and the list of the service's RPCs: what no generated client can say.

use std::collections::HashMap;

use bytes::{Buf as _, BufMut as _, Bytes};
use carillon::proto::DESCRIPTORS;
use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Messages as they are on the wire.
#[derive(Debug, Clone, Copy, Default)]
struct Verbatim;

impl Codec for Verbatim {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Calls a method with any bytes as its request, and any number of `authorization` headers.
pub async fn call(channel: Channel, path: &str, authorization: &[String], body: Bytes) -> Result<Bytes, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(body);
    for header in authorization {
        let value: AsciiMetadataValue = header.parse().expect("visible ASCII");
        request.metadata_mut().append("authorization", value);
    }
    let path = path.parse().expect("a path");
    client.unary(request, path, Verbatim).await.map(tonic::Response::into_inner)
}

/// One RPC of the service.
pub struct Rpc {
    /// `/package.Service/Method`.
    pub path: String,
    /// `Service.Method`.
    pub name: String,
    /// Paths of the fields of its request that select something by an id or a name, those in nested messages included.
    pub selectors: Vec<String>,
    /// One request, one answer.
    pub unary: bool,
    /// Its request takes a `request_id`, by which a retry gets the first answer.
    pub request_id: bool,
}

/// Every RPC of the service, as the proto files have it.
pub fn rpcs() -> Vec<Rpc> {
    let files = FileDescriptorSet::decode(DESCRIPTORS).expect("the build wrote the descriptors").file;
    let mut messages = HashMap::new();
    for file in &files {
        for message in &file.message_type {
            messages.insert(format!(".{}.{}", file.package(), message.name()), message);
        }
    }
    let mut rpcs = Vec::new();
    for file in &files {
        for service in &file.service {
            for method in &service.method {
                let mut selectors = Vec::new();
                gather(&messages, method.input_type(), "", &mut selectors);
                rpcs.push(Rpc {
                    path: format!("/{}.{}/{}", file.package(), service.name(), method.name()),
                    name: format!("{}.{}", service.name(), method.name()),
                    selectors,
                    unary: !method.client_streaming() && !method.server_streaming(),
                    request_id: messages
                        .get(method.input_type())
                        .is_some_and(|message| message.field.iter().any(|field| field.name() == "request_id")),
                });
            }
        }
    }
    rpcs
}

/// Walks a message; those that are not ours select nothing.
fn gather(messages: &HashMap<String, &DescriptorProto>, name: &str, prefix: &str, found: &mut Vec<String>) {
    let ours = [".carillon.", ".io.cloudevents."].iter().any(|package| name.starts_with(package));
    let Some(message) = messages.get(name).filter(|_| ours && prefix.len() < 100) else { return };
    for field in &message.field {
        let path = format!("{prefix}{}", field.name());
        match field.r#type() {
            Type::Message => gather(messages, field.type_name(), &format!("{path}."), found),
            Type::String if selects(field.name()) => found.push(path),
            _ => {}
        }
    }
}

/// Whether a field of that name selects something that exists.
fn selects(field: &str) -> bool {
    const NAMES: [&str; 8] = ["id", "name", "app", "type", "event_type", "event_types", "watch", "tenant"];
    NAMES.contains(&field) || field.ends_with("_id") && field != "request_id" || field.ends_with("_ids")
}
