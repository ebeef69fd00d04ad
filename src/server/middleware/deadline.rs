//! Ends calls, including streams, at their deadline with `DEADLINE_EXCEEDED`. tonic's own deadline layer covers a call
//! only until its response headers, and answers CANCELLED. A call whose client does not read even that response is
//! dropped after a grace period.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{HttpResult, error_response, public_methods, request_id};
use crate::{
    contract::{ApiError, Contract},
    domain::RequestId,
    server::{grpc::CallDeadline, listener::call_timer},
};

/// How long after the deadline a client may take to read the response.
const GRACE: Duration = Duration::from_secs(1);

/// Request header with the caller's timeout (gRPC over HTTP/2, "Timeout").
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Default and maximum deadlines, as durations from the arrival of a call.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Used for unary calls without a timeout from the caller.
    pub default: Duration,
    /// Maximum for unary calls.
    pub longest: Duration,
    /// Maximum for streams, and the default for streams without a timeout from the caller.
    pub stream: Duration,
}

impl Deadlines {
    fn allowed(&self, requested: Option<Duration>, streams: bool) -> Duration {
        if streams {
            requested.unwrap_or(self.stream).min(self.stream)
        } else {
            requested.unwrap_or(self.default).min(self.longest)
        }
    }
}

/// Adds [`WithDeadline`].
#[derive(Debug, Clone)]
pub struct DeadlineLayer {
    deadlines: Deadlines,
    contract: &'static Contract,
}

impl DeadlineLayer {
    pub fn new(deadlines: Deadlines, contract: &'static Contract) -> Self {
        Self { deadlines, contract }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = WithDeadline<S>;

    fn layer(&self, inner: S) -> WithDeadline<S> {
        WithDeadline { inner, layer: self.clone() }
    }
}

/// Ends the calls of a service at their deadline.
#[derive(Debug, Clone)]
pub struct WithDeadline<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S> Service<Request<Body>> for WithDeadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = WithDeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let DeadlineLayer { deadlines, contract } = &self.layer;
        let (path, requested) = (request.uri().path(), parse_timeout(request.headers()));
        let row = contract.authorizations.get(path);
        let streams = row.is_none_or(|row| row.streams);
        let allowed = match row {
            Some(row) => deadlines.allowed(requested, row.streams),
            None => {
                let longest = public_methods::max_duration(path, deadlines.stream);
                requested.unwrap_or(longest).min(longest)
            }
        };
        let expiry = Expiry { allowed, request_id: request_id(&request), contract };
        let deadline = Instant::now() + allowed;
        request.extensions_mut().insert(CallDeadline { at: deadline, allowed });
        let sleep = sleep_until(deadline);
        WithDeadlineFuture { inner: self.inner.call(request), sleep, expiry: Some(expiry), streams }
    }
}

/// Parses the `grpc-timeout` header: at most eight digits and a unit. Returns `None` if it is missing or malformed.
fn parse_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Creates the error of a call whose deadline has passed.
#[derive(Debug)]
struct Expiry {
    allowed: Duration,
    request_id: RequestId,
    contract: &'static Contract,
}

impl Expiry {
    fn error(&self) -> ApiError {
        ApiError::timeout(self.allowed)
    }

    fn status(&self) -> Status {
        self.error().status(&self.contract.errors, self.request_id)
    }
}

pin_project! {
    /// Resolves to the response, or to DEADLINE_EXCEEDED.
    #[derive(Debug)]
    pub struct WithDeadlineFuture<F> {
        #[pin]
        inner: F,
        #[pin]
        sleep: Sleep,
        expiry: Option<Expiry>,
        streams: bool,
    }
}

impl<F: Future<Output = HttpResult>> Future for WithDeadlineFuture<F> {
    type Output = HttpResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HttpResult> {
        let this = self.project();
        if let Poll::Ready(Ok(response)) = this.inner.poll(cx) {
            let deadline = this.sleep.deadline();
            if !response.body().is_end_stream() {
                call_timer::end_at(deadline + GRACE);
            }
            let expiry = this.expiry.take().filter(|_| *this.streams);
            return Poll::Ready(Ok(match expiry {
                Some(expiry) => response
                    .map(|inner| Body::new(BoundedBody { inner, sleep: sleep_until(deadline), expiry: Some(expiry) })),
                None => response,
            }));
        }
        if this.sleep.poll(cx).is_ready()
            && let Some(expiry) = this.expiry.take()
        {
            return Poll::Ready(Ok(error_response(&expiry.error(), expiry.contract, expiry.request_id)));
        }
        Poll::Pending
    }
}

pin_project! {
    /// A stream that ends at its deadline with trailers of DEADLINE_EXCEEDED.
    struct BoundedBody {
        #[pin]
        inner: Body,
        #[pin]
        sleep: Sleep,
        expiry: Option<Expiry>,
    }
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if this.expiry.is_none() {
            return Poll::Ready(None);
        }
        if this.sleep.poll(cx).is_ready()
            && let Some(expiry) = this.expiry.take()
        {
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(expiry.status().add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        this.inner.poll_frame(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;

    use super::{Deadlines, parse_timeout};

    #[test]
    fn timeouts_are_parsed_as_the_grpc_specification_defines() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", value.parse().expect("a header"));
            parse_timeout(&headers)
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for bad in ["", "S", "5", "-1S", "123456789S", "1s"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_deadline_is_capped() {
        let [s1, s2, s9] = [1, 2, 9].map(Duration::from_secs);
        let deadlines = Deadlines { default: s1, longest: s2, stream: s9 };
        assert_eq!(deadlines.allowed(None, false), s1);
        assert_eq!(deadlines.allowed(Some(s9), false), s2);
        assert_eq!(deadlines.allowed(None, true), s9);
        assert_eq!(deadlines.allowed(Some(s2), true), s2);
    }
}
