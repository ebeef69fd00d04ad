//! `google.longrunning.Operations`: the same synchronizations, for generic clients.

use std::time::{Duration, Instant};

use appferry::{
    app::Role,
    contract::{
        longrunning::{
            CancelOperationRequest, GetOperationRequest, ListOperationsRequest, Operation, WaitOperationRequest,
            operation::Result as Ending, operations_client::OperationsClient,
        },
        v1::{ErrorDetail, Synchronization, SynchronizationState},
    },
};
use prost::Message as _;
use tonic::{Code, codegen::InterceptedService, transport::Channel};

use crate::harness::{
    images::noise,
    python::python,
    refusal,
    site::{self, READER, Running, Site, Token},
};

type Operations = OperationsClient<InterceptedService<Channel, Token>>;

async fn operations(running: &Running, token: &str) -> Operations {
    OperationsClient::with_interceptor(running.channel().await, Token::of(token))
}

fn name(id: &str) -> String {
    format!("operations/{id}")
}

/// Returns the metadata of an operation, whose state must be consistent with the operation's.
fn synchronization(operation: &Operation) -> Synchronization {
    let metadata = operation.metadata.as_ref().expect("metadata");
    assert_eq!(metadata.type_url, "type.googleapis.com/appferry.v1.Synchronization");
    let found = Synchronization::decode(&*metadata.value).expect("a synchronization");
    assert_eq!(operation.name, name(&found.request_id));
    assert_eq!(operation.done, found.state() != SynchronizationState::Running);
    assert_eq!(operation.result.is_some(), operation.done);
    found
}

async fn wait(client: &mut Operations, id: &str, timeout: Option<Duration>) -> Operation {
    let timeout = timeout.map(|timeout| prost_types::Duration::try_from(timeout).expect("a duration"));
    client.wait_operation(WaitOperationRequest { name: name(id), timeout }).await.expect("it is answered").into_inner()
}

#[tokio::test]
async fn an_operation_is_waited_for_and_ends_with_the_synchronization() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &["cn-beijing", "cn-shanghai"]).await.expect("it is accepted");
    let mut client = operations(&running, site::ADMIN).await;
    let done = wait(&mut client, &id, None).await;
    let result = synchronization(&done);
    assert_eq!((result.state(), &result.app_id), (SynchronizationState::Succeeded, &app));
    assert!(matches!(&done.result, Some(Ending::Response(response)) if Some(response) == done.metadata.as_ref()));
    let got = client.get_operation(GetOperationRequest { name: name(&id) }).await.expect("it is known").into_inner();
    assert_eq!(got, done);
    running.stop().await;
}

#[tokio::test]
async fn whoever_waits_is_answered_before_the_deadline_and_when_the_service_stops() {
    let running = Site::new().start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let mut client = operations(&running, site::ADMIN).await;
    // The wait ends after the timeout that the caller asked for, and before the call's deadline.
    let began = Instant::now();
    let open = wait(&mut client, &id, Some(Duration::from_millis(300))).await;
    assert!(!open.done && (300..5_000).contains(&began.elapsed().as_millis()), "{:?}: {open:?}", began.elapsed());
    let mut request = tonic::Request::new(WaitOperationRequest { name: name(&id), timeout: None });
    request.set_timeout(Duration::from_secs(5));
    let open = client.wait_operation(request).await.expect("it is answered before its deadline").into_inner();
    assert_eq!(synchronization(&open).state(), SynchronizationState::Running);
    let negative = prost_types::Duration { seconds: -1, nanos: 0 };
    let refused = client
        .wait_operation(WaitOperationRequest { name: name(&id), timeout: Some(negative) })
        .await
        .expect_err("a negative time");
    refusal::read(&refused).is(Code::InvalidArgument, "InvalidParams", 403);
    // The wait also ends when the service shuts down.
    let (mut waiter, waited) = (client.clone(), id.clone());
    let waiting = tokio::spawn(async move { wait(&mut waiter, &waited, None).await });
    tokio::task::yield_now().await;
    // This call follows the wait on the same connection: once it is answered, the wait is in progress.
    client.get_operation(GetOperationRequest { name: name(&id) }).await.expect("it is known");
    running.stop().await;
    assert!(!waiting.await.expect("it ends").done);
}

#[tokio::test]
async fn a_canceled_operation_and_a_failed_one_end_with_errors() {
    let running = Site::new().start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let mut client = operations(&running, site::ADMIN).await;
    client.cancel_operation(CancelOperationRequest { name: name(&id) }).await.expect("it is canceled");
    let canceled = wait(&mut client, &id, None).await;
    assert_eq!(synchronization(&canceled).state(), SynchronizationState::Canceled);
    assert!(matches!(&canceled.result, Some(Ending::Error(error)) if error.code == Code::Cancelled as i32));

    let site = running.stop().await;
    // Puts a file in place of a region's directory.
    std::fs::remove_dir_all(site.region("cn-beijing")).ok();
    std::fs::write(site.region("cn-beijing"), "not a directory").expect("it is written");
    let running = site.start().await;
    let id = running.synchronize(&app, &["cn-beijing", "cn-shanghai"]).await.expect("it is accepted");
    let mut client = operations(&running, site::ADMIN).await;
    let failed = wait(&mut client, &id, None).await;
    assert_eq!(synchronization(&failed).state(), SynchronizationState::Failed);
    let Some(Ending::Error(error)) = &failed.result else { panic!("{failed:?}") };
    assert_eq!(error.code, Code::Internal as i32);
    assert!(error.message.contains("cn-beijing"), "{error:?}");
    let detail = error.details.iter().find(|any| any.type_url.ends_with("/appferry.v1.ErrorDetail")).expect("a detail");
    let detail = ErrorDetail::decode(&*detail.value).expect("a detail");
    assert_eq!((detail.region_ids, detail.request_id), (vec!["cn-beijing".to_owned()], id));
    running.stop().await;
}

#[tokio::test]
async fn operations_are_listed_by_pages_and_filters() {
    let running = Site::new().start_as(Role::Server).await;
    let (one, other) = (running.add("a", &[noise(10, 1)]).await, running.add("b", &[noise(10, 2)]).await);
    let mut ids = Vec::new();
    for (app, region) in [(&one, "cn-beijing"), (&other, "cn-beijing"), (&one, "cn-shanghai")] {
        ids.insert(0, name(&running.synchronize(app, &[region]).await.expect("it is accepted")));
    }
    let mut client = operations(&running, site::ADMIN).await;
    client.cancel_operation(CancelOperationRequest { name: ids[2].clone() }).await.expect("it is canceled");
    let mut list = async |filter: &str, token: &str| {
        let (filter, page_token) = (filter.to_owned(), token.to_owned());
        let request = ListOperationsRequest { name: "operations".into(), filter, page_size: 2, page_token };
        let page = client.list_operations(request).await?.into_inner();
        let names: Vec<String> = page.operations.into_iter().map(|operation| operation.name).collect();
        Ok::<_, tonic::Status>((names, page.next_page_token))
    };
    let (first, token) = list("", "").await.expect("a page");
    let (second, end) = list("", &token).await.expect("a page");
    assert_eq!(([first, second].concat(), end.as_str()), (ids.clone(), ""));
    for (filter, expected) in [
        ("done = false", vec![&ids[0], &ids[1]]),
        ("metadata.state=CANCELED", vec![&ids[2]]),
        (&format!("metadata.app_id = \"{other}\""), vec![&ids[1]]),
        (&format!("metadata.app_id = \"{one}\" AND done = false"), vec![&ids[0]]),
    ] {
        let (names, _) = list(filter, "").await.expect(filter);
        assert_eq!(names.iter().collect::<Vec<_>>(), expected, "{filter}");
    }
    let refused = refusal::read(&list("done = maybe", "").await.expect_err("no filter"));
    refused.is(Code::InvalidArgument, "InvalidParams", 403);
    assert!(refused.message.contains("filter") && refused.message.contains("maybe"), "{}", refused.message);
    running.stop().await;
}

#[tokio::test]
async fn operations_are_asked_for_by_who_may_ask_for_synchronizations() {
    let running = Site::new().start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let mut reader = operations(&running, READER).await;
    let refused = reader.cancel_operation(CancelOperationRequest { name: name(&id) }).await.expect_err("not allowed");
    let refused = refusal::read(&refused);
    refused.is(Code::PermissionDenied, "NoPermission", 403);
    assert!(refused.message.contains("ehpc:CancelSynchronization"), "{}", refused.message);
    for unknown in ["operations/896D338C-E4F4-41EC-A154-D605E5DE42F1", "jobs/1"] {
        let mut client = operations(&running, site::ADMIN).await;
        let refused = client.get_operation(GetOperationRequest { name: unknown.into() }).await.expect_err(unknown);
        let expected = if unknown.starts_with("jobs") { Code::InvalidArgument } else { Code::NotFound };
        assert_eq!(refused.code(), expected, "{refused:?}");
    }
    running.stop().await;
}

/// Uses Google's generic client for long-running operations, which has no code for appferry.
#[tokio::test]
async fn a_generic_client_follows_a_synchronization() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let input = serde_json::json!({ "address": running.address, "token": site::ADMIN, "name": name(&id) });
    let result = python(&["tests/it/harness/longrunning.py"], input.to_string()).await;
    let result: serde_json::Value = serde_json::from_slice(&result).expect("JSON");
    assert_eq!(
        result,
        serde_json::json!({ "done": true, "listed": [name(&id)], "type": "appferry.v1.Synchronization" })
    );
    running.stop().await;
}
