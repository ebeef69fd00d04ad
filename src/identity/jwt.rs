//! JSON Web Tokens (RFC 7519, with the advice of RFC 8725): whoever an issuer that is trusted says the caller is.

use std::{slice, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Caller, Identity, Method, Unproven, jwks::Keys};
use crate::{domain::Timestamp, ram::Claim};

/// The longest token, in bytes.
const MAX_BYTES: usize = 8 << 10;

/// Somebody who signs tokens and is believed.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// Its name, which its tokens bear as `iss`.
    pub name: String,
    /// Whom a token must be made for: one of these is in its `aud`.
    pub audiences: Vec<String>,
    /// How it signs.
    pub algorithms: Vec<Algorithm>,
    /// By how much clocks may differ.
    pub leeway: Duration,
    /// Its public keys.
    pub keys: Keys,
    /// Who its tokens are for, the first that fits.
    pub mappings: Vec<Mapping>,
    /// What else is taken from a token: the name of a condition's key, and the path of the claim.
    pub claims: Vec<(Arc<str>, String)>,
}

/// Claims, and the principal that a token with all of them is for.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Paths of claims, and their values.
    pub claims: Vec<(String, String)>,
    /// Who that is.
    pub identity: Arc<Identity>,
}

/// Whether a bearer token has the form of a JSON Web Token (RFC 7515, section 7.1).
pub fn is_one(token: &str) -> bool {
    let url_safe = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    token.starts_with("eyJ") && token.split('.').count() == 3 && token.split('.').all(url_safe)
}

/// Whom a token is for, by the issuer that it names.
pub fn verify(issuers: &[Issuer], token: &str, now: Timestamp) -> Result<Caller, Unproven> {
    #[derive(Deserialize)]
    struct Named {
        iss: String,
    }
    let unreadable = || invalid("The JSON Web Token can't be read");
    if token.len() > MAX_BYTES {
        return Err(invalid(format!("The JSON Web Token is longer than {MAX_BYTES} bytes")));
    }
    // Only to find whose keys it has to be verified with.
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).ok_or_else(unreadable)?;
    let named: Named = serde_json::from_slice(&payload).map_err(|_| unreadable())?;
    let issuer = issuers.iter().find(|issuer| issuer.name == named.iss).ok_or(Unproven::Unknown)?;
    issuer.verify(token, now)
}

fn invalid(why: impl Into<String>) -> Unproven {
    Unproven::Invalid(why.into())
}

impl Issuer {
    fn verify(&self, token: &str, now: Timestamp) -> Result<Caller, Unproven> {
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| invalid("The header of the JSON Web Token can't be read"))?;
        refuse_unsupported(token)?;
        let algorithm = header.alg;
        if !self.algorithms.contains(&algorithm) {
            return Err(invalid(format!("The JSON Web Token is signed with {algorithm:?}, which is not accepted")));
        }
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&self.name]);
        validation.set_audience(&self.audiences);
        // By the clock that everything here goes by.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let keys = self.keys.current(header.kid.as_deref());
        let mut refused = None;
        for key in keys.candidates(header.kid.as_deref(), algorithm) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation) {
                Ok(data) => return self.caller(&data.claims, now),
                Err(error) => refused = Some(error),
            }
        }
        Err(match refused.as_ref().map(jsonwebtoken::errors::Error::kind) {
            None => invalid("The JSON Web Token is signed with a key that its issuer does not have"),
            Some(ErrorKind::InvalidAudience) => invalid("The JSON Web Token is made for another audience"),
            Some(ErrorKind::MissingRequiredClaim(claim)) => invalid(format!("The JSON Web Token has no {claim}")),
            Some(_) => invalid("The signature of the JSON Web Token is not valid"),
        })
    }

    fn caller(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Caller, Unproven> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => {
                seconds(value).map(Some).ok_or_else(|| invalid(format!("The JSON Web Token's {name} is no time")))
            }
        };
        let expires = time("exp")?.ok_or_else(|| invalid("The JSON Web Token has no exp"))?;
        if expires.after(self.leeway) <= now {
            return Err(invalid(format!("The JSON Web Token has expired at {expires}")));
        }
        if let Some(from) = time("nbf")?.filter(|from| now.after(self.leeway) < *from) {
            return Err(invalid(format!("The JSON Web Token is not valid before {from}")));
        }
        let has = |(path, wanted): &(String, String)| find(claims, path).is_some_and(|value| says(value, wanted));
        let mapping = self.mappings.iter().find(|mapping| mapping.claims.iter().all(has));
        let mapping = mapping.ok_or_else(|| invalid("The JSON Web Token is of nobody who may call"))?;
        let taken = self.claims.iter().flat_map(|(name, path)| {
            let values = find(claims, path).into_iter().flat_map(values);
            values.map(|value| Claim { name: Arc::clone(name), value })
        });
        Ok(Caller { identity: Arc::clone(&mapping.identity), method: Method::Jwt, claims: taken.collect() })
    }
}

/// Members of a header by which a token means something else than what is read of it: extensions that must be understood (RFC 7515,
/// section 4.1.11), of which none is, a payload that is compressed (RFC 7516, section 4.1.3, of encrypted tokens alone) or not encoded
/// (RFC 7797).
const UNSUPPORTED: [&str; 3] = ["crit", "zip", "b64"];

/// Refuses a token whose header has one of those, whatever its value.
fn refuse_unsupported(token: &str) -> Result<(), Unproven> {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).unwrap_or_default();
    let header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|_| invalid("The header of the JSON Web Token can't be read"))?;
    match UNSUPPORTED.into_iter().find(|member| header.contains_key(*member)) {
        None => Ok(()),
        Some(member) => {
            Err(invalid(format!("The header of the JSON Web Token has {member}, which is not supported here")))
        }
    }
}

/// A `NumericDate` (RFC 7519, section 2).
fn seconds(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64().filter(|seconds| (0.0..1e12).contains(seconds))?;
    #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
    Some(Timestamp::from_millis((seconds * 1e3) as i64))
}

/// A claim by its path, whose names are parted by `/`, as in `kubernetes.io/namespace`: a name that stands there whole goes first.
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

/// Whether a claim is a value, or a list with it.
fn says(claim: &Value, wanted: &str) -> bool {
    match claim {
        Value::Array(entries) => entries.iter().any(|entry| entry.as_str() == Some(wanted)),
        one => text(one).is_some_and(|one| one == wanted),
    }
}

/// What a claim says: one thing, or each of a list. An empty list says as little as a claim that is not there.
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
        identity::{Caller, Identity, KeySet, Keys, Quota, Unproven},
        ram::Policies,
    };

    /// A pair that was made for this.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIBOS7uNzv7dcWRKmMPc+DRLCzKgdnSziuUn0zuxb1zyj\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "Uy2NhcyoazJd8nvnGkKwuvRhTj3tODD1tDZmvq8M480";
    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn key_set(x: &str) -> String {
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "use": "sig", "x": x }] }).to_string()
    }

    fn caller(token: &str) -> Result<Caller, Unproven> {
        let principal = "acs:ram::1:user/a".parse().expect("a principal");
        let identity = Arc::new(Identity { principal, policies: Policies::default(), quota: Quota::default() });
        let issuer = Issuer {
            name: "i".into(),
            audiences: vec!["a".into()],
            algorithms: vec![Algorithm::EdDSA],
            leeway: Duration::ZERO,
            keys: Keys::fixed(KeySet::parse(key_set(PUBLIC).as_bytes()).expect("a key set")),
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

    /// RFC 7515, section 4.1.11: what must be understood and is not has the token refused.
    #[test]
    fn a_header_that_asks_for_more_is_refused() {
        caller(&token(&json!({ "alg": "EdDSA", "typ": "JWT", "kid": "any" }), &json!({}))).expect("it is genuine");
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
            let refused = caller(&token(&json!({ "alg": "EdDSA", member: value }), &json!({}))).expect_err(member);
            let told = refused.to_string();
            assert!(told.contains(member) || told.contains("can't be read"), "{member} {value}: {told}");
        }
    }

    #[test]
    fn each_of_a_list_is_a_claim() {
        for (groups, expected) in [
            (json!(["staff", "interns"]), &["staff", "interns"][..]),
            (json!("interns"), &["interns"]),
            (json!([1, true, null, ["x"], {}, "y"]), &["1", "true", "y"]),
            (json!([]), &[]),
            (json!({ "a": "interns" }), &[]),
        ] {
            let caller =
                caller(&token(&json!({ "alg": "EdDSA" }), &json!({ "groups": groups }))).expect("it is genuine");
            let claims: Vec<_> = caller.claims.iter().map(|claim| (&*claim.name, claim.value.as_str())).collect();
            let expected: Vec<_> = expected.iter().map(|value| ("corp:groups", *value)).collect();
            assert_eq!(claims, expected, "{groups}");
        }
    }

    /// Points of small order, in their own form and in others (RFC 8032, section 5.1.3): a signature by one of them holds for any message.
    #[test]
    fn keys_by_which_anybody_signs_are_none() {
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
        KeySet::parse(key_set(PUBLIC).as_bytes()).expect("it is a key");
    }
}
