//! Limits the methods that need no credential: health and reflection. Few calls are served at a time, and fewer per
//! source address, so that an unauthenticated caller can't use more memory through these methods than through the
//! contract's methods. Only the headers that gRPC needs are passed on.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{Either, MapOk, TryFutureExt as _};
use http::{
    HeaderMap, HeaderName, Request, Response,
    header::{CONTENT_TYPE, TE},
};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{HttpResult, error_response, request_id};
use crate::{
    contract::{ApiError, Contract},
    server::{
        RETRY_AFTER,
        listener::{
            guarded_response::{GuardedBody, GuardedFuture},
            peer::Peer,
        },
        source_pool::{PoolSlot, SourcePool},
    },
};

/// Paths of the methods that need no credential.
pub const PUBLIC_METHODS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Returns the longest duration of a call of a public method. `stream_limit` is the longest duration of any stream.
pub fn max_duration(path: &str, stream_limit: Duration) -> Duration {
    match path.rsplit('/').next() {
        Some("Watch") => stream_limit,
        // Clients read all descriptors within seconds.
        Some("ServerReflectionInfo") => Duration::from_secs(60),
        _ => Duration::from_secs(10),
    }
}

/// Request headers that are passed on.
const PASSED_HEADERS: [HeaderName; 4] =
    [CONTENT_TYPE, TE, HeaderName::from_static("grpc-encoding"), HeaderName::from_static("grpc-accept-encoding")];

/// Adds [`PublicMethods`]. All services of a layer share its limits.
#[derive(Debug, Clone)]
pub struct PublicMethodsLayer {
    check: SourcePool,
    watch: SourcePool,
    reflection: SourcePool,
    contract: &'static Contract,
}

impl PublicMethodsLayer {
    pub fn new(contract: &'static Contract) -> Self {
        // Concurrent calls in total, and per source. Reflection has the largest responses, which may wait for the
        // client.
        let [check, watch, reflection] =
            [(512, 64), (256, 16), (32, 4)].map(|(total, per_source)| SourcePool::new(total, per_source));
        Self { check, watch, reflection, contract }
    }

    fn pool(&self, path: &str) -> Option<&SourcePool> {
        let index = PUBLIC_METHODS.iter().position(|public| *public == path)?;
        Some(match index {
            0 => &self.check,
            1 => &self.watch,
            _ => &self.reflection,
        })
    }
}

impl<S> Layer<S> for PublicMethodsLayer {
    type Service = PublicMethods<S>;

    fn layer(&self, inner: S) -> PublicMethods<S> {
        PublicMethods { inner, layer: self.clone() }
    }
}

/// Limits calls of public methods.
#[derive(Debug, Clone)]
pub struct PublicMethods<S> {
    inner: S,
    layer: PublicMethodsLayer,
}

/// A call that holds its slot until the last byte of the response is written.
type GuardedCall<F> = MapOk<GuardedFuture<F, PoolSlot>, fn(Response<GuardedBody<PoolSlot>>) -> Response<Body>>;

impl<S> Service<Request<Body>> for PublicMethods<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Either<GuardedCall<S::Future>, Ready<HttpResult>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(pool) = self.layer.pool(request.uri().path()) else {
            // An unknown method: the router answers it without reading the body.
            return Either::Left(self.inner.call(request));
        };
        let Some(slot) = pool.try_acquire(request.extensions().get::<Peer>()) else {
            let error = ApiError::throttled(RETRY_AFTER);
            let response = error_response(&error, self.layer.contract, request_id(&request));
            return Either::Right(Either::Right(ready(Ok(response))));
        };
        let mut headers = HeaderMap::with_capacity(PASSED_HEADERS.len());
        for name in PASSED_HEADERS {
            if let Some(value) = request.headers_mut().remove(&name) {
                headers.insert(name, value);
            }
        }
        *request.headers_mut() = headers;
        let guarded = GuardedFuture::new(self.inner.call(request), slot);
        Either::Right(Either::Left(guarded.map_ok(|response| response.map(Body::new))))
    }
}
