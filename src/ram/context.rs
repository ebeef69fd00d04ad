//! The circumstances of a call, by the names that conditions call them.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::domain::Timestamp;

/// What a condition can be about (RAM, "Common condition keys", those that a call to this service has).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// `acs:SourceIp`: where the call comes from.
    SourceIp,
    /// `acs:CurrentTime`: when it is decided about.
    CurrentTime,
    /// `acs:SecureTransport`: whether it came by TLS.
    SecureTransport,
    /// `acs:PrincipalARN`: who calls.
    PrincipalArn,
    /// Something that the configuration says of callers, by a name of its own.
    Claim(Arc<str>),
}

/// The keys with a meaning of their own, by their names.
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

/// The keys that a document may speak of: the global ones, and the claims that callers can have. A name that no call ever has would
/// be a Deny that never denies, so it is refused.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<Arc<str>>);

impl Keys {
    /// The global keys and these claims.
    pub fn with_claims(claims: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self(claims.into_iter().collect())
    }

    /// The key of a name, whose case does not matter.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Key> {
        let global = GLOBAL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        let claim = || self.0.iter().find(|known| known.eq_ignore_ascii_case(name));
        global.map(|(_, key)| key.clone()).or_else(|| claim().map(|claim| Key::Claim(Arc::clone(claim))))
    }

    /// All names, for a message.
    #[must_use]
    pub fn names(&self) -> String {
        let names = GLOBAL.iter().map(|(name, _)| *name).chain(self.0.iter().map(|name| &**name));
        names.collect::<Vec<_>>().join(", ")
    }
}

/// What is known of a caller, by its key. Of what is several things, there are as many with the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The name of the key.
    pub name: Arc<str>,
    /// What is said.
    pub value: String,
}

/// The circumstances of a call, as far as they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// Where it comes from.
    pub source_ip: Option<IpAddr>,
    /// When it is decided about.
    pub current_time: Option<Timestamp>,
    /// Whether it came by TLS.
    pub secure_transport: Option<bool>,
    /// Who calls.
    pub principal: Option<&'a str>,
    /// What else is known of who calls.
    pub claims: &'a [Claim],
}

/// What a call's context says under a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fact<'a> {
    Address(IpAddr),
    Time(Timestamp),
    Flag(bool),
    Text(&'a str),
}

impl<'a> Context<'a> {
    /// What it says under a key, if anything: one thing, or several of a claim. Needs no memory.
    pub(super) fn facts<'k>(&self, key: &'k Key) -> impl Iterator<Item = Fact<'a>> + use<'a, 'k> {
        let (global, claims): (_, &[Claim]) = match key {
            Key::SourceIp => (self.source_ip.map(Fact::Address), &[]),
            Key::CurrentTime => (self.current_time.map(Fact::Time), &[]),
            Key::SecureTransport => (self.secure_transport.map(Fact::Flag), &[]),
            Key::PrincipalArn => (self.principal.map(Fact::Text), &[]),
            Key::Claim(_) => (None, self.claims),
        };
        let name = if let Key::Claim(name) = key { &**name } else { "" };
        let claims = claims.iter().filter(move |claim| claim.name.eq_ignore_ascii_case(name));
        global.into_iter().chain(claims.map(|claim| Fact::Text(&claim.value)))
    }
}

impl fmt::Display for Fact<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Time(time) => time.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}
