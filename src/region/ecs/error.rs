//! What can be wrong with a copy that ECS makes.

use std::time::Duration;

use http::StatusCode;

use super::client::Product;
use crate::{
    domain::{EcsImageId, FaultKind, ForeignText},
    region::{self, Verdict},
};

/// What is wrong with a copy that ECS makes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The provider refused a request.
    #[error("{product} {action}: {code}: {message} (RequestId {request_id})")]
    Refused {
        /// The product that refused.
        product: Product,
        /// What was asked of it.
        action: &'static str,
        /// The status of its answer.
        status: StatusCode,
        /// The code of the error.
        code: ForeignText,
        /// What it said about that.
        message: ForeignText,
        /// Its name for the request.
        request_id: ForeignText,
        /// When it wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// The provider gave no answer, or none that can be read.
    #[error("{product}: {source}")]
    NoAnswer {
        /// The product.
        product: Product,
        /// What was wrong with the connection or the answer.
        source: Box<region::Error>,
    },
    /// There are no credentials to show.
    #[error("the credentials of [alibaba]: {0}")]
    Credentials(String),
    /// ECS has given up the copy.
    #[error("ECS ended the copy {image} with {status}")]
    Ended {
        /// The image that it was to become.
        image: EcsImageId,
        /// How it stands.
        status: ForeignText,
    },
    /// The image that ECS was making, or had made, is not there any more.
    #[error("ECS does not list the copy {0} any more")]
    Vanished(EcsImageId),
    /// The name is taken.
    #[error(
        "the region has an image called {name} that was not made for this app, {image}; rename or delete it, or rename the source"
    )]
    Foreign {
        /// The name.
        name: ForeignText,
        /// The image.
        image: EcsImageId,
    },
    /// The image is not ready to be copied.
    #[error("the image {image} is {status} and not Available")]
    NotAvailable {
        /// The image.
        image: EcsImageId,
        /// How it stands.
        status: ForeignText,
    },
    /// The image is not there.
    #[error("ECS lists no image {0}")]
    Missing(EcsImageId),
}

/// Codes of refusals that pass: of throttling, of a source that is being copied by somebody else, of a repeat that came while the first
/// was being worked on (ECS API 2014-05-26, `CopyImage`, "Error codes", and the product's common ones).
const PASSING: [&str; 11] = [
    "Throttling",
    "ServiceUnavailable",
    "InternalError",
    "InternalFailure",
    "OperationDenied.ImageCopying",
    "OperationConflict",
    "IncorrectImageStatus",
    "IdempotentProcessing",
    "SignatureNonceUsed",
    // A clock that is off is set by its time service within minutes.
    "InvalidTimeStamp.Expired",
    "InvalidSecurityToken.Expired",
];

impl Error {
    /// Whether trying again is of any use. What says neither is taken by its HTTP status.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Refused { status, code, .. } => {
                let passes = PASSING.iter().any(|known| {
                    let rest = code.strip_prefix(known);
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                });
                if passes || matches!(status.as_u16(), 408 | 429 | 500..) { Verdict::Retry } else { Verdict::Fail }
            }
            Self::NoAnswer { source, .. } if matches!(**source, region::Error::Forbidden { .. }) => Verdict::Fail,
            // The file may be in the middle of being replaced.
            Self::NoAnswer { .. }
            | Self::Credentials(_)
            | Self::Ended { .. }
            | Self::Vanished(_)
            | Self::NotAvailable { .. } => Verdict::Retry,
            Self::Foreign { .. } | Self::Missing(_) => Verdict::Fail,
        }
    }

    /// When the provider wants to be asked again, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Refused { retry_after, .. } = self { *retry_after } else { None }
    }

    /// Whether the code is that one.
    #[must_use]
    pub fn is(&self, known: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code.as_str() == known)
    }

    /// Whose error it is: what is wrong with a security token is STS's, whoever found it out.
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

    /// Whether the copy itself is of no use any more, and not only how it stands unknown.
    #[must_use]
    pub fn ends_the_copy(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Vanished(_))
    }

    /// Whether what is wrong is that the source is not there.
    #[must_use]
    pub fn is_source_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
            || matches!(self, Self::Refused { action: "CopyImage", code, .. } if code.as_str() == "InvalidImageId.NotFound")
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::{Error, Product};
    use crate::{domain::FaultKind, region::Verdict};

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
