//! A test run of a listener: what was sent, what came back, and how it ended. Never recorded.

use super::invocation::Outcome;
use bytes::Bytes;
use std::time::Duration;

/// The extension attribute that marks the event of a test run.
pub const TEST_ATTRIBUTE: &str = "carillontest";

/// A test run.
#[derive(Debug, Clone)]
pub struct Trial {
    /// How it ended.
    pub outcome: Outcome,
    /// What was sent; none where it could not be built.
    pub request: Option<SentRequest>,
    /// What came back, without its body; none where nothing did.
    pub answer: Option<CameBack>,
}

/// The request of a test run, without secrets.
#[derive(Debug, Clone)]
pub struct SentRequest {
    /// The endpoint.
    pub uri: String,
    /// Header fields as sent; secret ones without their value.
    pub headers: Vec<(String, String)>,
    /// The body as sent.
    pub body: Bytes,
}

/// The start of an answer.
#[derive(Debug, Clone)]
pub struct CameBack {
    /// HTTP status.
    pub status: u16,
    /// Header fields, bounded in number and length.
    pub headers: Vec<(String, String)>,
    /// How long after the begin the header section was there.
    pub after: Duration,
}
