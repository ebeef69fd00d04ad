//! Public keys of issuers of JSON Web Tokens (RFC 7517).

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use curve25519_dalek::edwards::CompressedEdwardsY;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};

/// Maximum number of keys of an issuer.
const MAX_KEYS: usize = 64;

/// Why a key set can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// The text is not a key set.
    #[error("it is not a JSON Web Key Set")]
    Form(#[from] serde_json::Error),
    /// The set has too many keys.
    #[error("it has {0} keys; the maximum is {MAX_KEYS}")]
    TooMany(usize),
    /// The set has no key for a supported algorithm.
    #[error("it has no public key for RS256, ES256 or EdDSA")]
    NoneUsable,
}

/// A public key, bound to one algorithm.
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
    /// Parses a key set. Each key is bound to one algorithm, so that no token can cause a public key to be used as a
    /// shared secret. Keys of unsupported types, shared secrets and weak keys are left out.
    ///
    /// # Errors
    ///
    /// Fails if `text` is not a key set, or has no usable key.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        let set: JwkSet = serde_json::from_slice(text)?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany(set.keys.len()));
        }
        let keys: Vec<Key> = set.keys.iter().filter_map(parse_key).collect();
        if keys.is_empty() { Err(KeySetError::NoneUsable) } else { Ok(Self(keys)) }
    }

    /// Returns the keys that may have signed a token with this key id and algorithm.
    pub(super) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &DecodingKey> {
        let fits = move |key: &&Key| {
            key.algorithm == algorithm && id.is_none_or(|id| key.id.as_deref().is_none_or(|own| own == id))
        };
        self.0.iter().filter(fits).map(|key| &key.public)
    }

    /// Whether the set has a key with this id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id.as_deref() == Some(id))
    }
}

fn parse_key(jwk: &Jwk) -> Option<Key> {
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

/// Whether an Ed25519 public key is strong. A point of small order is weak: signatures for it can be forged. RFC 8032,
/// section 5.1.7, leaves this check to the verifier, and the library does not perform it.
fn is_strong(x: &str) -> bool {
    let bytes = URL_SAFE_NO_PAD.decode(x).ok();
    let point = bytes.and_then(|bytes| CompressedEdwardsY::from_slice(&bytes).ok()?.decompress());
    point.is_some_and(|point| !point.is_small_order())
}

/// The current keys of an issuer. They are replaced when they are fetched again. Clones share the keys.
#[derive(Debug, Clone, Default)]
pub struct SharedKeySet {
    current: Arc<ArcSwap<KeySet>>,
    /// Notified when a token names an unknown key.
    missed: Arc<tokio::sync::Notify>,
}

impl SharedKeySet {
    /// Creates keys that are never fetched.
    #[must_use]
    pub fn fixed(set: KeySet) -> Self {
        let keys = Self::default();
        keys.replace(set);
        keys
    }

    /// Replaces the keys in all clones.
    pub fn replace(&self, set: KeySet) {
        self.current.store(Arc::new(set));
    }

    /// Waits until a token names an unknown key.
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
