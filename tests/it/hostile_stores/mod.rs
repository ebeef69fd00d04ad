//! Hostile stores: whatever location a registry returns, the service contacts no unconfigured host and sends no
//! credential to another host.

mod at_rest;
mod challenges;
mod sizes;
mod texts;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use appferry::{
    domain::{Algorithm, Descriptor, ImageName},
    storage::{
        Chunk, Credentials, Error, Location, Memory, RegistryClient, RegistryStore, Result, Source as _, Stage,
        Store as _, ssrf_guard::Guard,
    },
};
use http::{Method, StatusCode};
use tokio::sync::mpsc;

use crate::harness::{
    address::free_address,
    proxy::{Action, Proxy, ReceivedRequest},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Starts a server that must not be contacted. Returns it with the number of requests that contained a credential.
async fn trap() -> (Proxy, Arc<AtomicUsize>) {
    let shown = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&shown);
    let trap = Proxy::start(free_address(), move |request: &ReceivedRequest| {
        if request.authorization.is_some() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        Action::Answer(StatusCode::OK, vec![], "blob".to_owned())
    })
    .await;
    (trap, shown)
}

fn answer(status: u16, headers: Vec<(&'static str, String)>, body: &str) -> Action {
    Action::Answer(StatusCode::from_u16(status).expect("a status"), headers, body.to_owned())
}

async fn hostile(rule: impl FnMut(&ReceivedRequest) -> Action + Send + 'static) -> Proxy {
    Proxy::start(free_address(), rule).await
}

fn store_with(store: &str, also_hosts: Vec<String>, guard: Guard) -> Result<RegistryStore> {
    let Ok(Location::Registry(location)) = store.parse() else { panic!("{store}") };
    let credentials = Credentials::Password { username: "bob".into(), password: "the-secret".into() };
    RegistryClient::new(location, credentials, also_hosts, None, guard).map(RegistryStore::new)
}

fn store(proxy: &Proxy) -> RegistryStore {
    store_with(&proxy.store("apps"), Vec::new(), Guard::new(true)).expect("a store")
}

fn name() -> ImageName {
    ImageName("a:1".into())
}

fn blob(content: &[u8]) -> Descriptor {
    let digest = Algorithm::Sha256.digest(content);
    Descriptor { media_type: "application/octet-stream".into(), digest, size: content.len() as u64 }
}

fn manifest(content: &[u8]) -> Descriptor {
    Descriptor { media_type: MANIFEST.into(), ..blob(content) }
}

fn stage() -> Stage {
    Stage::new(name(), 1, Arc::<Memory>::default())
}

fn elsewhere<T: std::fmt::Debug>(result: Result<T>, trap: &Proxy) {
    match result {
        Err(error @ Error::Elsewhere { .. }) => {
            let text = error.to_string();
            assert!(text.contains("also_hosts") && !text.contains("the-secret"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(trap.requests().len(), 0, "the host is not contacted");
}

#[tokio::test]
async fn a_realm_elsewhere_gets_no_credentials() {
    let (trap, _) = trap().await;
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"x\"", trap.address);
    let proxy = hostile(move |_| answer(401, vec![("www-authenticate", realm.clone())], "")).await;
    elsewhere(store(&proxy).root(&name()).await, &trap);
}

#[tokio::test]
async fn a_redirect_elsewhere_is_not_followed() {
    let (trap, _) = trap().await;
    let to = format!("http://{}/blob", trap.address);
    let proxy = hostile(move |_| answer(307, vec![("location", to.clone())], "")).await;
    elsewhere(store(&proxy).read_blob(&name(), &blob(b"blob"), 0, None).await.map(drop), &trap);
    elsewhere(store(&proxy).root(&name()).await, &trap);
}

#[tokio::test]
async fn an_upload_elsewhere_is_not_sent() {
    let (trap, _) = trap().await;
    let to = format!("http://{}/upload", trap.address);
    let proxy = hostile(move |_| answer(202, vec![("location", to.clone())], "")).await;
    let (sender, chunks) = mpsc::channel(2);
    sender.send(Chunk::Data("blob".into())).await.expect("there is space");
    sender.send(Chunk::End).await.expect("there is space");
    elsewhere(store(&proxy).write_blob(&stage(), &blob(b"blob"), 0, chunks).await, &trap);
}

#[tokio::test]
async fn a_page_elsewhere_is_not_read() {
    let (trap, _) = trap().await;
    let next = format!("<http://{}/more>; rel=\"next\"", trap.address);
    let kind = "application/vnd.oci.image.index.v1+json".to_owned();
    let proxy = hostile(move |_| {
        let headers = vec![("link", next.clone()), ("content-type", kind.clone())];
        answer(200, headers, r#"{"schemaVersion":2,"manifests":[]}"#)
    })
    .await;
    let listed = store(&proxy).referrers(&name(), blob(b"x").digest).await;
    elsewhere(listed.and_then(|listing| listing.and_then(|listing| listing.broken).map_or(Ok(()), Err)), &trap);
}

#[tokio::test]
async fn addresses_that_are_never_dialed_are_not_dialed_even_where_they_are_listed() {
    for to in ["169.254.169.254", "100.100.100.200", "[fe80::1]", "0.0.0.0"] {
        let location = format!("http://{to}/latest/meta-data");
        let proxy = hostile(move |_| answer(307, vec![("location", location.clone())], "")).await;
        let store = store_with(&proxy.store("apps"), vec![to.to_owned()], Guard::new(true)).expect("a store");
        let refused = store.read_blob(&name(), &blob(b"blob"), 0, None).await;
        assert!(matches!(refused, Err(Error::Forbidden { .. })), "{to}: {refused:?}");
    }
    for configured in ["registry+http://169.254.169.254/apps", "registry+https://[fd00:ec2::254]/apps"] {
        let refused = store_with(configured, Vec::new(), Guard::new(true));
        assert!(matches!(refused, Err(Error::Forbidden { .. })), "{configured}: {refused:?}");
    }
    let loopback = store_with("registry+http://127.0.0.1:1/apps", Vec::new(), Guard::new(false));
    assert!(matches!(loopback, Err(Error::Forbidden { .. })), "{loopback:?}");
}

/// A host name resolves to a public address when it is checked, and to the loopback address when it is dialed (DNS
/// rebinding).
#[tokio::test]
async fn a_name_that_is_bound_anew_is_not_dialed() {
    let (trap, _) = trap().await;
    let inward = trap.address;
    for addresses in [vec![inward], vec!["192.0.2.1:0".parse().expect("an address"), inward]] {
        let lookup = move |_: String| {
            let addresses = addresses.clone();
            Box::pin(async move { Ok(addresses) }) as futures_util::future::BoxFuture<'static, _>
        };
        let guard = Guard::with_lookup(false, Arc::new(lookup));
        let at = format!("registry+http://registry.example:{}/apps", inward.port());
        let store = store_with(&at, Vec::new(), guard).expect("it is ambiguous");
        let refused = store.root(&name()).await;
        assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
    }
    assert_eq!(trap.requests().len(), 0);
}

#[tokio::test]
async fn a_host_that_may_be_gone_to_is_shown_no_credentials() {
    let (trap, shown) = trap().await;
    let to = format!("http://{}/blob", trap.address);
    let proxy = hostile(move |request: &ReceivedRequest| {
        if request.authorization.is_none() {
            return answer(401, vec![("www-authenticate", "Basic realm=\"x\"".to_owned())], "");
        }
        answer(307, vec![("location", to.clone())], "")
    })
    .await;
    let also = vec![trap.address.to_string()];
    let store = store_with(&proxy.store("apps"), also, Guard::new(true)).expect("a store");
    let mut chunks = store.read_blob(&name(), &blob(b"blob"), 0, None).await.expect("it is redirected");
    assert_eq!(chunks.recv().await.expect("a piece").expect("bytes"), "blob");
    assert_eq!((trap.requests().len(), shown.load(Ordering::Relaxed)), (1, 0));
    assert!(proxy.requests().iter().any(|request| request.authorization.is_some()));
}

#[tokio::test]
async fn redirects_without_end_are_given_up() {
    let proxy = hostile(|_| answer(302, vec![("location", "again".to_owned())], "")).await;
    assert!(matches!(store(&proxy).root(&name()).await, Err(Error::Malformed { .. })));
    assert!(proxy.requests().len() <= 6);
}

#[tokio::test]
async fn what_is_too_large_is_not_read() {
    let large = "x".repeat(5 << 20);
    let proxy = hostile(move |request: &ReceivedRequest| {
        let kind = ("content-type", MANIFEST.to_owned());
        if request.method == Method::HEAD { answer(200, vec![kind], "") } else { answer(200, vec![kind], &large) }
    })
    .await;
    assert!(matches!(store(&proxy).root(&name()).await, Err(Error::Malformed { .. })));
    let refused = store(&proxy).read_manifest(&name(), &manifest(b"{}")).await;
    assert!(matches!(refused, Err(Error::Malformed { .. })), "{refused:?}");
    let huge = Descriptor { size: 1 << 40, ..manifest(b"{}") };
    assert!(matches!(store(&proxy).read_manifest(&name(), &huge).await, Err(Error::Malformed { .. })));
}

#[tokio::test]
async fn a_manifest_that_is_another_one_is_refused() {
    let proxy = hostile(|_| answer(200, vec![("content-type", MANIFEST.to_owned())], "{}")).await;
    let refused = store(&proxy).read_manifest(&name(), &manifest(b"{\"a\":1}")).await;
    assert!(matches!(refused, Err(Error::DigestMismatch { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_it_says_is_shown_on_one_line_and_holds_no_secret() {
    let said = format!("\u{1b}[31mline one\nline two {}", "y".repeat(5_000));
    let proxy = hostile(move |_| answer(403, vec![], &said)).await;
    let text = store(&proxy).root(&name()).await.expect_err("it is refused").to_string();
    assert!(text.chars().all(|c| !c.is_control()) && text.len() < 600, "{text:?}");

    let proxy = hostile(|_| answer(401, vec![("www-authenticate", "Basic realm=\"x\"".to_owned())], "")).await;
    let text = store(&proxy).root(&name()).await.expect_err("it is refused").to_string();
    assert!(text.contains("401") && !text.contains("the-secret"), "{text}");
}

#[tokio::test]
async fn a_token_that_could_break_a_header_is_none() {
    let proxy = hostile(|request: &ReceivedRequest| {
        if request.path.starts_with("/token") {
            return answer(200, vec![], r#"{"token":"a\r\nx-evil: 1"}"#);
        }
        answer(401, vec![("www-authenticate", "Bearer realm=\"/token\"".to_owned())], "")
    })
    .await;
    assert!(matches!(store(&proxy).root(&name()).await, Err(Error::Malformed { .. })));
}
