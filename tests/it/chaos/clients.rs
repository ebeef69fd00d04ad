//! The clients of a run. Each client makes one call after the other, retries unanswered calls with the same token, and
//! sometimes cancels a call.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use appferry::contract::v1::{
    CancelSynchronizationRequest, GetSynchronizationRequest, RemoveImageRequest, SynchronizeAppRequest,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::task::JoinHandle;
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Endpoint};

use super::{
    cluster::{Cluster, NARROW},
    ledger::{Entry, Ledger},
};
use crate::harness::{
    images::{self, noise},
    site::{self, ADMIN, AppSync, Images, TARGETS, Token, registration},
};

const CLIENTS: usize = 8;
/// Number of the newest images that repeated requests choose from.
const WINDOW: usize = 24;
/// Maximum number of a client's calls in progress. Without a limit, a machine that is too slow for the load falls
/// behind further and further, because every copy slows down, and more copies stall and are retried.
const MAX_OPEN: usize = 32;
/// Deadline of one call.
const DEADLINE: Duration = Duration::from_secs(10);

/// The running clients.
#[derive(Debug)]
pub struct Clients {
    pub shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// State shared by the clients.
#[derive(Debug)]
pub struct Shared {
    addresses: Vec<SocketAddr>,
    home: PathBuf,
    pub ledger: Ledger,
    common: Vec<u8>,
    images: AtomicUsize,
    /// The registered images, newest last.
    registered: Mutex<Vec<String>>,
    done: AtomicBool,
    /// Pause of a client between two calls, in milliseconds.
    pub rest: AtomicU64,
    pub unavailable: AtomicUsize,
}

/// Default pause in milliseconds.
pub const REST: u64 = 500;

pub fn start(cluster: &Cluster, ledger: &Ledger, seed: u64) -> Clients {
    let shared = Arc::new(Shared {
        addresses: cluster.addresses(),
        home: cluster.home(),
        ledger: ledger.clone(),
        common: noise(20_000, 1),
        images: AtomicUsize::new(0),
        registered: Mutex::default(),
        done: AtomicBool::new(false),
        rest: AtomicU64::new(REST),
        unavailable: AtomicUsize::new(0),
    });
    let tasks = (0..CLIENTS).map(|number| {
        let random = StdRng::seed_from_u64(seed ^ (number as u64 + 1) << 32);
        tokio::spawn(Client { shared: Arc::clone(&shared), number, random, open: VecDeque::new() }.run())
    });
    Clients { tasks: tasks.collect(), shared: Arc::clone(&shared) }
}

impl Clients {
    /// Stops each client after its current call.
    pub async fn finish(self) {
        self.shared.done.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no client panicked");
        }
    }
}

impl Shared {
    fn channel(&self, number: usize) -> tonic::transport::Channel {
        let address = self.addresses[number % self.addresses.len()];
        Endpoint::from_shared(format!("http://{address}"))
            .expect("an address")
            .connect_timeout(Duration::from_secs(1))
            .timeout(DEADLINE)
            .connect_lazy()
    }

    fn app_sync(&self, number: usize) -> AppSync {
        AppSync::new(InterceptedService::new(self.channel(number), Token::of(ADMIN)))
    }

    /// Writes a new image and registers it, retrying until the registration succeeds. Returns the image's name.
    pub async fn add(&self) -> String {
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let name = format!("image-{number}");
        images::write(&self.home.join(&name), &[self.common.clone(), noise(3_000, 10 + number as u64)]);
        self.register(&name).await;
        self.registered.lock().expect("no panic").push(name.clone());
        name
    }

    /// Registers an image, retrying until the registration succeeds.
    async fn register(&self, name: &str) {
        for attempt in rand::random_range(0..self.addresses.len()).. {
            match self.images(attempt).add_image(registration(name)).await {
                Ok(_) => break,
                // An earlier attempt succeeded without a response.
                Err(status) if status.code() == Code::AlreadyExists => break,
                Err(status) => self.rest_after(&status).await,
            }
        }
    }

    fn images(&self, number: usize) -> Images {
        Images::new(InterceptedService::new(self.channel(number), Token::of(ADMIN)))
    }

    /// Removes an image, retrying after transient errors. Returns false if a copy of the image is in progress.
    async fn remove(&self, name: &str) -> bool {
        for attempt in rand::random_range(0..self.addresses.len()).. {
            let request = RemoveImageRequest { image_id: name.to_owned(), ..Default::default() };
            match self.images(attempt).remove_image(request).await {
                Ok(_) => return true,
                // An earlier attempt succeeded without a response.
                Err(status) if status.code() == Code::NotFound => return true,
                Err(status) if status.code() == Code::FailedPrecondition => return false,
                Err(status) => self.rest_after(&status).await,
            }
        }
        false
    }

    /// Requests an image that may have been removed. The ledger does not record the call, because its outcome is
    /// unpredictable.
    async fn ask(&self, app: &str, targets: &[&str], token: &str) {
        let request = SynchronizeAppRequest { client_token: token.to_owned(), ..site::ask(app, targets) };
        for attempt in rand::random_range(0..self.addresses.len()).. {
            match self.app_sync(attempt).synchronize_app(request.clone()).await {
                Ok(_) => return,
                Err(status) if [Code::NotFound, Code::AlreadyExists].contains(&status.code()) => return,
                Err(status) => self.rest_after(&status).await,
            }
        }
    }

    /// Waits until the call at this index of the ledger has ended.
    async fn wait_until_ended(&self, index: usize) {
        for attempt in 0.. {
            if self.has_ended(index, attempt).await {
                return;
            }
            continue_soon().await;
        }
    }

    /// Returns whether a server reports that a call has ended. An unanswered request counts as no.
    async fn has_ended(&self, index: usize, server: usize) -> bool {
        let request = GetSynchronizationRequest { request_id: self.ledger.request_id(index) };
        let found = self.app_sync(server).get_synchronization(request).await;
        found.is_ok_and(|found| found.into_inner().synchronization.is_some_and(|s| s.finish_time.is_some()))
    }

    /// Returns a random image among the newest ones; `None` if no image is registered.
    fn recent_image(&self, random: &mut StdRng) -> Option<String> {
        let registered = self.registered.lock().expect("no panic");
        registered[registered.len().saturating_sub(WINDOW)..].choose(random).cloned()
    }

    /// Makes a call, retrying with the same token until it is answered. Returns the index of the call in the ledger;
    /// `None` if the service rejects the call permanently.
    pub async fn call(&self, app: &str, targets: &[&str], token: &str) -> Option<usize> {
        let request = SynchronizeAppRequest {
            app_id: app.to_owned(),
            target_region_ids: targets.iter().map(|&target| target.to_owned()).collect(),
            client_token: token.to_owned(),
            overwrite: false,
        };
        for attempt in rand::random_range(0..self.addresses.len()).. {
            match self.app_sync(attempt).synchronize_app(request.clone()).await {
                Ok(accepted) => {
                    let request_id = accepted.into_inner().request_id;
                    let targets = request.target_region_ids;
                    let entry = Entry { request_id, app: app.to_owned(), targets, canceled: false };
                    return Some(self.ledger.acknowledged(entry));
                }
                // All regions have the image already.
                Err(status) if status.code() == Code::AlreadyExists => return None,
                Err(status) => self.rest_after(&status).await,
            }
        }
        None
    }

    /// Cancels a call, retrying until the cancellation is answered.
    pub async fn cancel(&self, index: usize) {
        let request_id = self.ledger.request_id(index);
        self.ledger.canceling(index);
        for attempt in index.. {
            let request = CancelSynchronizationRequest { request_id: request_id.clone() };
            match self.app_sync(attempt).cancel_synchronization(request).await {
                Ok(_) => return,
                Err(status) => self.rest_after(&status).await,
            }
        }
    }

    /// Waits a moment after a transient error. Panics on any other error.
    async fn rest_after(&self, status: &Status) {
        let passing = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown];
        // A transport error has no details: its code is `Unknown`, or `Internal` if h2 reports it.
        let cut = status.details().is_empty();
        assert!(passing.contains(&status.code()) || cut, "{status:?}");
        if status.code() == Code::Unavailable && !cut {
            self.unavailable.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..200))).await;
    }
}

struct Client {
    shared: Arc<Shared>,
    number: usize,
    random: StdRng,
    /// Ledger indexes of the client's calls that may be in progress, oldest first.
    open: VecDeque<usize>,
}

impl Client {
    async fn run(mut self) {
        let mut calls = 0;
        while !self.shared.done.load(Ordering::Relaxed) {
            // Half of the calls request a new image. The others join, repeat or extend recent calls.
            let recent_image = self.shared.recent_image(&mut self.random).filter(|_| self.random.random_bool(0.5));
            let app = match recent_image {
                Some(app) => app,
                None => self.shared.add().await,
            };
            let targets: Vec<&str> = match self.random.random_range(0..10) {
                0..4 => Vec::new(),
                4..7 => TARGETS.choose(&mut self.random).copied().into_iter().collect(),
                _ => TARGETS.iter().copied().filter(|_| self.random.random_bool(0.6)).collect(),
            };
            calls += 1;
            let token = format!("client-{}-{calls}", self.number);
            let index = self.shared.call(&app, &targets, &token).await;
            if let Some(index) = index {
                self.open.push_back(index);
                if self.random.random_bool(0.03) {
                    self.shared.cancel(index).await;
                }
                // Sometimes treats the response as lost and retries the call, which must return the same request id.
                if self.random.random_bool(0.05) {
                    let again = self.shared.call(&app, &targets, &token).await.expect("it was accepted before");
                    let entries = self.shared.ledger.entries();
                    assert_eq!(entries[again].request_id, entries[index].request_id, "a repeated call is the same");
                    if entries[index].canceled {
                        self.shared.ledger.canceling(again);
                    }
                }
            }
            let rest = self.shared.rest.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(self.random.random_range(rest / 2..=rest * 3 / 2))).await;
            self.wait_for_room().await;
        }
    }

    /// Waits until fewer than [`MAX_OPEN`] of the client's calls are in progress, or until the run ends.
    async fn wait_for_room(&mut self) {
        while self.open.len() >= MAX_OPEN && !self.shared.done.load(Ordering::Relaxed) {
            if self.shared.has_ended(self.open[0], self.random.random_range(0..self.shared.addresses.len())).await {
                self.open.pop_front();
            } else {
                continue_soon().await;
            }
        }
    }
}

async fn continue_soon() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Requests `many` images for the narrow region alone, then one image for another region. Returns how long the last
/// call took.
pub async fn starve(shared: &Shared, many: usize) -> Duration {
    for number in 0..many {
        let app = shared.add().await;
        shared.call(&app, &[NARROW], &format!("narrow-{}-{number}", rand::random::<u32>())).await;
    }
    let probe = shared.add().await;
    let started = tokio::time::Instant::now();
    let token = format!("probe-{}", rand::random::<u32>());
    let index = shared.call(&probe, &["cn-beijing"], &token).await.expect("it is accepted");
    shared.wait_until_ended(index).await;
    started.elapsed()
}

/// Repeatedly registers an image, has it copied, and removes it while another call requests it. Each new image has
/// other content under the same id. Returns the number of removals. The final verdict checks the results.
pub async fn race_removal(shared: &Shared) -> usize {
    let number = shared.images.fetch_add(1, Ordering::Relaxed);
    let name = format!("race-{number}");
    let mut removed = 0;
    for version in 0..6u64 {
        let _ = std::fs::remove_dir_all(shared.home.join(&name));
        images::write(&shared.home.join(&name), &[noise(3_000, (number as u64) << 8 | version)]);
        shared.register(&name).await;
        let token = |call: &str| format!("{name}-{version}-{call}-{}", rand::random::<u32>());
        if let Some(index) = shared.call(&name, &["cn-shanghai"], &token("first")).await {
            shared.wait_until_ended(index).await;
        }
        if version == 5 {
            break;
        }
        // The order of the call and the removal is random.
        let again = token("again");
        let ((), gone) = tokio::join!(shared.ask(&name, &["cn-beijing"], &again), shared.remove(&name));
        if gone {
            removed += 1;
            continue;
        }
        // The call came first, so the image cannot be removed until its copies have ended.
        while !shared.remove(&name).await {
            continue_soon().await;
        }
        removed += 1;
    }
    removed
}

/// Lists synchronizations in a loop until the task is aborted.
pub async fn read(shared: Arc<Shared>) {
    for attempt in 0.. {
        let request = appferry::contract::v1::ListSynchronizationsRequest { page_size: 100, ..Default::default() };
        if shared.app_sync(attempt).list_synchronizations(request).await.is_err() {
            continue_soon().await;
        }
    }
}
