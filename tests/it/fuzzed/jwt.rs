//! Fuzz target for JSON Web Tokens and key sets: no input causes a panic, unsigned input never authenticates, and
//! signed input authenticates only if its claims are valid.

use std::{sync::Arc, time::Duration};

use appferry::{
    domain::Timestamp,
    identity::{Authenticator, Credentials, Identity, Issuer, KeySet, Mapping, Quota, SharedKeySet},
    ram::Policies,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};

/// The key pair with which this target signs and verifies tokens.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIBOS7uNzv7dcWRKmMPc+DRLCzKgdnSziuUn0zuxb1zyj\n-----END PRIVATE KEY-----\n";
const PUBLIC: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"ed","use":"sig","x":"Uy2NhcyoazJd8nvnGkKwuvRhTj3tODD1tDZmvq8M480"}]}"#;
const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

fn directory() -> Authenticator {
    let principal = "acs:ram::1:user/a".parse().expect("a principal");
    let identity = Arc::new(Identity { principal, policies: Policies::default(), quota: Quota::default() });
    let claims = vec![("kubernetes.io/namespace".to_owned(), "hpc".to_owned())];
    let issuer = Issuer {
        name: "i".into(),
        audiences: vec!["a".into()],
        algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA],
        leeway: Duration::from_secs(30),
        keys: SharedKeySet::fixed(KeySet::parse(PUBLIC.as_bytes()).expect("a key set")),
        mappings: vec![Mapping { claims, identity }],
        claims: vec![("corp:level".into(), "level".into())],
    };
    Credentials { issuers: vec![issuer], ..Credentials::default() }.into()
}

pub fn run(data: &[u8]) {
    let _ = KeySet::parse(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let directory = directory();
    assert!(directory.bearer(text, NOW).is_err(), "it is not signed");
    // Signs the input as claims.
    let Ok(claims) = serde_json::from_str::<Map<String, Value>>(text) else { return };
    let key = EncodingKey::from_ed_pem(PRIVATE.as_bytes()).expect("a key");
    let Ok(token) = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &key) else { return };
    if directory.bearer(&token, NOW).is_ok() {
        let seconds = claims["exp"].as_f64().expect("a number");
        assert!(seconds + 30.0 > 1.8e9, "it has expired");
        assert_eq!(claims["iss"], "i");
        let audience = &claims["aud"];
        assert!(audience == "a" || audience.as_array().is_some_and(|all| all.contains(&"a".into())), "{audience}");
    }
}
