//! Errors of copies by ECS.

use std::time::Duration;

use domain::{EcsImageId, FaultKind, ForeignText};
use http::StatusCode;

use super::client::Product;
use crate::Verdict;

/// An error of a copy that ECS makes, or of a request to Alibaba Cloud.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Error {
    /// Alibaba Cloud refused a request.
    #[error("{product} {action}: {code}: {message} (RequestId {request_id})")]
    Refused {
        product: Product,
        action: &'static str,
        /// The HTTP status of the response.
        status: StatusCode,
        /// Alibaba Cloud's code for the error.
        code: ForeignText,
        message: ForeignText,
        /// Alibaba Cloud's id of the request.
        request_id: ForeignText,
        /// The delay that the response's `Retry-After` header requests.
        retry_after: Option<Duration>,
    },
    /// No response was received, or none that can be parsed.
    #[error("{product}: {source}")]
    NoAnswer {
        product: Product,
        /// The cause: an error of the connection or of the response.
        source: Box<crate::Error>,
    },
    /// The credentials can't be read or used.
    #[error("the credentials of [alibaba]: {0}")]
    Credentials(String),
    /// ECS aborted the copy.
    #[error("ECS ended the copy {image} with {status}")]
    Ended {
        image: EcsImageId,
        /// The final status of the image.
        status: ForeignText,
    },
    /// ECS no longer lists an image that it was creating or had created.
    #[error("ECS does not list the copy {0} any more")]
    Vanished(EcsImageId),
    /// Another image already has the name.
    #[error(
        "the region has an image called {name} that was not made for this app, {image}; rename or delete it, or rename the source"
    )]
    Foreign { name: ForeignText, image: EcsImageId },
    /// The source image can't be copied in its current status.
    #[error("the image {image} is {status} and not Available")]
    NotAvailable { image: EcsImageId, status: ForeignText },
    /// ECS does not list the source image.
    #[error("ECS lists no image {0}")]
    Missing(EcsImageId),
}

/// Error codes of transient failures: throttling, a source image that another request is copying, a repeat of a request
/// that is still in progress (ECS API 2014-05-26, `CopyImage`, "Error codes", and the common error codes of ECS).
const TRANSIENT_CODES: [&str; 11] = [
    "Throttling",
    "ServiceUnavailable",
    "InternalError",
    "InternalFailure",
    "OperationDenied.ImageCopying",
    "OperationConflict",
    "IncorrectImageStatus",
    "IdempotentProcessing",
    "SignatureNonceUsed",
    // The host's time service corrects a wrong clock within minutes.
    "InvalidTimeStamp.Expired",
    "InvalidSecurityToken.Expired",
];

impl Error {
    /// Returns whether to retry. The HTTP status decides for unknown codes.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Refused { status, code, .. } => {
                let is_transient = TRANSIENT_CODES.iter().any(|known| {
                    let rest = code.strip_prefix(known);
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                });
                if is_transient || matches!(status.as_u16(), 408 | 429 | 500..) {
                    Verdict::Retry
                } else {
                    Verdict::Fail
                }
            }
            Self::NoAnswer { source, .. } if matches!(**source, crate::Error::Forbidden { .. }) => Verdict::Fail,
            // Credentials errors are retried, because the file may be in the middle of a replacement.
            Self::NoAnswer { .. }
            | Self::Credentials(_)
            | Self::Ended { .. }
            | Self::Vanished(_)
            | Self::NotAvailable { .. } => Verdict::Retry,
            Self::Foreign { .. } | Self::Missing(_) => Verdict::Fail,
        }
    }

    /// Returns the delay that the response's `Retry-After` header requests.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Refused { retry_after, .. } = self { *retry_after } else { None }
    }

    /// Returns whether Alibaba Cloud refused with this code.
    #[must_use]
    pub fn is(&self, known: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code.as_str() == known)
    }

    /// Returns the party at fault. An invalid security token is attributed to STS, whichever product reports it.
    #[must_use]
    pub fn fault_kind(&self) -> FaultKind {
        match self {
            Self::Credentials(_) => FaultKind::Aliyun,
            Self::Refused { code, .. } if code.starts_with("InvalidSecurityToken") => FaultKind::Aliyun,
            Self::Refused { product: Product::Sts, .. } | Self::NoAnswer { product: Product::Sts, .. } => {
                FaultKind::Aliyun
            }
            _ => FaultKind::Ecs,
        }
    }

    /// Returns whether the copy itself failed, as opposed to a request for its status.
    #[must_use]
    pub fn ends_the_copy(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Vanished(_))
    }

    /// Returns whether the cause is a missing source image.
    #[must_use]
    pub fn is_source_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
            || matches!(self, Self::Refused { action: "CopyImage", code, .. } if code.as_str() == "InvalidImageId.NotFound")
    }
}

#[cfg(test)]
mod tests {
    use domain::FaultKind;
    use http::StatusCode;

    use super::{Error, Product};
    use crate::Verdict;

    fn refused(product: Product, status: u16, code: &str) -> Error {
        Error::Refused {
            product,
            action: "CopyImage",
            status: StatusCode::from_u16(status).expect("a status"),
            code: code.into(),
            message: "m".into(),
            request_id: "r".into(),
            retry_after: None,
        }
    }

    #[test]
    fn what_passes_is_tried_again_and_what_does_not_is_not() {
        for (status, code, verdict) in [
            (400, "Throttling", Verdict::Retry),
            (400, "Throttling.User", Verdict::Retry),
            (429, "Whatever", Verdict::Retry),
            (503, "ServiceUnavailable", Verdict::Retry),
            (500, "InternalError", Verdict::Retry),
            (403, "OperationDenied.ImageCopying", Verdict::Retry),
            (400, "IncorrectImageStatus", Verdict::Retry),
            (400, "InvalidTimeStamp.Expired", Verdict::Retry),
            (400, "InvalidTimeStamp.Format", Verdict::Fail),
            (403, "OperationDenied", Verdict::Fail),
            (400, "ThrottlingFree", Verdict::Fail),
            (400, "QuotaExceed.Image", Verdict::Fail),
            (403, "Forbidden.RAM", Verdict::Fail),
            (404, "InvalidAccessKeyId.NotFound", Verdict::Fail),
            (404, "DestinationRegion.NotFound", Verdict::Fail),
            (400, "InvalidParameter", Verdict::Fail),
        ] {
            assert_eq!(refused(Product::Ecs, status, code).verdict(), verdict, "{code}");
        }
    }

    #[test]
    fn everybodys_errors_are_told_apart() {
        assert_eq!(refused(Product::Ecs, 403, "Forbidden.RAM").fault_kind(), FaultKind::Ecs);
        assert_eq!(refused(Product::Sts, 403, "NoPermission").fault_kind(), FaultKind::Aliyun);
        assert_eq!(refused(Product::Ecs, 400, "InvalidSecurityToken.Malformed").fault_kind(), FaultKind::Aliyun);
        assert!(refused(Product::Ecs, 404, "InvalidImageId.NotFound").is_source_missing());
    }
}
