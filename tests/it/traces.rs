//! Traces lead from the caller through the stack and the commit to each region's copy, even across a crash. An OTLP
//! collector receives them.

use std::{fs, process::Command, time::Duration};

use appferry::contract::v1::{RegionState, SynchronizationState};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use tonic::Request;

use crate::{
    ecs,
    harness::{
        bucket::{BUCKET, Bucket},
        collector::{Collector, attribute},
        ecs::Ecs,
        images,
        process::{self, Served},
        registry::Registry,
        site::{self, HOME, Site, TARGETS, app_sync, ask, images_client},
        trace_diagram, until,
    },
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const METHOD: &str = "appferry.v1.AppSyncService/SynchronizeApp";

fn command(site: &Site, endpoint: &str) -> Command {
    let config = site.write_config();
    let mut command = process::command(site.directory.path(), &["serve", "--config", "appferry.toml"]);
    process::migrate(&config);
    // The export interval is so long that only the shutdown flushes the spans.
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "600000");
    command
}

/// Requests an image in all regions, as part of a caller's trace.
async fn ask_traced(served: &Served, app: &str) -> String {
    let mut request = Request::new(ask(app, &["cn-beijing", "cn-shanghai", "cn-shenzhen"]));
    let parent = format!("00-{TRACE}-{SPAN}-01").parse().expect("a header");
    request.metadata_mut().insert("traceparent", parent);
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    client.synchronize_app(request).await.expect("it is accepted").into_inner().request_id
}

fn only<'a>(spans: &'a [Span], what: &str) -> &'a Span {
    assert_eq!(spans.len(), 1, "one {what}: {spans:?}");
    &spans[0]
}

#[tokio::test]
async fn a_call_and_its_copies_are_one_trace() {
    let site = Site::new();
    let (collector, endpoint) = Collector::start().await;
    let mut served = Served::start(command(&site, &endpoint), site.directory.path().join("log")).await;
    images::write(&site.image(HOME, "a"), &[images::noise(100_000, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let id = ask_traced(&served, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let done = site::finished(&mut client, &id).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded);
    let refused = client.synchronize_app(ask("a", &["nowhere"])).await.expect_err("unknown");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    // Ended spans are exported before the process exits.
    served.terminate();
    assert!(served.ended().await.success());

    let calls: Vec<_> = collector.spans(METHOD);
    let [call, refused] = &calls[..] else { panic!("two calls: {calls:?}") };
    assert_eq!(hex::encode(&call.trace_id), TRACE);
    assert_eq!(hex::encode(&call.parent_span_id), SPAN);
    assert_eq!(call.kind(), SpanKind::Server);
    for (key, value) in [
        ("rpc.system.name", "grpc"),
        ("rpc.method", METHOD),
        ("rpc.response.status_code", "OK"),
        ("appferry.request_id", &id),
        ("appferry.principal", "acs:ram::1234:user/admin"),
        ("appferry.decision", "allow"),
        ("appferry.app_id", "a"),
        ("appferry.target_region_ids", "cn-beijing,cn-shanghai,cn-shenzhen"),
    ] {
        assert_eq!(attribute(call, key).as_deref(), Some(value), "{key}");
    }
    // A rejection is a response, not an error of the server.
    assert_eq!(attribute(refused, "rpc.response.status_code").as_deref(), Some("INVALID_ARGUMENT"));
    assert_ne!(refused.status.clone().unwrap_or_default().code(), StatusCode::Error);

    let insert = collector.spans("INSERT synchronization");
    let insert = only(&insert, "insert");
    assert_eq!((&insert.trace_id, &insert.parent_span_id), (&call.trace_id, &call.span_id));
    assert_eq!(insert.kind(), SpanKind::Client);
    assert_eq!(attribute(insert, "db.system.name").as_deref(), Some("sqlite"));
    assert!(!collector.spans("COMMIT").is_empty());

    for target in TARGETS {
        let copies = collector.spans(&format!("copy {target}"));
        let copy = only(&copies, "copy");
        assert_eq!((&copy.trace_id, &copy.parent_span_id), (&call.trace_id, &call.span_id), "{target}");
        assert_eq!((&copy.links[0].trace_id, &copy.links[0].span_id), (&call.trace_id, &call.span_id));
        assert_eq!(attribute(copy, "appferry.region_id").as_deref(), Some(target));
        assert_eq!(attribute(copy, "appferry.state").as_deref(), Some("AVAILABLE"));
        let bytes = done.regions.iter().find(|r| r.region_id == target).expect("the region").bytes_copied;
        assert_eq!(attribute(copy, "appferry.bytes_copied"), Some(bytes.to_string()));
    }
    // There is one span per blob and region, with the size, the source, and the attempt.
    let layer = &images::layers(&site.image(HOME, "a"))[0];
    let blobs = collector.spans(&format!("blob {layer}"));
    assert_eq!(blobs.len(), TARGETS.len(), "{blobs:?}");
    for blob in &blobs {
        let region = attribute(blob, "appferry.region_id").expect("a region");
        let copies = collector.spans(&format!("copy {region}"));
        assert_eq!(blob.parent_span_id, only(&copies, "copy").span_id);
        for (key, value) in [
            ("appferry.source_region_id", HOME),
            ("appferry.blob.bytes", "100000"),
            ("appferry.blob.size", "100000"),
            ("appferry.blob.attempt", "1"),
        ] {
            assert_eq!(attribute(blob, key).as_deref(), Some(value), "{key}");
        }
    }
    let secret = |span: &Span| format!("{span:?}").contains(site::ADMIN);
    assert!(!collector.all().iter().any(secret), "no secret is traced");
    assert!(!fs::read_to_string(&served.log).expect("a log").contains(site::ADMIN), "no secret is logged");
}

/// The diagram in the documentation is drawn from this run: three regions, one of which is unavailable at first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_stores_are_in_the_trace_and_a_retry_is_one_of_its_own() {
    let (one, two, mut three) = (Registry::start().await, Registry::start().await, Registry::start().await);
    let mut site = Site::new()
        .with("cn-beijing", one.store("apps"), "")
        .with("cn-shanghai", two.store("apps"), "")
        .with("cn-shenzhen", three.store("apps"), "");
    site.worker = "heartbeat_ms = 50\nlease_ms = 10000\npoll_ms = 50\nretry_first_ms = 100\nattempts = 20".to_owned();
    three.stop();
    let (collector, endpoint) = Collector::start().await;
    let mut served = Served::start(command(&site, &endpoint), site.directory.path().join("log")).await;
    images::write(&site.image(HOME, "a"), &[images::noise(2_000_000, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let id = ask_traced(&served, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    until("a failed attempt", async || {
        let regions = site::get(&mut client, &id).await.regions;
        regions.iter().any(|region| region.error.is_some()).then_some(())
    })
    .await;
    three.restart().await;
    assert_eq!(site::finished(&mut client, &id).await.state(), SynchronizationState::Succeeded);
    served.terminate();
    assert!(served.ended().await.success());

    let spans = collector.all();
    let of = |trace: &[u8]| spans.iter().filter(|span| span.trace_id == trace).cloned().collect::<Vec<_>>();
    let call = collector.spans(METHOD);
    let call = only(&call, "call");
    let copies = collector.spans("copy cn-shenzhen");
    assert!(copies.len() >= 2, "{copies:?}");
    let failed = copies.iter().find(|copy| attribute(copy, "appferry.attempt").as_deref() == Some("1")).expect("one");
    let last = copies.iter().find(|c| attribute(c, "appferry.state").as_deref() == Some("AVAILABLE")).expect("one");
    assert_eq!(failed.status.clone().unwrap_or_default().code(), StatusCode::Error);
    assert_eq!((&failed.trace_id, &failed.parent_span_id), (&call.trace_id, &call.span_id));
    assert!(last.parent_span_id.is_empty() && last.links[0].trace_id == call.trace_id, "{last:?}");

    // A request to a registry is a child of its operation, with the URL and the result.
    let puts: Vec<_> = of(&call.trace_id).into_iter().filter(|span| span.name == "PUT").collect();
    let copy = collector.spans("copy cn-beijing");
    let manifest = puts
        .iter()
        .find(|put| {
            attribute(put, "server.port") == Some(one.address.port().to_string())
                && put.parent_span_id == copy[0].span_id
        })
        .expect("the manifest is put");
    assert_eq!(manifest.kind(), SpanKind::Client);
    for (key, value) in
        [("http.request.method", "PUT"), ("http.response.status_code", "201"), ("server.address", "127.0.0.1")]
    {
        assert_eq!(attribute(manifest, key).as_deref(), Some(value), "{key}");
    }
    let url = attribute(manifest, "url.full").expect("a URL");
    assert!(url.starts_with(&format!("http://{}/v2/apps/images/manifests/", one.address)), "{url}");
    let refused =
        of(&failed.trace_id).into_iter().find(|span| attribute(span, "error.type").as_deref() == Some("transport"));
    assert!(refused.is_some_and(|span| span.status.unwrap_or_default().code() == StatusCode::Error));

    if let Ok(directory) = std::env::var("APPFERRY_PICTURES") {
        let drawn = trace_diagram::draw(&[
            ("The trace of the call, with what it was copied by", of(&call.trace_id)),
            ("The attempt that succeeded, linked to it", of(&last.trace_id)),
        ]);
        fs::write(format!("{directory}/trace.svg"), drawn).expect("it is written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_a_bucket_are_in_the_trace_without_what_they_are_signed_with() {
    let bucket = Bucket::start().await;
    let site = Site::new().with("cn-beijing", format!("s3://{BUCKET}/images"), bucket.keys(bucket.address));
    let (collector, endpoint) = Collector::start().await;
    let mut served = Served::start(command(&site, &endpoint), site.directory.path().join("log")).await;
    images::write(&site.image(HOME, "a"), &[images::noise(1_000, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let id = client.synchronize_app(ask("a", &["cn-beijing"])).await.expect("it is accepted").into_inner().request_id;
    assert_eq!(site::finished(&mut client, &id).await.state(), SynchronizationState::Succeeded);
    served.terminate();
    assert!(served.ended().await.success());

    let copies = collector.spans("copy cn-beijing");
    let copy = only(&copies, "copy");
    let port = bucket.address.port().to_string();
    let puts = collector.spans("PUT");
    let puts: Vec<_> = puts.iter().filter(|put| attribute(put, "server.port").as_deref() == Some(&port)).collect();
    assert!(puts.len() >= 3, "the blobs, the manifest and the index: {puts:?}");
    for put in puts {
        assert_eq!((&put.trace_id, put.kind()), (&copy.trace_id, SpanKind::Client));
        assert_eq!(attribute(put, "http.response.status_code").as_deref(), Some("200"));
        let url = attribute(put, "url.full").expect("a URL");
        assert!(url.starts_with(&format!("http://{}/", bucket.address)) && !url.contains('?'), "{url}");
    }
}

/// The standard variables configure sampling, and the caller's sampling decision is respected.
#[tokio::test]
async fn what_is_not_sampled_is_not_sent() {
    for (sampler, flags, sent) in
        [("always_on", "01", true), ("always_off", "01", false), ("parentbased_always_on", "00", false)]
    {
        let site = Site::new();
        let (collector, endpoint) = Collector::start().await;
        let mut command = command(&site, &endpoint);
        command.env("OTEL_TRACES_SAMPLER", sampler);
        let mut served = Served::start(command, site.directory.path().join("log")).await;
        let mut request = Request::new(ask("nothing", &[]));
        request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{SPAN}-{flags}").parse().expect("a header"));
        app_sync(served.address, Some(site::ADMIN)).await.synchronize_app(request).await.expect_err("there is none");
        served.terminate();
        assert!(served.ended().await.success());
        for name in [METHOD, "INSERT synchronization"] {
            assert_eq!(!collector.spans(name).is_empty(), sent, "{name}: {sampler}");
        }
    }
}

/// Throttled calls have spans that identify the caller.
#[tokio::test]
async fn who_asked_too_often_is_in_the_span_of_what_was_refused() {
    let mut site = Site::new();
    site.more = "[limits]\ncalls_per_second = 1\n".to_owned();
    let (collector, endpoint) = Collector::start().await;
    let mut served = Served::start(command(&site, &endpoint), site.directory.path().join("log")).await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    until("a refusal", async || {
        let refused = client.synchronize_app(ask("nothing", &[])).await.expect_err("there is none");
        (refused.code() == tonic::Code::ResourceExhausted).then_some(())
    })
    .await;
    served.terminate();
    assert!(served.ended().await.success());
    let calls = collector.spans(METHOD);
    assert!(
        calls.iter().any(|call| attribute(call, "appferry.decision").is_none()),
        "one was refused before: {calls:?}"
    );
    for call in &calls {
        assert_eq!(attribute(call, "appferry.principal").as_deref(), Some("acs:ram::1234:user/admin"), "{call:?}");
    }
}

#[tokio::test]
async fn a_copy_that_is_taken_up_after_a_crash_is_linked_to_its_call() {
    let mut site = Site::new();
    // The copies are so slow that the process is killed during them, on any machine.
    site.keys = TARGETS.map(|target| (target, "ingress_bytes_per_second = 65536".to_owned())).to_vec();
    let (collector, endpoint) = Collector::start().await;
    let mut served = Served::start(command(&site, &endpoint), site.directory.path().join("log")).await;
    images::write(&site.image(HOME, "a"), &[images::noise(4 << 20, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let id = ask_traced(&served, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    until("copies in progress", async || {
        let regions = site::get(&mut client, &id).await.regions;
        regions.iter().all(|r| r.state() == RegionState::Copying).then_some(())
    })
    .await;
    served.kill();

    site.keys.clear();
    let mut served = Served::start(command(&site, &endpoint), site.directory.path().join("log-2")).await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let done = site::finished(&mut client, &id).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded);
    served.terminate();
    assert!(served.ended().await.success());
    for region in &done.regions {
        // There may be more attempts on a machine that stalls for longer than a lease. The last one ended the copy.
        assert!(region.attempt >= 2, "{region:?}");
        let mut copies = collector.spans(&format!("copy {}", region.region_id));
        copies.retain(|copy| attribute(copy, "appferry.attempt") == Some(region.attempt.to_string()));
        let copy = only(&copies, "copy that ended");
        assert_eq!(copy.parent_span_id, Vec::<u8>::new(), "a later attempt is a trace of its own");
        assert_eq!(hex::encode(&copy.links[0].trace_id), TRACE, "linked to the caller's");
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_calls_nothing_but_their_spans() {
    let site = Site::new();
    let mut served = Served::start(command(&site, "http://127.0.0.1:9"), site.directory.path().join("log")).await;
    images::write(&site.image(HOME, "a"), &[images::noise(1_000, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let id = ask_traced(&served, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    assert_eq!(site::finished(&mut client, &id).await.state(), SynchronizationState::Succeeded);
    served.terminate();
    assert!(served.ended().await.success());
}

/// Requests to ECS belong to their copy's span; repeated polls have no spans.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_ecs_makes_is_in_the_trace_of_its_call() {
    let ecs = Ecs::start(&[HOME, "cn-beijing"], Duration::from_millis(100)).await;
    let source = ecs.provider().put(HOME, "gromacs", &[]);
    let site = ecs::site(&ecs, &[HOME, "cn-beijing"]);
    let (collector, endpoint) = Collector::start().await;
    let mut served = Served::start(command(&site, &endpoint), site.directory.path().join("log")).await;
    let mut images = images_client(served.address, Some(site::ADMIN)).await;
    images.add_image(ecs::vm("a", &source)).await.expect("it is registered");
    let mut request = Request::new(ask("a", &[]));
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{SPAN}-01").parse().expect("a header"));
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let id = client.synchronize_app(request).await.expect("it is accepted").into_inner().request_id;
    assert_eq!(site::finished(&mut client, &id).await.state(), SynchronizationState::Succeeded);
    served.terminate();
    assert!(served.ended().await.success());

    let copies = collector.spans("copy cn-beijing");
    let copy = only(&copies, "copy");
    assert_eq!(hex::encode(&copy.trace_id), TRACE);
    assert_eq!(attribute(copy, "appferry.source_region_id").as_deref(), Some(HOME));
    assert_eq!(attribute(copy, "appferry.state").as_deref(), Some("AVAILABLE"));
    let request_span = collector.spans("ECS CopyImage");
    let request_span = only(&request_span, "request");
    assert_eq!((&request_span.trace_id, &request_span.parent_span_id), (&copy.trace_id, &copy.span_id));
    assert_eq!(request_span.kind(), SpanKind::Client);
    assert_eq!(attribute(request_span, "server.address"), Some(ecs.address.ip().to_string()));
    assert_eq!(attribute(request_span, "server.port"), Some(ecs.address.port().to_string()));
    assert!(collector.spans("ECS DescribeImages").is_empty());
}
