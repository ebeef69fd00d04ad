//! Unusual responses of registries: transient failures are retried, permanent ones fail soon, and every form that the
//! RFCs allow is understood.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use appferry::contract::v1::{RegionState, Synchronization, SynchronizationState};
use http::{Method, StatusCode};

use crate::harness::{
    images::noise,
    proxy::{Action, Proxy, ReceivedRequest},
    quirks::{SPECIFIED, server::QuirkyRegistry},
    site::{HOME, Running, Site, container, register},
};

const TARGET: &str = "cn-beijing";

/// A source registry with an image and a target registry, each behind a proxy.
struct Fixture {
    running: Running,
    app: String,
    /// The image's tag at the source.
    tag: String,
    source: Proxy,
    target: Proxy,
    _registries: [QuirkyRegistry; 2],
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts the registries and a service, with additional keys in the configuration of the target.
    async fn start_with(keys: &str) -> Self {
        let (from, to) = (QuirkyRegistry::start(SPECIFIED).await, QuirkyRegistry::start(SPECIFIED).await);
        let running = Site::new().with(TARGET, from.store("apps"), "").start().await;
        let tag = running.add("a", &[noise(300_000, 1)]).await;
        let request = running.synchronize(&tag, &[TARGET]).await.expect("it is accepted");
        assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);
        running.stop().await;
        let source = Proxy::start(from.address, |_| Action::Pass).await;
        let target = Proxy::start(to.address, |_| Action::Pass).await;
        let mut site = Site::new().with(HOME, source.store("apps"), "").with(TARGET, target.store("apps"), keys);
        site.worker = site.worker.replace("attempts = 3", "attempts = 6");
        let running = site.start().await;
        let app = register(&mut running.images().await, &tag).await;
        Self { running, app, tag, source, target, _registries: [from, to] }
    }

    async fn carry(&self) -> Synchronization {
        let request = self.running.synchronize(&self.app, &[TARGET]).await.expect("it is accepted");
        self.running.finished(&request).await
    }

    async fn arrives(self, what: &str) {
        let done = self.carry().await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{what}: {done:?}");
        self.running.stop().await;
    }
}

fn answer(status: u16, headers: Vec<(&'static str, String)>, body: &str) -> Action {
    Action::Answer(StatusCode::from_u16(status).expect("a status"), headers, body.to_owned())
}

/// A predicate on requests.
type Matches = fn(&ReceivedRequest) -> bool;

/// Applies `action` to the first request that matches, and passes the others.
fn once(matches: Matches, action: Action) -> impl FnMut(&ReceivedRequest) -> Action + Send + 'static {
    let mut action = Some(action);
    move |request| if matches(request) { action.take().unwrap_or(Action::Pass) } else { Action::Pass }
}

fn begins(request: &ReceivedRequest) -> bool {
    request.method == Method::POST && request.path.contains("/blobs/uploads/")
}

fn reads_manifest(request: &ReceivedRequest) -> bool {
    request.method == Method::GET && request.path.contains("/manifests/sha256:")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_once_is_tried_again() {
    let denied = || answer(403, vec![], r#"{"errors":[{"code":"DENIED","message":"denied"}]}"#);
    let sources: [(&str, Matches, Action); 5] = [
        ("a blob that is damaged on its way", ReceivedRequest::reads_blob, Action::CorruptAnswer(1_000)),
        ("a blob that is not there yet", ReceivedRequest::reads_blob, answer(404, vec![], "")),
        ("a manifest that is damaged on its way", reads_manifest, Action::CorruptAnswer(5)),
        ("a manifest that is not there yet", reads_manifest, answer(404, vec![], "")),
        ("a blob that is forbidden for a moment", ReceivedRequest::reads_blob, denied()),
    ];
    for (what, matches, action) in sources {
        let fixture = Fixture::start().await;
        fixture.source.rule(once(matches, action));
        fixture.arrives(what).await;
    }
    let fixture = Fixture::start().await;
    fixture.target.rule(once(begins, denied()));
    fixture.arrives("an upload that is forbidden for a moment").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stays_wrong_is_given_up_after_a_few_tries() {
    for (action, attempts) in
        [(Action::CorruptAnswer(1_000), 3), (answer(404, vec![], ""), 3), (answer(403, vec![], "denied"), 1)]
    {
        let fixture = Fixture::start().await;
        let forever = action.clone();
        fixture
            .source
            .rule(move |request: &ReceivedRequest| if request.reads_blob() { forever.clone() } else { Action::Pass });
        let done = fixture.carry().await;
        assert_eq!((done.regions[0].state(), done.regions[0].attempt), (RegionState::Failed, attempts), "{action:?}");
        fixture.running.stop().await;
    }
}

/// The image is read by digest, whatever its tag refers to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_whose_tag_is_gone_is_copied_by_its_digest() {
    let fixture = Fixture::start().await;
    let tag = format!("/manifests/{}", fixture.tag);
    fixture.source.rule(
        move |request: &ReceivedRequest| {
            if request.path.ends_with(&tag) { answer(404, vec![], "") } else { Action::Pass }
        },
    );
    fixture.arrives("a tag that was deleted").await;
}

/// `GET` may find an image that `HEAD` does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_head_does_not_find_is_registered() {
    let fixture = Fixture::start().await;
    fixture.source.rule(
        |request: &ReceivedRequest| if request.method == Method::HEAD { answer(404, vec![], "") } else { Action::Pass },
    );
    let url = format!("{}/apps/images:{}", fixture.source.address, fixture.tag);
    fixture.running.images().await.add_image(container("b", &url)).await.expect("it is registered");
    fixture.arrives("an image that HEAD does not find").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_told_by_a_date_is_kept() {
    let fixture = Fixture::start().await;
    let refused = Arc::new(AtomicUsize::new(0));
    let (counted, mut until) = (Arc::clone(&refused), None);
    fixture.target.rule(move |request: &ReceivedRequest| {
        let until = *until.get_or_insert_with(|| Instant::now() + Duration::from_secs(2));
        if !begins(request) || Instant::now() >= until {
            return Action::Pass;
        }
        counted.fetch_add(1, Ordering::Relaxed);
        // The clock of this server is years behind.
        let date = |second: u32| format!("Fri, 27 Nov 2020 03:00:0{second} GMT");
        answer(429, vec![("date", date(0)), ("retry-after", date(3))], "")
    });
    fixture.arrives("a wait").await;
    // At most one upload of the layer and one of the configuration were refused.
    assert!((1..=2).contains(&refused.load(Ordering::Relaxed)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_range_than_was_asked_for_is_not_taken_for_it() {
    let fixture = Fixture::start().await;
    let mut readings = 0;
    fixture.source.rule(move |request: &ReceivedRequest| {
        let large = request.reads_blob();
        readings += usize::from(large);
        match readings {
            1 | 2 if large => Action::CutAnswer(100_000),
            3 if large => {
                let range = vec![("content-range", "bytes 0-4/300000".to_owned())];
                answer(206, range, "wrong")
            }
            _ => Action::Pass,
        }
    });
    let done = fixture.carry().await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert_eq!(done.regions[0].attempt, 1, "it is noticed at once: {done:?}");
    fixture.running.stop().await;
}

/// Requires a token that is issued at `realm`. `token` handles the requests to the token server.
fn guarded(
    realm: String,
    mut token: impl FnMut(&ReceivedRequest) -> Option<Action> + Send + 'static,
) -> impl FnMut(&ReceivedRequest) -> Action + Send + 'static {
    move |request: &ReceivedRequest| {
        if let Some(action) = token(request) {
            return action;
        }
        if request.authorization.as_deref() == Some("Bearer the-token") {
            return Action::Pass;
        }
        // One header field has two challenges, as proxies join them.
        let ways = format!(r#"Basic realm="a, b", Bearer realm="{realm}",service="registry""#);
        answer(401, vec![("www-authenticate", ways)], "")
    }
}

const TOKEN: &str = r#"{"token":"","access_token":"the-token","expires_in":"300"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_realm_that_redirects_is_followed_and_shown_no_secret_elsewhere() {
    let password = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(password.path(), "the-stores-secret").expect("it is written");
    let elsewhere = Proxy::start(([127, 0, 0, 1], 9).into(), |_| answer(200, vec![], TOKEN)).await;
    let also = elsewhere.address;
    let keys =
        format!("username = \"bob\"\npassword_file = \"{}\"\nalso_hosts = [\"{also}\"]", password.path().display());
    // A redirect to the same server receives the credentials.
    let fixture = Fixture::start_with(&keys).await;
    let realm = format!("http://{}/token", fixture.target.address);
    fixture.target.rule(guarded(realm, |request| match request.path.split('?').next()? {
        "/token" => Some(answer(308, vec![("location", request.path.replacen("/token", "/token/", 1))], "")),
        "/token/" if request.authorization.as_deref().is_some_and(|basic| basic.starts_with("Basic ")) => {
            assert!(request.path.matches("scope=").count() == 1, "{}", request.path);
            Some(answer(200, vec![], TOKEN))
        }
        "/token/" => Some(answer(401, vec![], "")),
        _ => None,
    }));
    fixture.arrives("a realm that redirects").await;
    assert_eq!(elsewhere.requests().len(), 0);

    // A redirect to another server does not receive the credentials.
    let fixture = Fixture::start_with(&keys).await;
    let realm = format!("http://{}/token", fixture.target.address);
    fixture.target.rule(guarded(realm, move |request| {
        let to = || vec![("location", format!("http://{also}/token"))];
        request.path.starts_with("/token").then(|| answer(302, to(), ""))
    }));
    fixture.arrives("a realm that redirects to another server").await;
    let requests = elsewhere.requests();
    assert!(!requests.is_empty() && requests.iter().all(|request| request.authorization.is_none()), "{requests:?}");

    // Without permission in the configuration, the redirect is not followed.
    let fixture = Fixture::start_with("").await;
    let realm = format!("http://{}/token", fixture.target.address);
    let before = elsewhere.requests().len();
    fixture.target.rule(guarded(realm, move |request| {
        let to = || vec![("location", format!("http://{also}/token"))];
        request.path.starts_with("/token").then(|| answer(302, to(), ""))
    }));
    let done = fixture.carry().await;
    assert_eq!(done.regions[0].state(), RegionState::Failed, "{done:?}");
    assert_eq!(elsewhere.requests().len(), before);
    fixture.running.stop().await;
}
