//! Fuzz target for signed requests: for any headers, paths and queries, a valid signature is accepted and any other
//! signature is rejected.

use std::sync::Arc;

use appferry::{
    acs3::{self, AccessKey, Hosts, SignedRequest},
    domain::{Secret, Timestamp},
    identity::{AuthError, Authenticator, Credentials, Identity, Quota},
    ram::Policies,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};

const ID: &str = "LTAI";
const SECRET: &str = "nobody who makes up requests knows it";

fn directory() -> Authenticator {
    let principal = "acs:ram::1:user/a".parse().expect("a principal");
    let holder = Arc::new(Identity { principal, policies: Policies::default(), quota: Quota::default() });
    let key = AccessKey { id: ID.into(), secret: Secret(SECRET.into()), holder };
    Credentials { access_keys: vec![key], hosts: Hosts::new(["localhost".to_owned()]), ..Credentials::default() }.into()
}

/// Runs the target. The input consists of a line with method, path and query, of header lines, of an empty line, and of
/// the content.
pub fn run(data: &[u8]) {
    let (head, content) = match data.windows(2).position(|two| two == b"\n\n") {
        Some(end) => (&data[..end], &data[end + 2..]),
        None => (data, &[][..]),
    };
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
    let (method, path, query) = (first.next(), first.next(), first.next());
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some((name, value)) = line.split_once(':') else { continue };
        if let (Ok(name), Ok(value)) = (name.trim().parse::<HeaderName>(), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let directory = directory();
    let now = headers.get("x-acs-date").and_then(|date| Timestamp::parse(date.to_str().ok()?.trim()));
    let now = now.unwrap_or(Timestamp::from_millis(0));
    let (method, path) = (method.unwrap_or("GET"), path.unwrap_or("/"));
    let query = query.unwrap_or_default();
    let verify = |headers: &HeaderMap, query: &str, content: &[u8]| {
        let request = SignedRequest { method, path, query, headers, authority: Some("localhost") };
        directory.signed(&request, content, now)
    };
    assert!(verify(&headers, query, content).is_err(), "it is not signed");
    // Signs the same request correctly, if that is possible.
    headers.remove("authorization");
    headers.insert("x-acs-content-sha256", hex::encode(Sha256::digest(content)).parse().expect("a value"));
    if !content.is_empty() {
        headers.entry("content-type").or_insert(HeaderValue::from_static("text/plain"));
    }
    let request = SignedRequest { method, path, query, headers: &headers, authority: Some("localhost") };
    let Ok(authorization) = acs3::authorize(&request, ID, &Secret(SECRET.into())) else { return };
    let Ok(authorization) = authorization.parse::<HeaderValue>() else { return };
    headers.insert("authorization", authorization);
    match verify(&headers, query, content) {
        Ok(_) => {}
        // The date or the nonce may be invalid.
        Err(AuthError::Signature(why)) => assert!(why.contains("x-acs-date") || why.contains("nonce"), "{why}"),
        Err(other) => panic!("{other}"),
    }
    assert!(matches!(verify(&headers, query, &[content, b"!"].concat()), Err(AuthError::Signature(_))));
    assert!(matches!(verify(&headers, &format!("{query}&zz=1"), content), Err(AuthError::Signature(_))));
}
