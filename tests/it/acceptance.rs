//! Semantics of SynchronizeApp: which regions are started, joined, skipped or rejected, and the effect of a repeated
//! call.

use appferry::{
    app::Role,
    contract::v1::{
        CancelSynchronizationRequest, ListSynchronizationsRequest, RegionState, Synchronization, SynchronizationState,
        SynchronizeAppRequest,
    },
};
use tonic::Code;

use crate::harness::{
    images::{self, noise},
    refusal,
    site::{HOME, Running, Site, TARGETS, ask},
};

fn states(synchronization: &Synchronization) -> Vec<(&str, RegionState)> {
    synchronization.regions.iter().map(|r| (r.region_id.as_str(), r.state())).collect()
}

/// Starts a service without workers: accepted replicas stay PENDING.
async fn accepting() -> Running {
    Site::new().start_as(Role::Server).await
}

async fn count(running: &Running) -> usize {
    let mut client = running.app_sync().await;
    let request = ListSynchronizationsRequest::default();
    client.list_synchronizations(request).await.expect("it is answered").into_inner().synchronizations.len()
}

#[tokio::test]
async fn nothing_named_and_all_mean_every_other_region() {
    let running = accepting().await;
    for (app, regions) in [("a", &[][..]), ("b", &["all"]), ("c", &["all", "cn-beijing", "all"])] {
        let app = running.add(app, &[noise(10, 1)]).await;
        let id = running.synchronize(&app, regions).await.expect("it is accepted");
        assert_eq!(id, id.to_uppercase());
        let accepted = running.get(&id).await;
        assert_eq!(states(&accepted), TARGETS.map(|region| (region, RegionState::Pending)));
        assert_eq!((accepted.app_id.as_str(), accepted.principal.as_str()), (app.as_str(), "acs:ram::1234:user/admin"));
        assert_eq!(accepted.state(), SynchronizationState::Running);
    }
    running.stop().await;
}

#[tokio::test]
async fn regions_named_twice_count_once() {
    let running = accepting().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &["cn-shanghai", "cn-beijing", "cn-shanghai"]).await.expect("it is accepted");
    let pending = RegionState::Pending;
    assert_eq!(states(&running.get(&id).await), [("cn-beijing", pending), ("cn-shanghai", pending)]);
    running.stop().await;
}

#[tokio::test]
async fn an_explicit_target_that_has_the_image_refuses_the_whole_call() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let refused = running.synchronize(&app, &["cn-shanghai", HOME]).await.expect_err("the home has it");
    let refused = refusal::read(&refused);
    refused.is(Code::AlreadyExists, "ImageAlreadyExists", 400);
    assert_eq!(refused.detail.region_ids, [HOME]);
    assert_eq!(count(&running).await, 0, "nothing is queued");

    let id = running.synchronize(&app, &["cn-shanghai"]).await.expect("it is accepted");
    assert_eq!(running.finished(&id).await.state(), SynchronizationState::Succeeded);
    let refused = running.synchronize(&app, &["cn-beijing", "cn-shanghai", HOME]).await.expect_err("two have it");
    let refused = refusal::read(&refused);
    assert_eq!(refused.detail.region_ids, [HOME, "cn-shanghai"]);
    assert!(refused.message.contains("cn-hangzhou, cn-shanghai"), "{}", refused.message);
    assert_eq!(count(&running).await, 1, "nothing is queued");
    assert!(!running.site.image("cn-beijing", "a").exists());
    running.stop().await;
}

#[tokio::test]
async fn all_leaves_out_what_is_there_and_succeeds_at_once_if_nothing_is_left() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &["cn-shanghai"]).await.expect("it is accepted");
    running.finished(&id).await;
    let id = running.synchronize(&app, &["all"]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    let available = RegionState::Available;
    assert_eq!(states(&done), [("cn-beijing", available), ("cn-shenzhen", available)]);

    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let done = running.get(&id).await;
    assert_eq!((done.state(), done.regions.len()), (SynchronizationState::Succeeded, 0));
    assert!(done.finish_time.is_some());
    running.stop().await;
}

#[tokio::test]
async fn a_copy_that_is_underway_is_joined_and_ends_for_everybody() {
    let site = accepting().await;
    let app = site.add("a", &[noise(1_000, 1)]).await;
    let first = site.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let second = site.synchronize(&app, &[]).await.expect("it is accepted");
    assert_ne!(first, second);
    let running = site.stop().await.start().await;
    for id in [&first, &second] {
        let done = running.finished(id).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded);
        assert!(done.regions.iter().all(|region| region.attempt == 1), "{done:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn hundreds_of_calls_that_join_one_copy_all_end_with_it() {
    let site = accepting().await;
    let app = site.add("a", &[noise(1_000, 1)]).await;
    let mut client = site.app_sync().await;
    let mut ids = Vec::new();
    for _ in 0..700 {
        ids.push(client.synchronize_app(ask(&app, &["cn-beijing"])).await.expect("accepted").into_inner().request_id);
    }
    let running = site.stop().await.start().await;
    running.finished(&ids[0]).await;
    for id in [&ids[1], &ids[699]] {
        assert_eq!(running.get(id).await.state(), SynchronizationState::Succeeded);
    }
    let mut client = running.app_sync().await;
    let request = ListSynchronizationsRequest { state: SynchronizationState::Running.into(), ..Default::default() };
    let left = client.list_synchronizations(request).await.expect("it is answered").into_inner().synchronizations;
    assert_eq!(left, []);
    running.stop().await;
}

#[tokio::test]
async fn a_canceled_copy_starts_afresh_when_it_is_asked_for_again() {
    let site = accepting().await;
    let app = site.add("a", &[noise(1_000, 1)]).await;
    let id = site.synchronize(&app, &[]).await.expect("it is accepted");
    let request = CancelSynchronizationRequest { request_id: id.clone() };
    let mut client = site.app_sync().await;
    let canceled = client.cancel_synchronization(request.clone()).await.expect("it is canceled").into_inner();
    let canceled = canceled.synchronization.expect("a synchronization");
    assert_eq!(canceled.state(), SynchronizationState::Canceled);
    assert_eq!(states(&canceled), TARGETS.map(|region| (region, RegionState::Canceled)));
    let again = client.cancel_synchronization(request).await.expect("it changes nothing").into_inner();
    assert_eq!(again.synchronization, Some(canceled.clone()));

    let second = site.synchronize(&app, &["cn-shanghai"]).await.expect("it is accepted");
    let running = site.stop().await.start().await;
    let done = running.finished(&second).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded);
    assert_eq!(running.get(&id).await, canceled, "how it ended stays as it was");
    running.stop().await;
}

#[tokio::test]
async fn a_copy_that_somebody_else_waits_for_goes_on_when_one_caller_cancels() {
    let site = accepting().await;
    let app = site.add("a", &[noise(1_000, 1)]).await;
    let first = site.synchronize(&app, &["cn-beijing", "cn-shanghai"]).await.expect("it is accepted");
    let second = site.synchronize(&app, &["cn-shanghai"]).await.expect("it is accepted");
    let request = CancelSynchronizationRequest { request_id: first.clone() };
    site.app_sync().await.cancel_synchronization(request).await.expect("it is canceled");
    let running = site.stop().await.start().await;
    assert_eq!(running.finished(&second).await.state(), SynchronizationState::Succeeded);
    let canceled = running.get(&first).await;
    assert_eq!(canceled.state(), SynchronizationState::Canceled);
    assert!(!images::visible(&running.site.image("cn-beijing", "a")));
    assert!(images::visible(&running.site.image("cn-shanghai", "a")));
    running.stop().await;
}

#[tokio::test]
async fn a_client_token_makes_a_repeat_the_same_call() {
    let running = accepting().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let mut client = running.app_sync().await;
    let request = |regions: &[&str]| SynchronizeAppRequest { client_token: "build-7".to_owned(), ..ask(&app, regions) };
    let mut together = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (mut client, request) = (client.clone(), request(&["cn-beijing", "cn-shanghai"]));
        together.spawn(async move { client.synchronize_app(request).await.expect("accepted").into_inner().request_id });
    }
    let ids: std::collections::BTreeSet<_> = together.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 1, "one call, however often it is made");
    // Requests that differ only in the order of the regions have the same parameters.
    let again = client.synchronize_app(request(&["cn-shanghai", "cn-beijing"])).await.expect("accepted").into_inner();
    assert!(ids.contains(&again.request_id));
    assert_eq!(count(&running).await, 1);

    let refused = client.synchronize_app(request(&["cn-beijing"])).await.expect_err("other parameters");
    refusal::read(&refused).is_invalid("client_token", &[&again.request_id]);
    running.stop().await;
}

#[tokio::test]
async fn lists_are_paged_newest_first_and_filtered() {
    let running = accepting().await;
    let (a, b) = (running.add("a", &[noise(10, 1)]).await, running.add("b", &[noise(10, 2)]).await);
    let mut ids = Vec::new();
    for n in 0..25 {
        ids.push(running.synchronize(if n % 5 == 0 { &b } else { &a }, &[]).await.expect("it is accepted"));
    }
    ids.reverse();
    let mut client = running.app_sync().await;
    let cancel = CancelSynchronizationRequest { request_id: ids[3].clone() };
    // The copy itself continues, because the other synchronizations wait for the same replica.
    client.cancel_synchronization(cancel).await.expect("it is canceled");

    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListSynchronizationsRequest { page_size: 10, page_token, ..Default::default() };
        let page = client.list_synchronizations(request).await.expect("a page").into_inner();
        assert!(page.synchronizations.len() <= 10);
        all.extend(page.synchronizations.into_iter().map(|s| s.request_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(all, ids);

    let filtered = async |app_id: &str, state: SynchronizationState| {
        let request =
            ListSynchronizationsRequest { app_id: app_id.to_owned(), state: state.into(), ..Default::default() };
        let mut client = client.clone();
        client.list_synchronizations(request).await.expect("a page").into_inner().synchronizations.len()
    };
    assert_eq!(filtered("b", SynchronizationState::Unspecified).await, 5);
    assert_eq!(filtered("", SynchronizationState::Canceled).await, 1);
    assert_eq!(filtered("a", SynchronizationState::Running).await, 19);
    assert_eq!(filtered("", SynchronizationState::Failed).await, 0);
    running.stop().await;
}

#[tokio::test]
async fn one_refused_call_of_a_group_costs_its_neighbours_nothing() {
    let running = accepting().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let mut client = running.app_sync().await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..60 {
        let (mut client, app) = (client.clone(), app.clone());
        let app = if n % 3 == 0 { "nobody-knows-it".to_owned() } else { app };
        calls.spawn(async move { client.synchronize_app(ask(&app, &[])).await.map_err(|s| s.code()) });
    }
    let answers = calls.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 40);
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Err(Code::NotFound))).count(), 20);
    let request = ListSynchronizationsRequest { page_size: 1_000, ..Default::default() };
    let listed = client.list_synchronizations(request).await.expect("a page").into_inner();
    assert_eq!(listed.synchronizations.len(), 40);
    running.stop().await;
}
