//! The original's HTTP form, the RPC style of its API version 2023-07-01: another door to the same methods. A request is turned into a call
//! of a method and goes the way of every call, through the same stack; its answer is turned back.

mod actions;
mod parameters;
mod reply;

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, Method, Request, Response,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::{
    MAX_MESSAGE_BYTES, RETRY_AFTER,
    door::{self, Inner},
    peer::Peer,
    source_pool::SourcePool,
};
use crate::{
    contract::{Failure, v1::CommonErrorCode},
    domain::ForeignText,
};
use actions::{ACTIONS, Action, Call};
use parameters::{Parameters, invalid};

/// The version of the original's API.
const VERSION: &str = "2023-07-01";
/// How long the content of a request may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// A request as it came, which its signature is about.
#[derive(Debug, Clone)]
pub struct Original {
    /// Its head.
    pub head: Head,
    /// Its content, or why that did not come whole.
    pub content: Result<Bytes, Failure>,
    /// Whether it is signed in the old way, by parameters.
    pub signed_by_parameters: bool,
}

/// Method, target and headers of a request.
#[derive(Debug, Clone)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The path and the query.
    pub uri: http::Uri,
    /// The headers.
    pub headers: HeaderMap,
}

impl Head {
    /// That of a request.
    pub fn of<B>(request: &Request<B>) -> Self {
        let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
        Self { method, uri, headers }
    }
}

/// Why a request can't be turned into a call. It is told to those who may make that call.
#[derive(Debug, Clone)]
pub struct Unreadable(pub Failure);

/// See the module.
#[derive(Debug, Clone)]
pub struct OpenApi {
    inner: Inner,
    /// Places for contents that are read before it is proved who sends them.
    unproven: SourcePool,
}

impl OpenApi {
    /// A door to this stack.
    #[must_use]
    pub fn new(inner: Inner, unproven: SourcePool) -> Self {
        Self { inner, unproven }
    }
}

impl Service<Request<Incoming>> for OpenApi {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let Self { inner, unproven } = self.clone();
        Box::pin(async move {
            let head = Head::of(&request);
            let peer = request.extensions().get::<Peer>().cloned();
            let host = host(&head);
            let content = content(request.into_body(), peer.as_ref(), &unproven).await;
            let read = match &content {
                Ok(content) => Read::of(&head, content),
                Err(failure) => Read::unreadable(failure.clone()),
            };
            let mut call = door::call(read.uri, &read.message, &head.headers, peer);
            let extensions = call.extensions_mut();
            if let Some(failure) = read.failure {
                extensions.insert(Unreadable(failure));
            }
            extensions.insert(Original { head, content, signed_by_parameters: read.signed_by_parameters });
            let Ok(answer) = inner.oneshot(call).await;
            Ok(reply::reply(answer, read.answer, &host).await)
        })
    }
}

/// The host that a request is for.
fn host(head: &Head) -> String {
    let header = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    header.or(head.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default().to_owned()
}

/// The content of a request, which is bounded in size and time, and has to find a place.
async fn content(body: Incoming, peer: Option<&Peer>, unproven: &SourcePool) -> Result<Bytes, Failure> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let full = || Failure::unavailable("Too many requests are being read", RETRY_AFTER);
    let _place = unproven.enter(peer).ok_or_else(full)?;
    match tokio::time::timeout(ARRIVAL, Limited::new(body, MAX_MESSAGE_BYTES).collect()).await {
        Ok(Ok(content)) => Ok(content.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(invalid("the request", &format!("it is larger than {MAX_MESSAGE_BYTES} bytes")))
        }
        Ok(Err(_)) => Err(invalid("the request", "it broke off")),
        Err(_) => Err(Failure::timeout(ARRIVAL)),
    }
}

/// A request that has been read.
struct Read {
    uri: http::Uri,
    message: Vec<u8>,
    failure: Option<Failure>,
    signed_by_parameters: bool,
    answer: Option<actions::Answer>,
}

impl Read {
    fn unreadable(failure: Failure) -> Self {
        let uri = http::Uri::from_static("/appferry.v1.AppSyncService/Unknown");
        Self { uri, message: Vec::new(), failure: Some(failure), signed_by_parameters: false, answer: None }
    }

    fn of(head: &Head, content: &[u8]) -> Self {
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let form = kind.starts_with("application/x-www-form-urlencoded");
        let query = head.uri.query().unwrap_or_default();
        let mut parameters = match Parameters::read([query.as_bytes(), if form { content } else { b"" }]) {
            Ok(parameters) => parameters,
            Err(failure) => return Self::unreadable(failure),
        };
        let signed_by_parameters = parameters.has("Signature") && !head.headers.contains_key(AUTHORIZATION);
        let mut said = |header: &str, parameter: &str| {
            let header = head.headers.get(header).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let parameter = parameters.maybe(parameter);
            header.or(parameter).unwrap_or_default()
        };
        let (name, version) = (said("x-acs-action", "Action"), said("x-acs-version", "Version"));
        let known = ACTIONS.iter().find(|action| action.name == name);
        let read = match known {
            _ if ![Method::GET, Method::POST].contains(&head.method) || head.uri.path() != "/" => {
                Self::unreadable(no_action("Requests are made by GET or POST of the path /."))
            }
            None => {
                Self::unreadable(no_action(&format!("{:?} is none; known are {}.", ForeignText::value(name), names())))
            }
            Some(action) => Self::action(action, parameters, &version),
        };
        Self { signed_by_parameters, ..read }
    }

    fn action(action: &Action, mut parameters: Parameters, version: &str) -> Self {
        let uri = http::Uri::from_static(action.path);
        let read = (action.read)(&mut parameters).and_then(|call| parameters.finish(action.name).map(|()| call));
        let read = if version == VERSION {
            read
        } else {
            let cause =
                format!("{:?} is not {VERSION}, which is the one that is spoken here.", ForeignText::value(version));
            Err(Failure::new(CommonErrorCode::InvalidVersion, cause))
        };
        match read {
            Ok(Call { message, answer }) => {
                Self { uri, message, failure: None, signed_by_parameters: false, answer: Some(answer) }
            }
            Err(failure) => Self { uri, ..Self::unreadable(failure) },
        }
    }
}

fn no_action(cause: &str) -> Failure {
    Failure::new(CommonErrorCode::InvalidActionNotFound, cause)
}

fn names() -> String {
    ACTIONS.map(|action| action.name).join(", ")
}
