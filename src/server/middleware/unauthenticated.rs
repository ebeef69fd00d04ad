//! Rejection of unauthenticated calls: throttled by source address, and recorded in the audit log.

use std::sync::Arc;

use http::{Request, Response};
use opentelemetry::trace::TraceId;
use tokio::time::Instant;
use tonic::body::Body;

use super::{
    authenticate::{RejectedCredential, RequestAuthenticator},
    message::Rejection,
    request_id, trace_id,
};
use crate::{
    audit::{self, PendingRecord},
    contract::ApiError,
    domain::RequestId,
    metrics,
    server::{auth_throttle::FailedAttempt, listener::peer::Peer},
};

/// A call that is not authenticated yet. Counts as a failed attempt if it is dropped before it is settled or rejected,
/// because the caller disconnected or the deadline passed.
pub struct UnauthenticatedCall {
    pub authenticator: Arc<RequestAuthenticator>,
    request_id: RequestId,
    trace_id: Option<TraceId>,
    /// The method's path; `None` if the method is unknown.
    path: Option<&'static str>,
    peer: Option<Peer>,
    is_settled: bool,
}

impl UnauthenticatedCall {
    pub fn new(authenticator: Arc<RequestAuthenticator>, request: &Request<Body>) -> Self {
        Self {
            request_id: request_id(request),
            trace_id: trace_id(request),
            path: authenticator.contract.authorizations.path(request.uri().path()),
            peer: request.extensions().get().cloned(),
            authenticator,
            is_settled: false,
        }
    }

    /// Ends the call's unauthenticated phase without a failed attempt.
    pub fn settle(mut self) -> Arc<RequestAuthenticator> {
        self.is_settled = true;
        Arc::clone(&self.authenticator)
    }

    /// Counts and records a failed attempt, and returns the response.
    pub async fn reject(mut self, rejected: RejectedCredential) -> Response<Body> {
        self.is_settled = true;
        let RejectedCredential { mut response, reason } = rejected;
        let (attempt, pending) = self.record(&reason);
        if let FailedAttempt::Throttled(wait) = attempt {
            response = Rejection::Error(ApiError::throttled(wait));
        }
        let recorded = match pending {
            Some(pending) => pending.wait().await,
            None => Ok(()),
        };
        let response = recorded.map_err(Rejection::from).err().unwrap_or(response);
        response.into_response(self.authenticator.contract, self.request_id)
    }

    fn record(&self, reason: &str) -> (FailedAttempt, Option<PendingRecord>) {
        let RequestAuthenticator { auth_throttle, contract, clock, audit, .. } = &*self.authenticator;
        let action = self.path.and_then(|path| contract.authorizations.get(path)).map(|row| row.action.as_str());
        metrics::record_decision(action, "deny");
        let attempt = self
            .peer
            .as_ref()
            .map_or(FailedAttempt::Logged, |peer| auth_throttle.record_failure(peer.source(), Instant::now()));
        if attempt != FailedAttempt::Logged {
            return (attempt, None);
        }
        let record = audit::Record {
            time: clock.now(),
            request_id: self.request_id,
            trace_id: self.trace_id,
            principal: None,
            authenticated_by: None,
            method: self.path,
            action,
            resource: None,
            decision: audit::Verdict::Deny,
            reason: audit::Truncated(&reason),
            source_ip: self.peer.as_ref().map(|peer| peer.address),
        };
        (attempt, audit.record(&record))
    }
}

impl Drop for UnauthenticatedCall {
    fn drop(&mut self) {
        // Dropping can't wait for room in the audit log's queue. A record that does not fit is counted as lost.
        if !self.is_settled && self.record("the call ended before its caller was authenticated").1.is_some() {
            metrics::record_lost_decisions(1);
        }
    }
}
