//! The HTTP form of the original API. Most calls use its official Python client, which is pinned and unmodified.

use std::{fmt::Write as _, fs, net::SocketAddr};

use appferry::{app::Role, contract::v1::SynchronizationState};
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{
    images::{self, noise},
    python::python,
    site::{HOME, Running, Site},
    until,
};

/// Access keys of principals with all permissions, with read permission for ids `gromacs-…`, and with a low rate limit.
const ADMIN: [&str; 2] = ["LTAI-admin", "the-administrators-secret"];
const READER: [&str; 2] = ["LTAI-reader", "the-readers-secret"];
const RARE: [&str; 2] = ["LTAI-rare", "the-rare-ones-secret"];

fn site() -> Site {
    let mut site = Site::new();
    let mut more = "[openapi]\nlisten = \"127.0.0.1:0\"\n".to_owned();
    for ([id, secret], name, limit, statement) in [
        (ADMIN, "signing-admin", "", r#"{"Effect":"Allow","Action":"ehpc:*","Resource":"*"}"#),
        (
            READER,
            "signing-reader",
            "",
            r#"{"Effect":"Allow","Action":"ehpc:GetImage","Resource":"acs:ehpc:*:*:app/gromacs-*"}"#,
        ),
        (RARE, "rare", "calls_per_second = 1\n", r#"{"Effect":"Allow","Action":"ehpc:*","Resource":"*"}"#),
    ] {
        let file = site.directory.path().join(id);
        fs::write(&file, secret).expect("a secret");
        write!(
            more,
            "[[principal]]\narn = \"acs:ram::1234:user/{name}\"\npolicies = [\"{name}\"]\n{limit}\
             [[principal.access_key]]\nid = \"{id}\"\nsecret_file = \"{}\"\n\
             [[policy]]\nname = \"{name}\"\ndocument = '{{\"Version\":\"1\",\"Statement\":{statement}}}'\n",
            file.display()
        )
        .expect("memory");
    }
    site.more = more;
    site
}

/// Makes calls with the official client, one after the other, and returns the results.
async fn make(address: SocketAddr, calls: &[Value]) -> Vec<Value> {
    let job = json!({"package": "alibabacloud_ehpcinstant20230701", "endpoint": address.to_string(), "calls": calls})
        .to_string();
    serde_json::from_slice(&python(&["tests/it/harness/alibaba.py"], job).await).expect("JSON")
}

async fn ask(running: &Running, calls: &[Value]) -> Vec<Value> {
    make(running.openapi(), calls).await
}

async fn body(running: &Running, call: Value) -> Value {
    let told = ask(running, &[call]).await.remove(0);
    assert_eq!(told["statusCode"], 200, "{told}");
    assert_eq!(told["headers"]["x-acs-request-id"].as_str().map(str::len), Some(36), "{told}");
    told["body"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_does_all_that_it_can() {
    let running = site().start().await;
    for (asynchronous, name) in [(false, "gromacs"), (true, "lammps")] {
        let call = |method: &str, request: Value| json!({"method": method, "request": request, "key": ADMIN, "async": asynchronous});
        let mut added = Vec::new();
        for version in ["2025.4", "2026.1"] {
            let disk = format!("{name}-{version}");
            images::write(&running.site.image(HOME, &disk), &[noise(10_000, 1)]);
            let request = json!({"Name": name, "ImageVersion": version, "Description": "größer", "ImageType": "VM",
                "VMImageSpec": {"ImageId": disk}});
            let told = body(&running, call("add_image", request)).await;
            assert_eq!(told["Success"], true, "{told}");
            added.push(told["ImageId"].as_str().expect("an id").to_owned());
        }
        let [old, new] = &added[..] else { panic!("two images") };
        assert!(new.starts_with("ci-vm-"), "{new}");

        let info = |told: &Value| told["Image"]["AdditionalRegionsInfo"].clone();
        let told = body(&running, call("get_image", json!({"ImageId": new}))).await;
        let absent = ["cn-beijing", "cn-shanghai", "cn-shenzhen"]
            .map(|region| json!({"RegionId": region, "Status": "NotSynchronized"}));
        assert_eq!(info(&told), json!(absent));
        let request = json!({"AppId": new, "TargetRegionIds": ["cn-shanghai", "all"]});
        let told = body(&running, call("synchronize_app", request)).await;
        assert_eq!(told.as_object().map(serde_json::Map::len), Some(1), "the original has RequestId alone: {told}");
        let done = running.finished(told["RequestId"].as_str().expect("an id")).await;
        assert_eq!((done.state(), done.regions.len()), (SynchronizationState::Succeeded, 3));
        assert_eq!(done.principal, "acs:ram::1234:user/signing-admin");

        let request = json!({"ImageId": new, "ImageType": "VM", "AdditionalRegionIds": ["cn-shanghai", HOME]});
        let told = body(&running, call("get_image", request)).await;
        let digest =
            [HOME, "cn-shanghai"].map(|region| json!({"RegionId": region, "ImageId": new, "Status": "Available"}));
        assert_eq!(info(&told), json!(digest));
        let image = &told["Image"];
        for (key, value) in [
            ("AppId", new.as_str()),
            ("Name", name),
            ("Version", "2026.1"),
            ("Description", "größer"),
            ("ImageType", "VM"),
            ("Size", "0.01 GiB"),
            ("Status", "Available"),
        ] {
            assert_eq!(image[key], value, "{key}: {image}");
        }
        assert_eq!(image["VMImageSpec"]["ImageId"], format!("{name}-2026.1"));
        assert!(image["CreateTime"].as_str().is_some_and(|t| t.len() == 20 && t.ends_with('Z')), "{image}");

        let ids = |told: &Value, list: &str| {
            let entries = told[list].as_array().expect("a list").iter();
            entries.map(|entry| entry["ImageId"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
        };
        let request = json!({"AppName": name, "PageSize": 1, "PageNumber": 2});
        let told = body(&running, call("get_app_versions", request)).await;
        assert_eq!((ids(&told, "AppVersions"), &told["TotalCount"]), (vec![old.clone()], &json!(2)), "{told}");
        assert_eq!(told["AppVersions"][0]["Version"], "2025.4");
        let request = json!({"ImageNames": [name], "Mode": "Merge"});
        let told = body(&running, call("list_images", request)).await;
        assert_eq!((ids(&told, "Images"), &told["TotalCount"]), (vec![new.clone()], &json!(1)), "{told}");
        assert_eq!((&told["PageNumber"], &told["PageSize"]), (&json!(1), &json!(20)));
        let told = body(&running, call("list_images", json!({"ImageIds": [old], "ImageType": "Container"}))).await;
        assert_eq!((ids(&told, "Images"), &told["TotalCount"]), (vec![], &json!(0)), "{told}");

        let told = body(&running, call("remove_image", json!({"ImageId": old, "ImageType": "VM"}))).await;
        assert_eq!(told["Success"], true, "{told}");
        let told = body(&running, call("list_images", json!({"ImageNames": [name]}))).await;
        assert_eq!(ids(&told, "Images"), std::slice::from_ref(new));
    }
    // These calls bypass the client's own encoding: by GET, as a form, and with indexed list parameters.
    let generic = |more: Value| {
        let mut call = json!({"action": "SynchronizeApp", "version": "2023-07-01", "key": ADMIN});
        call.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        call
    };
    let app = running.add("by-hand", &[noise(1_000, 2)]).await;
    let parameters = json!({"AppId": app, "TargetRegionIds.1": "cn-beijing", "TargetRegionIds.2": "cn-shanghai",
        "ClientToken": "once"});
    let calls = [generic(json!({"http": "GET", "query": parameters})), generic(json!({"form": parameters}))];
    let told = ask(&running, &calls).await;
    assert_eq!(told[0]["statusCode"], 200, "{}", told[0]);
    assert_eq!(told[0]["body"], told[1]["body"], "one call, by its token");
    let done = running.finished(told[0]["body"]["RequestId"].as_str().expect("an id")).await;
    assert_eq!(done.regions.len(), 2);
    running.stop().await;
}

/// The configuration and the program in docs/alibaba-cloud.md, with the test's own port and paths.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_documentation_shows_works() {
    const DOCUMENT: &str = include_str!("../../docs/alibaba-cloud.md");
    let block = |language: &str| {
        let (_, rest) = DOCUMENT.split_once(&format!("```{language}\n")).expect("a block");
        rest.split_once("```").expect("it ends").0
    };
    let mut site = Site::new();
    let file = site.directory.path().join("secret");
    fs::write(&file, "the-secret").expect("a secret");
    let toml = block("toml").replace("/run/secrets/ci", &file.display().to_string()).replace(":8080", ":0");
    let policy = r#"{"Version":"1","Statement":{"Effect":"Allow","Action":"ehpc:*","Resource":"*"}}"#;
    site.more = format!("{toml}\n[[policy]]\nname = \"images\"\ndocument = '{policy}'\n");
    let running = site.start().await;
    let app = running.add("ci-vm-EI38FxEe4raP", &[noise(10, 1)]).await;
    let program = block("python").replace("127.0.0.1:8080", &running.openapi().to_string());
    let printed = python(&["-"], format!("secret = 'the-secret'\n{program}")).await;
    let printed = String::from_utf8(printed).expect("text");
    let id = printed.split('\'').find(|part| part.len() == 36).unwrap_or_else(|| panic!("an id: {printed}"));
    let done = running.finished(id).await;
    assert_eq!((done.app_id, done.principal.as_str()), (app, "acs:ram::1234:role/ci"));
    running.stop().await;
}

fn sync(key: [&str; 2], request: &Value) -> Value {
    json!({"method": "synchronize_app", "key": key, "request": request})
}

/// Rejected calls, with the HTTP status, the code, and a text that the message contains.
fn refusals() -> Vec<(Value, u16, &'static str, &'static str)> {
    let any = |action: &str, version: &str, query: Value| json!({"action": action, "version": version, "query": query, "key": ADMIN});
    let add = |request: Value| json!({"method": "add_image", "key": ADMIN, "request": request});
    let v = "2023-07-01";
    let nobody = json!({"AppId": "nobody-knows-it"});
    let mut replayed = sync(ADMIN, &nobody);
    replayed["headers"] = json!({"x-acs-signature-nonce": "used"});
    let mut old = sync(ADMIN, &nobody);
    old["headers"] = json!({"x-acs-date": "2020-01-01T00:00:00Z"});
    let vm = |id: &str| json!({"Name": "n", "VMImageSpec": {"ImageId": id}});
    let credential = json!({"Name": "n", "ContainerImageSpec": {"RegistryUrl": "oci:gromacs-1",
        "RegistryCredential": {"UserName": "u", "Password": "p-p-p"}}});
    let long = json!({"action": "AddImage", "version": v, "key": ADMIN, "form": {"Description": "a".repeat(70_000)}});
    vec![
        (long, 403, "InvalidParams", "the request: it is larger than 65536 bytes"),
        (sync(ADMIN, &json!({"AppId": "gromacs-1", "TargetRegionIds": [HOME]})), 400, "ImageAlreadyExists", HOME),
        (sync(ADMIN, &json!({"AppId": ".."})), 403, "InvalidParams", "AppId: "),
        (
            sync(ADMIN, &json!({"AppId": "a", "TargetRegionIds": ["mars"]})),
            403,
            "InvalidParams",
            "TargetRegionIds: the region mars",
        ),
        (sync(ADMIN, &nobody), 404, "ImageNotFound", "nobody-knows-it"),
        (add(vm("broken")), 406, "ServiceAPIError", "broken/index.json"),
        (add(vm("gone")), 404, "ImageNotFound", "gone"),
        (add(json!({"Name": "n"})), 403, "InvalidParams", "ImageType: it is missing"),
        (add(credential), 403, "InvalidParams", "ContainerImageSpec.RegistryCredential"),
        (
            any("GetImage", v, json!({"ImageId": "gromacs-1", "ImageType": "Container"})),
            404,
            "ImageNotFound",
            "gromacs-1",
        ),
        (
            any("GetImage", v, json!({"ImageId": "gromacs-1", "ImageCategory": "Public"})),
            403,
            "InvalidParams",
            "ImageCategory",
        ),
        (any("ListImages", v, json!({"PageSize": "2000"})), 403, "InvalidParams", "PageSize"),
        (any("ListImages", v, json!({"PageNumber": "0"})), 403, "InvalidParams", "PageNumber"),
        (
            any("RemoveImage", v, json!({"ImageId": "gromacs-1", "ImageType": "Disk"})),
            403,
            "InvalidParams",
            "ImageType",
        ),
        (
            any("SynchronizeApp", v, json!({"AppId": "a", "TargetRegionIds": "cn-beijing"})),
            403,
            "InvalidParams",
            "JSON array",
        ),
        (
            any("SynchronizeApp", v, json!({"AppId": "a", "Colour": "red"})),
            403,
            "InvalidParams",
            "Colour: SynchronizeApp has no such parameter",
        ),
        (any("Fly", v, json!({})), 404, "InvalidAction.NotFound", "expected one of SynchronizeApp, AddImage"),
        (any("GetImage", "2018-04-12", json!({})), 400, "InvalidVersion", "2018-04-12"),
        (sync(["LTAI-nobody", "s"], &nobody), 404, "InvalidAccessKeyId.NotFound", "not found"),
        (sync([ADMIN[0], "another"], &nobody), 400, "SignatureDoesNotMatch", "does not match the request"),
        (old, 400, "InvalidTimeStamp.Expired", "2020-01-01"),
        (replayed.clone(), 404, "ImageNotFound", ""),
        (replayed, 400, "SignatureNonceUsed", ""),
        // An unauthorized caller receives no validation errors; an authorized one does, but only for resources that its
        // policy allows.
        (
            sync(READER, &json!({"AppId": "..", "TargetRegionIds": ["mars"]})),
            403,
            "NoPermission",
            "ehpc:SynchronizeApp",
        ),
        (
            json!({"method": "get_image", "key": READER, "request": {"ImageId": "lammps"}}),
            403,
            "NoPermission",
            "app/lammps",
        ),
        (sync(RARE, &nobody), 404, "ImageNotFound", ""),
        (sync(RARE, &nobody), 429, "Throttling", ""),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_is_raised_by_the_official_client() {
    let running = site().start_as(Role::Server).await;
    running.add("gromacs-1", &[noise(10, 1)]).await;
    images::write(&running.site.image(HOME, "broken"), &[noise(10, 1)]);
    fs::write(running.site.image(HOME, "broken").join("index.json"), "{").expect("it is broken");
    let cases = refusals();
    let calls: Vec<_> = cases.iter().map(|(call, ..)| call.clone()).collect();
    let told = ask(&running, &calls).await;
    for ((call, status, code, says), told) in cases.iter().zip(&told) {
        assert_eq!((&told["status_code"], &told["code"]), (&json!(status), &json!(code)), "{call}: {told}");
        let data = &told["data"];
        assert!(data["Message"].as_str().is_some_and(|text| text.contains(says)), "{says:?}: {data}");
        assert_eq!(data["HostId"], running.openapi().to_string());
        assert!(data["Recommend"].as_str().is_some_and(|text| text.contains(code)), "{data}");
        let id = data["RequestId"].as_str().expect("an id");
        assert!(id.len() == 36 && id == id.to_uppercase() && told["request_id"] == id, "{told}");
        assert!(!told.to_string().contains("p-p-p"), "a secret is returned: {told}");
        let raised = if *status == 429 { "ThrottlingException" } else { "ClientException" };
        assert_eq!(told["raised"], raised, "{told}");
    }
    let throttled = told.last().expect("the last");
    assert!(throttled["retry_after"].as_u64().is_some_and(|ms| (1..=1_000).contains(&ms)), "{throttled}");

    // A database locked by another process, and a broken one.
    let url = format!("sqlite://{}", running.site.file().display());
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(1);
    let other = sea_orm::Database::connect(options).await.expect("a connection");
    let call = [sync(ADMIN, &json!({"AppId": "gromacs-1"}))];
    for (begin, end, status, code) in [
        ("BEGIN EXCLUSIVE", "ROLLBACK", 503, "ServiceUnavailable"),
        (
            "ALTER TABLE synchronization RENAME TO hidden",
            "ALTER TABLE hidden RENAME TO synchronization",
            406,
            "DbError",
        ),
    ] {
        other.execute_unprepared(begin).await.expect("it is done");
        let told = ask(&running, &call).await.remove(0);
        assert_eq!((&told["status_code"], &told["code"]), (&json!(status), &json!(code)), "{told}");
        other.execute_unprepared(end).await.expect("it is undone");
    }
    assert_eq!(ask(&running, &call).await[0]["statusCode"], 200, "it goes on");

    let site = running.stop().await;
    let audit = fs::read_to_string(site.audit()).expect("the log");
    let line = |name: &str| audit.lines().filter(|line| line.contains(name)).count();
    assert!(line("\"authenticated_by\":\"access_key\"") > 10 && line("user/signing-reader") == 2, "{audit}");
    for [_, secret] in [ADMIN, READER, RARE] {
        assert!(!audit.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_signed_as_it_should_be_is_told_how() {
    let running = site().start_as(Role::Server).await;
    let raw = |method: &str, target: &str| json!({"raw": method, "target": target});
    let by_parameters = "/?Action=SynchronizeApp&Version=2023-07-01&AccessKeyId=LTAI-admin&SignatureMethod=HMAC-SHA1\
                         &SignatureNonce=1&SignatureVersion=1.0&Timestamp=2026-01-01T00:00:00Z&Signature=c2lnbmVk";
    let cases = [
        (raw("GET", by_parameters), 400, "IncompleteSignature", "ACS3-HMAC-SHA256"),
        (raw("GET", "/?Action=GetImage&Version=2023-07-01"), 401, "MissingCredentials", "ACS3-HMAC-SHA256"),
        (raw("DELETE", "/elsewhere"), 401, "MissingCredentials", ""),
    ];
    let told = ask(&running, &cases.each_ref().map(|(call, ..)| call.clone())).await;
    for ((call, status, code, says), told) in cases.iter().zip(&told) {
        assert_eq!((&told["statusCode"], &told["body"]["Code"]), (&json!(status), &json!(code)), "{call}: {told}");
        assert!(told["body"]["Message"].as_str().is_some_and(|text| text.contains(says)), "{told}");
    }
    // A request head that never ends is rejected by a timeout, one that is too long by a limit.
    let mut slow = tokio::net::TcpStream::connect(running.openapi()).await.expect("it listens");
    slow.write_all(b"POST / HTTP/1.1\r\nHost: a\r\n").await.expect("it is sent");
    let mut long = tokio::net::TcpStream::connect(running.openapi()).await.expect("it listens");
    let head = format!("GET /?{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(200_000));
    let _ = long.write_all(head.as_bytes()).await;
    for mut stream in [long, slow] {
        let mut answer = Vec::new();
        let read = async { stream.read_to_end(&mut answer).await };
        let _ = tokio::time::timeout(crate::harness::PATIENCE, read).await.expect("it ends");
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    }
    until("other callers to be answered", async || {
        let told = ask(&running, &[json!({"method": "list_images", "request": {}, "key": ADMIN})]).await;
        (told[0]["statusCode"] == 200).then_some(())
    })
    .await;
    running.stop().await;
}
