//! `kill -9` at any moment: every acknowledged synchronization still ends, and every digest is correct.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use appferry::contract::v1::SynchronizationState;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::harness::{
    images::{self, noise},
    process::Served,
    site::{self, HOME, Site, TARGETS, app_sync, app_sync_lazy, ask, images_client},
    until,
};

const IMAGES: usize = 350;
const KILLS: usize = 25;

/// The clients' record of open and acknowledged calls, kept outside of the service.
#[derive(Debug, Clone, Default)]
struct Ledger(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    /// Images whose call has not been answered.
    open: Vec<String>,
    /// Images with the acknowledged request ids.
    acknowledged: Vec<(String, String)>,
}

impl Ledger {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<String>, &mut Vec<(String, String)>) -> T) -> T {
        let entries = &mut *self.0.lock().expect("no panic");
        act(&mut entries.open, &mut entries.acknowledged)
    }

    fn acknowledged(&self) -> usize {
        self.with(|_, acknowledged| acknowledged.len())
    }

    /// Makes the open calls one after the other, until `most` are acknowledged or the service has exited. An unanswered
    /// call stays open: it may or may not have been committed, and the client retries it.
    async fn call(self, address: SocketAddr, most: usize) {
        let mut client = app_sync_lazy(address);
        while let Some(app) = self.with(|open, done| if done.len() < most { open.pop() } else { None }) {
            match client.synchronize_app(ask(&app, &[])).await {
                Ok(response) => self.with(|_, done| done.push((app, response.into_inner().request_id))),
                Err(_) => return self.with(|open, _| open.push(app)),
            }
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
    let mut served = site.serve().await;
    let config = site.config_file();
    let mut registrar = images_client(served.address, Some(site::ADMIN)).await;
    let common = noise(200_000, 1);
    let ledger = Ledger::default();
    for image in 0..IMAGES {
        let name = format!("image-{image}");
        images::write(&site.image(HOME, &name), &[common.clone(), noise(40_000, 100 + image as u64)]);
        let app = site::register(&mut registrar, &name).await;
        ledger.with(|open, _| open.push(app));
    }

    for kill in 0..KILLS {
        // Each kill happens in another part of the run, at an arbitrary moment.
        let [so_far, most] = [kill, kill + 1].map(|kills| IMAGES * kills / KILLS);
        let callers = [(); 2].map(|()| tokio::spawn(ledger.clone().call(served.address, most)));
        until("acknowledged calls", async || (ledger.acknowledged() >= so_far).then_some(())).await;
        tokio::time::sleep(Duration::from_micros(random.random_range(0..60_000))).await;
        served.kill();
        for caller in callers {
            caller.await.expect("no panic");
        }
        served = Served::configured(&config).await;
    }
    ledger.clone().call(served.address, IMAGES).await;
    let ledger = ledger.with(|open, acknowledged| {
        assert_eq!((open.len(), acknowledged.len()), (0, IMAGES), "seed {seed}");
        std::mem::take(acknowledged)
    });

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
