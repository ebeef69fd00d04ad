//! The provider's official client, pinned and unmodified, against the emulated provider: the emulation accepts its
//! signatures and responds as it expects. The service must produce the same signatures.

use std::time::Duration;

use appferry::{
    acs3::{AuthorizationHeader, SignedRequest, signature},
    domain::Secret,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::REGIONS;
use crate::harness::{
    ecs::{Ecs, KEY, provider::Status},
    python::python,
    site::HOME,
    until,
};

/// Signed requests of the official client, version 7.11.8, with all signed fields. The client sent them in the test
/// below, at the stated times.
const VECTORS: &str = include_str!("vectors.json");

/// Makes calls with the official client, one after the other, and returns the results.
async fn ask(ecs: &Ecs, calls: &[Value]) -> Vec<Value> {
    let job = json!({"package": "alibabacloud_ecs20140526", "endpoint": ecs.address.to_string(), "calls": calls});
    let results = python(&["tests/it/harness/alibaba.py"], job.to_string()).await;
    serde_json::from_slice(&results).expect("JSON")
}

fn call(method: &str, request: &Value) -> Value {
    json!({"key": KEY, "method": method, "request": request})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_takes_the_server_for_the_provider() {
    let ecs = Ecs::start(&REGIONS, Duration::from_millis(300)).await;
    let source = ecs.provider().put(HOME, "gromacs", &[]);
    let copy = json!({
        "RegionId": HOME, "ImageId": source, "DestinationRegionId": "cn-shanghai",
        "DestinationImageName": "gromacs", "DestinationDescription": "an image, 一个镜像 & *~+/=",
        "ClientToken": "token-1", "Tag": [{"Key": "appferry:app-id", "Value": "ci-vm-1"}, {"Key": "b", "Value": ""}],
    });
    let list =
        json!({"RegionId": "cn-shanghai", "ImageName": "gro", "Status": "Creating,Waiting,Available", "PageSize": 100});
    let other =
        json!({"RegionId": HOME, "ImageId": source, "DestinationRegionId": "cn-shanghai", "ClientToken": "token-1"});
    let twice = json!({"RegionId": HOME, "ImageId": source, "DestinationRegionId": "cn-shanghai", "DestinationImageName": "gromacs"});
    let results = ask(
        &ecs,
        &[
            call("copy_image", &copy),
            call("copy_image", &copy),
            call("describe_images", &list),
            call("copy_image", &other),
            call("copy_image", &twice),
            json!({"key": [KEY[0], "another-secret"], "method": "describe_images", "request": list}),
        ],
    )
    .await;
    let made = results[0]["body"]["ImageId"].as_str().expect("an id");
    assert_eq!(results[1]["body"]["ImageId"], made, "the same token is the same copy");
    let shown = &results[2]["body"]["Images"]["Image"][0];
    assert_eq!((&shown["ImageId"], &shown["ImageName"], &shown["Size"]), (&json!(made), &json!("gromacs"), &json!(40)));
    assert!(["Creating", "Waiting"].contains(&shown["Status"].as_str().expect("text")), "{shown}");
    assert_eq!(shown["Tags"]["Tag"][0], json!({"TagKey": "appferry:app-id", "TagValue": "ci-vm-1"}));
    assert_eq!(results[3]["code"], "IdempotentParameterMismatch");
    assert_eq!(results[4]["code"], "InvalidImageName.Duplicated");
    assert_eq!(results[5]["code"], "SignatureDoesNotMatch");

    until("the end of the copy", async || {
        let images = ecs.provider().images("cn-shanghai");
        (images[0].status == Status::Available).then_some(())
    })
    .await;
    ecs.provider().keys[0].token = Some(("CAIS+/==".to_owned(), Duration::from_secs(600)));
    let parameters = json!({"RegionId": "cn-shanghai", "ImageId": made});
    let key = json!([KEY[0], KEY[1], "CAIS+/=="]);
    let results = ask(
        &ecs,
        &[
            json!({"key": key, "method": "cancel_copy_image", "request": parameters}),
            json!({"key": key, "method": "delete_image", "request": parameters}),
            json!({"key": key, "async": true, "method": "delete_image", "request": parameters}),
            json!({"key": KEY, "method": "delete_image", "request": parameters}),
        ],
    )
    .await;
    assert_eq!(results[0]["code"], "IncorrectImageStatus");
    assert_eq!(results[1]["statusCode"], 200, "{}", results[1]);
    assert_eq!(results[2]["code"], "InvalidImageId.NotFound");
    assert_eq!(results[3]["code"], "InvalidSecurityToken.Malformed");

    // The service computes the same signatures for the recorded requests.
    let calls = ecs.provider().calls.clone();
    let verified = calls.iter().filter(|call| call.code != "SignatureDoesNotMatch");
    let signed: Vec<&Value> = verified.map(|call| &call.signed).collect();
    assert_eq!(signed.len(), 9);
    signed.into_iter().for_each(compare);
}

#[test]
fn requests_are_signed_as_the_official_client_signs_them() {
    let vectors: Vec<Value> = serde_json::from_str(VECTORS).expect("JSON");
    assert_eq!(vectors.len(), 9);
    vectors.iter().for_each(compare);
}

/// Signs a request and compares the signature with the official client's.
fn compare(vector: &Value) {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let mut headers = HeaderMap::new();
    for (name, value) in vector["headers"].as_object().expect("headers") {
        let name: HeaderName = name.parse().expect("a name");
        headers.insert(name, HeaderValue::from_str(&text(value)).expect("a value"));
    }
    let theirs = AuthorizationHeader::parse(&headers).expect("a signature");
    let (method, path, query) = (text(&vector["method"]), text(&vector["path"]), text(&vector["query"]));
    let request = SignedRequest { method: &method, path: &path, query: &query, headers: &headers, authority: None };
    let secret = Secret(KEY[1].to_owned());
    let ours = signature(&request, &theirs.signed_headers, &secret).expect("it can be signed");
    assert_eq!(ours, theirs.signature, "{vector}");
}
