//! How much a principal may do: calls a second, calls that are open at the same time, and fewer of those that cost much. One that asks too
//! much hurts nobody else.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, Either, MapOk, TryFutureExt as _};
use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::{sync::Semaphore, time::Instant};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Answer, refuse, request_id};
use crate::{
    contract::{Contract, Failure, v1::CommonErrorCode::InternalError},
    identity::{Caller, Quota},
    ram::Principal,
    server::{
        RETRY_AFTER,
        held::{HeldBody, HeldFuture},
        peer::{Authenticated, Peer},
        rate::{Rate, Spent},
    },
};

/// Lists that a principal may have read and sent at the same time; one more waits, as long as its deadline lets it.
const LISTS: usize = 4;
/// Images that a principal may have read again at the same time.
const VERIFICATIONS: u32 = 2;

/// What a call costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cost {
    /// It answers with an id, which needs no room.
    Small,
    /// It answers with something that may be large.
    Answer,
    /// It reads many rows, and answers with them.
    List,
    /// It reads an image.
    Verification,
}

impl Cost {
    /// That of a method.
    fn of(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("SynchronizeApp" | "AddImage" | "RemoveImage") => Self::Small,
            Some("ListImages" | "ListSynchronizations" | "ListOperations") => Self::List,
            Some("VerifyImage") => Self::Verification,
            _ => Self::Answer,
        }
    }
}

/// What a principal does now.
#[derive(Debug)]
struct Usage {
    open: AtomicU32,
    verifications: AtomicU32,
    lists: Arc<Semaphore>,
    spent: Mutex<Spent>,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            open: AtomicU32::default(),
            verifications: AtomicU32::default(),
            lists: Arc::new(Semaphore::new(LISTS)),
            spent: Mutex::default(),
        }
    }
}

/// Counts one more, if there are not so many.
fn one_more(count: &AtomicU32, most: u32) -> bool {
    let before = count.fetch_add(1, Ordering::AcqRel);
    if before >= most {
        count.fetch_sub(1, Ordering::AcqRel);
    }
    before < most
}

/// What each principal does now. There are as many as the configuration names, and they are looked up without a lock.
#[derive(Debug, Default)]
struct Usages(ArcSwap<HashMap<Principal, Arc<Usage>>>);

impl Usages {
    fn of(&self, principal: &Principal) -> Arc<Usage> {
        if let Some(usage) = self.0.load().get(principal) {
            return Arc::clone(usage);
        }
        let new = Arc::<Usage>::default();
        let before = self.0.rcu(|usages| {
            let mut usages = HashMap::clone(usages);
            usages.entry(principal.clone()).or_insert_with(|| Arc::clone(&new));
            usages
        });
        before.get(principal).map_or(new, Arc::clone)
    }

    /// Lets one more call begin, or tells when to ask again.
    fn begin(&self, principal: &Principal, quota: Quota, cost: Cost, now: Instant) -> Result<Open, Duration> {
        let usage = self.of(principal);
        if !one_more(&usage.open, quota.max_in_flight) {
            return Err(RETRY_AFTER);
        }
        let mut open = Open { usage, verifies: false, authenticated: None };
        if let Some(count) = quota.calls_per_second {
            let mut spent = open.usage.spent.lock().unwrap_or_else(PoisonError::into_inner);
            spent.take(Rate::new(count, Duration::from_secs(1)), now)?;
        }
        if cost == Cost::Verification {
            open.verifies = one_more(&open.usage.verifications, VERIFICATIONS);
            if !open.verifies {
                return Err(RETRY_AFTER);
            }
        }
        Ok(open)
    }
}

/// A call that has begun.
#[derive(Debug)]
pub struct Open {
    usage: Arc<Usage>,
    verifies: bool,
    /// Held, so that its connection is known to be in use.
    authenticated: Option<Authenticated>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.usage.open.fetch_sub(1, Ordering::AcqRel);
        if self.verifies {
            self.usage.verifications.fetch_sub(1, Ordering::AcqRel);
        }
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

pin_project! {
    /// A call that counts until its answer begins, which is all that there is of it.
    #[derive(Debug)]
    pub struct Begun<F> {
        #[pin]
        inner: F,
        open: Open,
    }
}

impl<F: Future> Future for Begun<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().inner.poll(cx)
    }
}

/// A call that counts until the last byte of its answer.
type Held<F> = MapOk<HeldFuture<F, Open>, fn(Response<HeldBody<Open>>) -> Response<Body>>;

fn held<F: Future<Output = Answer>>(inner: F, open: Open) -> Held<F> {
    HeldFuture::new(inner, open).map_ok(|response| response.map(Body::new))
}

/// See the module.
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
    type Future = Either<Begun<S::Future>, Either<Held<S::Future>, BoxFuture<'static, Answer>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let QuotaLayer { usages, contract } = &self.layer;
        let begun = request.extensions().get::<Caller>().map(|caller| {
            let cost = Cost::of(request.uri().path());
            let identity = &caller.identity;
            let open = usages.begin(&identity.principal, identity.quota, cost, Instant::now());
            open.map(|open| (open, cost)).map_err(Failure::throttled)
        });
        let failed = |failure: &Failure| {
            let refusal = refuse(failure, contract, request_id(&request));
            Either::Right(Either::Right(Box::pin(std::future::ready(Ok(refusal))) as BoxFuture<'static, Answer>))
        };
        let (mut open, cost) = match begun {
            Some(Ok(begun)) => begun,
            Some(Err(failure)) => return failed(&failure),
            // Nobody comes here who has not been authenticated.
            None => return failed(&Failure::new(InternalError, "")),
        };
        open.authenticated = request.extensions().get::<Peer>().map(|peer| peer.activity.authenticated());
        match cost {
            Cost::Small => Either::Left(Begun { inner: self.inner.call(request), open }),
            Cost::Answer | Cost::Verification => Either::Right(Either::Left(held(self.inner.call(request), open))),
            Cost::List => {
                // The clone is made ready some time; this one is.
                let clone = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, clone);
                Either::Right(Either::Right(Box::pin(async move {
                    // It is never closed.
                    let turn = Arc::clone(&open.usage.lists).acquire_owned().await.ok();
                    let Ok(response) = HeldFuture::new(inner.call(request), (turn, open)).await;
                    Ok(response.map(Body::new))
                })))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Cost, Open, Usages, VERIFICATIONS};
    use crate::identity::Quota;

    fn begin(usages: &Usages, name: &str, quota: Quota, cost: Cost, now: Instant) -> Result<Open, Duration> {
        usages.begin(&format!("acs:ram::1:user/{name}").parse().expect("a principal"), quota, cost, now)
    }

    #[test]
    fn what_one_has_open_is_no_matter_of_another() {
        let (usages, now) = (Usages::default(), Instant::now());
        let quota = Quota { calls_per_second: None, max_in_flight: 1 };
        let open = begin(&usages, "one", quota, Cost::Small, now).expect("the first");
        assert!(begin(&usages, "one", quota, Cost::Small, now).is_err());
        assert!(begin(&usages, "other", quota, Cost::Small, now).is_ok());
        drop(open);
        assert!(begin(&usages, "one", quota, Cost::Small, now).is_ok());
    }

    #[test]
    fn a_call_that_is_refused_for_its_number_does_not_count_as_one() {
        let (usages, now) = (Usages::default(), Instant::now());
        let quota = Quota { calls_per_second: Some(2), max_in_flight: 1 };
        let open = begin(&usages, "one", quota, Cost::Small, now).expect("the first");
        assert!(begin(&usages, "one", quota, Cost::Small, now).is_err());
        drop(open);
        drop(begin(&usages, "one", quota, Cost::Small, now).expect("the second"));
        assert_eq!(begin(&usages, "one", quota, Cost::Small, now).err(), Some(Duration::from_millis(500)));
        let later = now + Duration::from_secs(1);
        drop(begin(&usages, "one", quota, Cost::Small, later).expect("none of those refused is open"));
    }

    #[test]
    fn what_is_scarce_is_so_for_each() {
        let (usages, now, quota) = (Usages::default(), Instant::now(), Quota::default());
        let held: Vec<_> =
            (0..VERIFICATIONS).map(|_| begin(&usages, "one", quota, Cost::Verification, now).expect("one")).collect();
        assert!(begin(&usages, "one", quota, Cost::Verification, now).is_err());
        assert!(begin(&usages, "one", quota, Cost::Answer, now).is_ok());
        assert!(begin(&usages, "other", quota, Cost::Verification, now).is_ok());
        drop(held);
        assert!(begin(&usages, "one", quota, Cost::Verification, now).is_ok());
    }
}
