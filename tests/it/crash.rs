//! `kill -9` at any moment: whatever was acknowledged goes on to its end, and every digest is right.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use appferry::contract::v1::SynchronizationState;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    images::{self, noise},
    process::{self, Served},
    site::{self, HOME, Site, TARGETS, app_sync, app_sync_lazy, ask, images_client},
};

const IMAGES: usize = 350;
const KILLS: usize = 25;

/// Calls for one image after the other, until there are no more or the service is gone. An acknowledged call is written down.
async fn call(address: std::net::SocketAddr, next: Arc<AtomicUsize>, ledger: Arc<Mutex<Vec<(String, String)>>>) {
    let mut client = app_sync_lazy(address);
    loop {
        let image = next.fetch_add(1, Ordering::Relaxed);
        if image >= IMAGES {
            return;
        }
        let app = format!("image-{image}");
        match client.synchronize_app(ask(&app, &[])).await {
            Ok(response) => ledger.lock().expect("nobody panicked").push((app, response.into_inner().request_id)),
            // Whether it was committed is not known; a caller would repeat it.
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_call_is_finished_after_25_kills() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut site = Site::new();
    site.worker = "lease_ms = 600\nheartbeat_ms = 100\npoll_ms = 50\nconcurrency = 8".to_owned();
    let config = site.write_config();
    let path = config.to_str().expect("text");
    process::stdout(&process::run(site.directory.path(), &["migrate", "--config", path]));
    let mut served = Served::configured(&config).await;
    let mut registrar = images_client(served.address, Some(site::ADMIN)).await;
    let common = noise(200_000, 1);
    for image in 0..IMAGES {
        let name = format!("image-{image}");
        images::write(&site.image(HOME, &name), &[common.clone(), noise(40_000, 100 + image as u64)]);
        site::register(&mut registrar, &name).await;
    }

    let (next, ledger) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<_>>>::default());
    for kill in 0..KILLS {
        let moment = Duration::from_millis(random.random_range(0..250));
        // Some images are left for each of the lives to come.
        let so_far = IMAGES * (kill + 1) / KILLS;
        let stop = CancellationToken::new();
        let calls = tokio::spawn(stop.clone().run_until_cancelled_owned({
            let (next, ledger, address) = (Arc::clone(&next), Arc::clone(&ledger), served.address);
            async move {
                while next.load(Ordering::Relaxed) < so_far {
                    call(address, Arc::clone(&next), Arc::clone(&ledger)).await;
                    tokio::task::yield_now().await;
                }
            }
        }));
        tokio::time::sleep(moment).await;
        served.kill();
        stop.cancel();
        calls.await.expect("no panic");
        served = Served::configured(&config).await;
    }
    let ledger = ledger.lock().expect("nobody panicked").clone();
    assert!(ledger.len() > IMAGES / 3, "only {} calls were acknowledged; seed {seed}", ledger.len());

    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    for (app, request_id) in &ledger {
        let done = site::finished(&mut client, request_id).await;
        assert_eq!(done.state(), SynchronizationState::Succeeded, "{app}, seed {seed}: {done:?}");
        let root = images::verify(&site.image(HOME, app));
        for target in TARGETS {
            assert_eq!(images::verify(&site.image(target, app)), root, "{app} in {target}, seed {seed}");
        }
    }
    println!("{} calls were acknowledged and finished", ledger.len());
}
