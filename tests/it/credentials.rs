//! Authentication: tokens, JSON Web Tokens, and signatures with access keys.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use appferry::{
    acs3::{self, SignedRequest},
    app::Role,
    contract::v1::{SynchronizeAppRequest, app_sync_service_client::AppSyncServiceClient},
    domain::{Secret, Timestamp},
};
use http::HeaderMap;
use prost::Message as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::{Code, Request, Status, metadata::MetadataMap};

use crate::harness::{
    database::{self, Kind},
    key_material::KeyMaterial,
    refusal,
    site::{Running, Site, app_sync, ask},
    until,
};

const SYNC: &str = r#"[[policy]]
name = "sync"
document = '{"Version":"1","Statement":{"Effect":"Allow","Action":"ehpc:SynchronizeApp","Resource":"*"}}'
"#;

/// Returns whether the caller was authenticated and authorized: the call then fails because the image does not exist.
fn came_through(status: &Status) -> bool {
    refusal::read(status).reason == "ImageNotFound"
}

async fn call(running: &Running, token: &str) -> Status {
    let mut client = app_sync(running.address, Some(token)).await;
    client.synchronize_app(ask("nobody-knows-it", &[])).await.expect_err("there is no image")
}

fn digest(token: &str) -> String {
    hex::encode(Sha256::digest(token))
}

#[tokio::test]
async fn a_token_can_have_a_successor_and_an_end() {
    let mut site = Site::new();
    site.more = format!(
        "{SYNC}[[principal]]\narn = \"acs:ram::1234:user/ops\"\npolicies = [\"sync\"]\n\
         [[principal.token]]\nsha256 = \"{}\"\nexpires = \"2020-01-01T00:00:00Z\"\n\
         [[principal.token]]\nsha256 = \"{}\"\nexpires = \"2999-01-01T00:00:00+08:00\"\n\
         [[principal.token]]\nsha256 = \"{}\"\n",
        digest("first"),
        digest("second"),
        digest("third"),
    );
    let running = site.start_as(Role::Server).await;
    for good in ["second", "third"] {
        assert!(came_through(&call(&running, good).await), "{good}");
    }
    let refused = refusal::read(&call(&running, "first").await);
    refused.is(Code::Unauthenticated, "MissingCredentials", 401);
    assert!(refused.message.contains("expired at 2020-01-01T00:00:00Z"), "{}", refused.message);
    running.stop().await;
}

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Returns a site that trusts an issuer, configured as in the documentation's example: a projected token of a
/// Kubernetes service account.
fn believing(key_material: &KeyMaterial, source: &str) -> Site {
    let mut site = Site::new();
    site.more = format!(
        r#"{SYNC}
        [[policy]]
        name = "of-level"
        document = '''{{"Version":"1","Statement":{{"Effect":"Allow","Action":"ehpc:SynchronizeApp","Resource":"*",
            "Condition":{{"NumericGreaterThan":{{"corp:level":5}}}}}}}}'''
        [[principal]]
        arn = "acs:ram::1234:role/publisher"
        policies = ["sync"]
        [[principal.jwt]]
        issuer = "{ISSUER}"
        claims = {{ "kubernetes.io/namespace" = "hpc", "kubernetes.io/serviceaccount/name" = "publisher" }}
        [[principal]]
        arn = "acs:ram::1234:user/levelled"
        policies = ["of-level"]
        [[principal.jwt]]
        issuer = "{ISSUER}"
        claims = {{ groups = "hpc-users" }}
        [[jwt]]
        issuer = "{ISSUER}"
        audiences = ["appferry", "other-name"]
        {source}
        [jwt.conditions]
        "corp:level" = "level"
        "#,
    );
    assert!(key_material.file("jwks.json").exists());
    site
}

fn now() -> i64 {
    appferry::system_clock().now().as_millis() / 1_000
}

fn claims(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": ["appferry"], "exp": now() + 600, "nbf": now() - 5, "iat": now() - 5,
        "sub": "system:serviceaccount:hpc:publisher",
        "kubernetes.io": { "namespace": "hpc", "serviceaccount": { "name": "publisher", "uid": "x" } },
    });
    change(&mut claims);
    claims
}

#[tokio::test]
async fn a_service_account_is_who_its_token_says() {
    let key_material = KeyMaterial::new();
    key_material.keys();
    let site = believing(&key_material, &format!("jwks_file = \"{}\"", key_material.file("jwks.json").display()));
    let running = site.start_as(Role::Server).await;
    let good = claims(|_| {});
    for (key, algorithm) in [("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")] {
        for header in [json!({ "kid": key }), json!({})] {
            let token = key_material.token(key, algorithm, &good, &header);
            assert!(came_through(&call(&running, &token).await), "{algorithm} {header}");
        }
    }
    let audience = key_material.token("rsa", "RS256", &claims(|c| c["aud"] = json!("other-name")), &json!({}));
    assert!(came_through(&call(&running, &audience).await), "the audience need not be a list");
    let late = key_material.token("rsa", "RS256", &claims(|c| c["exp"] = json!(now() - 20)), &json!({}));
    assert!(came_through(&call(&running, &late).await), "clocks may differ by half a minute");

    // Claims can be condition keys of a policy.
    for (level, allowed) in [(json!(6), true), (json!("7"), true), (json!(5), false), (Value::Null, false)] {
        let levelled = json!({
            "iss": ISSUER, "aud": "appferry", "exp": now() + 600, "groups": ["x", "hpc-users"], "level": level
        });
        let status = call(&running, &key_material.token("ec", "ES256", &levelled, &json!({}))).await;
        assert_eq!(came_through(&status), allowed, "{level}: {status:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_token_that_is_not_what_it_should_be_is_refused() {
    let key_material = KeyMaterial::new();
    key_material.keys();
    let site = believing(
        &key_material,
        &format!("jwks_file = \"{}\"\nalgorithms = [\"RS256\", \"EdDSA\"]", key_material.file("jwks.json").display()),
    );
    let running = site.start_as(Role::Server).await;
    let good = claims(|_| {});
    let plain = json!({});
    let rs256 = |claims: &Value| key_material.token("rsa", "RS256", claims, &plain);
    let without = |name: &str| claims(|c| drop(c.as_object_mut().expect("claims").remove(name)));
    let tampered = {
        let token = rs256(&good);
        let parts: Vec<&str> = token.split('.').collect();
        let other = rs256(&claims(|c| c["sub"] = json!("somebody else")));
        format!("{}.{}.{}", parts[0], other.split('.').nth(1).expect("a payload"), parts[2])
    };
    for (what, token, told) in [
        ("expired", rs256(&claims(|c| c["exp"] = json!(now() - 60))), "expired at"),
        ("not valid yet", rs256(&claims(|c| c["nbf"] = json!(now() + 60))), "is not valid before"),
        ("without an end", rs256(&without("exp")), "has no exp"),
        ("for somebody else", rs256(&claims(|c| c["aud"] = json!(["vault"]))), "another audience"),
        ("for nobody", rs256(&without("aud")), "has no aud"),
        ("of a key that is not the issuer's", key_material.token("other", "RS256", &good, &plain), "signature"),
        (
            "of a key by another's name",
            key_material.token("other", "RS256", &good, &json!({ "kid": "rsa" })),
            "signature",
        ),
        (
            "of a key that nobody knows",
            key_material.token("rsa", "RS256", &good, &json!({ "kid": "new" })),
            "an unknown key",
        ),
        (
            "of a key of another kind",
            key_material.token("rsa", "RS256", &good, &json!({ "kid": "ed" })),
            "an unknown key",
        ),
        (
            "in a way that is not accepted",
            key_material.token("ec", "ES256", &good, &plain),
            "ES256, which its issuer is not configured to use",
        ),
        ("not signed", key_material.token("rsa", "none", &good, &plain), "is malformed"),
        (
            "signed with the public key",
            key_material.token("rsa", "HS256", &good, &plain),
            "HS256, which its issuer is not configured to use",
        ),
        ("changed", tampered, "signature"),
        (
            "of nobody who may call",
            rs256(&claims(|c| c["kubernetes.io"]["namespace"] = json!("web"))),
            "No principal is configured",
        ),
    ] {
        let refused = refusal::read(&call(&running, &token).await);
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::Unauthenticated, "MissingCredentials"),
            "{what}: {refused:?}"
        );
        assert!(refused.message.contains(told), "{what}: {}", refused.message);
        assert!(
            !refused.message.contains(token.split('.').next_back().unwrap_or("?")) || token.ends_with('.'),
            "{what}"
        );
    }
    let elsewhere = rs256(&claims(|c| c["iss"] = json!("https://elsewhere")));
    refusal::read(&call(&running, &elsewhere).await).is(Code::Unauthenticated, "InvalidAccessKeyId.NotFound", 404);
    running.stop().await;
}

/// Serves `content` to requests that present a token, and counts the requests.
async fn serve_keys(content: Arc<Mutex<Vec<u8>>>) -> (String, Arc<AtomicUsize>) {
    let requests = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&requests);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/openid/v1/jwks", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4_096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            let shown =
                String::from_utf8_lossy(&request[..read]).to_ascii_lowercase().contains("authorization: bearer mine");
            let body = if shown { content.lock().expect("it is whole").clone() } else { Vec::new() };
            let status = if shown { "200 OK" } else { "401 Unauthorized" };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&body).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    (url, requests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_changes_its_keys() {
    let [old, new] = [KeyMaterial::new(), KeyMaterial::new()];
    old.keys();
    new.keys();
    let keys = |key_material: &KeyMaterial, kid: &str| {
        let text = std::fs::read_to_string(key_material.file("jwks.json")).expect("keys");
        text.replace("\"kid\": \"rsa\"", &format!("\"kid\": \"{kid}\"")).into_bytes()
    };
    let content = Arc::new(Mutex::new(keys(&old, "one")));
    let (url, requests) = serve_keys(Arc::clone(&content)).await;
    std::fs::write(old.file("shown"), "mine\n").expect("a token");
    let source = format!("jwks_url = \"{url}\"\njwks_token_file = \"{}\"", old.file("shown").display());
    let mut site = believing(&old, &source);
    // Until the keys can be fetched, every call fails authentication.
    site.more += "[limits]\nfailed_credentials_per_minute = 1000000\n";
    let running = site.start_as(Role::Server).await;
    let first = old.token("rsa", "RS256", &claims(|_| {}), &json!({ "kid": "one" }));
    until("the fetched keys", async || came_through(&call(&running, &first).await).then_some(())).await;
    *content.lock().expect("it is whole") = keys(&new, "two");
    // A token with an unknown key triggers a fetch before the next scheduled one.
    let second = new.token("rsa", "RS256", &claims(|_| {}), &json!({ "kid": "two" }));
    until("the new keys", async || came_through(&call(&running, &second).await).then_some(())).await;
    refusal::read(&call(&running, &first).await).is(Code::Unauthenticated, "MissingCredentials", 401);
    // An empty key set does not replace the current keys.
    *content.lock().expect("it is whole") = b"{}".to_vec();
    let unknown = new.token("rsa", "RS256", &claims(|_| {}), &json!({ "kid": "three" }));
    assert!(!came_through(&call(&running, &unknown).await));
    let before = requests.load(Ordering::Relaxed);
    until("the next request for the keys", async || (requests.load(Ordering::Relaxed) > before).then_some(())).await;
    assert!(came_through(&call(&running, &second).await));
    running.stop().await;
}

fn with_access_key(secret_file: &std::path::Path) -> String {
    format!(
        "{SYNC}[[principal]]\narn = \"acs:ram::1234:user/signer\"\npolicies = [\"sync\"]\n\
         [[principal.access_key]]\nid = \"LTAI-test\"\nsecret_file = \"{}\"\n",
        secret_file.display()
    )
}

/// Makes a signed call. `change` may tamper with it after signing.
async fn signed(
    running: &Running,
    nonce: &str,
    at: Timestamp,
    secret: &str,
    change: impl FnOnce(&mut MetadataMap),
) -> Status {
    let message = SynchronizeAppRequest { app_id: "nobody-knows-it".into(), ..Default::default() };
    let mut body = vec![0];
    let encoded = message.encode_to_vec();
    body.extend_from_slice(&u32::try_from(encoded.len()).expect("it is short").to_be_bytes());
    body.extend_from_slice(&encoded);
    let authority = running.address.to_string();
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("x-acs-content-sha256", hex::encode(Sha256::digest(&body))),
        ("x-acs-date", at.to_string()),
        ("x-acs-signature-nonce", nonce.to_owned()),
    ] {
        headers.insert(name, value.parse().expect("a value"));
    }
    let path = "/appferry.v1.AppSyncService/SynchronizeApp";
    let request = SignedRequest { method: "POST", path, query: "", headers: &headers, authority: Some(&authority) };
    let authorization = acs3::authorize(&request, "LTAI-test", &Secret(secret.to_owned())).expect("it can be signed");
    headers.insert("authorization", authorization.parse().expect("a value"));
    let mut request = Request::new(message);
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    change(request.metadata_mut());
    AppSyncServiceClient::new(running.channel().await).synchronize_app(request).await.expect_err("there is no image")
}

#[tokio::test]
async fn a_signed_call_is_taken_once_by_all_processes_together() {
    if !Kind::Postgres.is_available() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "the-secret\n").expect("a secret");
    let shared = database::fresh(Kind::Postgres, directory.path()).await;
    let mut services = Vec::new();
    for _ in 0..2 {
        let mut site = Site::new().on(&shared);
        site.more = with_access_key(&secret);
        services.push(site.start_as(Role::Server).await);
    }
    let [one, other] = &services[..] else { panic!("two services") };
    let [at, earlier, stale, early] =
        [0, -14, -16, 16].map(|minutes| Timestamp::from_millis((now() + minutes * 60) * 1_000));
    assert!(came_through(&signed(one, "n1", at, "the-secret", |_| {}).await));
    assert!(came_through(&signed(one, "n2", at, "the-secret", |_| {}).await));
    for again in [one, other] {
        let refused = refusal::read(&signed(again, "n1", at, "the-secret", |_| {}).await);
        refused.is(Code::Unauthenticated, "SignatureNonceUsed", 400);
    }
    assert!(came_through(&signed(other, "n3", earlier, "the-secret", |_| {}).await));
    for stale in [stale, early] {
        let refused = refusal::read(&signed(one, "n4", stale, "the-secret", |_| {}).await);
        refused.is(Code::Unauthenticated, "InvalidTimeStamp.Expired", 400);
    }
    let refused = refusal::read(&signed(one, "n5", at, "another-secret", |_| {}).await);
    refused.is(Code::Unauthenticated, "SignatureDoesNotMatch", 400);
    let changed = |m: &mut MetadataMap| drop(m.insert("x-acs-signature-nonce", "n7".parse().expect("a value")));
    refusal::read(&signed(one, "n6", at, "the-secret", changed).await).is(
        Code::Unauthenticated,
        "SignatureDoesNotMatch",
        400,
    );
    // The signature covers the content: a digest of other content is rejected before the call is executed.
    let other_content = |m: &mut MetadataMap| {
        drop(m.insert("x-acs-content-sha256", hex::encode(Sha256::digest(b"other")).parse().expect("a value")));
    };
    let refused = refusal::read(&signed(one, "n8", at, "the-secret", other_content).await);
    refused.is(Code::Unauthenticated, "SignatureDoesNotMatch", 400);
    for running in services {
        running.stop().await;
    }
}
