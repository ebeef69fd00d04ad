//! Authorizes calls by the contract's authorization table and the caller's policies.
//!
//! An action on all resources is decided before the body is read. An action on the resource that a field names is
//! decided as soon as the message has arrived. Both decisions precede validation and look-ups, so that the response
//! does not reveal whether a resource exists.

use std::{
    convert::Infallible,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Span;

use super::{
    BoxFuture, MalformedRequest, is_long_running,
    message::{Rejection, only_message, read_message},
    reauthorize::{OngoingCall, PresentedCredential},
    request_id, trace_id,
};
use crate::{
    audit::{self, Audit, PendingRecord},
    contract::{
        ApiError, Authorization, Contract, Resource, Template, Violation,
        v1::CommonErrorCode::{InternalError, InvalidActionNotFound, NoPermission},
    },
    domain::Clock,
    identity::Caller,
    metrics,
    ram::{self, ALL_RESOURCES},
    server::{grpc::Permit, listener::peer::Peer},
};

/// The collaborators of [`AuthorizeLayer`].
#[derive(Debug)]
pub struct RequestAuthorizer {
    /// The tables of the contract.
    pub contract: &'static Contract,
    /// The time of decisions.
    pub clock: Clock,
    /// Records decisions.
    pub audit: Audit,
}

/// Adds `Authorize`.
#[derive(Debug, Clone)]
pub struct AuthorizeLayer(pub Arc<RequestAuthorizer>);

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, authorizer: Arc::clone(&self.0) }
    }
}

/// Authorizes the calls of a service; those that pass have a [`Permit`] in their extensions.
#[derive(Debug, Clone)]
pub struct Authorize<S> {
    inner: S,
    authorizer: Arc<RequestAuthorizer>,
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let check = self.authorizer.check_headers(&mut request);
        if let HeaderCheck::Decided(Decision { outcome: Ok(()), pending: None, ongoing: None }) = check {
            return Either::Left(self.inner.call(request));
        }
        let authorizer = Arc::clone(&self.authorizer);
        // The clone may not be ready yet; the service that was polled is.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        Either::Right(Box::pin(async move {
            let decision = match check {
                HeaderCheck::Decided(decision) => decision,
                HeaderCheck::NeedsMessage { row, template } => {
                    authorizer.check_message(&mut request, row, template).await
                }
            };
            let recorded = match decision.pending {
                Some(pending) => pending.wait().await,
                None => Ok(()),
            };
            match recorded.map_err(Rejection::from).and(decision.outcome) {
                Ok(()) => match decision.ongoing {
                    Some(ongoing) => ongoing.watch(inner.call(request)).await,
                    None => inner.call(request).await,
                },
                Err(rejection) => Ok(rejection.into_response(authorizer.contract, request_id(&request))),
            }
        }))
    }
}

/// The result of a check that does not read the message.
enum HeaderCheck {
    Decided(Decision),
    /// The message names the resource.
    NeedsMessage {
        row: &'static Authorization,
        template: &'static Template,
    },
}

/// A decision about a call. An allowed call has its [`Permit`].
struct Decision {
    outcome: Result<(), Rejection>,
    /// The record in the audit log, if it still waits for room in the queue.
    pending: Option<PendingRecord>,
    /// Reauthorizes a long-running call.
    ongoing: Option<Box<OngoingCall>>,
}

impl From<Rejection> for Decision {
    fn from(rejection: Rejection) -> Self {
        Self { outcome: Err(rejection), pending: None, ongoing: None }
    }
}

impl RequestAuthorizer {
    fn check_headers(&self, request: &mut Request<Body>) -> HeaderCheck {
        let Some(row) = self.contract.authorizations.get(request.uri().path()) else {
            // For calls of an HTTP frontend, the error says why the action is unknown.
            let malformed = request.extensions().get::<MalformedRequest>().map(|malformed| malformed.0.clone());
            let error = malformed.unwrap_or_else(|| ApiError::new(InvalidActionNotFound, ""));
            return HeaderCheck::Decided(Rejection::Error(error).into());
        };
        match &row.resource {
            Resource::All => HeaderCheck::Decided(self.decide(request, row, ALL_RESOURCES)),
            Resource::Named(template) => HeaderCheck::NeedsMessage { row, template },
        }
    }

    async fn check_message(
        &self,
        request: &mut Request<Body>,
        row: &'static Authorization,
        template: &'static Template,
    ) -> Decision {
        let message = match read_message(request).await {
            Ok(message) => message,
            Err(rejection) => {
                let pending = self.record_incomplete(request, row);
                return Decision { pending, ..rejection.into() };
            }
        };
        match only_message(&message).and_then(|message| template.fill(message)) {
            Some(resource) => self.decide(request, row, &resource),
            None => {
                let description = "it can't be decoded".to_owned();
                Rejection::Error(ApiError::invalid(Violation { field: "the request", description })).into()
            }
        }
    }

    /// Records a call whose message did not arrive completely, so that no resource is known.
    fn record_incomplete(&self, request: &Request<Body>, row: &'static Authorization) -> Option<PendingRecord> {
        let caller = request.extensions().get::<Caller>();
        metrics::record_decision(Some(&row.action), "deny");
        self.audit.record(&audit::Record {
            time: self.clock.now(),
            request_id: request_id(request),
            trace_id: trace_id(request),
            principal: caller.map(|caller| caller.identity.principal.as_str()),
            authenticated_by: caller.map(|caller| caller.method.name()),
            method: self.contract.authorizations.path(request.uri().path()),
            action: Some(&row.action),
            resource: None,
            decision: audit::Verdict::Deny,
            reason: audit::Truncated(&"the message did not arrive completely"),
            source_ip: request.extensions().get::<Peer>().map(|peer| peer.address),
        })
    }

    fn decide(&self, request: &mut Request<Body>, row: &'static Authorization, resource: &str) -> Decision {
        let action = row.action.as_str();
        let Some(caller) = request.extensions_mut().remove::<Caller>() else {
            return Rejection::Error(ApiError::new(InternalError, "")).into();
        };
        let peer = request.extensions().get::<Peer>();
        let principal = &caller.identity.principal;
        let now = self.clock.now();
        let context = ram::Context {
            source_ip: peer.map(|peer| peer.address),
            current_time: Some(now),
            secure_transport: peer.map(|peer| peer.secure),
            principal: Some(principal.as_str()),
            claims: &caller.claims,
        };
        let decision = caller.identity.policies.decide(&ram::Request { action, resource, context: &context });
        let (verdict, label) =
            if decision.is_allowed() { (audit::Verdict::Allow, "allow") } else { (audit::Verdict::Deny, "deny") };
        Span::current().record("appferry.decision", label);
        metrics::record_decision(Some(action), label);
        let pending = self.audit.record(&audit::Record {
            time: now,
            request_id: request_id(request),
            trace_id: trace_id(request),
            principal: Some(principal.as_str()),
            authenticated_by: Some(caller.method.name()),
            method: self.contract.authorizations.path(request.uri().path()),
            action: Some(action),
            resource: Some(audit::Truncated(&resource)),
            decision: verdict,
            reason: audit::Truncated(&decision),
            source_ip: context.source_ip,
        });
        if !decision.is_allowed() {
            let scope = if resource == ALL_RESOURCES { "all resources (*)" } else { resource };
            let cause = format!("{principal} may not perform {action} on {scope}: {decision}");
            let outcome = Err(Rejection::Error(ApiError::new(NoPermission, cause)));
            return Decision { outcome, pending, ongoing: None };
        }
        let ongoing = self.ongoing(request, row, resource, &caller);
        let permit = Permit::grant(request_id(request), caller);
        request.extensions_mut().insert(permit);
        Decision { outcome: Ok(()), pending, ongoing }
    }

    /// Returns the reauthorization of an allowed call, if it is long-running.
    fn ongoing(
        &self,
        request: &mut Request<Body>,
        row: &'static Authorization,
        resource: &str,
        caller: &Caller,
    ) -> Option<Box<OngoingCall>> {
        let path = self.contract.authorizations.path(request.uri().path())?;
        if !is_long_running(path, row) {
            return None;
        }
        let credential = request.extensions_mut().remove::<PresentedCredential>()?;
        let peer = request.extensions().get::<Peer>();
        Some(Box::new(OngoingCall {
            credential,
            contract: self.contract,
            clock: self.clock.clone(),
            audit: self.audit.clone(),
            request_id: request_id(request),
            trace_id: trace_id(request),
            caller: caller.clone(),
            path,
            action: &row.action,
            resource: resource.to_owned(),
            source_ip: peer.map(|peer| peer.address),
            secure_transport: peer.map(|peer| peer.secure),
        }))
    }
}
