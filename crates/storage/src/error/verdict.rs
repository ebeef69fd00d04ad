//! Classifies errors: those that are retried, those that are final, and those with a special cause that the caller
//! handles.

use std::{io, time::Duration};

use domain::{Algorithm, Digest, FaultKind};

use super::Error;

/// The error code for a manifest whose blobs the registry does not find (OCI distribution specification, "Error
/// Codes"). The blobs were sent before the manifest, so the registry has lost a blob, or another client is writing the
/// same blob concurrently.
const MANIFEST_BLOB_UNKNOWN: &str = "MANIFEST_BLOB_UNKNOWN";

/// The prefix of the codes for errors in a manifest's content.
const OF_MANIFEST: &str = "MANIFEST_";

/// Texts by which a response with status 403 is recognized as transient: rate limits and clock skew.
const TRANSIENT_DETAILS: [&str; 4] = ["rate limit", "too many requests", "toomanyrequests", "requesttimetooskewed"];

/// Whether a retry can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A retry may succeed.
    Retry,
    /// A retry fails until a person changes something.
    Fail,
}

impl Verdict {
    fn retry_if(transient: bool) -> Self {
        if transient { Self::Retry } else { Self::Fail }
    }
}

impl Error {
    /// Returns whether a retry can help.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        use io::ErrorKind as Kind;
        match self {
            Self::Io { source, .. } => match source.kind() {
                // Errors of a read-only file system are retried, because a file system may be read-only after a disk
                // error until it is repaired.
                Kind::PermissionDenied
                | Kind::NotADirectory
                | Kind::IsADirectory
                | Kind::FileTooLarge
                | Kind::InvalidInput
                | Kind::InvalidFilename => Verdict::Fail,
                _ => Verdict::Retry,
            },
            // These statuses are transient (RFC 9110).
            Self::Status { status, detail, retry_after, .. } => match status.as_u16() {
                408 | 409 | 416 | 425 | 429 | 500.. => Verdict::Retry,
                403 if retry_after.is_some() || is_transient_detail(detail) => Verdict::Retry,
                // The next attempt checks again which blobs are missing, and sends those.
                400 | 404 if detail.contains(MANIFEST_BLOB_UNKNOWN) => Verdict::Retry,
                _ => Verdict::Fail,
            },
            Self::Ecs(error) => error.verdict(),
            Self::Credentials(error) => Verdict::retry_if(error.is_transient()),
            Self::Refused { source, .. } => Verdict::retry_if(source.is_transient()),
            Self::Vanished(_)
            | Self::Interrupted
            | Self::Stalled(_)
            | Self::Transport { .. }
            | Self::UploadGone(_)
            | Self::UploadMode(_)
            | Self::Redirected { .. }
            | Self::WrittenWrong { .. }
            | Self::Overtaken
            | Self::Contended(_)
            | Self::Journal(_)
            | Self::NoSpace { .. }
            | Self::Unresponsive { .. } => Verdict::Retry,
            Self::ImageMissing(_)
            | Self::BlobMissing { .. }
            | Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::Malformed { .. }
            | Self::Incomplete { .. }
            | Self::DigestUnsupported { .. }
            | Self::Forbidden { .. }
            | Self::Elsewhere { .. }
            | Self::Occupied(_)
            | Self::Foreign { .. } => Verdict::Fail,
        }
    }

    /// Returns whether the error is damaged content or a missing part. Its cause may be the network, or a server that
    /// has not yet received a push to another server, so reads over a network are retried a few times.
    #[must_use]
    pub fn may_be_outdated(&self) -> bool {
        matches!(
            self,
            Self::ImageMissing(_) | Self::BlobMissing { .. } | Self::DigestMismatch { .. } | Self::SizeMismatch { .. }
        )
    }

    /// Converts an error by which a registry may have rejected the algorithm of `digest` into
    /// [`Error::DigestUnsupported`]. Returns other errors unchanged. No error code is defined for an unsupported
    /// algorithm. Every registry supports SHA-256.
    pub(crate) fn about_digest(self, digest: Digest) -> Self {
        let refuses = match &self {
            Self::Status { status, detail, .. } => {
                matches!(status.as_u16(), 400 | 422) && !detail.contains(OF_MANIFEST)
            }
            _ => false,
        };
        if refuses && digest.algorithm() != Algorithm::CANONICAL {
            Self::DigestUnsupported { digest, source: Box::new(self) }
        } else {
            self
        }
    }

    /// Returns whether the blob must be sent again, in another way or to another URL. This happens at most a few times
    /// per blob, without a delay.
    #[must_use]
    pub fn is_resent(&self) -> bool {
        matches!(self, Self::UploadMode(_) | Self::Redirected { .. })
    }

    /// Returns whether a registry rejected a manifest because it does not find the blobs.
    pub(crate) fn is_blob_unknown(&self) -> bool {
        matches!(self, Self::Status { detail, .. } if detail.contains(MANIFEST_BLOB_UNKNOWN))
    }

    /// Returns whether the store is full. Space may be freed at any time, so the copy is retried.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use io::ErrorKind as Kind;
        match self {
            Self::NoSpace { .. } => true,
            Self::Refused { source, .. } => source.is_full(),
            Self::Io { source, .. } => matches!(source.kind(), Kind::StorageFull | Kind::QuotaExceeded),
            _ => false,
        }
    }

    /// Returns the delay that the store requests, if any.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Refused { source, .. } => source.retry_after,
            Self::Ecs(error) => error.retry_after(),
            _ => None,
        }
    }

    /// Returns the party that has to act on the error.
    #[must_use]
    pub fn fault_kind(&self) -> FaultKind {
        if let Self::Ecs(error) = self { error.fault_kind() } else { FaultKind::Store }
    }

    /// Returns whether the image or a part of it is missing.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::ImageMissing(_) | Self::BlobMissing { .. } => true,
            Self::Ecs(error) => error.is_source_missing(),
            _ => false,
        }
    }
}

fn is_transient_detail(detail: &str) -> bool {
    let detail = detail.to_lowercase();
    TRANSIENT_DETAILS.iter().any(|known| detail.contains(known))
}

#[cfg(test)]
mod tests {
    use std::io;

    use domain::Digest;
    use rustix::io::Errno;

    use super::{Error, Verdict};

    fn io_error(errno: Errno) -> Error {
        Error::io("writing", "a")(io::Error::from_raw_os_error(errno.raw_os_error()))
    }

    #[test]
    fn a_full_store_is_tried_again() {
        let no_space = Error::NoSpace { needed: 2, available: 1 };
        for error in [no_space, io_error(Errno::NOSPC), io_error(Errno::DQUOT)] {
            assert!(error.is_full() && error.verdict() == Verdict::Retry, "{error}");
        }
        assert!(!io_error(Errno::IO).is_full());
    }

    #[test]
    fn what_is_forbidden_for_a_while_is_tried_again() {
        let forbidden = |detail: &str, retry_after| Error::Status {
            what: "GET /".into(),
            status: http::StatusCode::FORBIDDEN,
            detail: detail.into(),
            retry_after,
        };
        let wait = Some(std::time::Duration::from_secs(1));
        for (detail, retry_after, verdict) in [
            (": DENIED requested access is denied", None, Verdict::Fail),
            (": DENIED You have exceeded a secondary Rate Limit", None, Verdict::Retry),
            (": TOOMANYREQUESTS", None, Verdict::Retry),
            (": RequestTimeTooSkewed", None, Verdict::Retry),
            ("", wait, Verdict::Retry),
            ("", None, Verdict::Fail),
        ] {
            assert_eq!(forbidden(detail, retry_after).verdict(), verdict, "{detail}");
        }
    }

    #[test]
    fn a_digest_is_unsupported_where_its_algorithm_may_be() {
        let refused = |status: u16, detail: &str| Error::Status {
            what: "PUT /".into(),
            status: http::StatusCode::from_u16(status).expect("a status"),
            detail: detail.into(),
            retry_after: None,
        };
        let (short, long) = (Digest::Sha256([7; 32]), Digest::Sha512([7; 64]));
        for (status, detail, digest, unsupported) in [
            (400, ": DIGEST_INVALID provided digest did not match", long, true),
            (422, "", long, true),
            (400, ": DIGEST_INVALID provided digest did not match", short, false),
            (400, ": MANIFEST_BLOB_UNKNOWN blob unknown to registry", long, false),
            (400, ": MANIFEST_INVALID", long, false),
            (401, "", long, false),
            (404, ": BLOB_UPLOAD_UNKNOWN", long, false),
            (500, "", long, false),
        ] {
            let error = refused(status, detail).about_digest(digest);
            assert_eq!(matches!(error, Error::DigestUnsupported { .. }), unsupported, "{error}");
            if unsupported {
                let text = error.to_string();
                assert!(text.contains(&digest.to_string()) && text.contains("supports sha512"), "{text}");
                assert_eq!(error.verdict(), Verdict::Fail);
            }
        }
    }

    #[test]
    fn what_the_operating_system_lacks_for_a_while_is_tried_again() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::IO, Errno::STALE, Errno::TIMEDOUT, Errno::ROFS] {
            assert_eq!(io_error(errno).verdict(), Verdict::Retry, "{errno}");
        }
        for errno in [Errno::ACCESS, Errno::NAMETOOLONG] {
            assert_eq!(io_error(errno).verdict(), Verdict::Fail, "{errno}");
        }
        let hangs = Error::Unresponsive { directory: "/srv/apps".into(), pending: 16 };
        assert_eq!(hangs.verdict(), Verdict::Retry);
    }
}
