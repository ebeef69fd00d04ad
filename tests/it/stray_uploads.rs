//! Uploads that a registry did not abort because it hung, and that no copy resumes: they are aborted when the registry
//! responds again.

use std::time::Duration;

use appferry::contract::v1::{CancelSynchronizationRequest, SynchronizationState};
use http::{Method, StatusCode};

use crate::harness::{
    images::noise,
    proxy::{Action, Proxy, ReceivedRequest},
    quirks::{SPECIFIED, server::QuirkyRegistry},
    site::{Running, Site, finished_within},
    until,
};

const TARGET: &str = "cn-beijing";
const MIB: usize = 1 << 20;

fn aborts(seen: &ReceivedRequest) -> bool {
    seen.method == Method::DELETE && seen.path.contains("/blobs/uploads/")
}

/// Starts a service whose leader runs the maintenance at short intervals.
async fn to(proxy: &Proxy) -> Running {
    let mut site = Site::new().with(TARGET, proxy.store("apps"), "");
    "[housekeeping]\ninterval_ms = 100\n".clone_into(&mut site.more);
    site.start().await
}

/// No journal has this upload: the copy was canceled while its blob was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_a_canceled_copy_is_aborted_when_the_registry_answers_again() {
    let registry = QuirkyRegistry::start(SPECIFIED).await;
    let proxy =
        Proxy::start(
            registry.address,
            |seen: &ReceivedRequest| {
                if seen.writes_blob() || aborts(seen) { Action::Hang } else { Action::Pass }
            },
        )
        .await;
    let running = to(&proxy).await;
    let app = running.add("a", &[noise(3 * MIB, 1)]).await;
    let request = running.synchronize(&app, &[TARGET]).await.expect("it is accepted");
    let seen = async |is: fn(&ReceivedRequest) -> bool| proxy.requests().iter().any(is).then_some(());
    until("the bytes", async || seen(ReceivedRequest::writes_blob).await).await;
    let cancel = CancelSynchronizationRequest { request_id: request.clone() };
    running.app_sync().await.cancel_synchronization(cancel).await.expect("it is canceled");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Canceled);
    until("the first try", async || seen(aborts).await).await;
    assert!(registry.unfinished() > 0);
    // Requests that hang already keep hanging.
    proxy.rule(|_: &ReceivedRequest| Action::Pass);
    until("nothing to be left", async || (registry.unfinished() == 0).then_some(())).await;
    running.stop().await;
}

/// The journal had this upload until another one replaced it, because the registry had reported it as gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_another_one_followed_is_aborted_when_the_registry_answers_again() {
    let registry = QuirkyRegistry::start(SPECIFIED).await;
    let (mut refused, mut hung) = (false, false);
    let proxy = Proxy::start(registry.address, move |seen: &ReceivedRequest| {
        if aborts(seen) && !std::mem::replace(&mut hung, true) {
            return Action::Hang;
        }
        let refuses = seen.method == Method::PATCH && !std::mem::replace(&mut refused, true);
        if refuses { Action::Answer(StatusCode::GONE, Vec::new(), String::new()) } else { Action::Pass }
    })
    .await;
    let running = to(&proxy).await;
    let app = running.add("a", &[noise(66 * MIB, 1)]).await;
    let request = running.synchronize(&app, &[TARGET]).await.expect("it is accepted");
    // A debug build is slow at copying 66 MiB while other tests run.
    let done = finished_within(&mut running.app_sync().await, &request, Duration::from_secs(300)).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    until("nothing to be left", async || (registry.unfinished() == 0).then_some(())).await;
    assert!(proxy.requests().iter().filter(|seen| aborts(seen)).count() >= 2);
    running.stop().await;
}
