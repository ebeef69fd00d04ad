//! Decides whether and when a call is retried. Contains only pure functions.

use std::time::Duration;

use tonic::Code;

use super::ApiErrorResponse;
use crate::domain::Backoff;

/// The largest jitter, as a fraction of the service's `RetryInfo`. It is added, so that clients which were rejected
/// together don't retry together.
const MAX_JITTER: f64 = 0.2;

/// Whether the connection broke, or a proxy answered in place of the service. The service's own errors have an error
/// code of the contract.
fn is_broken(refusal: &ApiErrorResponse) -> bool {
    let codes = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
    refusal.error.is_none() && codes.contains(&refusal.status.code())
}

/// Returns the wait before an idempotent call is retried after `failures` earlier failures, or `None` if it is not
/// retried. `jitter` is from 0 to 1.
#[must_use]
pub fn delay(refusal: &ApiErrorResponse, backoff: &Backoff, failures: u32, jitter: f64) -> Option<Duration> {
    let wait = backoff.wait(failures, jitter)?;
    match (refusal.retry_after, refusal.status.code()) {
        (Some(retry_after), Code::Unavailable | Code::ResourceExhausted) => {
            Some(wait.max(retry_after.mul_f64(1.0 + MAX_JITTER * jitter.clamp(0.0, 1.0))))
        }
        _ if is_broken(refusal) => Some(wait),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::{Code, Status};

    use super::delay;
    use crate::{
        client::ApiErrorResponse,
        contract::{ApiError, Contract, v1::ErrorCode},
        domain::Backoff,
    };

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(1), attempts: 3 };

    fn refused(failure: &ApiError) -> ApiErrorResponse {
        let contract = Contract::load().expect("the contract");
        failure.status(&contract.errors, crate::new_request_id()).into()
    }

    #[test]
    fn the_wait_is_at_least_what_the_service_asks_for() {
        let refusal = refused(&ApiError::unavailable("", Duration::from_secs(4)));
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(4)));
        for jitter in [0.0, 0.5, 1.0] {
            let wait = delay(&refusal, &BACKOFF, 0, jitter).expect("a retry").as_secs_f64();
            assert!((4.0..=4.8).contains(&wait), "{wait}");
        }
        let throttled = refused(&ApiError::throttled(Duration::from_secs(1)));
        assert!(delay(&throttled, &BACKOFF, 1, 0.0) >= Some(Duration::from_secs(1)));
        assert_eq!(delay(&throttled, &BACKOFF, 2, 0.0), None, "the attempts are used up");
    }

    #[test]
    fn a_broken_connection_is_retried_and_a_final_error_is_not() {
        let broken = Status::unknown("transport error").into();
        assert_eq!(delay(&broken, &BACKOFF, 0, 0.0), Some(Duration::from_millis(100)));
        let final_ones = [ErrorCode::ImageNotFound, ErrorCode::DbError, ErrorCode::InvalidParams];
        for code in final_ones {
            assert_eq!(delay(&refused(&ApiError::new(code, "")), &BACKOFF, 0, 0.0), None, "{code:?}");
        }
        assert_eq!(delay(&Status::new(Code::DeadlineExceeded, "").into(), &BACKOFF, 0, 0.0), None);
    }
}
