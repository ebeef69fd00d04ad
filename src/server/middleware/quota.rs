//! Enforces the quotas of principals, so that one principal's calls can't use up the capacity of the others.

use std::{
    convert::Infallible,
    future::ready,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{Either, MapOk, TryFutureExt as _};
use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    BoxFuture, HttpResult, error_response,
    quota_usage::{Cost, CountedCall, Usages},
    request_id,
};
use crate::{
    contract::{ApiError, Contract, v1::CommonErrorCode::InternalError},
    identity::Caller,
    server::listener::{
        guarded_response::{GuardedBody, GuardedFuture},
        peer::Peer,
    },
};

/// Adds `WithQuota`. All services of a layer share the usage of principals.
#[derive(Debug, Clone)]
pub struct QuotaLayer {
    usages: Arc<Usages>,
    contract: &'static Contract,
}

impl QuotaLayer {
    /// Creates a layer without any usage.
    #[must_use]
    pub fn new(contract: &'static Contract) -> Self {
        Self { usages: Arc::default(), contract }
    }
}

impl<S> Layer<S> for QuotaLayer {
    type Service = WithQuota<S>;

    fn layer(&self, inner: S) -> WithQuota<S> {
        WithQuota { inner, layer: self.clone() }
    }
}

pin_project! {
    /// A call that is counted until its response begins; the response needs no further resources.
    #[derive(Debug)]
    pub struct CountedFuture<F> {
        #[pin]
        inner: F,
        call: CountedCall,
    }
}

impl<F: Future> Future for CountedFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().inner.poll(cx)
    }
}

/// A call that is counted until the last byte of its response is written.
type GuardedCall<F> = MapOk<GuardedFuture<F, CountedCall>, fn(Response<GuardedBody<CountedCall>>) -> Response<Body>>;

fn guard<F: Future<Output = HttpResult>>(inner: F, call: CountedCall) -> GuardedCall<F> {
    GuardedFuture::new(inner, call).map_ok(|response| response.map(Body::new))
}

/// Enforces quotas on the calls of a service.
#[derive(Debug, Clone)]
pub struct WithQuota<S> {
    inner: S,
    layer: QuotaLayer,
}

impl<S> Service<Request<Body>> for WithQuota<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<CountedFuture<S::Future>, Either<GuardedCall<S::Future>, BoxFuture>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let QuotaLayer { usages, contract } = &self.layer;
        let begun = request.extensions().get::<Caller>().map(|caller| {
            let cost = Cost::of_method(request.uri().path());
            let identity = &caller.identity;
            let call = usages.begin(&identity.principal, identity.quota, cost, Instant::now());
            call.map(|call| (call, cost)).map_err(ApiError::throttled)
        });
        let reject = |error: &ApiError| {
            let response = error_response(error, contract, request_id(&request));
            Either::Right(Either::Right(Box::pin(ready(Ok(response))) as BoxFuture))
        };
        let (mut call, cost) = match begun {
            Some(Ok(begun)) => begun,
            Some(Err(error)) => return reject(&error),
            // The authentication layer passes on no call without a caller.
            None => return reject(&ApiError::new(InternalError, "")),
        };
        call.authenticated = request.extensions().get::<Peer>().map(|peer| peer.activity.authenticated());
        match cost {
            Cost::Small => Either::Left(CountedFuture { inner: self.inner.call(request), call }),
            Cost::Response | Cost::Verification => Either::Right(Either::Left(guard(self.inner.call(request), call))),
            Cost::List => {
                // The clone may not be ready yet; the service that was polled is.
                let clone = self.inner.clone();
                let mut inner = mem::replace(&mut self.inner, clone);
                Either::Right(Either::Right(Box::pin(async move {
                    // The semaphore is never closed.
                    let permit = call.lists().acquire_owned().await.ok();
                    let Ok(response) = GuardedFuture::new(inner.call(request), (permit, call)).await;
                    Ok(response.map(Body::new))
                })))
            }
        }
    }
}
