//! Standard services of both gRPC ports: health by service, and reflection.

use super::services::Services;
use crate::proto::DESCRIPTORS;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

/// The health of one port's services.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    services: Vec<&'static str>,
}

impl Health {
    /// Adds the health service, and reflection where it is wanted, to a port's services; `names` are those of the port's own.
    pub async fn add(services: Services, names: Vec<&'static str>, reflection: Reflection) -> (Self, Services) {
        let (reporter, server) = health_reporter();
        let mut services = services.with(server);
        if reflection == Reflection::Served {
            let built = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            let built = names.iter().fold(built, |builder, name| builder.with_service_name(*name));
            let built = built.with_service_name("grpc.health.v1.Health");
            services = services.with(built.build_v1().expect("the build wrote the descriptors"));
        }
        let health = Self { reporter, services: names };
        health.set(ServingStatus::Serving).await;
        (health, services)
    }

    /// Tells every watcher of health to send its calls elsewhere.
    pub async fn stop(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        // The empty name stands for the server as a whole.
        for service in self.services.iter().copied().chain([""]) {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// Whether reflection is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reflection {
    /// Clients may ask for the proto files.
    Served,
    /// They may not.
    Hidden,
}

/// The name of a generated server.
pub fn name_of<S: NamedService>() -> &'static str {
    S::NAME
}
