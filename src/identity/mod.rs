//! Authentication: the kinds of credentials, one per file, and the [`Authenticator`] that maps credentials to
//! principals.
//!
//! [`crate::ram`] decides whether a principal is authorized.

mod authenticator;
mod bearer;
mod certificate;
mod current;
mod jwks;
mod jwks_fetch;
mod jwt;
mod revocation;

use std::sync::Arc;

use acs3::SignatureError;

pub use authenticator::{Authenticator, Credentials};
pub use bearer::{Token, Tokens};
pub use certificate::{CertificateError, CertificateName, CertificateNameError, CertificateNames};
pub use current::CurrentAuthenticator;
pub use jwks::{KeySet, KeySetError, SharedKeySet};
pub use jwks_fetch::{JwksFetcher, JwksSource};
pub use jwt::{Issuer, Mapping};
pub use revocation::ListedCredentials;

use crate::{
    domain::Timestamp,
    ram::{Claim, Policies, Principal},
};

/// A principal with its policies and quota.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Principal that calls are authorized for.
    pub principal: Principal,
    /// Policies of the principal and of its groups.
    pub policies: Policies,
    /// Limits of the principal's calls.
    pub quota: Quota,
}

/// Limits of a principal's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Maximum number of calls per second, which may come in one burst; unlimited if `None`.
    pub calls_per_second: Option<u32>,
    /// Maximum number of calls and streams in flight.
    pub max_in_flight: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { calls_per_second: None, max_in_flight: Self::MAX_IN_FLIGHT }
    }
}

impl Quota {
    /// Default of `max_in_flight`. It is enough for a pipeline with many regions, and less than half of the service's
    /// own default, so that one principal can't use up the service's capacity.
    pub const MAX_IN_FLIGHT: u32 = 384;
}

/// The kind of credential that a caller was authenticated by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// A static bearer token.
    Token,
    /// A JSON Web Token of a trusted issuer.
    Jwt,
    /// A TLS client certificate.
    Certificate,
    /// A signature with an access key.
    AccessKey,
}

impl AuthMethod {
    /// Returns the name in the audit log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Jwt => "jwt",
            Self::Certificate => "certificate",
            Self::AccessKey => "access_key",
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The caller's principal.
    pub identity: Arc<Identity>,
    /// The kind of the caller's credential.
    pub method: AuthMethod,
    /// Claims for policy conditions.
    pub claims: Arc<[Claim]>,
}

impl Caller {
    fn new(identity: &Arc<Identity>, method: AuthMethod) -> Self {
        Self { identity: Arc::clone(identity), method, claims: Arc::default() }
    }
}

/// Why authentication failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The credential is not configured. The error does not reveal whether a similar credential is configured.
    #[error("unknown credential")]
    Unknown,
    /// The credential is known but invalid. Its holder may learn the reason.
    #[error("{0}")]
    Invalid(String),
    /// The signature does not match the request, for this reason.
    #[error("{0}")]
    Signature(String),
    /// The request was not signed recently.
    #[error("the request was signed at {signed}, more than {minutes} minutes from the server's time", minutes = acs3::CLOCK_SKEW.as_secs() / 60)]
    Stale {
        /// The time of the signature, as the request states it.
        signed: Timestamp,
    },
    /// The request was made before.
    #[error("the nonce was used before")]
    Replayed,
}

impl From<SignatureError> for AuthError {
    fn from(error: SignatureError) -> Self {
        match error {
            SignatureError::UnknownKey => Self::Unknown,
            SignatureError::Mismatch(reason) => Self::Signature(reason),
            SignatureError::Stale { signed } => Self::Stale { signed },
        }
    }
}
