//! Decides whether the caller may do what it asks for, by the method's row of the authorization table. An action on all
//! resources is decided before the body is read; one on the resource that a field names, as soon as the one bounded message
//! is there. Nothing has been validated or looked up by then: the answer is the same whether a thing exists or not.

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
    BoxFuture, Refusal, lasts,
    message::only_message,
    read_message, request_id,
    standing::{Credential, Standing},
    trace_id,
};
use crate::{
    audit::{self, Audit, Unwritten},
    contract::{
        Authorization as Row, Contract, Failure, Resource, Template, Violation,
        v1::CommonErrorCode::{InternalError, InvalidActionNotFound, NoPermission},
    },
    domain::Clock,
    identity::Caller,
    metrics,
    ram::{self, ALL_RESOURCES, Context as Circumstances},
    server::{openapi::Unreadable, peer::Peer, permit::Permit},
};

/// What the layer needs.
#[derive(Debug)]
pub struct Authorization {
    /// The contract's tables.
    pub contract: &'static Contract,
    /// Tells when it is decided.
    pub clock: Clock,
    /// Takes decisions down.
    pub audit: Audit,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct AuthorizeLayer(pub Arc<Authorization>);

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, authorization: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Authorize<S> {
    inner: S,
    authorization: Arc<Authorization>,
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
        let seen = self.authorization.look_at(&mut request);
        if let Seen::Decided(Decided { outcome: Ok(()), unwritten: None, standing: None }) = seen {
            return Either::Left(self.inner.call(request));
        }
        let authorization = Arc::clone(&self.authorization);
        // The clone is made ready some time; this one is.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        Either::Right(Box::pin(async move {
            let decided = match seen {
                Seen::Decided(decided) => decided,
                Seen::Names { row, template } => authorization.by_message(&mut request, row, template).await,
            };
            let written = match decided.unwritten {
                Some(unwritten) => unwritten.written().await,
                None => Ok(()),
            };
            match written.map_err(Refusal::from).and(decided.outcome) {
                Ok(()) => match decided.standing {
                    Some(standing) => standing.watch(inner.call(request)).await,
                    None => inner.call(request).await,
                },
                Err(refusal) => Ok(refusal.answer(authorization.contract, request_id(&request))),
            }
        }))
    }
}

/// What can be said without the message.
enum Seen {
    Decided(Decided),
    /// The message names the resource.
    Names {
        row: &'static Row,
        template: &'static Template,
    },
}

/// What was decided about a call. One that may go on has its permit.
struct Decided {
    outcome: Result<(), Refusal>,
    /// Where it has to be waited for that it is taken down.
    unwritten: Option<Unwritten>,
    /// Where it is to be decided about again while it lasts.
    standing: Option<Box<Standing>>,
}

impl From<Refusal> for Decided {
    fn from(refusal: Refusal) -> Self {
        Self { outcome: Err(refusal), unwritten: None, standing: None }
    }
}

impl Authorization {
    fn look_at(&self, request: &mut Request<Body>) -> Seen {
        let Some(row) = self.contract.authorizations.get(request.uri().path()) else {
            // One that comes in the HTTP form says itself what is wrong.
            let said = request.extensions().get::<Unreadable>().map(|unreadable| unreadable.0.clone());
            let failure = said.unwrap_or_else(|| Failure::new(InvalidActionNotFound, ""));
            return Seen::Decided(Refusal::Failure(failure).into());
        };
        match &row.resource {
            Resource::All => Seen::Decided(self.decide(request, row, ALL_RESOURCES)),
            Resource::Named(template) => Seen::Names { row, template },
        }
    }

    async fn by_message(&self, request: &mut Request<Body>, row: &'static Row, template: &'static Template) -> Decided {
        let message = match read_message(request).await {
            Ok(message) => message,
            Err(refusal) => {
                let unwritten = self.unread(request, row);
                return Decided { unwritten, ..refusal.into() };
            }
        };
        match only_message(&message).and_then(|message| template.fill(message)) {
            Some(resource) => self.decide(request, row, &resource),
            None => {
                let description = "it can't be decoded".to_owned();
                Refusal::Failure(Failure::invalid(Violation { field: "the request", description })).into()
            }
        }
    }

    /// Writes down that nothing could be decided.
    fn unread(&self, request: &Request<Body>, row: &'static Row) -> Option<Unwritten> {
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
            reason: audit::Shortened(&"the message did not come whole"),
            source_ip: request.extensions().get::<Peer>().map(|peer| peer.address),
        })
    }

    fn decide(&self, request: &mut Request<Body>, row: &'static Row, resource: &str) -> Decided {
        let action = row.action.as_str();
        let Some(caller) = request.extensions_mut().remove::<Caller>() else {
            return Refusal::Failure(Failure::new(InternalError, "")).into();
        };
        let peer = request.extensions().get::<Peer>();
        let principal = &caller.identity.principal;
        let now = self.clock.now();
        let context = Circumstances {
            source_ip: peer.map(|peer| peer.address),
            current_time: Some(now),
            secure_transport: peer.map(|peer| peer.secure),
            principal: Some(principal.as_str()),
            claims: &caller.claims,
        };
        let decision = caller.identity.policies.decide(&ram::Request { action, resource, context: &context });
        let allowed = decision.is_allowed();
        let (verdict, word) = if allowed { (audit::Verdict::Allow, "allow") } else { (audit::Verdict::Deny, "deny") };
        Span::current().record("appferry.decision", word);
        let (request_id, trace_id) = (request_id(request), trace_id(request));
        let path = self.contract.authorizations.path(request.uri().path());
        let record = audit::Record {
            time: now,
            request_id,
            trace_id,
            principal: Some(principal.as_str()),
            authenticated_by: Some(caller.method.name()),
            method: path,
            action: Some(action),
            resource: Some(audit::Shortened(&resource)),
            decision: verdict,
            reason: audit::Shortened(&decision),
            source_ip: context.source_ip,
        };
        metrics::record_decision(Some(action), word);
        let unwritten = self.audit.record(&record);
        let (source_ip, secure) = (context.source_ip, context.secure_transport);
        let mut standing = None;
        let outcome = if allowed {
            if let Some((path, credential)) =
                path.filter(|path| lasts(path, row)).zip(request.extensions_mut().remove::<Credential>())
            {
                standing = Some(Box::new(Standing {
                    credential,
                    contract: self.contract,
                    clock: self.clock.clone(),
                    audit: self.audit.clone(),
                    request_id,
                    trace_id,
                    caller: caller.clone(),
                    path,
                    action,
                    resource: resource.to_owned(),
                    source_ip,
                    secure,
                }));
            }
            request.extensions_mut().insert(Permit::grant(request_id, caller));
            Ok(())
        } else {
            let on = if resource == ALL_RESOURCES { "all resources (*)" } else { resource };
            let cause = format!("{principal} may not perform {action} on {on}: {decision}");
            Err(Refusal::Failure(Failure::new(NoPermission, cause)))
        };
        Decided { outcome, unwritten, standing }
    }
}
