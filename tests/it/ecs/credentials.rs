//! Credentials for the provider: keys, temporary keys, replaced files, and roles.

use std::{fs, time::Duration};

use appferry::contract::v1::{ErrorCode, SynchronizationState};

use super::{NAME, REGIONS, failure, region, section, site, vm};
use crate::harness::{
    ecs::{Ecs, InjectedFault, KEY},
    site::{HOME, Running, Site},
};

async fn start(ecs: &Ecs, mut site: Site, credentials: &str) -> Running {
    site.more = section(ecs, credentials);
    let running = site.start().await;
    let source = ecs.provider().put(HOME, NAME, &[]);
    running.images().await.add_image(vm("app", &source)).await.expect("it is registered");
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_key_is_shown_with_its_token() {
    let ecs = Ecs::start(&REGIONS, Duration::from_millis(50)).await;
    ecs.provider().keys[0].token = Some(("CAIS+/==".to_owned(), Duration::from_secs(600)));
    let site = site(&ecs, &REGIONS);
    let [secret, token] = ["secret", "token"].map(|name| site.directory.path().join(name));
    fs::write(&token, "CAIS+/==\n").expect("a token");
    let credentials = format!(
        "access_key_id = \"{}\"\naccess_key_secret_file = \"{}\"\nsecurity_token_file = \"{}\"",
        KEY[0],
        secret.display(),
        token.display()
    );
    let running = start(&ecs, site, &credentials).await;
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);

    // An error about a token counts as an error of STS, whichever service returns it.
    ecs.inject("CopyImage", "cn-shanghai", InjectedFault::Refuse(400, "InvalidSecurityToken.Malformed", None), 1);
    let request = running.synchronize("app", &["cn-shanghai"]).await.expect("it is accepted");
    let (code, message) = failure(&running.finished(&request).await, "cn-shanghai");
    assert!(code == ErrorCode::AliyunError && message.contains("InvalidSecurityToken.Malformed"), "{message}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file_is_read_again_when_it_is_replaced() {
    let ecs = Ecs::start(&REGIONS, Duration::from_millis(50)).await;
    let site = site(&ecs, &REGIONS);
    let file = site.directory.path().join("credentials.ini");
    let write = |secret: &str| {
        let key = format!("[copier]\ntype = access_key\naccess_key_id = {}\naccess_key_secret = {secret}\n", KEY[0]);
        fs::write(&file, key).expect("a file");
    };
    write(KEY[1]);
    let credentials = format!("credentials_file = \"{}\"\nprofile = \"copier\"", file.display());
    let running = start(&ecs, site, &credentials).await;
    write("an-old-secret");
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    let (code, message) = failure(&running.finished(&request).await, "cn-beijing");
    assert!(code == ErrorCode::EcsError && message.contains("SignatureDoesNotMatch"), "{message}");
    assert!(!message.contains("an-old-secret"), "{message}");
    write(KEY[1]);
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);

    // A missing file may reappear: it is not an error of ECS.
    fs::remove_file(&file).expect("it is removed");
    let request = running.synchronize("app", &["cn-shanghai"]).await.expect("it is accepted");
    let (code, message) = failure(&running.finished(&request).await, "cn-shanghai");
    assert!(code == ErrorCode::AliyunError && message.contains("credentials.ini can't be read"), "{message}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_read_again_when_its_file_is_replaced() {
    let ecs = Ecs::start(&REGIONS, Duration::from_millis(50)).await;
    let site = site(&ecs, &REGIONS);
    let secret = site.directory.path().join("secret");
    let credentials = format!("access_key_id = \"{}\"\naccess_key_secret_file = \"{}\"", KEY[0], secret.display());
    let running = start(&ecs, site, &credentials).await;
    fs::write(&secret, "an-old-secret\n").expect("a secret");
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    let (_, message) = failure(&running.finished(&request).await, "cn-beijing");
    assert!(message.contains("SignatureDoesNotMatch") && !message.contains("an-old-secret"), "{message}");
    fs::write(&secret, format!("{}\n", KEY[1])).expect("a secret");
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);
    running.stop().await;
}

/// Starts a service that assumes a role whose keys expire before the refresh margin, so that every request refreshes
/// them.
async fn as_role(ecs: &Ecs) -> Running {
    ecs.provider().role = Duration::from_secs(200);
    let site = site(ecs, &REGIONS);
    let file = site.directory.path().join("credentials.ini");
    let text = format!(
        "[default]\ntype = ram_role_arn\naccess_key_id = {}\naccess_key_secret = {}\nrole_arn = acs:ram::1:role/copier\n",
        KEY[0], KEY[1]
    );
    fs::write(&file, text).expect("a file");
    start(ecs, site, &format!("credentials_file = \"{}\"", file.display())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_assumed_once_and_again_before_its_keys_run_out() {
    let ecs = Ecs::start(&REGIONS, Duration::from_millis(50)).await;
    let running = as_role(&ecs).await;
    let lookups = ecs.count("DescribeImages", None, "OK");
    assert_eq!(ecs.count("AssumeRole", None, "OK"), lookups);
    ecs.provider().role = Duration::from_secs(3_600);
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert_eq!(ecs.count("AssumeRole", None, "OK"), lookups + 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_be_assumed_is_another_products_error() {
    let ecs = Ecs::start(&REGIONS, Duration::from_millis(50)).await;
    let running = as_role(&ecs).await;
    ecs.inject("AssumeRole", "", InjectedFault::Refuse(403, "NoPermission", None), 1_000);
    let request = running.synchronize("app", &["cn-beijing"]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    let (code, message) = failure(&done, "cn-beijing");
    assert!(code == ErrorCode::AliyunError && message.contains("STS AssumeRole: NoPermission"), "{message}");
    assert_eq!(region(&done, "cn-beijing").attempt, 1);
    running.stop().await;
}
