//! Whether a call is worth repeating, and when. Decided without asking anybody.

use std::time::Duration;

use tonic::Code;

use super::ApiErrorResponse;
use crate::domain::Backoff;

/// The part of the wait that the service asked for which is added to it at most, so that those who were refused together don't come
/// back together.
const SPREAD: f64 = 0.2;

/// Whether the connection broke, or whatever is between answered in the service's stead: its own refusals have a row of the table.
fn broke(refusal: &ApiErrorResponse) -> bool {
    let codes = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
    refusal.error.is_none() && codes.contains(&refusal.status.code())
}

/// How long to wait before a call is repeated that may be carried out twice without harm, `failures` of it having failed before this
/// one; nothing if repeating it is of no use, or has been tried often enough. `jitter` is from 0 to 1.
#[must_use]
pub fn wait(refusal: &ApiErrorResponse, backoff: &Backoff, failures: u32, jitter: f64) -> Option<Duration> {
    let own = backoff.wait(failures, jitter)?;
    match (refusal.retry_after, refusal.status.code()) {
        (Some(told), Code::Unavailable | Code::ResourceExhausted) => {
            Some(own.max(told.mul_f64(1.0 + SPREAD * jitter.clamp(0.0, 1.0))))
        }
        _ if broke(refusal) => Some(own),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::{Code, Status};

    use super::wait;
    use crate::{
        client::ApiErrorResponse,
        contract::{ApiError, Contract, v1::ErrorCode},
        domain::{Backoff, RequestId},
    };

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(1), attempts: 3 };

    fn refused(failure: &ApiError) -> ApiErrorResponse {
        let contract = Contract::load().expect("the contract");
        failure.status(&contract.errors, RequestId::generate()).into()
    }

    #[test]
    fn what_the_service_says_is_waited_and_no_less() {
        let refusal = refused(&ApiError::unavailable("", Duration::from_secs(4)));
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(4)));
        for jitter in [0.0, 0.5, 1.0] {
            let wait = wait(&refusal, &BACKOFF, 0, jitter).expect("it is repeated").as_secs_f64();
            assert!((4.0..=4.8).contains(&wait), "{wait}");
        }
        let throttled = refused(&ApiError::throttled(Duration::from_secs(1)));
        assert!(wait(&throttled, &BACKOFF, 1, 0.0) >= Some(Duration::from_secs(1)));
        assert_eq!(wait(&throttled, &BACKOFF, 2, 0.0), None, "often enough");
    }

    #[test]
    fn a_broken_connection_is_tried_again_and_a_refusal_is_not() {
        let broken = Status::unknown("transport error").into();
        assert_eq!(wait(&broken, &BACKOFF, 0, 0.0), Some(Duration::from_millis(100)));
        let final_ones = [ErrorCode::ImageNotFound, ErrorCode::DbError, ErrorCode::InvalidParams];
        for code in final_ones {
            assert_eq!(wait(&refused(&ApiError::new(code, "")), &BACKOFF, 0, 0.0), None, "{code:?}");
        }
        assert_eq!(wait(&Status::new(Code::DeadlineExceeded, "").into(), &BACKOFF, 0, 0.0), None);
    }
}
