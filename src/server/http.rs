//! What is told by HTTP: probes and metrics, `GET /livez`, `/readyz` and `/metrics`, to whoever can reach them; and, on servers, the status
//! page, whose questions need a credential.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::body::Body;
use tower::Service;

use super::{health::Readiness, peer::Peer, status::StatusPage};
use crate::telemetry::metrics;

const TEXT: &str = "text/plain; charset=utf-8";

/// See the module.
#[derive(Debug, Clone)]
pub struct Http {
    readiness: watch::Receiver<Readiness>,
    page: Option<Arc<StatusPage>>,
}

impl Http {
    /// Tells this readiness, and shows this page.
    #[must_use]
    pub fn new(readiness: watch::Receiver<Readiness>, page: Option<StatusPage>) -> Self {
        Self { readiness, page: page.map(Arc::new) }
    }

    fn answer(&self, method: &Method, path: &str) -> (StatusCode, &'static str, Vec<u8>) {
        let text = |status, text: &str| (status, TEXT, format!("{text}\n").into_bytes());
        if !matches!(*method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
        }
        match path {
            // Whoever answers is alive: what it depends on may be broken, and a restart would mend none of that.
            "/livez" => text(StatusCode::OK, "alive"),
            "/readyz" => match &*self.readiness.borrow() {
                Readiness::Ready => text(StatusCode::OK, "ready"),
                Readiness::NotReady(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/metrics" => match metrics::scrape() {
                Some(metrics) => (StatusCode::OK, metrics::CONTENT_TYPE, metrics),
                None => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be told"),
            },
            _ if self.page.is_some() => text(StatusCode::NOT_FOUND, "there are /, /livez, /readyz and /metrics"),
            _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics"),
        }
    }
}

impl Service<Request<Incoming>> for Http {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (method, uri) = (request.method(), request.uri());
            if let Some(page) = this.page.as_ref().filter(|_| method == Method::GET) {
                let peer = request.extensions().get::<Peer>().cloned();
                if let Some(response) = page.answer(uri, request.headers(), peer).await {
                    return Ok(response);
                }
            }
            let (status, kind, content) = this.answer(method, uri.path());
            let content = if method == Method::HEAD { Bytes::new() } else { content.into() };
            let mut response = Response::new(Body::new(Full::from(content)));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            Ok(response)
        })
    }
}
