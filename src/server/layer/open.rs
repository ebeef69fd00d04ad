//! What stands before the methods that need no credential: reflection and health. Each has few places, and fewer for one source, so that
//! nobody has more of our memory by them than a method of the contract would give; and of a call only the headers go on that gRPC needs.

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

use super::{Answer, refuse, request_id};
use crate::{
    contract::{Contract, Failure},
    server::{
        RETRY_AFTER,
        held::{HeldBody, HeldFuture},
        peer::Peer,
        source_pool::{PoolPlace, SourcePool},
    },
};

/// The methods that need no credential.
pub const OPEN: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// How long a call of one of them may last: a question is answered at once, whoever reflects has read everything within a minute, and who
/// watches does so for as long as any stream may last.
pub fn longest(path: &str, stream: Duration) -> Duration {
    match path.rsplit('/').next() {
        Some("Watch") => stream,
        Some("ServerReflectionInfo") => Duration::from_secs(60),
        _ => Duration::from_secs(10),
    }
}

/// The headers that go on.
const KEPT: [HeaderName; 4] =
    [CONTENT_TYPE, TE, HeaderName::from_static("grpc-encoding"), HeaderName::from_static("grpc-accept-encoding")];

/// See the module. Its services share the places.
#[derive(Debug, Clone)]
pub struct OpenLayer {
    check: SourcePool,
    watch: SourcePool,
    reflection: SourcePool,
    contract: &'static Contract,
}

impl OpenLayer {
    pub fn new(contract: &'static Contract) -> Self {
        // How many there are, and how many of one source. An answer of reflection is the largest, and may wait for its client.
        let [check, watch, reflection] = [(512, 64), (256, 16), (32, 4)].map(|(all, one)| SourcePool::new(all, one));
        Self { check, watch, reflection, contract }
    }

    fn pool(&self, path: &str) -> Option<&SourcePool> {
        let place = OPEN.iter().position(|open| *open == path)?;
        Some(match place {
            0 => &self.check,
            1 => &self.watch,
            _ => &self.reflection,
        })
    }
}

impl<S> Layer<S> for OpenLayer {
    type Service = Open<S>;

    fn layer(&self, inner: S) -> Open<S> {
        Open { inner, layer: self.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Open<S> {
    inner: S,
    layer: OpenLayer,
}

/// A call that has a place until the last byte of its answer.
type Held<F> = MapOk<HeldFuture<F, PoolPlace>, fn(Response<HeldBody<PoolPlace>>) -> Response<Body>>;

impl<S> Service<Request<Body>> for Open<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Either<Held<S::Future>, Ready<Answer>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(pool) = self.layer.pool(request.uri().path()) else {
            // It is none that there is, and answered at once.
            return Either::Left(self.inner.call(request));
        };
        let Some(place) = pool.enter(request.extensions().get::<Peer>()) else {
            let failure = Failure::throttled(RETRY_AFTER);
            let refusal = refuse(&failure, self.layer.contract, request_id(&request));
            return Either::Right(Either::Right(ready(Ok(refusal))));
        };
        let mut headers = HeaderMap::with_capacity(KEPT.len());
        for name in KEPT {
            if let Some(value) = request.headers_mut().remove(&name) {
                headers.insert(name, value);
            }
        }
        *request.headers_mut() = headers;
        let held = HeldFuture::new(self.inner.call(request), place);
        Either::Right(Either::Left(held.map_ok(|response| response.map(Body::new))))
    }
}
