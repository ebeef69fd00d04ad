//! Stores behind an HTTP proxy, and addresses that must not be contacted at all.

use std::{fs, sync::Arc};

use appferry::{
    domain::ImageName,
    storage::{
        Credentials, Egress, Error, ForwardProxy, Location, RegistryClient, RegistryStore, Source as _,
        ssrf_guard::Guard,
    },
};

use super::{failure_message, remedies::certificate, synchronized};
use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::noise,
    recording_proxy::RecordingProxy,
    registry::Registry,
    site::Site,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_only_the_proxy_can_reach_get_their_images() {
    let site = Site::new();
    let [certificate, key] = certificate(site.directory.path(), "secure.apps.test", "now");
    let tls = format!("  tls:\n    certificate: {certificate}\n    key: {key}");
    let (plain, secure, bucket) = (Registry::start().await, Registry::start_with(&tls).await, Bucket::start().await);
    let recording_proxy = RecordingProxy::start(&[
        ("plain.apps.test:80", plain.address),
        ("secure.apps.test:443", secure.address),
        ("bucket.apps.test:80", bucket.address),
    ])
    .await;
    let keys = bucket.keys(bucket.address).replace(&bucket.address.to_string(), "bucket.apps.test");
    let mut site = site
        .with("cn-beijing", "registry+http://plain.apps.test/apps", "allow_http = true")
        .with("cn-shanghai", "registry+https://secure.apps.test/apps", format!("ca_file = \"{certificate}\""))
        .with("cn-shenzhen", format!("s3://{BUCKET}/images"), format!("{keys}\nallow_http = true"));
    let password = site.directory.path().join("proxy-password");
    fs::write(&password, "through\n").expect("a file");
    let login = format!("proxy_username = \"ferry\"\nproxy_password_file = \"{}\"", password.display());
    site.more = format!("[network]\n{}\n{login}\nproxy_resolves = true\n", recording_proxy.key());
    let running = site.start().await;
    let app = running.add("a", &[noise(200_000, 1)]).await;
    synchronized(&running, &app, &["cn-beijing", "cn-shanghai", "cn-shenzhen"]).await;
    let requests = recording_proxy.requests();
    for target in ["secure.apps.test:443", "plain.apps.test:80", "bucket.apps.test:80"] {
        assert!(requests.iter().any(|request| request.target == target), "{target}: {requests:?}");
    }
    let tunnelled = requests.iter().filter(|request| request.method == "CONNECT");
    assert!(
        tunnelled.clone().count() > 0 && tunnelled.clone().all(|request| request.target.ends_with(":443")),
        "{requests:?}"
    );
    // The Base64 form of `ferry:through`.
    assert!(
        requests.iter().all(|request| request.authorization.as_deref() == Some("Basic ZmVycnk6dGhyb3VnaA==")),
        "{requests:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_no_proxy_goes_directly() {
    let (one, two) = (Registry::start().await, Registry::start().await);
    let (recording_proxy, other_proxy) =
        (RecordingProxy::start(&[]).await, RecordingProxy::start(&[("127.0.0.1:1", two.address)]).await);
    let mut site = Site::new()
        .with("cn-beijing", one.store("apps"), "proxy = \"direct\"")
        .with("cn-shanghai", "registry+http://127.0.0.1:1/apps", other_proxy.key())
        .with("cn-shenzhen", two.store("apps"), "");
    site.more = format!("[network]\n{}\nno_proxy = [\"10.0.0.0/8\"]\n", recording_proxy.key());
    let running = site.start().await;
    let app = running.add("a", &[noise(200_000, 1)]).await;
    synchronized(&running, &app, &["cn-beijing", "cn-shanghai"]).await;
    assert_eq!(recording_proxy.requests(), Vec::new());
    assert!(other_proxy.requests().iter().all(|request| request.target == "127.0.0.1:1"));
    let request = running.synchronize(&app, &["cn-shenzhen"]).await.expect("it is accepted");
    let message = failure_message(&running.finished(&request).await, "cn-shenzhen");
    assert!(message.contains("502"), "it used the global proxy: {message}");
    let mut site = running.stop().await;
    site.more = site.more.replace("10.0.0.0/8", "127.0.0.0/8");
    let running = site.start().await;
    synchronized(&running, &app, &["cn-shenzhen"]).await;
    running.stop().await;
}

#[tokio::test]
async fn the_proxy_is_not_asked_for_what_is_never_contacted() {
    let registry = Registry::start().await;
    let recording_proxy = RecordingProxy::start(&[("registry.test:80", registry.address)]).await;
    let url: url::Url = format!("http://{}", recording_proxy.address).parse().expect("a URL");
    let root = async |leads_to: Option<&'static str>, at: &str, resolves| {
        let lookup = move |_: String| {
            let answer = leads_to.map(|address| vec![address.parse().expect("an address")]);
            let answer = async move { answer.ok_or_else(|| std::io::Error::other("no such name")) };
            Box::pin(answer) as futures_util::future::BoxFuture<'static, _>
        };
        let proxy = ForwardProxy::new(url.clone()).resolving(resolves);
        let egress = Egress::new(Guard::with_lookup(false, Arc::new(lookup)), Some(proxy));
        let Ok(Location::Registry(location)) = at.parse() else { panic!("{at}") };
        let client = RegistryClient::new(location, Credentials::Anonymous, Vec::new(), None, egress)?;
        RegistryStore::new(client).root(&ImageName("apps/a:1".into())).await
    };
    let metadata = Some("169.254.169.254:0");
    for (leads_to, at, resolves) in [
        (metadata, "registry+http://registry.test/apps", false),
        (Some("127.0.0.1:0"), "registry+http://registry.test/apps", false),
        (None, "registry+http://169.254.169.254/apps", true),
        (None, "registry+http://127.0.0.1/apps", true),
    ] {
        let refused = root(leads_to, at, resolves).await;
        assert!(matches!(refused, Err(Error::Forbidden { .. })), "{at}: {refused:?}");
    }
    let refused = root(None, "registry+http://registry.test/apps", false).await.expect_err("the name does not resolve");
    assert!(refused.to_string().contains("network.proxy_resolves = true"), "{refused}");
    assert_eq!(recording_proxy.requests(), Vec::new());
    // Takes the step that the message suggests.
    let result = root(None, "registry+http://registry.test/apps", true).await.expect("it answers");
    assert!(result.is_none() && recording_proxy.requests().len() == 1);
    root(Some("192.0.2.1:0"), "registry+http://registry.test/apps", false).await.expect("it answers");
}
