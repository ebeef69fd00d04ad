//! What a call may come to but an answer, as a type that a program can decide by.

use tonic::Status;

use crate::contract::ApiErrorResponse;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is none.
    #[error("{endpoint}: it is no endpoint that can be called")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
    /// The token can't be sent.
    #[error("the token has characters that no header may have")]
    Token,
    /// Nobody answers there.
    #[error("no service answers at {endpoint}")]
    Unreachable {
        /// The endpoint.
        endpoint: String,
        /// What is wrong.
        source: tonic::transport::Error,
    },
    /// The service refused, or the connection broke.
    #[error(transparent)]
    Refused(Box<ApiErrorResponse>),
    /// The service answered with less than the contract promises.
    #[error("the answer has no {0}")]
    Incomplete(&'static str),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status.into()))
    }
}

impl Error {
    /// The refusal, if it is one.
    #[must_use]
    pub fn refusal(&self) -> Option<&ApiErrorResponse> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}
