//! Calls that have proved nothing: how each is refused, and written down.

use std::sync::Arc;

use http::{Request, Response};
use opentelemetry::trace::TraceId;
use tokio::time::Instant;
use tonic::body::Body;

use super::{
    Refusal,
    authenticate::{Authentication, Rejected},
    request_id, trace_id,
};
use crate::{
    audit::{self, Unwritten},
    contract::Failure,
    domain::RequestId,
    metrics,
    server::{peer::Peer, refusals::Refused},
};

/// A call that has proved nothing yet. If it goes away, or its deadline passes, without having done so, that counts as a failure too.
pub struct Pending {
    pub authentication: Arc<Authentication>,
    request_id: RequestId,
    trace_id: Option<TraceId>,
    /// The method, if it is one of the contract's.
    path: Option<&'static str>,
    peer: Option<Peer>,
    settled: bool,
}

impl Pending {
    pub fn of(authentication: Arc<Authentication>, request: &Request<Body>) -> Self {
        Self {
            request_id: request_id(request),
            trace_id: trace_id(request),
            path: authentication.contract.authorizations.path(request.uri().path()),
            peer: request.extensions().get().cloned(),
            authentication,
            settled: false,
        }
    }

    /// It has proved who calls.
    pub fn proved(mut self) -> Arc<Authentication> {
        self.settled = true;
        Arc::clone(&self.authentication)
    }

    /// Refuses it, and writes that down.
    pub async fn reject(mut self, rejected: Rejected) -> Response<Body> {
        self.settled = true;
        let Rejected { mut refusal, why } = rejected;
        let (refused, unwritten) = self.write_down(&why);
        if let Refused::Throttled(wait) = refused {
            refusal = Refusal::Failure(Failure::throttled(wait));
        }
        let written = match unwritten {
            Some(unwritten) => unwritten.written().await,
            None => Ok(()),
        };
        written.map_err(Refusal::from).err().unwrap_or(refusal).answer(self.authentication.contract, self.request_id)
    }

    fn write_down(&self, why: &str) -> (Refused, Option<Unwritten>) {
        let Authentication { refusals, contract, clock, audit, .. } = &*self.authentication;
        let action = self.path.and_then(|path| contract.authorizations.get(path)).map(|row| row.action.as_str());
        metrics::record_decision(action, "deny");
        let refused = self.peer.as_ref().map_or(Refused::Line, |peer| refusals.refused(peer.source(), Instant::now()));
        if refused != Refused::Line {
            return (refused, None);
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
            reason: audit::Shortened(&why),
            source_ip: self.peer.as_ref().map(|peer| peer.address),
        };
        (refused, audit.record(&record))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Nobody is there to wait for the audit log; what it does not take is counted.
        if !self.settled
            && self.write_down("the caller gave up before it proved anything, or took too long").1.is_some()
        {
            metrics::record_lost_decisions(1);
        }
    }
}
