//! JSON Web Tokens (RFC 7519, RFC 8725) of trusted issuers.

use std::{slice, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{AuthError, AuthMethod, Caller, Identity, jwks::SharedKeySet};
use crate::{domain::Timestamp, ram::Claim};

/// Longest token, in bytes.
const MAX_BYTES: usize = 8 << 10;

/// A trusted issuer of JSON Web Tokens.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// Value of `iss` in the issuer's tokens.
    pub name: String,
    /// Accepted values of `aud`.
    pub audiences: Vec<String>,
    /// Accepted algorithms.
    pub algorithms: Vec<Algorithm>,
    /// Tolerance for differing clocks.
    pub leeway: Duration,
    /// Public keys, fetched or read from a file.
    pub keys: SharedKeySet,
    /// Principals by claims; the first mapping that matches is used.
    pub mappings: Vec<Mapping>,
    /// Claims for policy conditions: the condition key, and the path of the claim.
    pub claims: Vec<(Arc<str>, String)>,
}

/// Maps tokens with certain claims to a principal.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Paths and values of the required claims.
    pub claims: Vec<(String, String)>,
    /// Principal of tokens with these claims.
    pub identity: Arc<Identity>,
}

/// Whether a bearer token has the form of a JSON Web Token (RFC 7515, section 7.1).
pub fn is_jwt(token: &str) -> bool {
    let url_safe = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    token.starts_with("eyJ") && token.split('.').count() == 3 && token.split('.').all(url_safe)
}

/// Authenticates the holder of a token, by the issuer that the token names.
///
/// # Errors
///
/// Fails if the issuer is not trusted, or the token is invalid, expired or not mapped to a principal.
pub fn verify(issuers: &[Issuer], token: &str, now: Timestamp) -> Result<Caller, AuthError> {
    #[derive(Deserialize)]
    struct IssuerClaim {
        iss: String,
    }
    let malformed = || invalid("The JSON Web Token is malformed");
    if token.len() > MAX_BYTES {
        return Err(invalid(format!("The JSON Web Token is longer than {MAX_BYTES} bytes")));
    }
    // The claim is not verified yet. It only selects the issuer whose keys verify the token.
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).ok_or_else(malformed)?;
    let claim: IssuerClaim = serde_json::from_slice(&payload).map_err(|_| malformed())?;
    let issuer = issuers.iter().find(|issuer| issuer.name == claim.iss).ok_or(AuthError::Unknown)?;
    issuer.verify(token, now)
}

fn invalid(problem: impl Into<String>) -> AuthError {
    AuthError::Invalid(problem.into())
}

impl Issuer {
    fn verify(&self, token: &str, now: Timestamp) -> Result<Caller, AuthError> {
        let header =
            jsonwebtoken::decode_header(token).map_err(|_| invalid("The header of the JSON Web Token is malformed"))?;
        reject_unsupported(token)?;
        let algorithm = header.alg;
        if !self.algorithms.contains(&algorithm) {
            return Err(invalid(format!(
                "The JSON Web Token is signed with {algorithm:?}, which its issuer is not configured to use"
            )));
        }
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&self.name]);
        validation.set_audience(&self.audiences);
        // `caller` checks these times against `now`.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let keys = self.keys.current(header.kid.as_deref());
        let mut last_error = None;
        for key in keys.candidates(header.kid.as_deref(), algorithm) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation) {
                Ok(data) => return self.caller(&data.claims, now),
                Err(error) => last_error = Some(error),
            }
        }
        Err(match last_error.as_ref().map(jsonwebtoken::errors::Error::kind) {
            None => invalid("The JSON Web Token is signed with an unknown key"),
            Some(ErrorKind::InvalidAudience) => invalid("The JSON Web Token is for another audience"),
            Some(ErrorKind::MissingRequiredClaim(claim)) => invalid(format!("The JSON Web Token has no {claim}")),
            Some(_) => invalid("The signature of the JSON Web Token is not valid"),
        })
    }

    fn caller(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Caller, AuthError> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => numeric_date(value)
                .map(Some)
                .ok_or_else(|| invalid(format!("The {name} of the JSON Web Token is not a time"))),
        };
        let expires = time("exp")?.ok_or_else(|| invalid("The JSON Web Token has no exp"))?;
        if expires.after(self.leeway) <= now {
            return Err(invalid(format!("The JSON Web Token expired at {expires}")));
        }
        if let Some(from) = time("nbf")?.filter(|from| now.after(self.leeway) < *from) {
            return Err(invalid(format!("The JSON Web Token is not valid before {from}")));
        }
        let matches =
            |(path, value): &(String, String)| find(claims, path).is_some_and(|claim| has_value(claim, value));
        let mapping = self.mappings.iter().find(|mapping| mapping.claims.iter().all(matches));
        let mapping =
            mapping.ok_or_else(|| invalid("No principal is configured for the claims of the JSON Web Token"))?;
        let condition_claims = self.claims.iter().flat_map(|(name, path)| {
            let values = find(claims, path).into_iter().flat_map(values);
            values.map(|value| Claim { name: Arc::clone(name), value })
        });
        Ok(Caller {
            identity: Arc::clone(&mapping.identity),
            method: AuthMethod::Jwt,
            claims: condition_claims.collect(),
        })
    }
}

/// Header members that change the meaning of a token, all of them unsupported: critical extensions (RFC 7515, section
/// 4.1.11), a compressed payload (RFC 7516, section 4.1.3), and an unencoded payload (RFC 7797).
const UNSUPPORTED: [&str; 3] = ["crit", "zip", "b64"];

/// Rejects a token whose header has one of these members, whatever its value.
fn reject_unsupported(token: &str) -> Result<(), AuthError> {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).unwrap_or_default();
    let header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|_| invalid("The header of the JSON Web Token is malformed"))?;
    match UNSUPPORTED.into_iter().find(|member| header.contains_key(*member)) {
        None => Ok(()),
        Some(member) => Err(invalid(format!("The header of the JSON Web Token has {member}, which is not supported"))),
    }
}

/// Parses a `NumericDate` (RFC 7519, section 2).
fn numeric_date(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64().filter(|seconds| (0.0..1e12).contains(seconds))?;
    #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
    Some(Timestamp::from_millis((seconds * 1e3) as i64))
}

/// Returns a claim by its path, whose names are separated by `/`, as in `kubernetes.io/namespace`. A name that contains
/// the separator has precedence.
fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let mut ends = path.char_indices().filter(|(_, c)| *c == '/').map(|(end, _)| end);
    ends.find_map(|end| match claims.get(&path[..end]) {
        Some(Value::Object(inner)) => find(inner, &path[end + 1..]),
        _ => None,
    })
}

/// Whether a claim is `value`, or a list that contains it.
fn has_value(claim: &Value, value: &str) -> bool {
    match claim {
        Value::Array(entries) => entries.iter().any(|entry| entry.as_str() == Some(value)),
        one => text(one).is_some_and(|one| one == value),
    }
}

/// Returns the values of a claim: its only value, or the entries of a list. An empty list has no values, like a missing
/// claim.
fn values(claim: &Value) -> impl Iterator<Item = String> {
    let entries = match claim {
        Value::Array(entries) => entries.as_slice(),
        one => slice::from_ref(one),
    };
    entries.iter().filter_map(text)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use jsonwebtoken::{Algorithm, EncodingKey, crypto::sign};
    use serde_json::{Value, json};

    use super::{Issuer, Mapping, verify};
    use crate::{
        domain::Timestamp,
        identity::{AuthError, Caller, Identity, KeySet, Quota, SharedKeySet},
        ram::Policies,
    };

    /// A key pair for these tests only.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIBOS7uNzv7dcWRKmMPc+DRLCzKgdnSziuUn0zuxb1zyj\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "Uy2NhcyoazJd8nvnGkKwuvRhTj3tODD1tDZmvq8M480";
    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn key_set(x: &str) -> String {
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "use": "sig", "x": x }] }).to_string()
    }

    fn caller(token: &str) -> Result<Caller, AuthError> {
        let principal = "acs:ram::1:user/a".parse().expect("a principal");
        let identity = Arc::new(Identity { principal, policies: Policies::default(), quota: Quota::default() });
        let issuer = Issuer {
            name: "i".into(),
            audiences: vec!["a".into()],
            algorithms: vec![Algorithm::EdDSA],
            leeway: Duration::ZERO,
            keys: SharedKeySet::fixed(KeySet::parse(key_set(PUBLIC).as_bytes()).expect("a key set")),
            mappings: vec![Mapping { claims: vec![("sub".into(), "s".into())], identity }],
            claims: vec![("corp:groups".into(), "groups".into())],
        };
        verify(&[issuer], token, NOW)
    }

    fn token(header: &Value, more: &Value) -> String {
        let mut claims = json!({ "iss": "i", "aud": "a", "sub": "s", "exp": 1_900_000_000 });
        claims.as_object_mut().expect("claims").extend(more.as_object().expect("claims").clone());
        let message = [header, &claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let key = EncodingKey::from_ed_pem(PRIVATE.as_bytes()).expect("a key");
        let signature = sign(message.as_bytes(), &key, Algorithm::EdDSA).expect("a signature");
        format!("{message}.{signature}")
    }

    /// RFC 7515, section 4.1.11: a token with an extension that is not understood is rejected.
    #[test]
    fn unsupported_header_members_are_rejected() {
        caller(&token(&json!({ "alg": "EdDSA", "typ": "JWT", "kid": "any" }), &json!({}))).expect("the token is valid");
        for (member, value) in [
            ("crit", json!(["exp"])),
            ("crit", json!(["b64"])),
            ("crit", json!([])),
            ("crit", Value::Null),
            ("zip", json!("DEF")),
            ("zip", Value::Null),
            ("b64", json!(false)),
            ("b64", json!(true)),
        ] {
            let error = caller(&token(&json!({ "alg": "EdDSA", member: value }), &json!({}))).expect_err(member);
            let error = error.to_string();
            assert!(error.contains(member) || error.contains("malformed"), "{member} {value}: {error}");
        }
    }

    #[test]
    fn list_claims_have_several_values() {
        for (groups, expected) in [
            (json!(["staff", "interns"]), &["staff", "interns"][..]),
            (json!("interns"), &["interns"]),
            (json!([1, true, null, ["x"], {}, "y"]), &["1", "true", "y"]),
            (json!([]), &[]),
            (json!({ "a": "interns" }), &[]),
        ] {
            let caller =
                caller(&token(&json!({ "alg": "EdDSA" }), &json!({ "groups": groups }))).expect("the token is valid");
            let claims: Vec<_> = caller.claims.iter().map(|claim| (&*claim.name, claim.value.as_str())).collect();
            let expected: Vec<_> = expected.iter().map(|value| ("corp:groups", *value)).collect();
            assert_eq!(claims, expected, "{groups}");
        }
    }

    /// Points of small order, in canonical and other encodings (RFC 8032, section 5.1.3): their signatures are valid
    /// for any message.
    #[test]
    fn weak_keys_are_rejected() {
        let bytes = |first: u8, rest: u8, last: u8| {
            let mut bytes = [rest; 32];
            (bytes[0], bytes[31]) = (first, last);
            URL_SAFE_NO_PAD.encode(bytes)
        };
        let order_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05";
        let order_8 = URL_SAFE_NO_PAD.encode(hex::decode(order_8).expect("hexadecimal"));
        for weak in [
            bytes(0, 0, 0),
            bytes(1, 0, 0),
            bytes(0, 0, 0x80),
            bytes(0xec, 0xff, 0x7f),
            bytes(0xed, 0xff, 0x7f),
            bytes(0xee, 0xff, 0x7f),
            bytes(0xed, 0xff, 0xff),
            order_8,
            "AAAA".to_owned(),
        ] {
            assert!(KeySet::parse(key_set(&weak).as_bytes()).is_err(), "{weak}");
        }
        KeySet::parse(key_set(PUBLIC).as_bytes()).expect("a key set");
    }
}
