//! Regions that are removed from the configuration, restored, or moved to another store.

use std::fs;

use appferry::contract::v1::{GetImageRequest, RegionState, RemoveImageRequest, SynchronizationState};
use serde_json::Value;

use crate::harness::{
    address::free_address,
    images, process,
    process::Served,
    site::{self, HOME, Site, app_sync, ask, images_client},
    until,
};

/// The maintenance interval of these tests.
const MAINTENANCE: &str = "[housekeeping]\ninterval_ms = 50\n";
/// The region that is removed and restored.
const REGION: &str = "cn-shanghai";

/// Writes a site's configuration without the region.
fn without_region(site: &Site) {
    let text = site.config();
    let section = format!("[[region]]\nid = \"{REGION}\"\nstore = \"dir://{}\"\n", site.region(REGION).display());
    assert!(text.contains(&section), "{text}");
    fs::write(site.directory.path().join("appferry.toml"), text.replace(&section, "")).expect("it is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_to_a_region_that_is_not_configured_are_suspended_until_it_is() {
    let http = free_address();
    let mut site = Site::new();
    site.more = format!("{MAINTENANCE}[http]\nlisten = \"{http}\"\n");
    let all = site.worker.clone();
    // No worker copies to the region.
    site.worker += "\nregions = [\"cn-beijing\"]";
    let mut served = site.serve().await;
    let config = site.config_file();
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        images::write(&site.image(HOME, name), &[vec![1; 1_000]]);
        site::register(&mut images_client(served.address, Some(site::ADMIN)).await, name).await;
        let mut client = app_sync(served.address, Some(site::ADMIN)).await;
        ids.push(client.synchronize_app(ask(name, &[REGION])).await.expect("it is accepted").into_inner().request_id);
    }
    served.terminate();
    served.ended().await;

    without_region(&site);
    let mut served = Served::configured(&config).await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    for id in &ids {
        let said = until("the error", async || {
            let seen = site::get(&mut client, id).await.regions.remove(0);
            assert_eq!(seen.state(), RegionState::Pending);
            seen.error.map(|error| error.message)
        })
        .await;
        assert!(said.contains("is not configured any more"), "{said}");
    }
    let metric = format!("appferry_queue_suspended{{appferry_region_id=\"{REGION}\"");
    until("the metric", async || {
        let text = reqwest::get(format!("http://{http}/metrics")).await.ok()?.text().await.ok()?;
        text.lines().any(|line| line.starts_with(&metric) && line.ends_with(" 2")).then_some(())
    })
    .await;
    let log = fs::read_to_string(&served.log).expect("a log");
    assert!(log.contains("region is not configured any more"), "{log}");
    let mut images = images_client(served.address, Some(site::ADMIN)).await;
    images
        .remove_image(RemoveImageRequest { image_id: "b".to_owned(), ..Default::default() })
        .await
        .expect("it can be removed");
    assert_eq!(site::finished(&mut client, &ids[1]).await.state(), SynchronizationState::Canceled);
    served.terminate();
    served.ended().await;

    site.worker = all;
    site.write_config();
    let served = Served::configured(&config).await;
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let done = site::finished(&mut client, &ids[0]).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    drop(served);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_a_regions_new_store_does_not_have_are_failed_and_can_be_synchronized_again() {
    let mut site = Site::new();
    site.more = MAINTENANCE.to_owned();
    let running = site.start().await;
    for name in ["there", "lost"] {
        running.add(name, &[name.as_bytes().to_vec()]).await;
        let id = running.synchronize(name, &[REGION]).await.expect("it is accepted");
        assert_eq!(running.finished(&id).await.state(), SynchronizationState::Succeeded);
    }
    let site = running.stop().await;

    let elsewhere = site.directory.path().join("elsewhere");
    let copy = std::process::Command::new("cp").arg("-r").arg(site.region(REGION)).arg(&elsewhere).status();
    assert!(copy.expect("cp runs").success());
    fs::remove_dir_all(elsewhere.join("lost")).expect("it was copied");
    let site = site.with(REGION, format!("dir://{}", elsewhere.display()), "");
    let config = site.write_config();
    let doctor = process::run(site.directory.path(), &["doctor", "--json", "--config", config.to_str().expect("text")]);
    let said = String::from_utf8(doctor.stdout).expect("text");
    let found = said.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let moved =
        |line: &Value| line["detail"].as_str().is_some_and(|detail| detail.contains("its store has changed from"));
    assert!(found.into_iter().any(|line| line["check"] == REGION && line["ok"] == false && moved(&line)), "{said}");

    let running = site.start().await;
    let mut images = running.images().await;
    let mut state = async |name: &str| {
        let request = GetImageRequest { image_id: name.to_owned(), ..Default::default() };
        let image = images.get_image(request).await.expect("it is registered").into_inner().image.expect("an image");
        let region = image.additional_regions_info.into_iter().find(|info| info.region_id == REGION);
        region.expect("it is configured").status()
    };
    until("the lost copy to be noticed", async || (state("lost").await == RegionState::Failed).then_some(())).await;
    assert_eq!(state("there").await, RegionState::Available);
    let id = running.synchronize("lost", &[REGION]).await.expect("it is accepted");
    assert_eq!(running.finished(&id).await.state(), SynchronizationState::Succeeded);
    assert!(elsewhere.join("lost/index.json").is_file());
    running.stop().await;
}
