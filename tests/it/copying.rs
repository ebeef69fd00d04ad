//! Copies of every kind of image. A copy transfers only the missing blobs, is verified, and becomes visible only when
//! it is complete. A region that fails does not affect the others and reports the reason.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use appferry::{
    app::Role,
    contract::v1::{
        CancelSynchronizationRequest, ErrorCode, GetImageRequest, RegionState, RegionSynchronization, Synchronization,
        SynchronizationState,
    },
};

use crate::harness::{
    images::{self, noise},
    process::{APPFERRY, Served, clean},
    refusal,
    site::{self, HOME, Site, TARGETS, app_sync, images_client},
    until,
};

fn region<'a>(synchronization: &'a Synchronization, id: &str) -> &'a RegionSynchronization {
    synchronization.regions.iter().find(|region| region.region_id == id).expect("the region")
}

/// Asserts that one region failed with a reason that contains `says`, and that the others have the image.
fn failed_alone(done: &Synchronization, id: &str, code: ErrorCode, says: &[&str]) {
    assert_eq!(done.state(), SynchronizationState::Failed, "{done:?}");
    for target in TARGETS {
        let region = region(done, target);
        if target != id {
            assert_eq!((region.state(), &region.error), (RegionState::Available, &None), "{target}");
            continue;
        }
        assert_eq!(region.state(), RegionState::Failed);
        let error = region.error.as_ref().expect("a reason");
        assert_eq!((refusal::code(error), error.region_ids.as_slice()), (code.into(), &[id.to_owned()][..]));
        for text in says {
            assert!(error.message.contains(text), "{:?} does not say {text:?}", error.message);
        }
    }
}

#[tokio::test]
async fn an_image_arrives_whole_and_the_same_everywhere() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(5 << 20, 1), noise(70_000, 2), Vec::new()]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded);
    let root = images::verify(&running.site.image(HOME, "a"));
    for target in TARGETS {
        assert_eq!(images::verify(&running.site.image(target, "a")), root);
        let region = region(&done, target);
        assert_eq!((region.bytes_skipped, region.bytes_copied), (0, region.bytes_total));
        assert!(region.bytes_total > (5 << 20) + 70_000);
    }
    let image = running
        .images()
        .await
        .get_image(GetImageRequest { image_id: app, ..Default::default() })
        .await
        .expect("it is known");
    let image = image.into_inner().image.expect("an image");
    assert_eq!((image.digest.as_str(), image.size_bytes), (root.as_str(), done.regions[0].bytes_total));
    let info: Vec<_> =
        image.additional_regions_info.iter().map(|i| (i.region_id.as_str(), i.image_id.as_str(), i.status())).collect();
    let available = |region| (region, "a", RegionState::Available);
    assert_eq!(info, [TARGETS[0], HOME, TARGETS[1], TARGETS[2]].map(available));
    running.stop().await;
}

#[tokio::test]
async fn an_image_of_many_architectures_arrives_with_all_of_them() {
    let running = Site::new().start().await;
    let layout = running.site.directory.path().join("elsewhere");
    images::write_multi_arch(&layout, "2026.1");
    let directory = running.site.directory.path().to_owned();
    let config = running.site.write_config();
    let arguments = [
        "image",
        "add",
        "--name",
        "gromacs",
        "--id",
        "gromacs",
        "--oci",
        "elsewhere:2026.1",
        "--config",
        config.to_str().expect("text"),
        "--endpoint",
        &format!("http://{}", running.address),
        "--token-file",
        "token",
    ];
    fs::write(directory.join("token"), site::ADMIN).expect("a token");
    let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    let added = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        crate::harness::process::run(&directory, &arguments)
    });
    assert_eq!(crate::harness::process::stdout(&added.await.expect("it ran")), "gromacs\n");
    let id = running.synchronize("gromacs", &[]).await.expect("it is accepted");
    assert_eq!(running.finished(&id).await.state(), SynchronizationState::Succeeded);
    for target in TARGETS {
        let layout = running.site.image(target, "gromacs");
        images::verify(&layout);
        // Checks independently of the service that the image is readable.
        let name = format!("oci:{}", layout.display());
        let raw = Command::new("skopeo").args(["inspect", "--raw", &name]).output().expect("skopeo is installed");
        let raw = crate::harness::process::stdout(&raw);
        assert!(raw.contains("amd64") && raw.contains("arm64"), "{raw}");
        let copied = running.site.directory.path().join(format!("{target}-copy"));
        let to = format!("oci:{}", copied.display());
        let copy = Command::new("skopeo").args(["copy", "--all", "--quiet", &name, &to]).output().expect("it runs");
        assert!(copy.status.success(), "{copy:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_blob_that_another_image_of_the_region_has_is_taken_from_there() {
    let running = Site::new().start().await;
    let shared = noise(2 << 20, 1);
    let first = running.add("first", &[shared.clone(), noise(1_000, 2)]).await;
    let second = running.add("second", &[shared.clone(), noise(2_000, 3)]).await;
    let id = running.synchronize(&first, &["cn-beijing"]).await.expect("it is accepted");
    running.finished(&id).await;
    let id = running.synchronize(&second, &["cn-beijing"]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    let region = region(&done, "cn-beijing");
    assert!(region.bytes_skipped >= 2 << 20, "{region:?}");
    assert!(region.bytes_copied < 10_000, "{region:?}");
    let digest = images::digest(&shared);
    let inode = |image| {
        fs::metadata(images::blob_path(&running.site.image("cn-beijing", image), &digest)).expect("it is there").ino()
    };
    assert_eq!(inode("first"), inode("second"), "it is shared");
    images::verify(&running.site.image("cn-beijing", "second"));
    running.stop().await;
}

#[tokio::test]
async fn blobs_that_are_there_are_skipped_and_damaged_ones_are_not_trusted() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(1 << 20, 1), noise(1 << 20, 2)]).await;
    let [whole, damaged] = &images::layers(&running.site.image(HOME, "a"))[..] else { panic!("two layers") };
    let available = running.site.image("cn-beijing", "a");
    fs::create_dir_all(available.join("blobs/sha256")).expect("directories");
    fs::write(images::blob_path(&available, whole), noise(1 << 20, 1)).expect("it is written");
    let mut bytes = noise(1 << 20, 2);
    bytes[77] ^= 1;
    fs::write(images::blob_path(&available, damaged), bytes).expect("it is written");
    let id = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded);
    assert_eq!(region(&done, "cn-beijing").bytes_skipped, 1 << 20);
    images::verify(&available);
    running.stop().await;
}

#[tokio::test]
async fn a_blob_whose_bytes_lie_fails_with_its_digest_and_nothing_becomes_visible() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(1 << 20, 1), noise(3 << 20, 2)]).await;
    let layers = images::layers(&running.site.image(HOME, "a"));
    let mut bytes = noise(3 << 20, 2);
    bytes[2_000_000] ^= 1;
    fs::write(images::blob_path(&running.site.image(HOME, "a"), &layers[1]), bytes).expect("it is written");
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    assert_eq!(done.state(), SynchronizationState::Failed);
    for target in TARGETS {
        let region = region(&done, target);
        let error = region.error.as_ref().expect("a reason");
        assert_eq!((region.state(), refusal::code(error)), (RegionState::Failed, ErrorCode::ServiceApiError.into()));
        assert!(error.message.contains(&layers[1]) && error.message.contains("cn-hangzhou"), "{}", error.message);
        assert_eq!(region.attempt, 1, "it is not retried");
        let layout = running.site.image(target, "a");
        assert!(!images::visible(&layout));
        for left in fs::read_dir(layout.join("blobs/sha256")).expect("blobs") {
            let path = left.expect("a file").path();
            let name = format!("sha256:{}", path.file_name().expect("a name").to_string_lossy());
            assert_eq!(
                images::digest(&fs::read(&path).expect("it is there")),
                name,
                "every remaining blob is complete"
            );
            assert_ne!(name, layers[1]);
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn a_region_that_has_vanished_fails_alone_and_is_carried_to_when_it_is_back() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(1_000, 1)]).await;
    let gone = running.site.region("cn-shanghai");
    fs::remove_dir(&gone).expect("it was there");
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    failed_alone(&done, "cn-shanghai", ErrorCode::ServiceApiError, &["does not exist", &gone.display().to_string()]);
    assert_eq!(region(&done, "cn-shanghai").attempt, 3, "it might have come back");
    assert!(!gone.exists(), "a mount point is not made up");

    fs::create_dir(&gone).expect("it is back");
    let id = running.synchronize(&app, &["cn-shanghai"]).await.expect("it is accepted");
    assert_eq!(running.finished(&id).await.state(), SynchronizationState::Succeeded);
    running.stop().await;
}

#[tokio::test]
async fn a_fault_that_passes_is_tried_again_and_seen_meanwhile() {
    let mut site = Site::new();
    site.worker = "heartbeat_ms = 50\npoll_ms = 20\nretry_first_ms = 300\nattempts = 20".to_owned();
    let running = site.start().await;
    let app = running.add("a", &[noise(1_000, 1)]).await;
    let gone = running.site.region("cn-shanghai");
    fs::remove_dir(&gone).expect("it was there");
    let id = running.synchronize(&app, &["cn-shanghai"]).await.expect("it is accepted");
    let waiting = until("a failed attempt", async || {
        let synchronization = running.get(&id).await;
        let region = synchronization.regions.into_iter().next().expect("the region");
        (region.state() == RegionState::Pending && region.error.is_some()).then_some(region)
    })
    .await;
    assert!(waiting.next_attempt_time.is_some(), "{waiting:?}");
    fs::create_dir(&gone).expect("it is back");
    let done = running.finished(&id).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded);
    assert!(done.regions[0].attempt > 1 && done.regions[0].error.is_none(), "{done:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_region_that_can_t_be_written_fails_alone_at_once() {
    let mut site = Site::new();
    // This file system accepts no files, not even from root.
    site.stores.push(("cn-shanghai", "dir:///sys/kernel".to_owned()));
    let running = site.start().await;
    let app = running.add("a", &[noise(1_000, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    failed_alone(&done, "cn-shanghai", ErrorCode::ServiceApiError, &["creating a/blobs/sha256"]);
    assert_eq!(region(&done, "cn-shanghai").attempt, 1, "it is not retried");
    running.stop().await;
}

#[tokio::test]
async fn a_region_without_room_is_not_begun() {
    let site = Site::new();
    let mut text = site.config();
    let at = text.find("[[region]]\nid = \"cn-shanghai\"").expect("the region") + "[[region]]\n".len();
    text.insert_str(at, "keep_free_bytes = 1000000000000000\n");
    let config = site.directory.path().join("appferry.toml");
    fs::write(&config, text).expect("it is written");
    crate::harness::process::migrate(&config);
    let served = Served::configured(&config).await;
    images::write(&site.image(HOME, "a"), &[noise(1 << 20, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let id = client.synchronize_app(site::ask("a", &[])).await.expect("it is accepted").into_inner().request_id;
    let done = site::finished(&mut client, &id).await;
    failed_alone(&done, "cn-shanghai", ErrorCode::ServiceApiError, &["bytes are needed and", "are free"]);
    let begun = fs::read_dir(site.image("cn-shanghai", "a").join("blobs/sha256")).expect("blobs").count();
    assert_eq!(begun, 0);
}

/// A disk that becomes full during the copy: other writers take the space that was free when it was reserved.
#[tokio::test]
async fn a_disk_that_fills_up_fails_alone_and_leaves_nothing_half_done() {
    let site = Site::new();
    let config = site.write_config();
    let path = config.to_str().expect("text").to_owned();
    crate::harness::process::migrate(&config);
    let full = site.region("cn-shanghai");
    // The service runs in its own mount namespace, so that the mount disappears with the service. The file system
    // reports enough free bytes for the image, but has too few inodes for all of its files.
    let script = format!(
        "mount -t tmpfs -o size=64m,nr_inodes=8 tmpfs {} && exec {APPFERRY} serve --config {path}",
        full.display()
    );
    let mut command = Command::new("unshare");
    clean(&mut command).args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    let served = Served::start(command, site.directory.path().join("log")).await;
    let layers: Vec<_> = (0..12).map(|seed| noise(100_000, seed)).collect();
    images::write(&site.image(HOME, "a"), &layers);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let id = client.synchronize_app(site::ask("a", &[])).await.expect("it is accepted").into_inner().request_id;
    let done = site::finished(&mut client, &id).await;
    failed_alone(&done, "cn-shanghai", ErrorCode::ServiceApiError, &["No space left on device"]);
    for target in ["cn-beijing", "cn-shenzhen"] {
        images::verify(&site.image(target, "a"));
    }
}

#[tokio::test]
async fn a_file_that_vanishes_on_the_way_is_told_and_the_service_goes_on() {
    let accepting = Site::new().start_as(Role::Server).await;
    let app = accepting.add("a", &[noise(1 << 20, 1)]).await;
    let id = accepting.synchronize(&app, &[]).await.expect("it is accepted");
    let layers = images::layers(&accepting.site.image(HOME, "a"));
    fs::remove_file(images::blob_path(&accepting.site.image(HOME, "a"), &layers[0])).expect("it was there");
    let running = accepting.stop().await.start().await;
    let done = running.finished(&id).await;
    for region in &done.regions {
        let error = region.error.as_ref().expect("a reason");
        assert_eq!((region.state(), refusal::code(error)), (RegionState::Failed, ErrorCode::ImageNotFound.into()));
        assert!(error.message.contains(&layers[0]), "{}", error.message);
        assert_eq!(error.http_status, 404);
    }
    let app = running.add("b", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    assert_eq!(running.finished(&id).await.state(), SynchronizationState::Succeeded);
    running.stop().await;
}

#[tokio::test]
async fn a_copy_that_is_canceled_stops_and_never_becomes_visible() {
    let running = Site::new().start().await;
    let app = running.add("a", &[vec![1; 200 << 20], vec![2; 200 << 20]]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    until("copies in progress", async || {
        running.get(&id).await.regions.iter().all(|r| r.state() == RegionState::Copying).then_some(())
    })
    .await;
    let cancel = CancelSynchronizationRequest { request_id: id.clone() };
    running.app_sync().await.cancel_synchronization(cancel).await.expect("it is canceled");
    let canceled = running.get(&id).await;
    assert_eq!(canceled.state(), SynchronizationState::Canceled);
    assert!(canceled.regions.iter().all(|r| r.state() == RegionState::Canceled));
    // The same workers copy a later image. Once it has arrived, they have noticed the cancellation.
    let other = running.add("b", &[noise(1_000, 1)]).await;
    let later = running.synchronize(&other, &[]).await.expect("it is accepted");
    assert_eq!(running.finished(&later).await.state(), SynchronizationState::Succeeded);
    let site = running.stop().await;
    for target in TARGETS {
        assert!(!images::visible(&site.image(target, "a")), "{target}");
    }
    let running = site.start().await;
    let again = running.synchronize(&app, &[]).await.expect("it is accepted");
    assert_eq!(running.finished(&again).await.state(), SynchronizationState::Succeeded);
    assert_eq!(running.get(&id).await, canceled);
    for target in TARGETS {
        images::verify(&running.site.image(target, "a"));
    }
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_written_outside_of_a_store() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(1_000, 1)]).await;
    let outside = running.site.directory.path().join("outside");
    fs::create_dir_all(&outside).expect("a directory");
    std::os::unix::fs::symlink(&outside, running.site.image("cn-shanghai", "a")).expect("a link");
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    failed_alone(&done, "cn-shanghai", ErrorCode::ServiceApiError, &["a/blobs/sha256"]);
    assert_eq!(fs::read_dir(&outside).expect("it is there").count(), 0);
    running.stop().await;
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_blob_blocks_nobody() {
    let running = Site::new().start().await;
    let app = running.add("a", &[noise(1_000, 1)]).await;
    let layers = images::layers(&running.site.image(HOME, "a"));
    let blob = images::blob_path(&running.site.image(HOME, "a"), &layers[0]);
    replace_by_pipe(&blob);
    let id = running.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let done = running.finished(&id).await;
    let error = region(&done, "cn-beijing").error.as_ref().expect("a reason");
    assert!(error.message.contains("it is not a file"), "{}", error.message);
    running.stop().await;
}

fn replace_by_pipe(path: &Path) {
    fs::remove_file(path).expect("it was there");
    let made = Command::new("mkfifo").arg(path).status().expect("mkfifo is installed");
    assert!(made.success());
}
