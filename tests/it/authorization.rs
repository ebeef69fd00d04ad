//! Authorization: an action that no statement allows is denied, and a denied caller does not learn which resources
//! exist.

use appferry::{
    app::Role,
    contract::{
        Contract,
        v1::{GetImageRequest, ListRegionsRequest, RemoveImageRequest},
    },
};
use tonic::Code;

use crate::harness::{
    images::noise,
    refusal,
    site::{self, READER, SYNC_ONLY, Site, app_sync, ask, images_client},
};

#[tokio::test]
async fn a_call_without_a_credential_or_with_an_unknown_one_is_refused() {
    let running = Site::new().start_as(Role::Server).await;
    let refused = app_sync(running.address, None).await.synchronize_app(ask("a", &[])).await.expect_err("no token");
    refusal::read(&refused).is(Code::Unauthenticated, "MissingCredentials", 401);
    let refused =
        app_sync(running.address, Some("a-guess")).await.synchronize_app(ask("a", &[])).await.expect_err("a guess");
    let refused = refusal::read(&refused);
    refused.is(Code::Unauthenticated, "InvalidAccessKeyId.NotFound", 404);
    assert!(!refused.message.contains("a-guess"), "a credential is not repeated");
    running.stop().await;
}

#[tokio::test]
async fn a_header_that_is_no_bearer_token_is_refused() {
    let running = Site::new().start_as(Role::Server).await;
    let channel = running.channel().await;
    for header in ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", site::ADMIN] {
        let mut request = tonic::Request::new(ask("a", &[]));
        request.metadata_mut().insert("authorization", header.parse().expect("a header"));
        let mut client = appferry::contract::v1::app_sync_service_client::AppSyncServiceClient::new(channel.clone());
        let refused = client.synchronize_app(request).await.expect_err(header);
        refusal::read(&refused).is(Code::Unauthenticated, "MissingCredentials", 401);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_principal_does_what_its_policy_allows_and_nothing_else() {
    let running = Site::new().start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = app_sync(running.address, Some(SYNC_ONLY)).await.synchronize_app(ask(&app, &[])).await;
    assert!(id.is_ok(), "{id:?}");
    let mut images = images_client(running.address, Some(SYNC_ONLY)).await;
    let refused = images.list_regions(ListRegionsRequest {}).await.expect_err("not allowed");
    let refused = refusal::read(&refused);
    refused.is(Code::PermissionDenied, "NoPermission", 403);
    for part in ["acs:ram::1234:role/pipeline", "ehpc:ListRegions"] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }

    let mut images = images_client(running.address, Some(READER)).await;
    images.get_image(GetImageRequest { image_id: app.clone(), ..Default::default() }).await.expect("it is authorized");
    let refused = app_sync(running.address, Some(READER)).await.synchronize_app(ask(&app, &[])).await;
    refusal::read(&refused.expect_err("not allowed")).is(Code::PermissionDenied, "NoPermission", 403);
    running.stop().await;
}

/// AIP-211: the response is the same whether or not the resource exists, and precedes all validation.
#[tokio::test]
async fn who_may_not_ask_learns_nothing_about_what_exists() {
    let running = Site::new().start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let mut client = app_sync(running.address, Some(READER)).await;
    let mut answers = Vec::new();
    for (app, region) in [(app.as_str(), "cn-beijing"), ("nobody-knows-it", "cn-beijing"), ("../etc", "nowhere")] {
        let refused = client.synchronize_app(ask(app, &[region])).await.expect_err("not allowed");
        let refused = refusal::read(&refused);
        answers.push((refused.code, refused.message));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
    running.stop().await;
}

#[tokio::test]
async fn a_statement_on_some_images_decides_about_those_before_they_are_looked_up() {
    const NARROW: &str = "the-narrow-token";
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(NARROW));
    let mut site = Site::new();
    site.more = format!(
        r#"
        [[principal]]
        arn = "acs:ram::1234:user/narrow"
        token_sha256 = "{digest}"
        policies = ["narrow"]
        [[policy]]
        name = "narrow"
        document = '''{{"Version":"1","Statement":[
            {{"Effect":"Allow","Action":["ehpc:GetImage","ehpc:RemoveImage","ehpc:SynchronizeApp"],"Resource":"acs:ehpc:*:*:app/gromacs-*"}},
            {{"Effect":"Deny","Action":"ehpc:RemoveImage","Resource":"*"}}]}}'''
        "#
    );
    let running = site.start_as(Role::Server).await;
    for name in ["gromacs-1", "lammps-1"] {
        running.add(name, &[noise(10, 1)]).await;
    }
    let mut images = images_client(running.address, Some(NARROW)).await;
    images
        .get_image(GetImageRequest { image_id: "gromacs-1".into(), ..Default::default() })
        .await
        .expect("it is allowed");
    for image_id in ["lammps-1", "nobody-knows-it"] {
        let refused = images
            .get_image(GetImageRequest { image_id: image_id.into(), ..Default::default() })
            .await
            .expect_err("not allowed");
        let refused = refusal::read(&refused);
        refused.is(Code::PermissionDenied, "NoPermission", 403);
        assert!(refused.message.contains(&format!("acs:ehpc:*:*:app/{image_id}")), "{}", refused.message);
    }
    let refused = images.remove_image(RemoveImageRequest { image_id: "gromacs-1".into(), ..Default::default() }).await;
    let refused = refusal::read(&refused.expect_err("it is denied"));
    assert!(refused.message.contains("Statement[1] of narrow denies it"), "{}", refused.message);
    // SynchronizeApp is granted on all resources or not at all.
    let refused = app_sync(running.address, Some(NARROW)).await.synchronize_app(ask("gromacs-1", &[])).await;
    refusal::read(&refused.expect_err("narrower than all")).is(Code::PermissionDenied, "NoPermission", 403);
    running.stop().await;
}

/// A golden list: a new method must be added here, with its action.
#[test]
fn every_method_asks_for_its_action() {
    let contract = Contract::load().expect("the contract");
    let mut actions: Vec<_> = contract.authorizations.iter().map(|(path, row)| (path, row.action.as_str())).collect();
    actions.sort_unstable();
    assert_eq!(
        actions,
        [
            ("/appferry.v1.AppSyncService/CancelSynchronization", "ehpc:CancelSynchronization"),
            ("/appferry.v1.AppSyncService/GetSynchronization", "ehpc:GetSynchronization"),
            ("/appferry.v1.AppSyncService/ListSynchronizations", "ehpc:ListSynchronizations"),
            ("/appferry.v1.AppSyncService/SynchronizeApp", "ehpc:SynchronizeApp"),
            ("/appferry.v1.AppSyncService/WatchSynchronization", "ehpc:WatchSynchronization"),
            ("/appferry.v1.ImageService/AddImage", "ehpc:AddImage"),
            ("/appferry.v1.ImageService/GetAppVersions", "ehpc:GetAppVersions"),
            ("/appferry.v1.ImageService/GetImage", "ehpc:GetImage"),
            ("/appferry.v1.ImageService/ListImages", "ehpc:ListImages"),
            ("/appferry.v1.ImageService/ListRegions", "ehpc:ListRegions"),
            ("/appferry.v1.ImageService/RemoveImage", "ehpc:RemoveImage"),
            ("/appferry.v1.ImageService/VerifyImage", "ehpc:VerifyImage"),
            ("/google.longrunning.Operations/CancelOperation", "ehpc:CancelSynchronization"),
            ("/google.longrunning.Operations/GetOperation", "ehpc:GetSynchronization"),
            ("/google.longrunning.Operations/ListOperations", "ehpc:ListSynchronizations"),
            ("/google.longrunning.Operations/WaitOperation", "ehpc:WatchSynchronization"),
        ]
    );
}
