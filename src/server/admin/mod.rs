//! The admin listener: `GET /livez`, `/readyz` and `/metrics` without authentication, and the status page, whose
//! queries need a credential.
//!
//! Routed by hand: axum would add a framework for three paths, and the listener serves a plain tower service anyway.

mod status_page;

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

pub use status_page::StatusPage;

use super::{health::Readiness, listener::peer::Peer};
use crate::telemetry::metrics;

const TEXT: &str = "text/plain; charset=utf-8";

/// Serves probes, metrics and the status page.
#[derive(Debug, Clone)]
pub struct AdminService {
    readiness: watch::Receiver<Readiness>,
    page: Option<Arc<StatusPage>>,
}

impl AdminService {
    /// Creates a service that reports `readiness`; workers have no status page.
    #[must_use]
    pub fn new(readiness: watch::Receiver<Readiness>, page: Option<StatusPage>) -> Self {
        Self { readiness, page: page.map(Arc::new) }
    }

    fn respond(&self, method: &Method, path: &str) -> (StatusCode, &'static str, Vec<u8>) {
        let text = |status, text: &str| (status, TEXT, format!("{text}\n").into_bytes());
        if !matches!(*method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD");
        }
        match path {
            // Independent of the database: restarting the process would not repair it.
            "/livez" => text(StatusCode::OK, "alive"),
            "/readyz" => match &*self.readiness.borrow() {
                Readiness::Ready => text(StatusCode::OK, "ready"),
                Readiness::NotReady(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            "/metrics" => match metrics::scrape() {
                Some(metrics) => (StatusCode::OK, metrics::CONTENT_TYPE, metrics),
                None => text(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode the metrics"),
            },
            _ if self.page.is_some() => text(StatusCode::NOT_FOUND, "not found; use /, /livez, /readyz or /metrics"),
            _ => text(StatusCode::NOT_FOUND, "not found; use /livez, /readyz or /metrics"),
        }
    }
}

impl Service<Request<Incoming>> for AdminService {
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
                if let Some(response) = page.respond(uri, request.headers(), peer).await {
                    return Ok(response);
                }
            }
            let (status, content_type, content) = this.respond(method, uri.path());
            let content = if method == Method::HEAD { Bytes::new() } else { content.into() };
            let mut response = Response::new(Body::new(Full::from(content)));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            Ok(response)
        })
    }
}
