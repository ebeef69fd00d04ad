//! The errors of calls.

use tonic::Status;

use crate::contract::ApiErrorResponse;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is invalid.
    #[error("invalid endpoint {endpoint}")]
    Endpoint {
        /// The URL from the builder.
        endpoint: String,
        /// The error of the transport.
        source: tonic::transport::Error,
    },
    /// The trusted certificates are invalid.
    #[error("invalid trusted certificates")]
    Trusted(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The token has characters that are not allowed in a header.
    #[error("invalid token: it has characters that are not allowed in a header")]
    Token,
    /// The service can't be reached.
    #[error("failed to connect to {endpoint}")]
    Unreachable {
        /// The URL from the builder.
        endpoint: String,
        /// The error of the transport.
        source: tonic::transport::Error,
    },
    /// The service rejected the call, or the connection broke.
    #[error(transparent)]
    Refused(Box<ApiErrorResponse>),
    /// The response lacks a field that the contract requires.
    #[error("invalid response: it has no {0}")]
    Incomplete(&'static str),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status.into()))
    }
}

impl Error {
    /// Returns the error response, if the service rejected the call or the connection broke.
    #[must_use]
    pub fn refusal(&self) -> Option<&ApiErrorResponse> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}
