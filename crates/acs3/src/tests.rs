use domain::{Secret, Timestamp};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{AccessKey, AccessKeys, Hosts, SignatureError, SignedRequest, authorize};

const SECRET: &str = "YourAccessKeySecret";

fn keys() -> AccessKeys<&'static str> {
    let key = AccessKey { id: "YourAccessKeyId".into(), secret: Secret(SECRET.into()), holder: "ops" };
    AccessKeys::new([key], Hosts::new(["ecs.cn-shanghai.aliyuncs.com".to_owned()]))
}

fn headers(content: &[u8], nonce: &str, date: &str) -> HeaderMap {
    let digest = hex::encode(Sha256::digest(content));
    let all = [
        ("host", "ecs.cn-shanghai.aliyuncs.com"),
        ("x-acs-action", "RunInstances"),
        ("x-acs-content-sha256", &digest),
        ("x-acs-date", date),
        ("x-acs-signature-nonce", nonce),
        ("x-acs-version", "2014-05-26"),
    ];
    let header = |(name, value): (&'static str, &str)| (HeaderName::from_static(name), value.parse().expect("a value"));
    all.map(header).into_iter().collect()
}

fn request(headers: &HeaderMap) -> SignedRequest<'_> {
    let query = "ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai";
    SignedRequest { method: "POST", path: "/", query, headers, authority: None }
}

fn signed(content: &[u8]) -> HeaderMap {
    let mut headers = headers(content, "3156853299f313e23d1673dc12e1703d", "2023-10-26T10:22:32Z");
    if !content.is_empty() {
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
    }
    let value = authorize(&request(&headers), "YourAccessKeyId", &Secret(SECRET.into())).expect("it can be signed");
    headers.insert("authorization", value.parse().expect("a value"));
    headers
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).expect("a time")
}

/// The example of the original's documentation, with its key, time and nonce.
#[test]
fn the_documented_example_has_the_documented_signature() {
    let headers = signed(b"");
    let value = headers["authorization"].to_str().expect("text");
    assert_eq!(
        value,
        "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;\
         x-acs-signature-nonce;x-acs-version,Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
    );
}

#[test]
fn a_signature_is_valid_for_its_request_and_15_minutes() {
    let headers = signed(b"body");
    let keys = keys();
    let verify = |content: &[u8], now: &str| keys.verify(&request(&headers), content, at(now));
    let verified = verify(b"body", "2023-10-26T10:22:33Z").expect("the signature is valid");
    assert_eq!(*verified.holder, "ops");
    assert!(verified.nonce.until > at("2023-10-26T10:37:32Z"));
    assert!(matches!(verify(b"other", "2023-10-26T10:22:33Z"), Err(SignatureError::Mismatch(_))));
    for (now, good) in [
        ("2023-10-26T10:37:32Z", true),
        ("2023-10-26T10:37:33Z", false),
        ("2023-10-26T10:07:32Z", true),
        ("2023-10-26T10:07:31Z", false),
    ] {
        assert_eq!(verify(b"body", now).is_ok(), good, "{now}");
        assert!(good || matches!(verify(b"body", now), Err(SignatureError::Stale { .. })), "{now}");
    }
}

#[test]
fn changed_requests_are_rejected() {
    let now = at("2023-10-26T10:22:33Z");
    let good = signed(b"");
    let refused = |headers: &HeaderMap, change: &dyn Fn(&mut SignedRequest<'_>)| {
        let mut request = request(headers);
        change(&mut request);
        keys().verify(&request, b"", now).map(drop).expect_err("the request was changed")
    };
    let unchanged: &dyn Fn(&mut SignedRequest<'_>) = &|_| {};
    for (name, value) in [
        ("x-acs-action", "StopInstances"),
        ("x-acs-date", "2023-10-26T10:22:31Z"),
        ("x-acs-signature-nonce", "another"),
        ("x-acs-extra", "one more"),
        ("host", "elsewhere"),
    ] {
        let mut headers = good.clone();
        headers.insert(name, value.parse().expect("a value"));
        assert!(matches!(refused(&headers, unchanged), SignatureError::Mismatch(_)), "{name}");
        let mut headers = good.clone();
        headers.append(name, HeaderValue::from_static("twice"));
        assert!(matches!(refused(&headers, unchanged), SignatureError::Mismatch(_)), "{name} twice");
    }
    for change in [
        (&|r: &mut SignedRequest<'_>| r.method = "GET") as &dyn Fn(&mut SignedRequest<'_>),
        &|r| r.path = "/elsewhere",
        &|r| r.query = "ImageId=another",
        &|r| r.authority = Some("elsewhere"),
    ] {
        assert!(matches!(refused(&good, change), SignatureError::Mismatch(_)));
    }
    // A signature without the nonce would allow replays with another one.
    let mut headers = good.clone();
    let value = good["authorization"].to_str().expect("text").replace("x-acs-signature-nonce;", "");
    headers.insert("authorization", value.parse().expect("a value"));
    assert!(matches!(refused(&headers, unchanged), SignatureError::Mismatch(_)));
    for scheme in ["ACS3-HMAC-SM3", "HMAC-SHA1", "acs"] {
        let value = good["authorization"].to_str().expect("text").replace("ACS3-HMAC-SHA256", scheme);
        headers.insert("authorization", value.parse().expect("a value"));
        assert!(matches!(refused(&headers, unchanged), SignatureError::Mismatch(_)), "{scheme}");
    }
    let value = good["authorization"].to_str().expect("text").replace("YourAccessKeyId", "Nobodys");
    headers.insert("authorization", value.parse().expect("a value"));
    assert_eq!(refused(&headers, unchanged), SignatureError::UnknownKey);
}

fn verify_changed(headers: &HeaderMap, path: &str, content: &[u8]) -> Result<(), SignatureError> {
    let request = SignedRequest { path, ..request(headers) };
    keys().verify(&request, content, at("2023-10-26T10:22:33Z")).map(drop)
}

/// Signs all headers except `leave_out`.
fn sign_without(leave_out: &str, path: &str, mut headers: HeaderMap) -> HeaderMap {
    let request = SignedRequest { path, ..request(&headers) };
    let names: Vec<String> = request.signed_header_names().into_iter().filter(|name| name != leave_out).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let signature = super::signature(&request, &names, &Secret(SECRET.into())).expect("it can be signed");
    let value =
        format!("{} Credential=YourAccessKeyId,SignedHeaders={},Signature={signature}", super::SCHEME, names.join(";"));
    headers.insert("authorization", value.parse().expect("a value"));
    headers
}

#[test]
fn a_request_for_another_host_is_rejected() {
    for (host, good) in [
        ("ecs.cn-shanghai.aliyuncs.com", true),
        ("ECS.cn-shanghai.aliyuncs.com:443", true),
        ("ecs.cn-beijing.aliyuncs.com", false),
        ("ecs.cn-shanghai.aliyuncs.com.evil.example", false),
        ("", false),
    ] {
        let mut headers = headers(b"", "n", "2023-10-26T10:22:32Z");
        headers.insert("host", host.parse().expect("a host"));
        let headers = sign_without("", "/", headers);
        let verified = verify_changed(&headers, "/", b"");
        assert_eq!(verified.is_ok(), good, "{host}: {verified:?}");
    }
}

#[test]
fn the_content_type_of_forms_is_signed() {
    let form = b"TargetRegionIds.1=cn-shanghai";
    let method = "/appferry.v1.AppSyncService/SynchronizeApp";
    let made = |kind: Option<&'static str>| {
        let mut headers = headers(form, "n", "2023-10-26T10:22:32Z");
        headers.extend(kind.map(|kind| (http::header::CONTENT_TYPE, HeaderValue::from_static(kind))));
        headers
    };
    let urlencoded = Some("application/x-www-form-urlencoded");
    // Accepted with its signed type; rejected if the type is changed or removed.
    let signed = sign_without("", "/", made(urlencoded));
    verify_changed(&signed, "/", form).expect("the signature is valid");
    for kind in ["text/plain", "application/grpc", "multipart/form-data"] {
        let mut changed = signed.clone();
        changed.insert("content-type", HeaderValue::from_static(kind));
        verify_changed(&changed, "/", form).expect_err(kind);
    }
    let mut stripped = signed;
    stripped.remove("content-type");
    verify_changed(&stripped, "/", form).expect_err("the type is missing");
    // Without a signed type, forms are rejected. gRPC calls have only one type, which need not be signed.
    for kind in [urlencoded, Some("application/grpc"), Some("text/plain"), None] {
        for path in ["/", "", "/a.b", "//", "/x/y"] {
            let signed = sign_without("content-type", path, made(kind));
            let refused = verify_changed(&signed, path, form).expect_err("the type is not signed").to_string();
            assert!(refused.contains("content-type"), "{refused}");
        }
        verify_changed(&sign_without("content-type", method, made(kind)), method, form).expect("a call");
    }
}

proptest! {
    /// All spellings of a query have the same canonical form, and so the same signature.
    #[test]
    fn a_query_has_one_canonical_form(parameters in proptest::collection::vec(("[a-zA-Z.é +&=%]{1,8}", "[a-zA-Z0-9é ~*+/&=%\\[\\]\"]{0,12}"), 0..6)) {
        let encode = |text: &str| super::canonical::encode(text.as_bytes());
        let pairs: Vec<String> = parameters.iter().map(|(n, v)| format!("{}={}", encode(n), encode(v))).collect();
        let mut reversed = pairs.clone();
        reversed.reverse();
        let headers = headers(b"", "nonce", "2023-10-26T10:22:32Z");
        let authorization = |query: &str| {
            let request = SignedRequest { query, ..request(&headers) };
            authorize(&request, "YourAccessKeyId", &Secret(SECRET.into())).expect("it can be signed")
        };
        prop_assert_eq!(authorization(&pairs.join("&")), authorization(&reversed.join("&")));
        let lower = reversed.join("&").replace("%C3%A9", "%c3%a9");
        prop_assert_eq!(authorization(&pairs.join("&")), authorization(&lower));
    }
}
