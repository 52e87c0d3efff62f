//! The gRPC services of one port, found by the name in a call's path.
//!
//! A look-up of our own instead of an HTTP router: every path is `/package.Service/Method`, and this stands in the way of every
//! publish.

use http::{Request, Response};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

type Boxed = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// The services of a port. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Services {
    by_name: Arc<HashMap<&'static str, Boxed>>,
}

impl Services {
    /// With one service more.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        Arc::make_mut(&mut self.by_name).insert(S::NAME, BoxCloneSyncService::new(service));
        self
    }

    /// Answers a call; UNIMPLEMENTED where no service has the name.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        let name = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/')).map(|(name, _)| name);
        match name.and_then(|name| self.by_name.get(name)) {
            Some(service) => service.clone().oneshot(request).await.unwrap_or_else(|never| match never {}),
            None => Status::unimplemented("").into_http(),
        }
    }
}
