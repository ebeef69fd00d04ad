//! Reloading of credentials and policies at runtime, and the audit log.

use std::{fs, path::PathBuf};

use appferry::{
    app::Role,
    config::Config,
    contract::v1::{GetImageRequest, ListRegionsRequest},
    db,
};
use serde_json::Value;

use crate::harness::{
    images::noise,
    process::{self, Served},
    refusal,
    site::{ADMIN, READER, SYNC_ONLY, Site, app_sync, ask, images_client},
    until,
};

/// Starts a process on a site, and returns it with the path of its configuration file.
async fn serve(site: &Site) -> (Served, PathBuf) {
    let file = site.write_config();
    let config = Config::load(&file).expect("it is one");
    db::migrate(&config.database.settings()).await.expect("the schema");
    (Served::configured(&file).await, file)
}

async fn reason(address: std::net::SocketAddr, token: &str) -> String {
    let refused = app_sync(address, Some(token)).await.synchronize_app(ask("nobody-knows-it", &[])).await;
    refusal::read(&refused.expect_err("there is no image")).reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_counts_without_a_restart_and_a_broken_one_does_not() {
    let site = Site::new();
    let (served, config) = serve(&site).await;
    let log = || fs::read_to_string(&served.log).expect("a log");
    assert_eq!(reason(served.address, SYNC_ONLY).await, "ImageNotFound");
    assert_eq!(reason(served.address, READER).await, "NoPermission");

    // No signal is sent: the changed file is detected.
    let text = fs::read_to_string(&config).expect("the configuration");
    let changed = text.replace("\"ehpc:Get*\",", "\"ehpc:Get*\",\"ehpc:SynchronizeApp\",");
    assert_ne!(changed, text);
    fs::write(&config, &changed).expect("it is written");
    until("the change to take effect", async || {
        (reason(served.address, READER).await == "ImageNotFound").then_some(())
    })
    .await;

    // An invalid file is reported with the position of the error, and the previous one stays in effect.
    let broken = changed.replace("\"ehpc:SynchronizeApp\"", "\"SynchronizeApp\"");
    fs::write(&config, &broken).expect("it is written");
    until("the log line", async || log().contains("configuration reload failed").then_some(())).await;
    assert!(log().contains("Statement[0].Action"), "{}", log());
    for token in [READER, SYNC_ONLY] {
        assert_eq!(reason(served.address, token).await, "ImageNotFound");
    }

    // A removed token is no longer valid.
    let (head, tail) = changed.split_once("[[principal]]\narn = \"acs:ram::1234:role/pipeline\"").expect("it is there");
    let rest = tail.split_once("[[policy]]").map(|(_, rest)| format!("{head}[[policy]]{rest}")).expect("it goes on");
    fs::write(&config, rest).expect("it is written");
    until("the token to be rejected", async || {
        (reason(served.address, SYNC_ONLY).await == "InvalidAccessKeyId.NotFound").then_some(())
    })
    .await;
    drop(served);
}

/// The test rotates the log: it renames the file and sends SIGHUP to the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_hangup_the_audit_log_is_opened_anew() {
    let site = Site::new();
    let (served, _) = serve(&site).await;
    assert_eq!(reason(served.address, ADMIN).await, "ImageNotFound");
    let moved = site.directory.path().join("audit.log.1");
    until("the first audit log line", async || (lines(&site).len() == 1).then_some(())).await;
    fs::rename(site.audit(), &moved).expect("it is moved");
    served.hang_up();
    until("a new file", async || site.audit().exists().then_some(())).await;
    assert_eq!(reason(served.address, ADMIN).await, "ImageNotFound");
    until("the second audit log line", async || (lines(&site).len() == 1).then_some(())).await;
    assert_eq!(fs::read_to_string(&moved).expect("the old file").lines().count(), 1);
    drop(served);
}

/// While the disk of the audit log is full, calls are not blocked; the pending entries are written once there is space.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_are_kept_while_the_audit_log_cannot_be_written() {
    let site = Site::new();
    std::os::unix::fs::symlink("/dev/full", site.audit()).expect("a link");
    let (served, _) = serve(&site).await;
    let log = || fs::read_to_string(&served.log).expect("a log");
    for token in [ADMIN, "a-guess", ADMIN] {
        reason(served.address, token).await;
        until("the log line", async || log().contains("failed to write the audit log").then_some(())).await;
    }
    fs::remove_file(site.audit()).expect("there is space");
    served.hang_up();
    until("the log line", async || log().contains("audit log is writable again").then_some(())).await;
    assert_eq!(log().matches("failed to write the audit log").count(), 1, "{}", log());
    let decisions = lines(&site).iter().map(|line| line["decision"].clone()).collect::<Vec<_>>();
    assert_eq!(decisions, ["allow", "deny", "allow"]);
    drop(served);
}

fn lines(site: &Site) -> Vec<Value> {
    let text = fs::read_to_string(site.audit()).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[tokio::test]
async fn every_decision_is_written_down() {
    let running = Site::new().start_as(Role::Server).await;
    running.add("a", &[noise(10, 1)]).await;
    let mut images = images_client(running.address, Some(READER)).await;
    images.get_image(GetImageRequest { image_id: "a".into(), ..Default::default() }).await.expect("it is authorized");
    images.list_regions(ListRegionsRequest {}).await.expect("it is authorized");
    for token in ["a-guess", READER] {
        app_sync(running.address, Some(token)).await.synchronize_app(ask("a", &[])).await.expect_err("not allowed");
    }
    let site = running.stop().await;
    let lines = lines(&site);
    let decision: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
            assert!(
                line["source_ip"] == "127.0.0.1" && line["time"].as_str().is_some_and(|t| t.ends_with('Z')),
                "{line}"
            );
            assert_eq!(line["request_id"].as_str().map(str::len), Some(36), "{line}");
            [
                text("principal"),
                text("authenticated_by"),
                text("action"),
                text("resource"),
                text("decision"),
                text("reason"),
            ]
        })
        .collect();
    let expected = [
        ["acs:ram::1234:user/admin", "token", "ehpc:AddImage", "*", "allow", "Statement[0] of user/admin allows it"],
        [
            "acs:ram::1234:user/reader",
            "token",
            "ehpc:GetImage",
            "acs:ehpc:*:*:app/a",
            "allow",
            "Statement[0] of user/reader allows it",
        ],
        [
            "acs:ram::1234:user/reader",
            "token",
            "ehpc:ListRegions",
            "*",
            "allow",
            "Statement[0] of user/reader allows it",
        ],
        ["-", "-", "ehpc:SynchronizeApp", "-", "deny", "unknown credential"],
        ["acs:ram::1234:user/reader", "token", "ehpc:SynchronizeApp", "*", "deny", "no statement allows it"],
    ];
    assert_eq!(decision, expected.map(|line| line.map(str::to_owned)));
    let text = fs::read_to_string(site.audit()).expect("the log");
    for secret in [ADMIN, READER, "a-guess", "Bearer"] {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(site.audit()).expect("the log").permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn what_is_allowed_can_be_left_out_and_what_is_denied_never_is() {
    let mut site = Site::new();
    site.audit_more = "sample_allowed = 0.0".to_owned();
    let running = site.start_as(Role::Server).await;
    for token in [ADMIN, READER, "a-guess"] {
        app_sync(running.address, Some(token)).await.synchronize_app(ask("a", &[])).await.expect_err("no image");
    }
    let site = running.stop().await;
    assert_eq!(lines(&site).iter().map(|line| &line["decision"]).collect::<Vec<_>>(), ["deny", "deny"]);
}

/// `policy check`: decisions without a service, with reasons, and an exit status.
#[test]
fn policy_check_decides_as_the_service_would_and_tells_why() {
    let mut site = Site::new();
    site.more = r#"
        [[group]]
        name = "operators"
        policies = ["office"]
        [[principal]]
        arn = "acs:ram::1234:user/ops"
        groups = ["operators"]
        policies = ["images"]
        [[policy]]
        name = "office"
        document = '''{"Version":"1","Statement":[
            {"Effect":"Allow","Action":"ehpc:Synchronize*","Resource":"*","Condition":{"IpAddress":{"acs:SourceIp":"10.0.0.0/8"}}},
            {"Effect":"Deny","Action":"*","Resource":"*","Condition":{"DateGreaterThan":{"acs:CurrentTime":"2030-01-01T00:00:00Z"}}}]}'''
        [[policy]]
        name = "images"
        document = '{"Version":"1","Statement":{"Effect":"Allow","Action":"ehpc:GetImage","Resource":"acs:ehpc:*:*:app/gromacs-*"}}'
    "#
    .to_owned();
    let config = site.write_config().display().to_string();
    let check = |action: &str, more: &[&str]| {
        let mut arguments = vec!["policy", "check", "--config", &config, "--principal", "acs:ram::1234:user/ops"];
        arguments.extend(["--action", action]);
        arguments.extend(more);
        let output = process::run(site.directory.path(), &arguments);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (office, after) = ("acs:SourceIp=10.1.2.3", "acs:CurrentTime=2031-01-01T00:00:00Z");
    for (action, more, code, parts) in [
        (
            "ehpc:SynchronizeApp",
            &["--context", office][..],
            0,
            &["allowed: acs:ram::1234:user/ops", "Statement[0] of office (group operators) allows it"][..],
        ),
        (
            "ehpc:SynchronizeApp",
            &["--context", "acs:SourceIp=192.0.2.1"],
            1,
            &["denied", "no statement allows it", "Condition.IpAddress.acs:SourceIp does not hold: it is 192.0.2.1"],
        ),
        ("ehpc:SynchronizeApp", &[], 1, &["Condition.IpAddress.acs:SourceIp does not hold: the call has no value"]),
        (
            "ehpc:SynchronizeApp",
            &["--context", office, "--context", after],
            1,
            &["Statement[1] of office (group operators) denies it"],
        ),
        ("ehpc:GetImage", &["--resource", "acs:ehpc:*:*:app/gromacs-1"], 0, &["Statement[0] of images allows it"]),
        (
            "ehpc:GetImage",
            &["--resource", "acs:ehpc:*:*:app/lammps"],
            1,
            &["its Resource does not cover acs:ehpc:*:*:app/lammps"],
        ),
        ("ehpc:GetImage", &[], 2, &["set --resource, of the form acs:ehpc:*:*:app/{image_id}"]),
        ("ehpc:Fly", &[], 2, &["no method of this service requires it"]),
        (
            "ehpc:SynchronizeApp",
            &["--context", "acs:MFAPresent=::1"],
            2,
            &["unknown key; expected one of acs:SourceIp"],
        ),
        ("ehpc:SynchronizeApp", &["--context", "acs:SourceIp=here"], 2, &["\"here\" is not an IP address"]),
        ("ehpc:SynchronizeApp", &["--principal", "acs:ram::1234:user/nobody"], 2, &["--principal"]),
    ] {
        let (status, decision) = check(action, more);
        assert_eq!(status, Some(code), "{action} {more:?}: {decision}");
        for part in parts {
            assert!(decision.contains(part), "{action} {more:?}: {part:?} is not in {decision}");
        }
    }
    let (status, decision) = check("ehpc:SynchronizeApp", &["--context", office, "--json"]);
    let decision: Value = serde_json::from_str(&decision).expect("JSON");
    assert_eq!(
        (status, &decision["allowed"], &decision["statements"][1]["policy"]),
        (Some(0), &true.into(), &"office".into())
    );
    let unknown = process::run(
        site.directory.path(),
        &[
            "policy",
            "check",
            "--config",
            &config,
            "--principal",
            "acs:ram::1234:user/nobody",
            "--action",
            "ehpc:ListRegions",
        ],
    );
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stdout).contains("is not one of [[principal]]"), "{unknown:?}");
}
