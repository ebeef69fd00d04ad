//! How much a principal may do: calls a second, and calls that are open at the same time. One that asks too much hurts nobody else.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{Either, MapOk, TryFutureExt as _};
use http::{Request, Response};
use tokio::time::Instant;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Answer, refuse, request_id};
use crate::{
    contract::{Contract, Failure},
    identity::{Caller, Quota},
    ram::Principal,
    server::{
        RETRY_AFTER,
        held::{HeldBody, HeldFuture},
        rate::{Rate, Spent},
    },
};

/// What each principal does now. There are as many as the configuration names.
#[derive(Debug, Default)]
struct Usages(Mutex<HashMap<Principal, Usage>>);

#[derive(Debug, Default)]
struct Usage {
    spent: Spent,
    open: u32,
}

impl Usages {
    fn with<T>(&self, principal: &Principal, act: impl FnOnce(&mut Usage) -> T) -> T {
        let mut usages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(usages.entry(principal.clone()).or_default())
    }

    /// Lets one more call begin, or tells when to ask again.
    fn begin(self: &Arc<Self>, principal: &Principal, quota: Quota, now: Instant) -> Result<Open, Duration> {
        self.with(principal, |usage| {
            if quota.max_in_flight.is_some_and(|most| usage.open >= most) {
                return Err(RETRY_AFTER);
            }
            if let Some(count) = quota.calls_per_second {
                usage.spent.take(Rate::new(count, Duration::from_secs(1)), now)?;
            }
            usage.open += 1;
            Ok(())
        })?;
        Ok(Open { usages: Arc::clone(self), principal: principal.clone() })
    }
}

/// A call that has begun.
#[derive(Debug)]
pub struct Open {
    usages: Arc<Usages>,
    principal: Principal,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.usages.with(&self.principal, |usage| usage.open = usage.open.saturating_sub(1));
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct QuotaLayer {
    usages: Arc<Usages>,
    contract: &'static Contract,
}

impl QuotaLayer {
    /// Nobody has done anything yet.
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

/// A call that counts until the last byte of its answer.
type Held<F> = MapOk<HeldFuture<F, Open>, fn(Response<HeldBody<Open>>) -> Response<Body>>;

/// See the module.
#[derive(Debug, Clone)]
pub struct WithQuota<S> {
    inner: S,
    layer: QuotaLayer,
}

impl<S> Service<Request<Body>> for WithQuota<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Either<Held<S::Future>, std::future::Ready<Answer>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let QuotaLayer { usages, contract } = &self.layer;
        let caller = request.extensions().get::<Caller>().map(|caller| &caller.identity);
        let Some(identity) = caller.filter(|identity| identity.quota != Quota::default()) else {
            return Either::Left(self.inner.call(request));
        };
        Either::Right(match usages.begin(&identity.principal, identity.quota, Instant::now()) {
            Ok(open) => {
                let held = HeldFuture::new(self.inner.call(request), open);
                Either::Left(held.map_ok(|response| response.map(Body::new)))
            }
            Err(retry_after) => {
                let failure = Failure::throttled(retry_after);
                Either::Right(std::future::ready(Ok(refuse(&failure, contract, request_id(&request)))))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::Instant;

    use super::Usages;
    use crate::identity::Quota;

    #[test]
    fn what_one_has_open_is_no_matter_of_another() {
        let (usages, now) = (Arc::<Usages>::default(), Instant::now());
        let quota = Quota { calls_per_second: None, max_in_flight: Some(1) };
        let [one, other] = ["one", "other"].map(|name| format!("acs:ram::1:user/{name}").parse().expect("a principal"));
        let open = usages.begin(&one, quota, now).expect("the first");
        assert!(usages.begin(&one, quota, now).is_err());
        assert!(usages.begin(&other, quota, now).is_ok());
        drop(open);
        assert!(usages.begin(&one, quota, now).is_ok());
    }

    #[test]
    fn a_call_that_is_refused_for_its_number_does_not_count_as_one() {
        let (usages, now) = (Arc::<Usages>::default(), Instant::now());
        let quota = Quota { calls_per_second: Some(2), max_in_flight: Some(1) };
        let one = "acs:ram::1:user/one".parse().expect("a principal");
        let open = usages.begin(&one, quota, now).expect("the first");
        assert!(usages.begin(&one, quota, now).is_err());
        drop(open);
        drop(usages.begin(&one, quota, now).expect("the second"));
        assert_eq!(usages.begin(&one, quota, now).err(), Some(Duration::from_millis(500)));
    }
}
