//! Calls that last are decided about again whenever it has changed who may call, and now and then, since credentials expire. One that
//! would not be let in any more ends within a second.

use std::{
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame};
use opentelemetry::trace::TraceId;
use pin_project_lite::pin_project;
use tokio::{sync::watch, time::sleep};
use tonic::{Status, body::Body};

use super::{Answer, authenticate::again, refuse};
use crate::{
    audit::{self, Audit},
    contract::{Contract, Failure, v1::CommonErrorCode::NoPermission},
    domain::{Clock, RequestId},
    identity::{Caller, CertificateNames, CurrentDirectory, Method},
    metrics,
    ram::{self, Context as Circumstances},
    server::call_timer,
};

/// How often it is looked whether a credential has expired.
const LOOK: Duration = Duration::from_secs(15);
/// How long a client may take to hear that its call is over.
const GRACE: Duration = Duration::from_millis(300);

/// What a caller has proved who it is by, to be looked at again.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The directory that it is looked up in.
    pub directory: Arc<CurrentDirectory>,
    /// Hears of changes since it was looked up.
    pub changes: watch::Receiver<()>,
    /// The kind.
    pub method: Method,
    /// The `authorization` header.
    pub header: Option<HeaderValue>,
    /// The names in the certificate.
    pub certificate: Option<Arc<CertificateNames>>,
}

/// A call that was let in and lasts.
pub struct Standing {
    pub credential: Credential,
    pub contract: &'static Contract,
    pub clock: Clock,
    pub audit: Audit,
    pub request_id: RequestId,
    pub trace_id: Option<TraceId>,
    pub caller: Caller,
    pub path: &'static str,
    pub action: &'static str,
    pub resource: String,
    pub source_ip: Option<IpAddr>,
    pub secure: Option<bool>,
}

/// That a call is over, and why.
type Revoked = Shared<BoxFuture<'static, Failure>>;

impl Standing {
    /// Carries a call out for as long as its caller may make it.
    pub async fn watch(self, call: impl Future<Output = Answer>) -> Answer {
        let (contract, request_id) = (self.contract, self.request_id);
        let revoked = self.revoked().boxed().shared();
        let mut call = pin!(call);
        tokio::select! {
            answer = call.as_mut() => answer.map(|response| watched(response, revoked, contract, request_id)),
            failure = revoked.clone() => Ok(refuse(&failure, contract, request_id)),
        }
    }

    /// Waits until the call must not go on, and writes that down.
    async fn revoked(mut self) -> Failure {
        loop {
            if let Err(why) = self.decide() {
                self.write_down(&why);
                let principal = &self.caller.identity.principal;
                return Failure::new(
                    NoPermission,
                    format!("{principal} may not perform {} any more: {why}", self.action),
                );
            }
            tokio::select! {
                changed = self.credential.changes.changed() => {
                    if changed.is_err() {
                        // The service ends, and its calls with it.
                        std::future::pending::<()>().await;
                    }
                }
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Whether the caller would be let in now.
    fn decide(&self) -> Result<(), String> {
        let now = self.clock.now();
        let caller = again(&self.credential, now).map_err(|unproven| unproven.to_string())?;
        if caller.identity.principal != self.caller.identity.principal {
            return Err("the credential is another principal's".to_owned());
        }
        let context = Circumstances {
            source_ip: self.source_ip,
            current_time: Some(now),
            secure_transport: self.secure,
            principal: Some(caller.identity.principal.as_str()),
            claims: &caller.claims,
        };
        let request = ram::Request { action: self.action, resource: &self.resource, context: &context };
        let decision = caller.identity.policies.decide(&request);
        if decision.is_allowed() { Ok(()) } else { Err(decision.to_string()) }
    }

    fn write_down(&self, why: &str) {
        let record = audit::Record {
            time: self.clock.now(),
            request_id: self.request_id,
            trace_id: self.trace_id,
            principal: Some(self.caller.identity.principal.as_str()),
            authenticated_by: Some(self.caller.method.name()),
            method: Some(self.path),
            action: Some(self.action),
            resource: Some(audit::Shortened(&self.resource)),
            decision: audit::Verdict::Deny,
            reason: audit::Shortened(&why),
            source_ip: self.source_ip,
        };
        metrics::record_decision(Some(self.action), "deny");
        // It is carried out in any case: what is lost is told by the metric.
        if self.audit.record(&record).is_some() {
            metrics::record_lost_decisions(1);
        }
    }
}

/// An answer that ends when its call is over.
fn watched(
    response: Response<Body>,
    revoked: Revoked,
    contract: &'static Contract,
    request_id: RequestId,
) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    // A client that takes nothing hears of nothing.
    let over = revoked.clone().then(|_| sleep(GRACE));
    call_timer::end_when(over.boxed());
    response.map(|inner| Body::new(WatchedBody { inner, revoked, contract, request_id, ended: false }))
}

pin_project! {
    struct WatchedBody {
        #[pin]
        inner: Body,
        revoked: Revoked,
        contract: &'static Contract,
        request_id: RequestId,
        ended: bool,
    }
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(failure) = this.revoked.poll_unpin(cx) {
            *this.ended = true;
            let status = failure.status(&this.contract.errors, *this.request_id);
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        this.inner.poll_frame(cx)
    }
}
