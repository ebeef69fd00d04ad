//! The public keys of an issuer of JSON Web Tokens (RFC 7517).

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use curve25519_dalek::edwards::CompressedEdwardsY;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};

/// The most keys that an issuer may have.
const MAX_KEYS: usize = 64;

/// Why a key set can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// It is none.
    #[error("it is no JSON Web Key Set")]
    Form(#[from] serde_json::Error),
    /// There are too many.
    #[error("it has {0} keys, more than {MAX_KEYS}")]
    TooMany(usize),
    /// There are keys, but none that signatures are verified with here.
    #[error("it has no public key for RS256, ES256 or EdDSA")]
    NoneUsable,
}

/// A public key.
#[derive(Debug, Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    public: DecodingKey,
}

/// The public keys of an issuer.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<Key>);

impl KeySet {
    /// Reads a key set. A key belongs to one algorithm, whatever a token says: what is made for verifying one must not be taken for
    /// the secret of another. Keys of other kinds, shared secrets
    /// among them, are left out, and so are those that sign for anybody.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        let set: JwkSet = serde_json::from_slice(text)?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany(set.keys.len()));
        }
        let keys: Vec<Key> = set.keys.iter().filter_map(read).collect();
        if keys.is_empty() { Err(KeySetError::NoneUsable) } else { Ok(Self(keys)) }
    }

    /// The keys that a token with this header can be verified with.
    pub(super) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &DecodingKey> {
        let fits = move |key: &&Key| {
            key.algorithm == algorithm && id.is_none_or(|id| key.id.as_deref().is_none_or(|own| own == id))
        };
        self.0.iter().filter(fits).map(|key| &key.public)
    }

    /// Whether it has a key of this name.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id.as_deref() == Some(id))
    }
}

fn read(jwk: &Jwk) -> Option<Key> {
    if jwk.common.public_key_use.as_ref().is_some_and(|r#use| *r#use != PublicKeyUse::Signature) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let named = jwk.common.key_algorithm.as_ref().map(ToString::to_string);
    if named.is_some_and(|named| named != format!("{algorithm:?}")) {
        return None;
    }
    if let AlgorithmParameters::OctetKeyPair(pair) = &jwk.algorithm
        && !is_strong(&pair.x)
    {
        return None;
    }
    let public = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { id: jwk.common.key_id.clone(), algorithm, public })
}

/// Whether a public key of Ed25519 is a point that has a private key: of one of small order, anybody can make signatures that hold for any
/// message (RFC 8032, section 5.1.7, leaves it to the verifier; what verifies here does not refuse it).
fn is_strong(x: &str) -> bool {
    let bytes = URL_SAFE_NO_PAD.decode(x).ok();
    let point = bytes.and_then(|bytes| CompressedEdwardsY::from_slice(&bytes).ok()?.decompress());
    point.is_some_and(|point| !point.is_small_order())
}

/// An issuer's keys as they are now: who fetches them anew puts them here.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    current: Arc<ArcSwap<KeySet>>,
    /// Told when a token names a key that is not among them.
    missed: Arc<tokio::sync::Notify>,
}

impl Keys {
    /// Keys that stay as they are.
    #[must_use]
    pub fn fixed(set: KeySet) -> Self {
        let keys = Self::default();
        keys.replace(set);
        keys
    }

    /// Puts others in their place.
    pub fn replace(&self, set: KeySet) {
        self.current.store(Arc::new(set));
    }

    /// Waits until a token names a key that is not among them.
    pub async fn missed(&self) {
        self.missed.notified().await;
    }

    pub(super) fn current(&self, id: Option<&str>) -> Arc<KeySet> {
        let keys = self.current.load_full();
        if id.is_some_and(|id| !keys.has(id)) {
            self.missed.notify_one();
        }
        keys
    }
}
