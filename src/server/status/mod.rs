//! The status page: what is where, as a matrix that moves, and a page for each synchronization. Plain files without a build step, which
//! ask for what they show by JSON; each question is a call of a method and needs the same credential.

use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use http_body_util::Full;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::body::Body;
use tower::ServiceExt as _;

use super::{
    door::{self, Inner},
    peer::Peer,
};
use crate::contract::{
    self, Refusal,
    v1::{
        GetSynchronizationRequest, ListImagesRequest, ListRegionsRequest, ListSynchronizationsRequest,
        SynchronizationState,
    },
};

/// The files of the page, and their types.
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("page.html")),
    ("/status.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/status.js", "text/javascript; charset=utf-8", include_str!("page.js")),
];
/// What the page may do: read its own files, and ask where it came from.
const POLICY: &str = "default-src 'none'; img-src data:; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; \
                      frame-ancestors 'none'";
/// Entries of a page of the matrix.
const IMAGES: i32 = 100;
/// Synchronizations that are shown.
const SYNCHRONIZATIONS: i32 = 50;

/// See the module.
#[derive(Debug, Clone)]
pub struct StatusPage {
    inner: Inner,
    /// Whether credentials may come over connections that others could read.
    plaintext: bool,
}

/// A question of the page: the method that it calls, its message, and the name of the answer.
struct Question {
    method: Uri,
    message: Vec<u8>,
    answer: &'static str,
}

impl Question {
    fn of(path: &str, query: &str) -> Option<Self> {
        let parameter = |name: &str| {
            let found = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
            found.map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        let (method, message, answer) = match path.strip_prefix("/api/")? {
            "regions" => (
                Uri::from_static("/appferry.v1.ImageService/ListRegions"),
                ListRegionsRequest {}.encode_to_vec(),
                "ListRegionsResponse",
            ),
            "images" => (
                Uri::from_static("/appferry.v1.ImageService/ListImages"),
                ListImagesRequest { page_size: IMAGES, page_token: parameter("page_token"), ..Default::default() }
                    .encode_to_vec(),
                "ListImagesResponse",
            ),
            "synchronizations" => {
                let running = parameter("state") == "RUNNING";
                let state = if running { SynchronizationState::Running } else { SynchronizationState::Unspecified };
                let request = ListSynchronizationsRequest {
                    state: state.into(),
                    page_size: SYNCHRONIZATIONS,
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
        Some(Self { method, message, answer })
    }
}

impl StatusPage {
    /// A page whose questions go into this stack. `plaintext` says that credentials may come over connections that others could read.
    #[must_use]
    pub fn new(inner: Inner, plaintext: bool) -> Self {
        Self { inner, plaintext }
    }

    /// What is at a path, if it is one of the page's.
    pub async fn answer(&self, uri: &Uri, headers: &HeaderMap, peer: Option<Peer>) -> Option<Response<Body>> {
        if let Some((_, kind, text)) = FILES.iter().find(|(path, ..)| *path == uri.path()) {
            return Some(respond(StatusCode::OK, kind, *text));
        }
        let question = Question::of(uri.path(), uri.query().unwrap_or_default())?;
        let private = self.plaintext || peer.as_ref().is_some_and(|peer| peer.address.is_loopback());
        let (status, value) = if private {
            self.ask(question, headers, peer).await
        } else {
            let message = "A credential would come here in the clear: ask from the machine itself, or set \
                           server.allow_plaintext where the network is trusted";
            (StatusCode::FORBIDDEN, json!({ "reason": "Plaintext", "message": message }))
        };
        Some(respond(status, "application/json", value.to_string()))
    }

    async fn ask(&self, question: Question, headers: &HeaderMap, peer: Option<Peer>) -> (StatusCode, Value) {
        let call = door::call(question.method, &question.message, headers, peer);
        let Ok(response) = self.inner.clone().oneshot(call).await;
        let refusal: Refusal = match door::answer(response).await {
            Ok(message) => match contract::json(question.answer, &message) {
                Ok(value) => return (StatusCode::OK, value),
                Err(error) => tonic::Status::internal(error.to_string()).into(),
            },
            Err(status) => status.into(),
        };
        let status = refusal.http_status.and_then(|status| StatusCode::from_u16(status).ok());
        let told = json!({ "reason": refusal.reason, "message": refusal.message, "requestId": refusal.request_id });
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), told)
    }
}

fn respond(status: StatusCode, kind: &'static str, content: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(content.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
