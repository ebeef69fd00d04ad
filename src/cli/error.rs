//! The errors of commands: messages, hints and exit statuses.

use std::process::ExitCode;

use super::signals;
use crate::{client, domain::with_causes};

/// The result of a command.
pub type Result<T> = std::result::Result<T, Error>;

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service rejected the call or can't be reached.
    #[error(transparent)]
    Client(client::Error),
    /// The result is not the expected one.
    #[error("{problem}")]
    Failed {
        problem: String,
        /// The suggested remedy.
        hint: Option<String>,
    },
    /// A local operation failed.
    #[error("{context}")]
    Local {
        /// The failed operation, as a phrase such as `failed to read FILE`.
        context: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A part of the service hung during the shutdown.
    #[error("the shutdown did not complete in time: a part of the service hung and was left behind")]
    ShutdownIncomplete,
    /// The arguments are invalid.
    #[error("{problem}")]
    Usage {
        problem: String,
        /// The suggested remedy.
        hint: Option<String>,
    },
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Endpoint { endpoint, source } => {
                Self::usage(format!("--endpoint {endpoint}: {}", with_causes(&source)))
            }
            client::Error::Token => Self::usage(error.to_string()),
            _ => Self::Client(error),
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Client(status.into())
    }
}

impl Error {
    /// Creates the error of an unexpected result.
    pub fn failed(problem: impl Into<String>) -> Self {
        Self::Failed { problem: problem.into(), hint: None }
    }

    /// Creates the error of invalid arguments.
    pub fn usage(problem: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: None }
    }

    /// Adds a remedy to an unexpected result or a usage error. Other errors are unchanged.
    pub fn with_hint(self, advice: impl Into<String>) -> Self {
        let hint = Some(advice.into());
        match self {
            Self::Failed { problem, .. } => Self::Failed { problem, hint },
            Self::Usage { problem, .. } => Self::Usage { problem, hint },
            other => other,
        }
    }

    /// Returns a function that converts the error of a local operation. `context` names the operation.
    pub fn local<E>(context: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let context = context.into();
        move |error| Self::Local { context, source: error.into() }
    }

    /// Returns the exit status of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage { .. } => 2,
            Self::ShutdownIncomplete => signals::SHUTDOWN_INCOMPLETE,
            _ => 1,
        })
    }

    /// Returns the suggested remedy.
    fn hint(&self) -> Option<&str> {
        match self {
            Self::Failed { hint, .. } | Self::Usage { hint, .. } => hint.as_deref(),
            Self::Client(client::Error::Unreachable { .. }) => {
                Some("check that the service is running, and --endpoint or APPFERRY_ENDPOINT")
            }
            Self::ShutdownIncomplete => Some("the leases of unfinished copies expire, and the copies are retried"),
            Self::Client(_) | Self::Local { .. } => None,
        }
    }

    /// Returns the lines for a terminal: the error, each cause, and the hint. Omits a cause if the line before it ends
    /// with the same text.
    pub fn report(&self) -> String {
        let mut lines = vec![format!("error: {self}")];
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            let text = cause.to_string();
            if lines.last().is_none_or(|line| !line.ends_with(&text)) {
                lines.push(format!("caused by: {text}"));
            }
            next = cause.source();
        }
        lines.extend(self.hint().map(|hint| format!("hint: {hint}")));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::Error;

    #[test]
    fn a_report_has_the_error_its_causes_and_the_hint() {
        let local: Error = Error::local("failed to read the file")(io::Error::other("disk failure"));
        assert_eq!(local.report(), "error: failed to read the file\ncaused by: disk failure");
        let repeated: Error = Error::local("failed: disk failure")(io::Error::other("disk failure"));
        assert_eq!(repeated.report(), "error: failed: disk failure");
        let hinted = Error::usage("no token").with_hint("set --token-file");
        assert_eq!(hinted.report(), "error: no token\nhint: set --token-file");
    }
}
