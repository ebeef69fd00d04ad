//! The middleware stack: tower layers, one per file, and the router behind them.

mod authenticate;
mod authorize;
mod body_limit;
mod deadline;
mod in_flight_limit;
mod message;
mod normalize_errors;
mod original_request;
mod public_methods;
mod quota;
mod quota_usage;
mod reauthorize;
mod reject_malformed;
mod request_id;
mod router;
mod trace;
mod unauthenticated;

use std::{convert::Infallible, pin::Pin};

use http::{Request, Response};
use opentelemetry::trace::{SpanContext, TraceId};
use tonic::body::Body;

pub use authenticate::{AuthenticateLayer, RequestAuthenticator};
pub use authorize::{AuthorizeLayer, RequestAuthorizer};
pub use body_limit::BodyLimitLayer;
pub use deadline::{DeadlineLayer, Deadlines};
pub use in_flight_limit::InFlightLimitLayer;
pub use message::MESSAGE_PREFIX_BYTES;
pub use normalize_errors::{NormalizeErrorsLayer, response_for_panic};
pub use original_request::{MalformedRequest, OriginalRequest, RequestHead};
pub use public_methods::PublicMethodsLayer;
pub use quota::QuotaLayer;
pub use reject_malformed::RejectMalformedLayer;
pub use request_id::RequestIdLayer;
pub use router::{ContractServices, Router};
pub use trace::TraceLayer;

use crate::{
    contract::{ApiError, Authorization, Contract},
    domain::RequestId,
};

/// The outcome of a service of the stack. Errors are responses too: services never fail.
type HttpResult = Result<Response<Body>, Infallible>;

/// A boxed future of a response.
type BoxFuture = Pin<Box<dyn Future<Output = HttpResult> + Send>>;

/// Whether a call of this method may outlive its caller's credential, so that it is reauthorized while it lasts:
/// streams and `WaitOperation`.
fn is_long_running(path: &str, row: &Authorization) -> bool {
    row.streams || path.ends_with("/WaitOperation")
}

/// Returns the id of a call, or a new one if the call did not pass through [`RequestIdLayer`].
fn request_id<B>(request: &Request<B>) -> RequestId {
    request.extensions().get().copied().unwrap_or_else(crate::new_request_id)
}

/// Turns an error into a complete response.
fn error_response(error: &ApiError, contract: &Contract, request_id: RequestId) -> Response<Body> {
    error.status(&contract.errors, request_id).into_http()
}

/// Returns the trace that the call's span belongs to, if spans are exported.
fn trace_id<B>(request: &Request<B>) -> Option<TraceId> {
    request.extensions().get().map(SpanContext::trace_id)
}
