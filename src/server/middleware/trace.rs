//! Records a span and a duration for each call, as the OpenTelemetry semantic conventions for RPC define (version
//! 1.44). The span joins the caller's trace, ends with the last byte of the response, and has a status even if the
//! caller disconnects. Inner layers find its context in the request extensions.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{HttpResult, public_methods::PUBLIC_METHODS, request_id};
use crate::{contract::Contract, metrics};

/// Name of all unknown methods in metrics (semantic conventions for RPC, `rpc.method`).
const OTHER: &str = "_OTHER";

/// Adds [`Trace`].
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer(pub &'static Contract);

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner, contract: self.0 }
    }
}

/// Records the calls of a service.
#[derive(Debug, Clone)]
pub struct Trace<S> {
    inner: S,
    contract: &'static Contract,
}

/// Returns the method name for metrics and spans. Unknown methods share one name, because callers can invent any number
/// of methods.
fn method_name(path: &str, contract: &'static Contract) -> &'static str {
    let of_contract = contract.authorizations.path(path);
    let path = of_contract.or_else(|| PUBLIC_METHODS.into_iter().find(|public| *public == path));
    path.map_or(OTHER, |path| path.trim_start_matches('/'))
}

impl<S, B> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = TraceFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let method = method_name(request.uri().path(), self.contract);
        let id = request_id(&request).to_string();
        let span = tracing::info_span!(
            "call",
            otel.name = method,
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.response.status_code = Empty,
            error.type = Empty,
            appferry.request_id = id,
            appferry.principal = Empty,
            appferry.decision = Empty,
            appferry.app_id = Empty,
            appferry.target_region_ids = Empty,
        );
        if !span.is_disabled() && request.headers().contains_key("traceparent") {
            let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
            // Fails only if no spans are exported; then there is no trace to join.
            let _ = span.set_parent(parent);
        }
        let context = span.context().span().span_context().clone();
        if context.is_valid() {
            request.extensions_mut().insert(context);
        }
        let inner = {
            let _entered = span.enter();
            self.inner.call(request)
        };
        TraceFuture { inner, outcome: Some(Outcome { span, method, started: Instant::now(), code: None }) }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// A call's span and status; recorded when dropped.
#[derive(Debug)]
struct Outcome {
    span: Span,
    method: &'static str,
    started: Instant,
    /// `None` until the status has been sent.
    code: Option<Code>,
}

impl Outcome {
    fn record_headers(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(Status::GRPC_STATUS) {
            self.record(Code::from_bytes(code.as_bytes()));
        }
    }

    fn record(&mut self, code: Code) {
        self.code = Some(code);
        record_code(&self.span, code);
    }
}

fn record_code(span: &Span, code: Code) {
    let name = code_name(code);
    span.record("rpc.response.status_code", name);
    if is_error(code) {
        span.record("error.type", name);
        span.record("otel.status_code", "ERROR");
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        // The exporter takes the time of the last exit as the span's end.
        let _entered = self.span.enter();
        let code = self.code.unwrap_or_else(|| {
            // The caller disconnected before the end of the response.
            record_code(&self.span, Code::Cancelled);
            Code::Cancelled
        });
        let duration = self.started.elapsed();
        metrics::record_call(self.method, code_name(code), is_error(code), duration);
        tracing::debug!(method = self.method, code = code_name(code), ?duration, "call finished");
    }
}

/// Whether a code is an error of the server (semantic conventions for gRPC, "Server status").
fn is_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Returns a code's name in the gRPC specification.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

pin_project! {
    /// Polls the call inside its span.
    #[derive(Debug)]
    pub struct TraceFuture<F> {
        #[pin]
        inner: F,
        outcome: Option<Outcome>,
    }
}

impl<F: Future<Output = HttpResult>> Future for TraceFuture<F> {
    type Output = HttpResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HttpResult> {
        let this = self.project();
        let response = {
            let _entered = this.outcome.as_ref().map(|outcome| outcome.span.enter());
            let Ok(response) = ready!(this.inner.poll(cx));
            response
        };
        Poll::Ready(Ok(match this.outcome.take() {
            Some(mut outcome) => {
                outcome.record_headers(response.headers());
                response.map(|inner| Body::new(TracedBody { inner, outcome }))
            }
            None => response,
        }))
    }
}

pin_project! {
    /// Keeps the span open until the end of the body.
    struct TracedBody {
        #[pin]
        inner: Body,
        outcome: Outcome,
    }
}

impl HttpBody for TracedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.outcome.record_headers(trailers);
                }
            }
            Some(Err(status)) => this.outcome.record(status.code()),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
