//! The status page: a matrix of images and regions, and a page for each synchronization. Static files without a build
//! step; their queries are JSON, and each is a call of a method with the caller's credential.

use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use http_body_util::Full;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::body::Body;
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

/// A query of the page: the method that it calls, the encoded request, and the name of the response message.
struct PageQuery {
    method: Uri,
    request: Vec<u8>,
    response: &'static str,
}

impl PageQuery {
    fn parse(path: &str, query: &str) -> Option<Self> {
        let parameter = |name: &str| {
            let pair = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
            pair.map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        let (method, request, response) = match path.strip_prefix("/api/")? {
            "regions" => (
                Uri::from_static("/appferry.v1.ImageService/ListRegions"),
                ListRegionsRequest {}.encode_to_vec(),
                "ListRegionsResponse",
            ),
            "images" => (
                Uri::from_static("/appferry.v1.ImageService/ListImages"),
                ListImagesRequest { page_size: PAGE_SIZE, page_token: parameter("page_token"), ..Default::default() }
                    .encode_to_vec(),
                "ListImagesResponse",
            ),
            "synchronizations" => {
                let is_running = parameter("state") == "RUNNING";
                let state = if is_running { SynchronizationState::Running } else { SynchronizationState::Unspecified };
                let request = ListSynchronizationsRequest {
                    state: state.into(),
                    page_size: MAX_SYNCHRONIZATIONS,
                    ..Default::default()
                };
                (
                    Uri::from_static("/appferry.v1.AppSyncService/ListSynchronizations"),
                    request.encode_to_vec(),
                    "ListSynchronizationsResponse",
                )
            }
            other => {
                let request_id = other.strip_prefix("synchronizations/")?.to_owned();
                (
                    Uri::from_static("/appferry.v1.AppSyncService/GetSynchronization"),
                    GetSynchronizationRequest { request_id }.encode_to_vec(),
                    "GetSynchronizationResponse",
                )
            }
        };
        Some(Self { method, request, response })
    }
}

impl StatusPage {
    /// Creates a page whose queries call `stack`. `plaintext` sets whether credentials are accepted over unencrypted
    /// connections that are not local.
    #[must_use]
    pub fn new(stack: GrpcStack, plaintext: bool) -> Self {
        Self { stack, plaintext }
    }

    /// Responds to a request for one of the page's paths; `None` for other paths.
    pub async fn respond(&self, uri: &Uri, headers: &HeaderMap, peer: Option<Peer>) -> Option<Response<Body>> {
        if let Some((_, content_type, text)) = FILES.iter().find(|(path, ..)| *path == uri.path()) {
            return Some(response(StatusCode::OK, content_type, *text));
        }
        let query = PageQuery::parse(uri.path(), uri.query().unwrap_or_default())?;
        let is_private = self.plaintext || peer.as_ref().is_some_and(|peer| peer.address.is_loopback());
        let (status, value) = if is_private {
            self.query(query, headers, peer).await
        } else {
            let message = "The credential would be sent unencrypted: open the page on the server itself, or set \
                           server.allow_plaintext if the network is trusted";
            (StatusCode::FORBIDDEN, json!({ "reason": "Plaintext", "message": message }))
        };
        Some(response(status, "application/json", value.to_string()))
    }

    async fn query(&self, query: PageQuery, headers: &HeaderMap, peer: Option<Peer>) -> (StatusCode, Value) {
        let call = grpc_bridge::grpc_request(query.method, &query.request, headers, peer);
        let Ok(response) = self.stack.clone().oneshot(call).await;
        let error: ApiErrorResponse = match grpc_bridge::response_message(response).await {
            Ok(message) => match contract::json(query.response, &message) {
                Ok(value) => return (StatusCode::OK, value),
                Err(error) => tonic::Status::internal(error.to_string()).into(),
            },
            Err(status) => status.into(),
        };
        let status = error.http_status.and_then(|status| StatusCode::from_u16(status).ok());
        let fields = json!({ "reason": error.reason, "message": error.message, "requestId": error.request_id });
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), fields)
    }
}

fn response(status: StatusCode, content_type: &'static str, content: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(content.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
