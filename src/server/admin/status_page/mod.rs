//! The status page: a matrix of images and regions, and a page for each synchronization. Its files are static and need
//! no build step. Its queries return JSON, and each query calls a method with the caller's credential.

use std::future::ready;

use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, Path, RawQuery},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, Uri, header, request::Parts};
use prost::Message;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    contract::{
        self, ApiErrorResponse,
        v1::{
            GetSynchronizationRequest, ListImagesRequest, ListRegionsRequest, ListSynchronizationsRequest,
            SynchronizationState,
        },
    },
    server::{
        http_api::grpc_bridge::{self, GrpcStack},
        listener::peer::Peer,
    },
};

/// Path, content type and content of the page's files.
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("page.html")),
    ("/status.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/status.js", "text/javascript; charset=utf-8", include_str!("page.js")),
];
/// Content-Security-Policy: the page may load its own files and query its own origin.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; img-src data:; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
/// Images per page of the matrix.
const PAGE_SIZE: i32 = 100;
/// Number of synchronizations that are listed.
const MAX_SYNCHRONIZATIONS: i32 = 50;

/// Serves the status page.
#[derive(Debug, Clone)]
pub struct StatusPage {
    stack: GrpcStack,
    /// Whether credentials are accepted over unencrypted connections that are not local.
    plaintext: bool,
}

impl StatusPage {
    /// Creates a page whose queries call `stack`. `plaintext` sets whether credentials are accepted over unencrypted
    /// connections that are not local.
    #[must_use]
    pub fn new(stack: GrpcStack, plaintext: bool) -> Self {
        Self { stack, plaintext }
    }

    /// Creates the routes of the page's files and queries.
    pub fn router(self) -> Router {
        let queries = Router::new()
            .route("/api/regions", get(regions))
            .route("/api/images", get(images))
            .route("/api/synchronizations", get(synchronizations))
            .route("/api/synchronizations/{request_id}", get(synchronization))
            .with_state(self);
        FILES.into_iter().fold(queries, |router, (path, content_type, text)| {
            router.route(path, get(move || ready(response(StatusCode::OK, content_type, text))))
        })
    }
}

/// The sender of a query. Methods are called with the sender's credential. A credential that others could read is
/// rejected.
struct Caller {
    stack: GrpcStack,
    headers: HeaderMap,
    peer: Option<Peer>,
}

impl FromRequestParts<StatusPage> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, page: &StatusPage) -> Result<Self, Response> {
        let peer = parts.extensions.get::<Peer>().cloned();
        if page.plaintext || peer.as_ref().is_some_and(|peer| peer.address.is_loopback()) {
            return Ok(Self { stack: page.stack.clone(), headers: parts.headers.clone(), peer });
        }
        let message = "The credential would be sent unencrypted: open the page on the server itself, or set \
                       server.allow_plaintext if the network is trusted";
        Err(json_response(StatusCode::FORBIDDEN, &json!({ "reason": "Plaintext", "message": message })))
    }
}

impl Caller {
    /// Calls a method and returns its response as JSON. `response` is the type of the response message.
    async fn call(self, method: &'static str, request: impl Message, response: &str) -> Response {
        let Self { stack, headers, peer } = self;
        let method = Uri::from_static(method);
        let call = grpc_bridge::grpc_request(method, &request.encode_to_vec(), &headers, peer);
        let Ok(called) = stack.oneshot(call).await;
        let error: ApiErrorResponse = match grpc_bridge::response_message(called).await {
            Ok(message) => match contract::json(response, &message) {
                Ok(value) => return json_response(StatusCode::OK, &value),
                Err(error) => tonic::Status::internal(error.to_string()).into(),
            },
            Err(status) => status.into(),
        };
        let status = error.http_status.and_then(|status| StatusCode::from_u16(status).ok());
        let fields = json!({ "reason": error.reason, "message": error.message, "requestId": error.request_id });
        json_response(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &fields)
    }
}

async fn regions(caller: Caller) -> Response {
    caller.call("/appferry.v1.ImageService/ListRegions", ListRegionsRequest {}, "ListRegionsResponse").await
}

async fn images(caller: Caller, RawQuery(query): RawQuery) -> Response {
    let page_token = parameter(query, "page_token");
    let request = ListImagesRequest { page_size: PAGE_SIZE, page_token, ..Default::default() };
    caller.call("/appferry.v1.ImageService/ListImages", request, "ListImagesResponse").await
}

async fn synchronizations(caller: Caller, RawQuery(query): RawQuery) -> Response {
    let is_running = parameter(query, "state") == "RUNNING";
    let state = if is_running { SynchronizationState::Running } else { SynchronizationState::Unspecified };
    let request =
        ListSynchronizationsRequest { state: state.into(), page_size: MAX_SYNCHRONIZATIONS, ..Default::default() };
    let method = "/appferry.v1.AppSyncService/ListSynchronizations";
    caller.call(method, request, "ListSynchronizationsResponse").await
}

async fn synchronization(caller: Caller, Path(request_id): Path<String>) -> Response {
    let request = GetSynchronizationRequest { request_id };
    caller.call("/appferry.v1.AppSyncService/GetSynchronization", request, "GetSynchronizationResponse").await
}

/// Returns the first value of a query parameter, or an empty text.
fn parameter(query: Option<String>, name: &str) -> String {
    let query = query.unwrap_or_default();
    let pair = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
    pair.map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn json_response(status: StatusCode, value: &Value) -> Response {
    response(status, "application/json", value.to_string())
}

fn response(status: StatusCode, content_type: &'static str, content: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, content.into()).into_response()
}
