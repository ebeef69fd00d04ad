//! Decides whether the principal may do what it asks for, by the method's row of the authorization table. An action on all
//! resources is decided before the body is read; one on the resource that a field names, as soon as the one bounded message
//! is there. Nothing has been validated or looked up by then: the answer is the same whether a thing exists or not.

use std::{
    convert::Infallible,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use tracing::Span;

use super::{BoxFuture, refuse, request_id};
use crate::{
    contract::{
        Contract, Failure, Resource, Violation,
        v1::CommonErrorCode::{InternalError, InvalidActionNotFound, NoPermission},
    },
    domain::RequestId,
    ram::{ALL_RESOURCES, Decision},
    server::{Identity, permit::Permit},
};

/// The flag and the length before a message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// See the module.
#[derive(Debug, Clone)]
pub struct AuthorizeLayer(Arc<Contract>);

impl AuthorizeLayer {
    pub fn new(contract: Arc<Contract>) -> Self {
        Self(contract)
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, contract: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Authorize<S> {
    inner: S,
    contract: Arc<Contract>,
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let contract = Arc::clone(&self.contract);
        // The clone is made ready some time; this one is.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            match authorize(&contract, &mut request).await {
                Ok(permit) => {
                    request.extensions_mut().insert(permit);
                    inner.call(request).await
                }
                Err(refusal) => Ok(refusal.answer(&contract, request_id(&request))),
            }
        })
    }
}

enum Refusal {
    Failure(Failure),
    /// The body broke off, or was too long; it says so itself.
    Status(Status),
}

impl Refusal {
    fn answer(self, contract: &Contract, request_id: RequestId) -> Response<Body> {
        match self {
            Self::Failure(failure) => refuse(&failure, contract, request_id),
            Self::Status(status) => status.into_http(),
        }
    }
}

async fn authorize(contract: &Contract, request: &mut Request<Body>) -> Result<Permit, Refusal> {
    let Some(identity) = request.extensions().get::<Arc<Identity>>().cloned() else {
        return Err(Refusal::Failure(Failure::new(InternalError, "")));
    };
    let Some(row) = contract.authorizations.get(request.uri().path()) else {
        return Err(Refusal::Failure(Failure::new(InvalidActionNotFound, "")));
    };
    let resource = match &row.resource {
        Resource::All => ALL_RESOURCES.to_owned(),
        Resource::Named(template) => {
            let message = read_message(request).await?;
            let malformed = || {
                let description = "it can't be decoded".to_owned();
                Refusal::Failure(Failure::invalid(Violation { field: "the request", description }))
            };
            only_message(&message).and_then(|message| template.fill(message)).ok_or_else(malformed)?
        }
    };
    let Identity { principal, policies } = &*identity;
    let decision = policies.decide(&row.action, &resource);
    let (allowed, word) = if matches!(decision, Decision::Allowed(_)) { (true, "allow") } else { (false, "deny") };
    let request_id = request_id(request);
    Span::current().record("appferry.decision", word);
    tracing::info!(
        target: "appferry::audit",
        %request_id, %principal, action = row.action, resource, decision = word, statement = %decision,
    );
    if allowed {
        return Ok(Permit::grant(request_id, principal.clone()));
    }
    let on = if resource == ALL_RESOURCES { "all resources (*)" } else { &resource };
    let cause = format!("{principal} may not perform {} on {on}: {decision}", row.action);
    Err(Refusal::Failure(Failure::new(NoPermission, cause)))
}

/// Reads the request's one message, which is bounded further out, and puts it back.
async fn read_message(request: &mut Request<Body>) -> Result<Bytes, Refusal> {
    let body = mem::replace(request.body_mut(), Body::empty());
    let message = body.collect().await.map_err(Refusal::Status)?.to_bytes();
    if message.first().is_some_and(|flag| *flag != 0) {
        let cause = "Compressed messages are not supported.";
        return Err(Refusal::Failure(Failure::new(InvalidActionNotFound, cause)));
    }
    *request.body_mut() = Body::new(Full::new(message.clone()));
    Ok(message)
}

/// The message in a body that holds exactly one: what is decided about is what the handler will read.
fn only_message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix.get(1..)?.try_into().ok()?);
    (usize::try_from(length) == Ok(message.len())).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::only_message;

    #[test]
    fn a_second_message_is_no_way_around() {
        assert_eq!(only_message(&[0, 0, 0, 0, 2, 7, 8]), Some(&[7, 8][..]));
        for bad in [&[][..], &[0, 0, 0, 0][..], &[0, 0, 0, 0, 2, 7][..], &[0, 0, 0, 0, 1, 7, 10, 0][..]] {
            assert_eq!(only_message(bad), None, "{bad:?}");
        }
    }
}
