//! The layers of the stack, one file each.

mod amend;
mod authenticate;
mod authorize;
mod body;
mod conform;
mod deadline;
mod limit;
mod message;
mod open;
mod panic;
mod pending;
mod quota;
mod request_id;
mod standing;
mod trace;
mod unreadable;

use std::convert::Infallible;

use http::{Request, Response};
use message::{Refusal, read_message};
use opentelemetry::trace::{SpanContext, TraceId};
use tonic::body::Body;

pub use amend::AmendLayer;
pub use authenticate::{AuthenticateLayer, Authentication};
pub use authorize::{Authorization, AuthorizeLayer};
pub use body::LimitBodyLayer;
pub use conform::Conform;
pub use deadline::{Deadline, DeadlineLayer, Deadlines};
pub use limit::LimitLayer;
pub use message::PREFIX;
pub use open::OpenLayer;
pub use panic::CatchPanic;
pub use quota::QuotaLayer;
pub use request_id::RequestIdLayer;
pub use trace::TraceLayer;
pub use unreadable::UnreadableLayer;

use crate::{
    contract::{Authorization as Row, Contract, Failure},
    domain::RequestId,
};

/// What a service of the stack answers with. It always answers.
type Answer = Result<Response<Body>, Infallible>;

/// A service's answer that takes its time.
type BoxFuture = std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Whether a method may last, and who calls it is to be asked again while it does: streams, and waiting for an operation.
fn lasts(path: &str, row: &Row) -> bool {
    row.streams || path.ends_with("/WaitOperation")
}

/// The id of a call. One that came another way than through [`RequestIdLayer`] gets its id here.
fn request_id<B>(request: &Request<B>) -> RequestId {
    request.extensions().get().copied().unwrap_or_else(crate::new_request_id)
}

/// A failure as the whole answer.
fn refuse(failure: &Failure, contract: &Contract, request_id: RequestId) -> Response<Body> {
    failure.status(&contract.errors, request_id).into_http()
}

/// The trace that a call is part of, if one is made.
fn trace_id<B>(request: &Request<B>) -> Option<TraceId> {
    request.extensions().get().map(SpanContext::trace_id)
}
