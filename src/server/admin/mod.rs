//! The admin listener: `GET /livez`, `/readyz` and `/metrics` without authentication, and the status page, whose
//! queries need a credential.

mod status_page;

use std::future::ready;

use axum::{
    Router,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{Method, StatusCode, header::CONTENT_TYPE};
use tokio::sync::watch;

pub use status_page::StatusPage;

use super::health::Readiness;
use crate::telemetry::metrics;

/// Creates a router that reports `readiness`; workers have no status page.
pub fn router(readiness: watch::Receiver<Readiness>, page: Option<StatusPage>) -> Router {
    let known = if page.is_some() { "/, /livez, /readyz or /metrics" } else { "/livez, /readyz or /metrics" };
    let not_found = move |method| match method {
        Method::GET | Method::HEAD => text(StatusCode::NOT_FOUND, &format!("not found; use {known}")),
        _ => method_not_allowed(),
    };
    page.map(StatusPage::router)
        .unwrap_or_default()
        // Does not depend on the database, because a restart of the process would not repair the database.
        .route("/livez", get(|| ready(text(StatusCode::OK, "alive"))))
        .route("/readyz", get(move || ready(readyz(&readiness.borrow()))))
        .route("/metrics", get(|| ready(scrape())))
        .method_not_allowed_fallback(|| ready(method_not_allowed()))
        .fallback(move |method: Method| ready(not_found(method)))
}

fn text(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}

fn readyz(readiness: &Readiness) -> Response {
    match readiness {
        Readiness::Ready => text(StatusCode::OK, "ready"),
        Readiness::NotReady(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

fn scrape() -> Response {
    match metrics::scrape() {
        Some(metrics) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics).into_response(),
        None => text(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode the metrics"),
    }
}

fn method_not_allowed() -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, StatusCode, header::CONTENT_TYPE};
    use http_body_util::BodyExt as _;
    use tokio::sync::watch;
    use tower::ServiceExt as _;

    use super::{Readiness, router};

    #[tokio::test]
    async fn probes_answer_get_and_head_alone() {
        let (_, readiness) = watch::channel(Readiness::NotReady("no database".into()));
        let router = router(readiness, None);
        for (method, path, status, text) in [
            ("GET", "/livez", StatusCode::OK, "alive\n"),
            ("HEAD", "/livez", StatusCode::OK, ""),
            ("GET", "/readyz", StatusCode::SERVICE_UNAVAILABLE, "no database\n"),
            ("HEAD", "/readyz", StatusCode::SERVICE_UNAVAILABLE, ""),
            ("POST", "/livez", StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n"),
            ("POST", "/else", StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n"),
            ("GET", "/", StatusCode::NOT_FOUND, "not found; use /livez, /readyz or /metrics\n"),
            ("GET", "/livez/", StatusCode::NOT_FOUND, "not found; use /livez, /readyz or /metrics\n"),
        ] {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
            let Ok(response) = router.clone().oneshot(request).await;
            assert_eq!(response.status(), status, "{method} {path}");
            assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
            let content = response.into_body().collect().await.expect("text").to_bytes();
            assert_eq!(content, text, "{method} {path}");
        }
    }
}
