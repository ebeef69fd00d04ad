//! One span and one measurement a call, as the OpenTelemetry semantic conventions for RPC have it (version 1.44), in the trace of its caller. It
//! ends with the last byte of the answer, and knows how the call came out even if the caller went away. Further in, what identifies it
//! is found in the request's extensions.

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

use super::{Answer, open::OPEN, request_id};
use crate::{contract::Contract, metrics};

/// What a method that is none is called in metrics (semantic conventions for RPC, `rpc.method`).
const OTHER: &str = "_OTHER";

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer(pub &'static Contract);

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner, contract: self.0 }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Trace<S> {
    inner: S,
    contract: &'static Contract,
}

/// What a path's method is called in metrics and spans. Whoever calls can name any number of others than there are.
fn known(path: &str, contract: &'static Contract) -> &'static str {
    let of_contract = contract.authorizations.path(path);
    let path = of_contract.or_else(|| OPEN.into_iter().find(|open| *open == path));
    path.map_or(OTHER, |path| path.trim_start_matches('/'))
}

impl<S, B> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let method = known(request.uri().path(), self.contract);
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
            // It fails where nothing is exported, and then there is no trace to join.
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
        ResponseFuture { inner, outcome: Some(Outcome { span, method, began: Instant::now(), code: None }) }
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

/// The span of a call, and how the call came out.
#[derive(Debug)]
struct Outcome {
    span: Span,
    method: &'static str,
    began: Instant,
    /// Nothing until it is known.
    code: Option<Code>,
}

impl Outcome {
    fn tell(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(Status::GRPC_STATUS) {
            self.record(Code::from_bytes(code.as_bytes()));
        }
    }

    fn record(&mut self, code: Code) {
        self.code = Some(code);
        record(&self.span, code);
    }
}

fn record(span: &Span, code: Code) {
    let name = name(code);
    span.record("rpc.response.status_code", name);
    if is_error(code) {
        span.record("error.type", name);
        span.record("otel.status_code", "ERROR");
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        // Leaving the span is what tells when it ended.
        let _entered = self.span.enter();
        let code = self.code.unwrap_or_else(|| {
            // Nobody waited for the end.
            record(&self.span, Code::Cancelled);
            Code::Cancelled
        });
        let took = self.began.elapsed();
        metrics::record_call(self.method, name(code), is_error(code), took);
        tracing::debug!(method = self.method, code = name(code), ?took, "a call was answered");
    }
}

/// Which codes are errors of the server (semantic conventions for gRPC, "Server status").
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

/// A code's name as the gRPC specification writes it.
fn name(code: Code) -> &'static str {
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
    /// The answer, in the call's span.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        outcome: Option<Outcome>,
    }
}

impl<F: Future<Output = Answer>> Future for ResponseFuture<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = self.project();
        let response = {
            let _entered = this.outcome.as_ref().map(|outcome| outcome.span.enter());
            let Ok(response) = ready!(this.inner.poll(cx));
            response
        };
        Poll::Ready(Ok(match this.outcome.take() {
            Some(mut outcome) => {
                outcome.tell(response.headers());
                response.map(|inner| Body::new(TracedBody { inner, outcome }))
            }
            None => response,
        }))
    }
}

pin_project! {
    /// The body of an answer.
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
                    this.outcome.tell(trailers);
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
