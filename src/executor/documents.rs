//! Fetches small documents by https for the service itself: the keys of token issuers.
//!
//! The same connections as those of webhooks, by a guard of their own: an operator may allow the range of an issuer inside without
//! opening it to tenants. Must never follow a redirect, use a proxy, or read more than its bound.

use super::webhook::connector::{ConnectError, Connector};
use super::webhook::egress::EgressGuard;
use super::{Config, ExecutorError};
use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Fetches documents. Cheap to clone.
#[derive(Clone)]
pub struct Documents {
    http: Client<Connector, Empty<Bytes>>,
    user_agent: HeaderValue,
    timeout: Duration,
    bytes_max: usize,
}

/// Why there is no document. No text names an address.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address is refused, or nothing usable answers there.
    #[error("{0}")]
    Unreachable(String),
    /// An answer other than 200.
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// It ends too early, or is larger than its bound.
    #[error("the answer ends too early, or is larger than executor.issuers.document_bytes_max")]
    Body,
    /// It takes too long.
    #[error("it takes longer than executor.issuers.timeout_ms")]
    Timeout,
}

impl fmt::Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Documents").finish_non_exhaustive()
    }
}

impl Documents {
    /// Builds the client. `config` was checked.
    ///
    /// Errors: a file of roots that cannot be used.
    pub fn new(config: &Config) -> Result<Self, ExecutorError> {
        const EXTRA_CA: &str = "issuers.extra_ca_file";
        let own = Config {
            allow_http: false,
            // An operator names issuers, of whom the servers for names that tenants choose need not know.
            nameservers: Vec::new(),
            allow_private_ranges: config.issuers.allow_private_ranges.clone(),
            extra_ca_file: config.issuers.extra_ca_file.clone(),
            ..config.clone()
        };
        let connector = Connector::new(&own, Arc::new(EgressGuard::new(&own))).map_err(|error| match error {
            ExecutorError::ReadExtraCa(_, source) => ExecutorError::ReadExtraCa(EXTRA_CA, source),
            ExecutorError::ParseExtraCa(_) => ExecutorError::ParseExtraCa(EXTRA_CA),
            error => error,
        })?;
        let user_agent = HeaderValue::from_str(&config.user_agent);
        let user_agent =
            user_agent.map_err(|_| ExecutorError::Setting { key: "user_agent", bound: "visible ASCII characters" })?;
        // Fetches are minutes apart: a kept connection would only be found closed.
        let http =
            Client::builder(TokioExecutor::new()).timer(TokioTimer::new()).pool_max_idle_per_host(0).build(connector);
        let Config { issuers, .. } = own;
        let timeout = Duration::from_millis(issuers.timeout_ms);
        Ok(Self { http, user_agent, timeout, bytes_max: issuers.document_bytes_max })
    }

    /// Fetches one document. Returns within `executor.issuers.timeout_ms`.
    pub async fn fetch(&self, uri: Uri) -> Result<Bytes, FetchError> {
        timeout(self.timeout, self.get(uri)).await.map_err(|_| FetchError::Timeout)?
    }

    async fn get(&self, uri: Uri) -> Result<Bytes, FetchError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        request.headers_mut().insert(USER_AGENT, self.user_agent.clone());
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        let response = self.http.request(request).await.map_err(|error| unreachable(&error))?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), self.bytes_max).collect().await;
        Ok(body.map_err(|_| FetchError::Body)?.to_bytes())
    }
}

/// What the connector has said, where it was the connector.
fn unreachable(error: &legacy::Error) -> FetchError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(connect) = current.downcast_ref::<ConnectError>() {
            return FetchError::Unreachable(connect.to_string());
        }
        cause = current.source();
    }
    FetchError::Unreachable("the connection broke before an answer arrived".to_owned())
}
