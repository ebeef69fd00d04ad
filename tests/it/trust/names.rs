//! A name in a region belongs to one image.

use std::fs;

use appferry::contract::v1::{
    AddImageRequest, Intactness, RegionState, RegionSynchronization, SynchronizeAppRequest, VerifyImageRequest,
};
use object_store::ObjectStoreExt as _;
use tonic::Code;

use super::{REGION, VERIFIED, between, image, layout, only, reason, register, says, synchronized};
use crate::harness::{
    bucket::{BUCKET, Bucket},
    images::{self, noise},
    process, refusal,
    registry::{Registry, skopeo},
    site::{ADMIN, HOME, Running, Site, ask, container},
};

/// Returns the digest that a tag refers to in a registry.
fn tag(registry: &Registry, name: &str) -> String {
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &registry.docker(name)]);
    images::digest(raw.as_bytes())
}

async fn overwriting(running: &Running, app: &str, region: &str) -> RegionSynchronization {
    let request = SynchronizeAppRequest { overwrite: true, ..ask(app, &[region]) };
    let accepted = running.app_sync().await.synchronize_app(request).await.expect("it is accepted").into_inner();
    only(running.finished(&accepted.request_id).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_another_image_has_is_refused_unless_it_is_taken_over() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let site = between(&source, target.store("apps"), "");
    let (older, newer) = (layout(&site, "older", &[noise(50_000, 1)]), layout(&site, "newer", &[noise(50_000, 2)]));
    source.push(&older, "apps/a:1");
    let url = format!("{}/apps/a:1", source.address);
    let running = site.start().await;
    register(&running, "one", &url).await;
    register(&running, "same", &url).await;
    for id in ["one", "same"] {
        assert_eq!(says(&synchronized(&running, id, REGION).await), VERIFIED, "{id}");
    }
    let before = tag(&source, "apps/a:1");

    // The tag has moved in the home region: a warning says so, and the copy uses the digest.
    source.push(&newer, "apps/a:1");
    let after = tag(&source, "apps/a:1");
    let shown = image(&running, "one").await;
    let home = shown.additional_regions_info.iter().find(|info| info.region_id == HOME).expect("the region");
    assert_eq!((home.status(), home.shown_digest.as_str()), (RegionState::Available, after.as_str()));

    let refused = running.images().await.add_image(container("two", &url)).await.expect_err("the name is taken");
    let refused = refusal::read(&refused);
    refused.is(Code::AlreadyExists, "ImageAlreadyExists", 400);
    for part in ["one", before.as_str(), "supersede"] {
        assert!(refused.message.contains(part), "{:?} does not say {part:?}", refused.message);
    }
    let taking = AddImageRequest { supersede: true, ..container("two", &url) };
    running.images().await.add_image(taking).await.expect("the name is taken over");
    for id in ["one", "same"] {
        let shown = image(&running, id).await;
        assert_eq!(shown.superseded_by, "two");
        let info = shown.additional_regions_info.iter().find(|info| info.region_id == REGION).expect("the region");
        assert_eq!((info.status(), info.image_id.as_str()), (RegionState::Superseded, ""));
        let refused = running.synchronize(id, &[]).await.expect_err("it was superseded");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("superseded by two"), "{refused:?}");
    }
    assert_eq!(tag(&target, "apps/a:1"), before, "nothing has moved yet");
    assert_eq!(says(&synchronized(&running, "two", REGION).await), VERIFIED);
    assert_eq!(tag(&target, "apps/a:1"), after, "an image of this service may be replaced");
    running.stop().await;
}

/// A reference with a digest selects that image, whatever the tag refers to now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_named_by_its_digest_too_is_that_one() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let site = between(&source, target.store("apps"), "");
    let (older, newer) = (layout(&site, "older", &[noise(50_000, 1)]), layout(&site, "newer", &[noise(50_000, 2)]));
    source.push(&older, "apps/a:1");
    let before = tag(&source, "apps/a:1");
    source.push(&newer, "apps/a:1");
    let after = tag(&source, "apps/a:1");
    let url = format!("{}/apps/a:1", source.address);
    let running = site.start().await;
    let unknown = format!("{url}@{}", images::digest(b"of no image"));
    let refused = running.images().await.add_image(container("x", &unknown)).await.expect_err("it is not there");
    assert_eq!(refused.code(), Code::NotFound);
    for bad in ["@sha256:00", "@latest", "@"] {
        let refused = running.images().await.add_image(container("x", &format!("{url}{bad}"))).await;
        let refused = refused.expect_err("it is no digest");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("registry_url"), "{refused:?}");
    }
    register(&running, "one", &format!("{url}@{before}")).await;
    assert_eq!(says(&synchronized(&running, "one", REGION).await), VERIFIED);
    assert_eq!(tag(&target, "apps/a:1"), before, "it is called by its tag");
    let shown = image(&running, "one").await;
    let home = shown.additional_regions_info.iter().find(|info| info.region_id == HOME).expect("the region");
    assert_eq!((shown.digest.as_str(), home.shown_digest.as_str()), (before.as_str(), after.as_str()));
    let request = VerifyImageRequest { image_id: "one".into(), region_ids: vec![HOME.into()] };
    let mut found = running.images().await.verify_image(request).await.expect("it is verified").into_inner();
    let found = found.message().await.expect("an answer").expect("a region");
    assert_eq!(found.intactness(), Intactness::Intact, "{found:?}");
    assert!(found.warnings[0].contains(&after), "{found:?}");
    running.stop().await;
}

/// The command line warns of a name that refers to another image now, in a registry and in a layout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_warns_of_a_name_that_has_moved() {
    let source = Registry::start().await;
    let site = Site::new().with(HOME, source.store("apps"), "");
    source.push(&layout(&site, "older", &[noise(50_000, 1)]), "apps/a:1");
    let before = tag(&source, "apps/a:1");
    let many = site.directory.path().join("many");
    let root = images::write_multi_arch(&many, "v1");
    let running = site.start().await;
    let directory = running.site.directory.path();
    let endpoint = format!("http://{}", running.address);
    let add = |id: &str, more: &[&str]| {
        let arguments = [&["image", "add", "--name", "n", "--id", id, "--config", "appferry.toml"], more].concat();
        let mut command = process::command(directory, &arguments);
        let added = command.env("APPFERRY_ENDPOINT", &endpoint).env("APPFERRY_TOKEN", ADMIN).output();
        let added = added.expect("the program runs");
        assert_eq!(process::stdout(&added), format!("{id}\n"));
        process::stderr(&added)
    };
    let pinned = format!("{}/apps/a:1@{before}", source.address);
    let said = add("still", &["--registry-url", &pinned]);
    assert!(!said.contains("warning"), "{said}");
    let newer = layout(&running.site, "newer", &[noise(50_000, 2)]);
    source.push(&newer, "apps/a:1");
    let said = add("moved", &["--registry-url", &pinned]);
    assert!(said.contains("warning") && said.contains(&tag(&source, "apps/a:1")), "{said}");
    for (id, name, moved) in [("same", "v1", false), ("other", "other", true), ("none", "nothing", false)] {
        let said = add(id, &["--oci", &format!("{}:{name}@{root}", many.display())]);
        assert_eq!(said.contains("warning"), moved, "{name}: {said}");
        assert_eq!(tag(&source, &format!("apps/images:{id}")), root, "{name}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_others_pushed_is_replaced_on_demand_alone() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let site = between(&source, target.store("apps"), "");
    source.push(&layout(&site, "ours", &[noise(50_000, 1)]), "apps/a:1");
    target.push(&layout(&site, "theirs", &[noise(50_000, 2)]), "apps/a:1");
    let theirs = tag(&target, "apps/a:1");
    let running = site.start().await;
    register(&running, "a", &format!("{}/apps/a:1", source.address)).await;
    let refused = synchronized(&running, "a", REGION).await;
    assert_eq!((refused.state(), refused.attempt, refused.bytes_copied), (RegionState::Failed, 1, 0));
    assert!(reason(&refused).contains(&theirs) && reason(&refused).contains("overwrite"), "{refused:?}");
    assert_eq!(tag(&target, "apps/a:1"), theirs);
    assert_eq!(says(&overwriting(&running, "a", REGION).await), VERIFIED);
    assert_eq!(tag(&target, "apps/a:1"), tag(&source, "apps/a:1"));
    running.stop().await;
}

/// A foreign layout in the image's place is neither replaced nor modified by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layout_that_others_put_there_is_replaced_on_demand_alone() {
    let bucket = Bucket::start().await;
    let running =
        Site::new().with("cn-shanghai", format!("s3://{BUCKET}/x"), bucket.keys(bucket.address)).start().await;
    running.add("a", &[noise(50_000, 1)]).await;
    let theirs = running.site.image(REGION, "a");
    let root = images::write(&theirs, &[noise(50_000, 2)]);
    let index = fs::read(theirs.join("index.json")).expect("an index");
    bucket.objects().put(&"x/a/index.json".into(), index.clone().into()).await.expect("it is put");
    for region in [REGION, "cn-shanghai"] {
        let refused = synchronized(&running, "a", region).await;
        assert_eq!((refused.state(), refused.attempt), (RegionState::Failed, 1), "{refused:?}");
        assert!(reason(&refused).contains(&root) && reason(&refused).contains("overwrite"), "{refused:?}");
    }
    assert_eq!(fs::read(theirs.join("index.json")).expect("an index"), index);
    for region in [REGION, "cn-shanghai"] {
        let done = overwriting(&running, "a", region).await;
        assert_eq!(done.state(), RegionState::Available, "{done:?}");
    }
    let ours = images::verify(&running.site.image(HOME, "a"));
    let shown = fs::read_to_string(theirs.join("index.json")).expect("an index");
    assert!(shown.contains(&ours) && !shown.contains(&root), "{shown}");
    running.stop().await;
}

/// The command line names the image that owns a name, and marks copies that are only trusted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_says_whose_a_name_is_and_what_is_trusted() {
    let (source, target) = (Registry::start().await, Registry::start().await);
    let site = between(&source, target.store("apps"), "");
    let (older, newer) = (layout(&site, "older", &[noise(50_000, 1)]), layout(&site, "newer", &[noise(50_000, 2)]));
    source.push(&older, "apps/a:1");
    target.push(&older, "apps/a:1");
    let url = format!("{}/apps/a:1", source.address);
    let running = site.start().await;
    let directory = running.site.directory.path();
    let endpoint = format!("http://{}", running.address);
    let client = |arguments: &[&str]| {
        let mut command = process::command(directory, arguments);
        command.env("APPFERRY_ENDPOINT", &endpoint).env("APPFERRY_TOKEN", ADMIN).output().expect("the program runs")
    };
    let add = |id: &str, more: &[&str]| {
        client(&[&["image", "add", "--name", "n", "--id", id, "--registry-url", &url], more].concat())
    };
    assert_eq!(process::stdout(&add("one", &[])), "one\n");
    let synced = process::stdout(&client(&["sync", "one", "--to", REGION, "--wait"]));
    assert!(synced.contains("AVAILABLE (trusted)"), "{synced}");

    source.push(&newer, "apps/a:1");
    let shown = process::stdout(&client(&["image", "show", "one"]));
    assert!(shown.contains("AVAILABLE (trusted)") && shown.contains(&tag(&source, "apps/a:1")), "{shown}");
    let refused = add("two", &[]);
    assert!(!refused.status.success() && process::stderr(&refused).contains("belongs to the image one"), "{refused:?}");
    process::stdout(&add("two", &["--supersede"]));
    let shown = process::stdout(&client(&["image", "show", "one"]));
    assert!(shown.contains("SUPERSEDED") && shown.contains("superseded by two"), "{shown}");
    // The suggested remedy for the old image is not a copy, because a copy would be rejected.
    let verified = client(&["image", "verify", "one", "--region", "cn-shanghai"]);
    let told = process::stderr(&verified);
    assert_eq!(verified.status.code(), Some(1), "{told}");
    let commands: Vec<&str> = told.split('`').skip(1).step_by(2).collect();
    assert_eq!(commands, ["appferry sync two --to cn-shanghai"], "{told}");
    let arguments: Vec<&str> = commands[0].split(' ').skip(1).chain(["--wait"]).collect();
    process::stdout(&client(&arguments));

    // The tag is moved in the region.
    target.push(&layout(&running.site, "theirs", &[noise(50_000, 3)]), "apps/a:1");
    let refused = client(&["sync", "two", "--to", REGION, "--wait"]);
    assert!(!refused.status.success(), "{refused:?}");
    let synced = process::stdout(&client(&["sync", "two", "--to", REGION, "--wait", "--overwrite"]));
    assert!(synced.contains("AVAILABLE") && !synced.contains("trusted"), "{synced}");
    running.stop().await;
}
