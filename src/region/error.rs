//! What can be wrong with a store, and whether trying again is of any use.

use std::{io, time::Duration};

use super::{CredentialsError, Refused, ecs, guard::Forbidden};
use crate::domain::{Algorithm, Digest, DigestError, FaultKind, ForeignText};

/// A result of a store.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The store itself is not there.
    #[error("the directory {0} does not exist or is no directory; create or mount it")]
    Vanished(ForeignText),
    /// The store has no image of that name.
    #[error("{0} is not there")]
    ImageMissing(ForeignText),
    /// A blob of an image is not there.
    #[error("the blob {digest} of {image} is not there")]
    BlobMissing {
        /// The blob.
        digest: Digest,
        /// The image.
        image: String,
    },
    /// The bytes are not those that the digest promises.
    #[error("the blob {expected} of {image} does not have that digest: its bytes have {actual}")]
    DigestMismatch {
        /// The image.
        image: String,
        /// The digest by which they are known.
        expected: Digest,
        /// The digest that they have. Boxed because two digests would make every result large.
        actual: Box<Digest>,
    },
    /// There are more or fewer bytes than there should be.
    #[error("the blob {digest} of {image} has {actual} bytes and should have {expected}")]
    SizeMismatch {
        /// The image.
        image: String,
        /// The blob.
        digest: Digest,
        /// How many there should be.
        expected: u64,
        /// How many there are, or more than that.
        actual: u64,
    },
    /// A layout, an index or a manifest is not as OCI describes it.
    #[error("{what} can't be used: {reason}")]
    Malformed {
        /// What.
        what: ForeignText,
        /// Why.
        reason: ForeignText,
    },
    /// Another image bears the name already.
    #[error("there is another image called {0} already; choose another id")]
    Occupied(ForeignText),
    /// Others have put another image in its place.
    #[error(
        "{name} shows {there}, which this service did not put there; remove that, or synchronize again with overwrite to replace it"
    )]
    Foreign {
        /// What people pull the image by.
        name: ForeignText,
        /// What is there.
        there: ForeignText,
    },
    /// The store takes no index that names what the image does not have.
    #[error(
        "{absent} entries of the image's index were not there when it was registered, and the region takes no such index; push them to the home region and register it again, or synchronize it to other regions: {source}"
    )]
    Incomplete {
        /// How many.
        absent: usize,
        /// What the store said.
        source: Box<Error>,
    },
    /// A registry does not support the algorithm of a digest.
    #[error(
        "the registry does not take the digest {digest}: {source}; carry the image to a registry that supports {}, or push it with digests by {}",
        .digest.algorithm(), Algorithm::CANONICAL
    )]
    DigestUnsupported {
        /// The digest.
        digest: Digest,
        /// What the registry said.
        source: Box<Error>,
    },
    /// There is not enough room.
    #[error("{needed} bytes are needed and {available} are free that no other copy has reserved")]
    NoSpace {
        /// How many bytes are needed.
        needed: u64,
        /// How many there are, less those that are kept free and those that other copies have reserved.
        available: u64,
    },
    /// A directory's operations hang.
    #[error(
        "{pending} operations on the directory {directory} have not returned; its disk or its server does not respond"
    )]
    Unresponsive {
        /// The directory.
        directory: ForeignText,
        /// How many operations have not returned.
        pending: usize,
    },
    /// A registry or an object store refused.
    #[error("{what}: {status}{detail}")]
    Status {
        /// What was asked of it.
        what: ForeignText,
        /// What it answered.
        status: http::StatusCode,
        /// What it said about that, with a separator before.
        detail: ForeignText,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// An object store refused, and said why.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked of it.
        what: ForeignText,
        /// What it answered.
        source: Box<Refused>,
    },
    /// A store has other bytes than it was sent.
    #[error("{what}: what the store has of it does not have the digest {digest}; it is written again")]
    WrittenWrong {
        /// What was written.
        what: ForeignText,
        /// The digest that it should have.
        digest: Digest,
    },
    /// There are no credentials to show.
    #[error("the region's credentials: {0}")]
    Credentials(Box<CredentialsError>),
    /// A registry or an object store could not be reached, or the connection broke.
    #[error("{what}: {problem}")]
    Transport {
        /// What was asked of it.
        what: ForeignText,
        /// What was wrong with the connection, down to its cause.
        problem: ForeignText,
    },
    /// A copy that ECS makes can't go on.
    #[error(transparent)]
    Ecs(Box<ecs::Error>),
    /// A store pointed to an address that is not dialed.
    #[error("{what}: {source}")]
    Forbidden {
        /// What was asked of it.
        what: ForeignText,
        /// The address.
        source: Forbidden,
    },
    /// A store pointed to somewhere else.
    #[error("{what}: it points to {to}, {advice}")]
    Elsewhere {
        /// What was asked of it.
        what: ForeignText,
        /// Where it pointed.
        to: ForeignText,
        /// Why it is not contacted, and what would help.
        advice: &'static str,
    },
    /// An upload that was begun earlier is not there any more, or not as it should be.
    #[error("{0}: the upload that was begun is gone; it begins anew")]
    UploadGone(ForeignText),
    /// A registry has sent a request somewhere else, whose bytes had gone by then: they are read again, and sent there.
    #[error("{what}: it points to {to}; the bytes are sent there from where the request began")]
    Redirected {
        /// What was asked of it.
        what: ForeignText,
        /// Where it pointed.
        to: ForeignText,
    },
    /// A registry does not take a blob in the way in which it was sent, and is sent it in another one.
    #[error("{0}; the blob is sent in another way")]
    UploadMode(ForeignText),
    /// The claim that the store is written for is not good any more.
    #[error("the claim is not good any more")]
    Overtaken,
    /// Somebody else wrote at the same time.
    #[error("{0} was changed by somebody else while it was written")]
    Contended(ForeignText),
    /// What a claim remembers could not be read or written.
    #[error("the database: {0}")]
    Journal(String),
    /// The stream that was to be written broke off; whoever sent it knows why.
    #[error("the bytes stopped coming")]
    Interrupted,
    /// Nothing went on for too long.
    #[error("{0} took too long")]
    Stalled(&'static str),
}

/// What a registry says of a manifest whose blobs it does not find (OCI distribution specification, "Error Codes"). They have been
/// sent by then: it has lost one, or somebody writes the same one at this moment.
const MANIFEST_BLOB_UNKNOWN: &str = "MANIFEST_BLOB_UNKNOWN";

/// What the codes begin with by which a registry says what is wrong with a manifest's content.
const OF_MANIFEST: &str = "MANIFEST_";

/// What services say by 403 that permission has nothing to do with: that they are asked too often, or that a clock is off.
const PASSING: [&str; 4] = ["rate limit", "too many requests", "toomanyrequests", "requesttimetooskewed"];

fn is_passing(detail: &str) -> bool {
    let detail = detail.to_lowercase();
    PASSING.iter().any(|known| detail.contains(known))
}

/// Whether trying again is of any use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The same may succeed later.
    Retry,
    /// It will fail again until somebody changes something.
    Fail,
}

impl Verdict {
    fn retry_if(transient: bool) -> Self {
        if transient { Self::Retry } else { Self::Fail }
    }
}

impl From<CredentialsError> for Error {
    fn from(error: CredentialsError) -> Self {
        Self::Credentials(Box::new(error))
    }
}

impl From<ecs::Error> for Error {
    fn from(error: ecs::Error) -> Self {
        Self::Ecs(Box::new(error))
    }
}

impl Error {
    pub(super) fn io(action: &'static str, path: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn malformed(what: impl Into<ForeignText>, reason: impl std::fmt::Display) -> Self {
        Self::Malformed { what: what.into(), reason: ForeignText::new(reason) }
    }

    pub(super) fn digest(what: impl Into<ForeignText>) -> impl FnOnce(DigestError) -> Self {
        let what = what.into();
        move |error| Self::malformed(what, error)
    }

    /// Whether trying again is of any use.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        use io::ErrorKind as Kind;
        match self {
            Self::Io { source, .. } => match source.kind() {
                // A file system that had an error of its disk is read-only until that is mended: it is away, as others are.
                Kind::PermissionDenied
                | Kind::NotADirectory
                | Kind::IsADirectory
                | Kind::FileTooLarge
                | Kind::InvalidInput
                | Kind::InvalidFilename => Verdict::Fail,
                _ => Verdict::Retry,
            },
            // RFC 9110: these say that it may go better later. A missing upload is one that expired.
            Self::Status { status, detail, retry_after, .. } => match status.as_u16() {
                408 | 409 | 416 | 425 | 429 | 500.. => Verdict::Retry,
                403 if retry_after.is_some() || is_passing(detail) => Verdict::Retry,
                // The next attempt looks again which blobs are there, and sends what is not.
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

    /// Whether what is wrong may be the network's, or that of a server which does not know yet what was pushed to another: content that was
    /// damaged on its way, a part that is not there. Where a source is read over a network, it is worth a few more tries.
    #[must_use]
    pub fn may_be_outdated(&self) -> bool {
        matches!(
            self,
            Self::ImageMissing(_) | Self::BlobMissing { .. } | Self::DigestMismatch { .. } | Self::SizeMismatch { .. }
        )
    }

    /// The same error of a request about `digest`; but for one by which a registry may say that it does not support the algorithm. There is
    /// no code for that, and no registry lacks SHA-256.
    pub(super) fn about_digest(self, digest: Digest) -> Self {
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

    /// Whether a blob is only to be sent again, in another way or to another place: no more than a few times, and with no wait.
    #[must_use]
    pub fn is_resent(&self) -> bool {
        matches!(self, Self::UploadMode(_) | Self::Redirected { .. })
    }

    /// Whether a registry refused a manifest because it does not find the blobs.
    pub(super) fn is_blob_unknown(&self) -> bool {
        matches!(self, Self::Status { detail, .. } if detail.contains(MANIFEST_BLOB_UNKNOWN))
    }

    /// Whether the store is full: room may be made at any time, and the copy is of use then.
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

    /// When the store wants to be asked again, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Refused { source, .. } => source.retry_after,
            Self::Ecs(error) => error.retry_after(),
            _ => None,
        }
    }

    /// Whose error it is.
    #[must_use]
    pub fn fault_kind(&self) -> FaultKind {
        if let Self::Ecs(error) = self { error.fault_kind() } else { FaultKind::Store }
    }

    /// Whether what is wrong is that the image, or a part of it, is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::ImageMissing(_) | Self::BlobMissing { .. } => true,
            Self::Ecs(error) => error.is_source_missing(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::{Error, Verdict};
    use crate::domain::Digest;

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
