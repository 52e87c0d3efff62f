//! Compiles the proto files with protox, so that no system protoc is needed: messages, services, proto JSON, and the
//! descriptor set that reflection serves.

use std::path::PathBuf;
use std::{env, error::Error, fs};

const FILES: &[&str] = &[
    "carillon/v1/errors.proto",
    "carillon/v1/event.proto",
    "carillon/v1/event_type.proto",
    "carillon/v1/event_service.proto",
    "carillon/v1/invocation.proto",
    "carillon/v1/subscription.proto",
    "carillon/internal/v1/admin.proto",
    "carillon/internal/v1/publish.proto",
    "carillon/cloudevents/v1/cloudevents.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=src/store/migrations");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(FILES, ["proto"])?;
    let encoded = prost::Message::encode_to_vec(&descriptors);
    fs::write(out.join("descriptors.bin"), &encoded)?;
    tonic_prost_build::configure()
        .bytes(".")
        // Maps in key order, so that equal messages have equal encodings: idempotency compares hashes of them.
        .btree_map(".")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf.Timestamp", "crate::proto::Timestamp")
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .btree_map(["."])
        .build(&[".carillon", ".io.cloudevents"])?;
    Ok(())
}
