//! The HTTP form of the original API (RPC style, version 2023-07-01): a frontend that maps each action to a method of
//! the contract, and the method's response to the original's JSON.

mod actions;
pub mod grpc_bridge;
mod parameters;
mod response;
mod results;

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use actions::{ACTIONS, Action, ActionCall};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use grpc_bridge::GrpcStack;
use http::{
    Method, Request, Response, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use parameters::{Parameters, invalid};
use results::ResultEncoder;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::{
    MAX_MESSAGE_BYTES, RETRY_AFTER,
    listener::peer::Peer,
    middleware::{MalformedRequest, OriginalRequest, RequestHead},
    source_pool::SourcePool,
};
use crate::{
    contract::{ApiError, v1::CommonErrorCode},
    domain::ForeignText,
};

/// The version of the original API.
const VERSION: &str = "2023-07-01";
/// Longest time for the content of a request to arrive.
const CONTENT_ARRIVAL: Duration = Duration::from_secs(10);

/// Serves the HTTP form of the original API.
#[derive(Debug, Clone)]
pub struct HttpApi {
    stack: GrpcStack,
    /// Limits the contents of unauthenticated callers that are buffered at the same time.
    message_slots: SourcePool,
}

impl HttpApi {
    /// Creates a frontend of `stack`.
    #[must_use]
    pub fn new(stack: GrpcStack, message_slots: SourcePool) -> Self {
        Self { stack, message_slots }
    }
}

impl Service<Request<Incoming>> for HttpApi {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let Self { stack, message_slots } = self.clone();
        Box::pin(async move {
            let head = RequestHead::new(&request);
            let peer = request.extensions().get::<Peer>().cloned();
            let host = host(&head);
            let content = content(request.into_body(), peer.as_ref(), &message_slots).await;
            let parsed = match &content {
                Ok(content) => ParsedRequest::parse(&head, content),
                Err(error) => ParsedRequest::malformed(error.clone()),
            };
            let mut call = grpc_bridge::grpc_request(parsed.method, &parsed.message, &head.headers, peer);
            let extensions = call.extensions_mut();
            if let Some(error) = parsed.error {
                extensions.insert(MalformedRequest(error));
            }
            let signed_by_parameters = parsed.signed_by_parameters;
            extensions.insert(OriginalRequest { head, content, signed_by_parameters });
            let Ok(response) = stack.oneshot(call).await;
            Ok(response::http_response(response, parsed.encoder, &host).await)
        })
    }
}

/// Returns the host that a request is addressed to.
fn host(head: &RequestHead) -> String {
    let header = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    header.or(head.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default().to_owned()
}

/// Reads the content of a request, limited in size, time and concurrency.
async fn content(body: Incoming, peer: Option<&Peer>, message_slots: &SourcePool) -> Result<Bytes, ApiError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let busy = || ApiError::unavailable("Too many requests are being read", RETRY_AFTER);
    let _slot = message_slots.try_acquire(peer).ok_or_else(busy)?;
    match tokio::time::timeout(CONTENT_ARRIVAL, Limited::new(body, MAX_MESSAGE_BYTES).collect()).await {
        Ok(Ok(content)) => Ok(content.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(invalid("the request", &format!("it is larger than {MAX_MESSAGE_BYTES} bytes")))
        }
        Ok(Err(_)) => Err(invalid("the request", "it was interrupted")),
        Err(_) => Err(ApiError::timeout(CONTENT_ARRIVAL)),
    }
}

/// A request that was parsed into a call of a method, or into the error that prevents the call.
struct ParsedRequest {
    method: Uri,
    message: Vec<u8>,
    error: Option<ApiError>,
    signed_by_parameters: bool,
    encoder: Option<ResultEncoder>,
}

impl ParsedRequest {
    /// Creates a request that names no method. It still goes through the stack, which authenticates the caller before
    /// the error is sent.
    fn malformed(error: ApiError) -> Self {
        let method = Uri::from_static("/appferry.v1.AppSyncService/Unknown");
        Self { method, message: Vec::new(), error: Some(error), signed_by_parameters: false, encoder: None }
    }

    fn parse(head: &RequestHead, content: &[u8]) -> Self {
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_form = content_type.starts_with("application/x-www-form-urlencoded");
        let query = head.uri.query().unwrap_or_default();
        let mut parameters = match Parameters::parse([query.as_bytes(), if is_form { content } else { b"" }]) {
            Ok(parameters) => parameters,
            Err(error) => return Self::malformed(error),
        };
        let signed_by_parameters = parameters.has("Signature") && !head.headers.contains_key(AUTHORIZATION);
        let mut header_or_parameter = |header: &str, parameter: &str| {
            let header = head.headers.get(header).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let parameter = parameters.take(parameter);
            header.or(parameter).unwrap_or_default()
        };
        let name = header_or_parameter("x-acs-action", "Action");
        let version = header_or_parameter("x-acs-version", "Version");
        let parsed = match ACTIONS.iter().find(|action| action.name == name) {
            _ if ![Method::GET, Method::POST].contains(&head.method) || head.uri.path() != "/" => {
                Self::malformed(unknown_action("Use GET or POST with the path /."))
            }
            None => {
                let (name, supported) = (ForeignText::value(name), action_names());
                Self::malformed(unknown_action(&format!("{name:?} is not supported; expected one of {supported}.")))
            }
            Some(action) => Self::action(action, parameters, &version),
        };
        Self { signed_by_parameters, ..parsed }
    }

    fn action(action: &Action, mut parameters: Parameters, version: &str) -> Self {
        let method = Uri::from_static(action.path);
        let call = (action.parse)(&mut parameters).and_then(|call| parameters.finish(action.name).map(|()| call));
        let call = if version == VERSION {
            call
        } else {
            let cause = format!("{:?} is not supported; use {VERSION}.", ForeignText::value(version));
            Err(ApiError::new(CommonErrorCode::InvalidVersion, cause))
        };
        match call {
            Ok(ActionCall { message, encoder }) => {
                Self { method, message, error: None, signed_by_parameters: false, encoder: Some(encoder) }
            }
            Err(error) => Self { method, ..Self::malformed(error) },
        }
    }
}

fn unknown_action(cause: &str) -> ApiError {
    ApiError::new(CommonErrorCode::InvalidActionNotFound, cause)
}

fn action_names() -> String {
    ACTIONS.map(|action| action.name).join(", ")
}
