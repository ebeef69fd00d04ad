//! Regions in directories: a canceled copy is never visible, and leftovers of copies are found and removed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use appferry::contract::v1::{CancelSynchronizationRequest, SynchronizationState};
use sha2::{Digest as _, Sha256};

use crate::harness::{
    images::{self, noise},
    process::{self, Served},
    site::{self, HOME, Running, SYNC_ONLY, Site, images_client},
    until,
};

const REGION: &str = "cn-beijing";

/// Returns the visible images of a region.
fn visible(site: &Site) -> BTreeSet<String> {
    let images = fs::read_dir(site.region(REGION)).expect("the region").map(|image| image.expect("an image"));
    let visible = images.filter(|image| image.path().join("index.json").exists());
    visible.map(|image| image.file_name().to_string_lossy().into_owned()).collect()
}

/// Copies are canceled at every stage: none is visible afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canceled_copy_is_not_visible_afterwards() {
    const IMAGES: u64 = 24;
    let running = Site::new().start().await;
    let mut client = running.app_sync().await;
    let mut canceled = BTreeSet::new();
    for n in 0..IMAGES {
        let app = running.add(&format!("a{n}"), &[noise(1 << 20, n), noise(1 << 19, 1_000 + n)]).await;
        let request = running.synchronize(&app, &[REGION]).await.expect("it is accepted");
        // Each copy is canceled later than the one before: the first at once, the last near its end.
        let moment = u32::try_from(n).expect("a small number") * Duration::from_millis(4);
        tokio::time::sleep(moment).await;
        let cancel = CancelSynchronizationRequest { request_id: request };
        let answer = client.cancel_synchronization(cancel).await.expect("an answer").into_inner();
        if answer.synchronization.expect("a synchronization").state() == SynchronizationState::Canceled {
            canceled.insert(app);
        }
    }
    // The last copy is queued behind all others. Once it has finished and no partial file is left, none is in progress.
    let last = running.add("last", &[noise(1_000, 7_777)]).await;
    let request = running.synchronize(&last, &[REGION]).await.expect("it is accepted");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);
    let site = &running.site;
    until("the end of every write", async || unfinished(&site.region(REGION)).is_empty().then_some(())).await;
    // An image that was published just before its cancellation is removed again.
    until("the removal of canceled copies", async || visible(site).is_disjoint(&canceled).then_some(())).await;
    assert!(!canceled.is_empty(), "none was canceled in time");
    running.stop().await;
}

/// Returns the files that are named like partial blobs.
fn unfinished(region: &Path) -> Vec<PathBuf> {
    let images = fs::read_dir(region).expect("the region").map(|image| image.expect("an image").path());
    let directories = images.flat_map(|image| [image.join("blobs/sha256"), image]);
    let files = directories.flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
    let names = [".partial", ".begun"];
    files
        .filter(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            names.iter().any(|ending| name.ends_with(ending)) || name.starts_with(".index.json.")
        })
        .map(|file| file.path())
        .collect()
}

/// Sets the modification time of a path, and of everything below it, to two hours ago.
fn age(path: &Path) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            age(&entry.expect("an entry").path());
        }
    }
    #[expect(clippy::disallowed_methods, reason = "the test sets a file's time")]
    let then = SystemTime::now() - Duration::from_secs(7_200);
    fs::File::open(path).and_then(|file| file.set_modified(then)).expect("the time is set");
}

/// Writes the leftovers of an interrupted claim: a complete blob and a partial one.
fn leave(image: &Path) {
    let blobs = image.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("directories");
    fs::write(image.join(".appferry-fence"), "00000000000000000007\n").expect("a fence");
    let content = noise(1 << 20, 1);
    fs::write(blobs.join(hex::encode(Sha256::digest(&content))), content).expect("a blob");
    fs::write(blobs.join(format!("{}.7-0.partial", "1".repeat(64))), noise(1 << 19, 2)).expect("an unfinished blob");
}

fn doctor(config: &Path) -> String {
    let path = config.to_str().expect("text");
    process::stdout(&process::run(config.parent().expect("a directory"), &["doctor", "--config", path]))
}

async fn served(site: &Site) -> (PathBuf, Served) {
    let served = site.serve().await;
    (site.config_file(), served)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_are_listed_by_the_doctor_and_removed_by_maintenance() {
    let site = Site::new();
    let config = site.write_config();
    process::migrate(&config);
    // Leftovers of a canceled copy, and of an `image add` that was killed.
    let [copy, added] = [site.image(REGION, "gone"), site.image(HOME, "killed")];
    let young = site.image(REGION, "young");
    for image in [&copy, &added, &young] {
        leave(image);
    }
    age(&copy);
    age(&added);
    // Foreign files are kept, however old and incomplete they look.
    let foreign = site.image(HOME, "foreign");
    leave(&foreign);
    fs::remove_file(foreign.join(".appferry-fence")).expect("it was there");
    fs::rename(
        foreign.join(format!("blobs/sha256/{}.7-0.partial", "1".repeat(64))),
        foreign.join("blobs/sha256/download.partial"),
    )
    .expect("it was there");
    age(&foreign);

    let report = doctor(&config);
    for expected in [
        "cn-beijing: gone: image that is not visible, 1.50 MiB, 2 h old",
        "cn-hangzhou: killed: image that is not visible, 1.50 MiB, 2 h old",
        "cn-beijing: young: image that is not visible, 1.50 MiB, ",
    ] {
        assert!(report.contains(expected), "{expected}: {report}");
    }
    assert!(!report.contains("foreign"), "{report}");

    let (config, served) = served(&site).await;
    until("the removal of the leftovers", async || (!copy.exists() && !added.exists()).then_some(())).await;
    assert!(young.join("blobs/sha256").exists() && foreign.join("blobs/sha256/download.partial").exists());
    let report = doctor(&config);
    assert!(!report.contains("gone") && !report.contains("killed") && report.contains("young"), "{report}");

    // The next copy resumes from the recent leftovers.
    images::write(&site.image(HOME, "young"), &[noise(1 << 20, 1)]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "young").await;
    let mut client = site::app_sync(served.address, Some(site::ADMIN)).await;
    let request = client.synchronize_app(site::ask("young", &[REGION])).await.expect("it is accepted");
    let done = site::finished(&mut client, &request.into_inner().request_id).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions[0].bytes_skipped >= 1 << 20, "{done:?}");
    assert_eq!(unfinished(&site.region(REGION)), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_may_not_be_registered_does_not_stay_in_the_home_region() {
    let site = Site::new();
    let (config, served) = served(&site).await;
    fs::write(site.directory.path().join("disk.img"), noise(1 << 20, 1)).expect("a disk");
    let endpoint = format!("http://{}", served.address);
    let add = |token: &str| {
        let arguments = ["image", "add", "--name", "n", "--file", "disk.img", "--endpoint", &endpoint, "--config"];
        let mut command = process::command(site.directory.path(), &arguments);
        command.arg(&config).env("APPFERRY_TOKEN", token).output().expect("the program runs")
    };
    let refused = add(SYNC_ONLY);
    assert!(!refused.status.success() && process::stderr(&refused).contains("NoPermission"), "{refused:?}");
    assert_eq!(fs::read_dir(site.region(HOME)).expect("the region").count(), 0);

    process::stdout(&add(site::ADMIN));
    assert_eq!(fs::read_dir(site.region(HOME)).expect("the region").count(), 1);
}

/// Existing blobs are synced to disk when the region becomes available, and shared blobs are hard-linked, not copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_of_another_image_is_linked_and_a_damaged_one_is_replaced() {
    use std::os::unix::fs::MetadataExt as _;
    let running: Running = Site::new().start().await;
    let layer = noise(1 << 20, 1);
    let digest = images::digest(&layer);
    for app in ["one", "two"] {
        running.add(app, &[layer.clone(), noise(1_000, u64::from(app.as_bytes()[0]))]).await;
    }
    let file = |app: &str| images::blob_path(&running.site.image(REGION, app), &digest);
    let request = running.synchronize("one", &[REGION]).await.expect("it is accepted");
    assert_eq!(running.finished(&request).await.state(), SynchronizationState::Succeeded);

    // The blob's path is occupied by a damaged file.
    fs::create_dir_all(file("two").parent().expect("a directory")).expect("directories");
    fs::write(file("two"), "damaged").expect("a damaged blob");
    let request = running.synchronize("two", &[REGION]).await.expect("it is accepted");
    let done = running.finished(&request).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    let inode = |app: &str| fs::metadata(file(app)).expect("a blob").ino();
    assert_eq!(inode("one"), inode("two"));
    images::verify(&running.site.image(REGION, "two"));
    running.stop().await;
}
