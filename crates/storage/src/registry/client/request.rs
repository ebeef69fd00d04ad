//! The parts of a request to a registry.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use url::Url;

use crate::{Error, Result, request_span};

/// The access that a request needs.
#[derive(Debug, Clone)]
pub struct Scope(pub(super) String);

impl Scope {
    /// Returns the scope for read access to a repository.
    pub fn pull(repository: &str) -> Self {
        Self(format!("repository:{repository}:pull"))
    }

    /// Returns the scope for read and write access to a repository.
    pub fn push(repository: &str) -> Self {
        Self(format!("repository:{repository}:pull,push"))
    }

    /// Returns the scope for read and write access to a repository, and read access to the source of a mount.
    pub fn mount(repository: &str, from: &str) -> Self {
        Self(format!("repository:{repository}:pull,push repository:{from}:pull"))
    }
}

/// A request that can be repeated.
#[derive(Debug)]
pub struct Ask {
    pub method: Method,
    /// The complete URL.
    pub url: Url,
    /// The access that the request needs.
    pub scope: Scope,
    /// Additional headers.
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Returns whether the status means that the registry does not support `HEAD`.
pub fn refuses_head(status: StatusCode) -> bool {
    matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
}

/// Describes a request without its query, which may contain a secret.
pub fn what(method: &Method, url: &Url) -> String {
    format!("{method} {}", request_span::shown(url))
}

/// Returns a header, or an error if its value is invalid.
pub fn header(name: HeaderName, value: impl Into<String>) -> Result<(HeaderName, HeaderValue)> {
    let value = HeaderValue::try_from(value.into()).map_err(|error| Error::malformed(name.as_str(), error))?;
    Ok((name, value))
}
