//! Reauthorizes long-running calls when the configuration changes, and periodically, because credentials expire. A call
//! that is no longer permitted ends within a second.

use std::{
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use http::{HeaderMap, HeaderValue, Response, header::AUTHORIZATION};
use http_body::{Body as HttpBody, Frame};
use opentelemetry::trace::TraceId;
use pin_project_lite::pin_project;
use tokio::{sync::watch, time::sleep};
use tonic::{Status, body::Body};

use super::{HttpResult, error_response};
use crate::{
    audit::{self, Audit},
    contract::{ApiError, Contract, v1::CommonErrorCode::NoPermission},
    domain::{Clock, RequestId, Timestamp},
    identity::{AuthError, AuthMethod, Caller, CertificateNames, CurrentAuthenticator},
    metrics, ram,
    server::listener::call_timer,
};

/// Interval at which the expiry of credentials is checked.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(15);
/// How long a client may take to read the error that ends its call.
const GRACE: Duration = Duration::from_millis(300);

/// The credential that a caller was authenticated by, kept to check it again.
#[derive(Debug, Clone)]
pub struct PresentedCredential {
    /// Looks the credential up in the configuration in force.
    pub authenticator: Arc<CurrentAuthenticator>,
    /// Notified of changes since the credential was looked up.
    pub changes: watch::Receiver<()>,
    /// The kind of credential.
    pub method: AuthMethod,
    /// The `authorization` header.
    pub header: Option<HeaderValue>,
    /// The names in the client certificate.
    pub certificate: Option<Arc<CertificateNames>>,
}

impl PresentedCredential {
    /// Authenticates the caller again, at the time `now`.
    fn reauthenticate(&self, now: Timestamp) -> Result<Caller, AuthError> {
        let authenticator = self.authenticator.load();
        let header = self.header.as_ref().and_then(|header| header.to_str().ok()).unwrap_or_default();
        match (self.method, &self.certificate) {
            (AuthMethod::Certificate, Some(names)) => authenticator.certificate(names),
            (AuthMethod::Certificate, None) => Err(AuthError::Unknown),
            (AuthMethod::Token | AuthMethod::Jwt, _) => {
                let (_, token) = header.split_once(' ').ok_or(AuthError::Unknown)?;
                authenticator.bearer(token.trim_ascii(), now)
            }
            // The signature was verified when the call began. After that, its key only has to exist.
            (AuthMethod::AccessKey, _) => {
                let mut headers = HeaderMap::new();
                headers.extend(self.header.clone().map(|header| (AUTHORIZATION, header)));
                let key = acs3::AuthorizationHeader::parse(&headers)
                    .and_then(|header| authenticator.access_key(header.credential));
                key.ok_or(AuthError::Unknown)
            }
        }
    }
}

/// An authorized long-running call.
pub struct OngoingCall {
    pub credential: PresentedCredential,
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
    pub secure_transport: Option<bool>,
}

/// Resolves to the error of a call when it is no longer permitted.
type Revocation = Shared<BoxFuture<'static, ApiError>>;

impl OngoingCall {
    /// Runs a call until it ends or is no longer permitted.
    pub async fn watch(self, call: impl Future<Output = HttpResult>) -> HttpResult {
        let (contract, request_id) = (self.contract, self.request_id);
        let revocation = self.revocation().boxed().shared();
        let mut call = pin!(call);
        tokio::select! {
            outcome = call.as_mut() => {
                outcome.map(|response| end_on_revocation(response, revocation, contract, request_id))
            }
            error = revocation.clone() => Ok(error_response(&error, contract, request_id)),
        }
    }

    /// Waits until the call is no longer permitted, and records the denial.
    async fn revocation(mut self) -> ApiError {
        loop {
            if let Err(reason) = self.decide() {
                self.record(&reason);
                let principal = &self.caller.identity.principal;
                let cause = format!("{principal} may no longer perform {}: {reason}", self.action);
                return ApiError::new(NoPermission, cause);
            }
            tokio::select! {
                changed = self.credential.changes.changed() => {
                    if changed.is_err() {
                        // The service is shutting down, which ends the call.
                        std::future::pending::<()>().await;
                    }
                }
                () = sleep(EXPIRY_INTERVAL) => {}
            }
        }
    }

    /// Decides whether the caller would be permitted now.
    fn decide(&self) -> Result<(), String> {
        let now = self.clock.now();
        let caller = self.credential.reauthenticate(now).map_err(|error| error.to_string())?;
        if caller.identity.principal != self.caller.identity.principal {
            return Err("the credential belongs to another principal".to_owned());
        }
        let context = ram::Context {
            source_ip: self.source_ip,
            current_time: Some(now),
            secure_transport: self.secure_transport,
            principal: Some(caller.identity.principal.as_str()),
            claims: &caller.claims,
        };
        let request = ram::Request { action: self.action, resource: &self.resource, context: &context };
        let decision = caller.identity.policies.decide(&request);
        if decision.is_allowed() { Ok(()) } else { Err(decision.to_string()) }
    }

    fn record(&self, reason: &str) {
        let record = audit::Record {
            time: self.clock.now(),
            request_id: self.request_id,
            trace_id: self.trace_id,
            principal: Some(self.caller.identity.principal.as_str()),
            authenticated_by: Some(self.caller.method.name()),
            method: Some(self.path),
            action: Some(self.action),
            resource: Some(audit::Truncated(&self.resource)),
            decision: audit::Verdict::Deny,
            reason: audit::Truncated(&reason),
            source_ip: self.source_ip,
        };
        metrics::record_decision(Some(self.action), "deny");
        // The call ends whether or not the record fits into the queue; a lost record is counted.
        if self.audit.record(&record).is_some() {
            metrics::record_lost_decisions(1);
        }
    }
}

/// Ends the body of a response when the call is no longer permitted.
fn end_on_revocation(
    response: Response<Body>,
    revocation: Revocation,
    contract: &'static Contract,
    request_id: RequestId,
) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    // A client that reads nothing does not read the error either: the call is dropped.
    call_timer::end_when(revocation.clone().then(|_| sleep(GRACE)).boxed());
    response.map(|inner| Body::new(RevocableBody { inner, revocation, contract, request_id, is_revoked: false }))
}

pin_project! {
    struct RevocableBody {
        #[pin]
        inner: Body,
        revocation: Revocation,
        contract: &'static Contract,
        request_id: RequestId,
        is_revoked: bool,
    }
}

impl HttpBody for RevocableBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if *this.is_revoked {
            return Poll::Ready(None);
        }
        if let Poll::Ready(error) = this.revocation.poll_unpin(cx) {
            *this.is_revoked = true;
            let status = error.status(&this.contract.errors, *this.request_id);
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        this.inner.poll_frame(cx)
    }
}
