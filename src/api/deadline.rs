//! Deadlines: what `grpc-timeout` asks for, bounded, and the end of streams.
//!
//! Source: gRPC over HTTP/2, `Timeout → "grpc-timeout" TimeoutValue TimeoutUnit`, 1 to 8 digits.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Request, Status};

const HEADER: &str = "grpc-timeout";

/// Longer deadlines count as none for streams.
const STREAM_TIMEOUT_MAX: Duration = Duration::from_hours(366 * 24);

/// When the caller stops waiting; in every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Instant);

/// When the caller of this request stops waiting, where known.
pub fn of<T>(request: &Request<T>) -> Option<Instant> {
    request.extensions().get::<Deadline>().map(|deadline| deadline.0)
}

/// Reads the header; none where it is absent, or where it says nothing that can be read: such a caller gets the longest that
/// the server gives.
pub fn parse(headers: &HeaderMap) -> Option<Duration> {
    let mut values = headers.get_all(HEADER).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { parse_value(value) }
}

fn parse_value(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // More digits than the protocol has are clamped like any other time that is too long.
    let number: u64 = digits.parse().unwrap_or(u64::MAX);
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3_600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The time a stream may take; none without an end.
pub fn of_stream(asked: Option<Duration>) -> Option<Duration> {
    asked.filter(|timeout| *timeout <= STREAM_TIMEOUT_MAX)
}

/// Lets a stream run until `end` is ready, then closes it with the status that `end` gives.
pub fn ending(body: Body, end: impl Future<Output = Status> + Send + 'static) -> Body {
    Body::new(Ending { body, end: Some(Box::pin(end)) })
}

struct Ending {
    body: Body,
    /// None once the stream was ended.
    end: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let Some(end) = &mut this.end else { return Poll::Ready(None) };
        // What is ready goes out first, so that a stream that says goodbye itself is not interrupted.
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        match end.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(status) => {
                this.end = None;
                let mut trailers = HeaderMap::new();
                // A status that does not fit a header ends the stream all the same.
                let _ = status.add_header(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    /// A refused stream has no body: its headers must end it, or clients take its status for a broken stream.
    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::ApiError;
    use super::*;

    fn read(text: &str) -> Option<Duration> {
        parse(&HeaderMap::from_iter([(http::HeaderName::from_static(HEADER), HeaderValue::from_str(text).unwrap())]))
    }

    #[test]
    fn timeouts_have_digits_and_a_unit_and_others_count_as_none() {
        assert_eq!(parse(&HeaderMap::new()), None);
        assert_eq!(read("1n"), Some(Duration::from_nanos(1)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("99999999H"), Some(Duration::from_hours(99_999_999)));
        for bad in ["", "1", "m", "-1S", "+1S", " 1S", "1.5S", "1s", "1S1S", "0x1S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        let mut two = HeaderMap::new();
        two.append(HEADER, HeaderValue::from_static("1S"));
        two.append(HEADER, HeaderValue::from_static("2S"));
        assert_eq!(parse(&two), None);
    }

    #[test]
    fn absurd_timeouts_are_very_long() {
        for absurd in ["99999999999999999999S", "18446744073709551615H", "184467440737095516150000M"] {
            assert!(read(absurd).is_some_and(|timeout| timeout > STREAM_TIMEOUT_MAX), "{absurd}");
        }
    }

    #[test]
    fn absurd_timeouts_of_streams_count_as_none() {
        assert_eq!(of_stream(Some(Duration::from_hours(99_999_999))), None);
        assert_eq!(of_stream(Some(Duration::from_secs(1))), Some(Duration::from_secs(1)));
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_status_it_is_given() {
        use http_body_util::BodyExt as _;
        struct Silent;
        impl http_body::Body for Silent {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Pending
            }
        }
        let body = ending(Body::new(Silent), async { ApiError::Deadline.into() });
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "4");
    }
}
