//! The errors of stores. `error/verdict.rs` decides which of them are retried.

mod verdict;

use std::{io, time::Duration};

use domain::{Algorithm, Digest, DigestError, ForeignText};

pub use verdict::Verdict;

use super::{CredentialsError, Refused, ecs, ssrf_guard::Forbidden};

/// The result of an operation on a store.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of an operation on a store.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Error {
    /// The operating system reported an error.
    #[error("{action} {path}: {source}")]
    Io {
        /// The attempted action, as a participle: "reading".
        action: &'static str,
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The store's directory does not exist.
    #[error("the directory {0} does not exist or is no directory; create or mount it")]
    Vanished(ForeignText),
    /// The store has no image of that name.
    #[error("{0} is not there")]
    ImageMissing(ForeignText),
    /// A blob of an image is missing.
    #[error("the blob {digest} of {image} is not there")]
    BlobMissing { digest: Digest, image: String },
    /// The bytes do not match their digest.
    #[error("the blob {expected} of {image} does not have that digest: its bytes have {actual}")]
    DigestMismatch {
        image: String,
        /// The digest that was requested.
        expected: Digest,
        /// The digest of the bytes. Boxed because two digests would make every result large.
        actual: Box<Digest>,
    },
    /// The number of bytes is wrong.
    #[error("the blob {digest} of {image} has {actual} bytes and should have {expected}")]
    SizeMismatch {
        image: String,
        digest: Digest,
        /// The size that the descriptor states, in bytes.
        expected: u64,
        /// The number of bytes received, which may be a lower bound.
        actual: u64,
    },
    /// A layout, an index or a manifest violates the OCI specifications or a limit.
    #[error("{what} can't be used: {reason}")]
    Malformed {
        what: ForeignText,
        /// How it violates the specification or the limit, as a clause.
        reason: ForeignText,
    },
    /// Another image already has the name.
    #[error("there is another image called {0} already; choose another id")]
    Occupied(ForeignText),
    /// Another client's image has the name.
    #[error(
        "{name} shows {there}, which this service did not put there; remove that, or synchronize again with overwrite to replace it"
    )]
    Foreign {
        /// The reference by which the image is pulled.
        name: ForeignText,
        /// A description of the content there.
        there: ForeignText,
    },
    /// The store rejects an index that refers to missing entries.
    #[error(
        "{absent} entries of the image's index were not there when it was registered, and the region takes no such index; push them to the home region and register it again, or synchronize it to other regions: {source}"
    )]
    Incomplete {
        /// The number of missing entries.
        absent: usize,
        source: Box<Error>,
    },
    /// A registry does not support the algorithm of a digest.
    #[error(
        "the registry does not take the digest {digest}: {source}; carry the image to a registry that supports {}, or push it with digests by {}",
        .digest.algorithm(), Algorithm::CANONICAL
    )]
    DigestUnsupported {
        /// The rejected digest.
        digest: Digest,
        source: Box<Error>,
    },
    /// There is not enough free space.
    #[error("{needed} bytes are needed and {available} are free that no other copy has reserved")]
    NoSpace {
        /// The bytes that the copy needs.
        needed: u64,
        /// The free bytes, less those that are kept free or reserved for other copies.
        available: u64,
    },
    /// Operations on a directory hang.
    #[error(
        "{pending} operations on the directory {directory} have not returned; its disk or its server does not respond"
    )]
    Unresponsive {
        directory: ForeignText,
        /// The number of operations that have not returned.
        pending: usize,
    },
    /// A registry or an object store responded with a failure status.
    #[error("{what}: {status}{detail}")]
    Status {
        /// The request, for example its method and its URL without the query.
        what: ForeignText,
        status: http::StatusCode,
        /// The response's description of the error, with a leading separator.
        detail: ForeignText,
        /// The delay that the response's `Retry-After` header requests.
        retry_after: Option<Duration>,
    },
    /// An object store refused a request with a reason.
    #[error("{what}: {source}")]
    Refused {
        /// As in [`Error::Status`].
        what: ForeignText,
        source: Box<Refused>,
    },
    /// The store's bytes differ from those sent.
    #[error("{what}: what the store has of it does not have the digest {digest}; it is written again")]
    WrittenWrong { what: ForeignText, digest: Digest },
    /// The credentials can't be loaded.
    #[error("the region's credentials: {0}")]
    Credentials(Box<CredentialsError>),
    /// A registry or an object store can't be reached, or the connection was lost.
    #[error("{what}: {problem}")]
    Transport {
        /// As in [`Error::Status`].
        what: ForeignText,
        /// The innermost cause, for example "connection refused".
        problem: ForeignText,
    },
    /// A copy by ECS failed.
    #[error(transparent)]
    Ecs(Box<ecs::Error>),
    /// A store referred to a forbidden address.
    #[error("{what}: {source}")]
    Forbidden {
        /// As in [`Error::Status`].
        what: ForeignText,
        /// The address, and why it is forbidden.
        source: Forbidden,
    },
    /// A store redirected to another host, which is not contacted.
    #[error("{what}: it points to {to}, {advice}")]
    Elsewhere {
        /// As in [`Error::Status`].
        what: ForeignText,
        to: ForeignText,
        /// Why the target is not contacted, and how to change that.
        advice: &'static str,
    },
    /// An upload that an earlier attempt began is gone or invalid.
    #[error("{0}: the upload session is gone; a new one will be started")]
    UploadGone(ForeignText),
    /// A registry redirected an upload after its bytes were consumed. They are read again and sent to the target.
    #[error("{what}: it points to {to}; the bytes are sent there from where the request began")]
    Redirected {
        /// As in [`Error::Status`].
        what: ForeignText,
        to: ForeignText,
    },
    /// A registry rejects the way in which a blob was sent. The blob is sent in another way.
    #[error("{0}; the blob is sent in another way")]
    UploadMode(ForeignText),
    /// The claim of the copy is lost.
    #[error("the claim is not good any more")]
    Overtaken,
    /// Another client changed the content concurrently.
    #[error("{0} was changed by another client while it was written")]
    Contended(ForeignText),
    /// The journal of the claim can't be read from the database or written to it.
    #[error("the database: {0}")]
    Journal(String),
    /// The stream of bytes ended early. Its sender reports the cause.
    #[error("the bytes stopped coming")]
    Interrupted,
    /// An operation exceeded its time limit.
    #[error("{0} took too long")]
    Stalled(&'static str),
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
}
