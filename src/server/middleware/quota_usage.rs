//! Current usage of each principal's quota: calls per second, calls in flight, concurrent lists and verifications.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    identity::Quota,
    ram::Principal,
    server::{
        RETRY_AFTER,
        listener::peer::AuthenticatedCall,
        rate::{Rate, RateLimiter},
    },
};

/// Concurrent lists per principal, from the query to the last byte of the response. Further lists wait until their
/// deadline.
const MAX_LISTS: usize = 4;
/// Concurrent verifications per principal. Further verifications are throttled.
const MAX_VERIFICATIONS: u32 = 2;

/// Which limits a call counts against, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// The response is an id. The call counts until the response begins.
    Small,
    /// The response may be large. The call counts until the last byte of the response.
    Response,
    /// The call reads and returns many rows.
    List,
    /// The call reads a whole image.
    Verification,
}

impl Cost {
    /// Returns the cost of the method at `path`.
    pub fn of_method(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("SynchronizeApp" | "AddImage" | "RemoveImage") => Self::Small,
            Some("ListImages" | "ListSynchronizations" | "ListOperations") => Self::List,
            Some("VerifyImage") => Self::Verification,
            _ => Self::Response,
        }
    }
}

/// Current usage of one principal.
#[derive(Debug)]
struct Usage {
    in_flight: AtomicU32,
    verifications: AtomicU32,
    lists: Arc<Semaphore>,
    rate: Mutex<RateLimiter>,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            in_flight: AtomicU32::default(),
            verifications: AtomicU32::default(),
            lists: Arc::new(Semaphore::new(MAX_LISTS)),
            rate: Mutex::default(),
        }
    }
}

/// Increments a counter unless it has reached its limit.
fn try_increment(count: &AtomicU32, limit: u32) -> bool {
    let before = count.fetch_add(1, Ordering::AcqRel);
    if before >= limit {
        count.fetch_sub(1, Ordering::AcqRel);
    }
    before < limit
}

/// Usage of all principals, looked up without a lock. The number of principals in the configuration bounds its size.
#[derive(Debug, Default)]
pub struct Usages(ArcSwap<HashMap<Principal, Arc<Usage>>>);

impl Usages {
    fn usage(&self, principal: &Principal) -> Arc<Usage> {
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

    /// Counts a new call, or returns the time after which it may be repeated.
    pub fn begin(
        &self,
        principal: &Principal,
        quota: Quota,
        cost: Cost,
        now: Instant,
    ) -> Result<CountedCall, Duration> {
        let usage = self.usage(principal);
        if !try_increment(&usage.in_flight, quota.max_in_flight) {
            return Err(RETRY_AFTER);
        }
        let mut call = CountedCall { usage, is_verification: false, authenticated: None };
        if let Some(count) = quota.calls_per_second {
            let mut rate = call.usage.rate.lock().unwrap_or_else(PoisonError::into_inner);
            rate.try_acquire(Rate::new(count, Duration::from_secs(1)), now)?;
        }
        if cost == Cost::Verification {
            call.is_verification = try_increment(&call.usage.verifications, MAX_VERIFICATIONS);
            if !call.is_verification {
                return Err(RETRY_AFTER);
            }
        }
        Ok(call)
    }
}

/// A call in flight, which is counted until it is dropped.
#[derive(Debug)]
pub struct CountedCall {
    usage: Arc<Usage>,
    is_verification: bool,
    /// Marks the call's connection as busy for as long as the call is counted.
    pub authenticated: Option<AuthenticatedCall>,
}

impl CountedCall {
    /// Returns the semaphore that limits the principal's concurrent lists.
    pub fn lists(&self) -> Arc<Semaphore> {
        Arc::clone(&self.usage.lists)
    }
}

impl Drop for CountedCall {
    fn drop(&mut self) {
        self.usage.in_flight.fetch_sub(1, Ordering::AcqRel);
        if self.is_verification {
            self.usage.verifications.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Cost, CountedCall, MAX_VERIFICATIONS, Usages};
    use crate::identity::Quota;

    fn begin(usages: &Usages, name: &str, quota: Quota, cost: Cost, now: Instant) -> Result<CountedCall, Duration> {
        usages.begin(&format!("acs:ram::1:user/{name}").parse().expect("a principal"), quota, cost, now)
    }

    #[test]
    fn principals_do_not_share_a_limit() {
        let (usages, now) = (Usages::default(), Instant::now());
        let quota = Quota { calls_per_second: None, max_in_flight: 1 };
        let open = begin(&usages, "one", quota, Cost::Small, now).expect("the first");
        assert!(begin(&usages, "one", quota, Cost::Small, now).is_err());
        assert!(begin(&usages, "other", quota, Cost::Small, now).is_ok());
        drop(open);
        assert!(begin(&usages, "one", quota, Cost::Small, now).is_ok());
    }

    #[test]
    fn a_rejected_call_is_not_counted() {
        let (usages, now) = (Usages::default(), Instant::now());
        let quota = Quota { calls_per_second: Some(2), max_in_flight: 1 };
        let open = begin(&usages, "one", quota, Cost::Small, now).expect("the first");
        assert!(begin(&usages, "one", quota, Cost::Small, now).is_err());
        drop(open);
        drop(begin(&usages, "one", quota, Cost::Small, now).expect("the second"));
        assert_eq!(begin(&usages, "one", quota, Cost::Small, now).err(), Some(Duration::from_millis(500)));
        let later = now + Duration::from_secs(1);
        drop(begin(&usages, "one", quota, Cost::Small, later).expect("rejected calls are not in flight"));
    }

    #[test]
    fn verifications_are_limited_per_principal() {
        let (usages, now, quota) = (Usages::default(), Instant::now(), Quota::default());
        let held: Vec<_> = (0..MAX_VERIFICATIONS)
            .map(|_| begin(&usages, "one", quota, Cost::Verification, now).expect("one"))
            .collect();
        assert!(begin(&usages, "one", quota, Cost::Verification, now).is_err());
        assert!(begin(&usages, "one", quota, Cost::Response, now).is_ok());
        assert!(begin(&usages, "other", quota, Cost::Verification, now).is_ok());
        drop(held);
        assert!(begin(&usages, "one", quota, Cost::Verification, now).is_ok());
    }
}
