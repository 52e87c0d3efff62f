//! Webhook targets: what may be called, and how.

use super::ids::{SubscriptionId, TenantId};
pub use super::signing::{SigningSecret, VerificationKey};
use std::fmt;
use std::sync::Arc;

/// An HTTP endpoint to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookTarget {
    /// Absolute, normalised URI.
    pub uri: WebhookUri,
    /// How the event becomes a request.
    pub mode: WebhookMode,
    /// Additional headers, lower-case names, sorted; none where no configured key opens them: then it cannot be called.
    pub headers: Option<Vec<(String, String)>>,
}

impl WebhookTarget {
    /// The additional headers that are known.
    pub fn headers(&self) -> &[(String, String)] {
        self.headers.as_deref().unwrap_or_default()
    }
}

/// How an event becomes a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookMode {
    /// One CloudEvents JSON document.
    Structured,
    /// The data as body, the attributes as `ce-` headers.
    Binary,
    /// The data as body and nothing else.
    Raw,
}

/// A parsed, normalised `http` or `https` URI without user info and fragment. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WebhookUri(Arc<http::Uri>);

/// Why a webhook URI or header is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// Too long.
    #[error("is longer than 2048 characters")]
    UriTooLong,
    /// Not an absolute http(s) URI.
    #[error("is not an absolute http or https URI")]
    UriShape,
    /// User info.
    #[error("must not hold user info: put credentials into a header")]
    UserInfo,
    /// Fragment.
    #[error("must not hold a fragment")]
    Fragment,
    /// Too many headers.
    #[error("holds more than 16 headers")]
    TooManyHeaders,
    /// A header's name.
    #[error("header names are 1 to 64 token characters")]
    HeaderName,
    /// A header's value.
    #[error("header values are at most 1024 visible ASCII characters or spaces")]
    HeaderValue,
    /// A header Carillon or HTTP sets itself.
    #[error("the header {0} is set by the server itself")]
    HeaderReserved(String),
}

impl WebhookUri {
    /// Parses and normalises: lower-case host, default port dropped, empty path made `/`.
    pub fn parse(text: &str) -> Result<Self, WebhookError> {
        if text.len() > 2048 {
            return Err(WebhookError::UriTooLong);
        }
        if text.contains('#') {
            return Err(WebhookError::Fragment);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(WebhookError::UriShape);
        }
        let uri: http::Uri = text.parse().map_err(|_| WebhookError::UriShape)?;
        let scheme = match uri.scheme_str() {
            Some("https") => "https",
            Some("http") => "http",
            _ => return Err(WebhookError::UriShape),
        };
        let authority = uri.authority().ok_or(WebhookError::UriShape)?;
        if authority.as_str().contains('@') {
            return Err(WebhookError::UserInfo);
        }
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() {
            return Err(WebhookError::UriShape);
        }
        // An authority that ends in a colon or holds an absurd port has text behind the host that is not a port number.
        let rest = &authority.as_str()[authority.host().len()..];
        let port = match (rest, authority.port_u16()) {
            ("", _) => None,
            (_, Some(port)) if port > 0 => Some(port),
            _ => return Err(WebhookError::UriShape),
        };
        let default = if scheme == "https" { 443 } else { 80 };
        let authority = match port {
            Some(port) if port != default => format!("{host}:{port}"),
            _ => host,
        };
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
        let uri = http::Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
        uri.map(|uri| Self(Arc::new(uri))).map_err(|_| WebhookError::UriShape)
    }

    /// The parsed form.
    pub fn as_uri(&self) -> &http::Uri {
        &self.0
    }
}

impl fmt::Display for WebhookUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Checks and normalises additional request headers.
pub fn parse_headers(
    headers: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(String, String)>, WebhookError> {
    const RESERVED: [&str; 16] = [
        "host",
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
        "user-agent",
        "date",
        "accept-encoding",
        "traceparent",
        "tracestate",
    ];
    let mut parsed: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if name.len() > 64 || http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(WebhookError::HeaderName);
        }
        let prefixed = ["webhook-", "ce-", "content-", "carillon-"].iter().any(|prefix| name.starts_with(prefix));
        if prefixed || RESERVED.contains(&name.as_str()) {
            return Err(WebhookError::HeaderReserved(name));
        }
        if value.len() > 1024 || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(WebhookError::HeaderValue);
        }
        parsed.push((name, value));
    }
    parsed.sort();
    parsed.dedup_by(|a, b| a.0 == b.0);
    if parsed.len() > 16 { Err(WebhookError::TooManyHeaders) } else { Ok(parsed) }
}

/// What an attempt needs beside the event: where to, and signed how.
#[derive(Debug, Clone)]
pub struct WebhookCall {
    /// Whose it is.
    pub tenant: TenantId,
    /// The subscription, for metrics and limits.
    pub subscription: SubscriptionId,
    /// The endpoint.
    pub target: WebhookTarget,
    /// Every secret that is valid now; each signs.
    pub secrets: Arc<[SigningSecret]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_normalised_so_that_one_target_has_one_spelling() {
        let normal = |text: &str| WebhookUri::parse(text).expect("a valid URI").to_string();
        assert_eq!(normal("https://EXAMPLE.com:443"), "https://example.com/");
        assert_eq!(normal("http://a.example:80/x?y=Z"), "http://a.example/x?y=Z");
        assert_eq!(normal("https://a.example:8443/"), "https://a.example:8443/");
        assert_eq!(normal("https://[::1]:8443/"), "https://[::1]:8443/");
    }

    #[test]
    fn uris_that_hide_something_are_refused() {
        use WebhookError::{Fragment, UriShape, UriTooLong, UserInfo};
        let long = format!("https://a.example/{}", "x".repeat(2048));
        let cases = [
            ("https://u:p@a.example/", UserInfo),
            ("https://a.example/#f", Fragment),
            ("ftp://a.example/", UriShape),
            ("/relative", UriShape),
            ("https://", UriShape),
            ("https://a.example:0/", UriShape),
            ("https://a.example:99999/", UriShape),
            ("https://a.example/\r\nx: y", UriShape),
            ("https://аpple.example/", UriShape),
            (long.as_str(), UriTooLong),
        ];
        for (text, error) in cases {
            assert_eq!(WebhookUri::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn headers_that_would_override_ours_are_refused() {
        let one = |name: &str, value: &str| parse_headers([(name.to_owned(), value.to_owned())]);
        assert_eq!(one("X-Token", "abc"), Ok(vec![("x-token".to_owned(), "abc".to_owned())]));
        for name in ["Host", "webhook-id", "Content-Length", "CE-id", "Transfer-Encoding"] {
            assert!(matches!(one(name, "x"), Err(WebhookError::HeaderReserved(_))), "{name}");
        }
        assert_eq!(one("x", "a\r\nb: c"), Err(WebhookError::HeaderValue));
        assert_eq!(one("x y", "a"), Err(WebhookError::HeaderName));
    }
}
