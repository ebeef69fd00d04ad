//! The context of a call, which conditions test by key.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::Timestamp;

/// A condition key: one of RAM's common keys that calls to this service have, or a claim (RAM, "Common condition
/// keys").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// `acs:SourceIp`: the caller's address.
    SourceIp,
    /// `acs:CurrentTime`: the time of the decision.
    CurrentTime,
    /// `acs:SecureTransport`: whether the connection uses TLS.
    SecureTransport,
    /// `acs:PrincipalARN`: the caller's principal.
    PrincipalArn,
    /// A claim of the caller's token, by a name that the configuration defines.
    Claim(Arc<str>),
}

/// RAM's common keys.
const GLOBAL: [(&str, Key); 4] = [
    ("acs:SourceIp", Key::SourceIp),
    ("acs:CurrentTime", Key::CurrentTime),
    ("acs:SecureTransport", Key::SecureTransport),
    ("acs:PrincipalARN", Key::PrincipalArn),
];

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(name) => f.write_str(name),
            global => f.write_str(GLOBAL.iter().find(|(_, key)| key == global).map_or("", |(name, _)| name)),
        }
    }
}

/// The keys that documents may use: RAM's common keys, and the configured claims. Other keys are rejected: a Deny with
/// a key that no call has would never deny.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<Arc<str>>);

impl Keys {
    /// Creates the common keys, and a key for each claim.
    pub fn with_claims(claims: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self(claims.into_iter().collect())
    }

    /// Returns the key with this name; case is ignored.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Key> {
        let global = GLOBAL.iter().find(|(global, _)| global.eq_ignore_ascii_case(name));
        let claim = || self.0.iter().find(|claim| claim.eq_ignore_ascii_case(name));
        global.map(|(_, key)| key.clone()).or_else(|| claim().map(|claim| Key::Claim(Arc::clone(claim))))
    }

    /// Returns all names, for error messages.
    #[must_use]
    pub fn names(&self) -> String {
        let names = GLOBAL.iter().map(|(name, _)| *name).chain(self.0.iter().map(|name| &**name));
        names.collect::<Vec<_>>().join(", ")
    }
}

/// A claim of a caller. A claim with several values occurs once for each value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Claim {
    /// Name of the condition key.
    pub name: Arc<str>,
    pub value: String,
}

/// The context of a call, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// Address of the caller.
    pub source_ip: Option<IpAddr>,
    /// Time of the decision.
    pub current_time: Option<Timestamp>,
    /// Whether the connection uses TLS.
    pub secure_transport: Option<bool>,
    /// Principal of the caller.
    pub principal: Option<&'a str>,
    /// Claims of the caller.
    pub claims: &'a [Claim],
}

/// A value of a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ContextValue<'a> {
    Address(IpAddr),
    Time(Timestamp),
    Flag(bool),
    Text(&'a str),
}

impl<'a> Context<'a> {
    /// Returns the values of a key: at most one for a common key, any number for a claim. Does not allocate.
    pub(super) fn values<'k>(&self, key: &'k Key) -> impl Iterator<Item = ContextValue<'a>> + use<'a, 'k> {
        let (global, claims): (_, &[Claim]) = match key {
            Key::SourceIp => (self.source_ip.map(ContextValue::Address), &[]),
            Key::CurrentTime => (self.current_time.map(ContextValue::Time), &[]),
            Key::SecureTransport => (self.secure_transport.map(ContextValue::Flag), &[]),
            Key::PrincipalArn => (self.principal.map(ContextValue::Text), &[]),
            Key::Claim(_) => (None, self.claims),
        };
        let name = if let Key::Claim(name) = key { &**name } else { "" };
        let claims = claims.iter().filter(move |claim| claim.name.eq_ignore_ascii_case(name));
        global.into_iter().chain(claims.map(|claim| ContextValue::Text(&claim.value)))
    }
}

impl fmt::Display for ContextValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Time(time) => time.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}
