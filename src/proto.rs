//! Generated code: messages, services, proto JSON and the descriptor set. Never edited.

#![expect(clippy::pedantic, missing_docs, reason = "generated code")]

mod timestamp;

/// Every file's descriptor, encoded, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The public API.
pub mod carillon {
    pub mod v1 {
        tonic::include_proto!("carillon.v1");
        include!(concat!(env!("OUT_DIR"), "/carillon.v1.serde.rs"));
    }
    pub mod internal {
        pub mod v1 {
            tonic::include_proto!("carillon.internal.v1");
            include!(concat!(env!("OUT_DIR"), "/carillon.internal.v1.serde.rs"));
        }
    }
}

/// The CloudEvents protobuf format.
pub mod io {
    pub mod cloudevents {
        pub mod v1 {
            tonic::include_proto!("io.cloudevents.v1");
            include!(concat!(env!("OUT_DIR"), "/io.cloudevents.v1.serde.rs"));
        }
    }
}

pub use timestamp::Timestamp;

pub use carillon::internal::v1 as internal;
pub use carillon::v1 as public;
pub use io::cloudevents::v1 as cloudevents;
