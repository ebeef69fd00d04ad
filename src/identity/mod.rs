//! Who calls: what proves it, and which principal that is. One file a kind of credential; [`Directory`] knows them all.
//!
//! What a principal may do then is decided by [`crate::ram`].

pub mod acs3;
mod bearer;
mod certificate;
mod current;
mod directory;
mod fetch;
mod jwks;
mod jwt;
mod narrow;

use std::sync::Arc;

pub use bearer::{Token, Tokens};
pub use certificate::{CertificateError, CertificateNames, Name, NameError};
pub use current::CurrentDirectory;
pub use directory::{Builder, Directory};
pub use fetch::{Fetch, Fetched};
pub use jwks::{KeySet, KeySetError, Keys};
pub use jwt::{Issuer, Mapping};
pub use narrow::Listed;

use crate::{
    domain::Timestamp,
    ram::{Claim, Policies, Principal},
};

/// A principal, what it may do, and how much.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who it is.
    pub principal: Principal,
    /// What it may do.
    pub policies: Policies,
    /// How much.
    pub quota: Quota,
}

/// How much a principal may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Calls a second, and as many at once; any number if nothing is said.
    pub calls_per_second: Option<u32>,
    /// Calls and streams that are open at the same time.
    pub max_in_flight: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { calls_per_second: None, max_in_flight: Self::MAX_IN_FLIGHT }
    }
}

impl Quota {
    /// Calls and streams of a principal at the same time where nothing else is configured: enough for a pipeline with many regions, and
    /// less than half of what the service carries out, so that no one principal keeps the others out.
    pub const MAX_IN_FLIGHT: u32 = 384;
}

/// How a caller proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By a bearer token that it was given.
    Token,
    /// By a JSON Web Token that somebody who is trusted has signed.
    Jwt,
    /// By its TLS certificate.
    Certificate,
    /// By a signature with its access key.
    AccessKey,
}

impl Method {
    /// Its name, for the audit log.
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

/// Somebody who has proved who it is.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// How that was proved.
    pub method: Method,
    /// What else is known of it.
    pub claims: Arc<[Claim]>,
}

impl Caller {
    fn of(identity: &Arc<Identity>, method: Method) -> Self {
        Self { identity: Arc::clone(identity), method, claims: Arc::default() }
    }
}

/// Why a credential proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// It is none that the service knows. Which of those it is like is not told.
    #[error("the credential is none that this service knows")]
    Unknown,
    /// It is known, and what is wrong with it may be told to whoever has it.
    #[error("{0}")]
    Invalid(String),
    /// The signature is not the one of this request.
    #[error("{0}")]
    Signature(String),
    /// The request was not signed just now.
    #[error("the request was signed at {signed}, more than {minutes} minutes from now", minutes = acs3::CLOCK_SKEW.as_secs() / 60)]
    Stale {
        /// When it says that it was.
        signed: Timestamp,
    },
    /// The request has been made before.
    #[error("the nonce has been used")]
    Replayed,
}
