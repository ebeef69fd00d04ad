//! The setup of the copy benchmarks: a source registry with an image, target registries, and the service in its own
//! process.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use appferry::contract::v1::{RemoveImageRequest, SynchronizationState};

use super::harness::{
    images,
    process::Served,
    proxy::{Action, Proxy, ReceivedRequest},
    registry::Registry,
    site::{ADMIN, HOME, Site, TARGETS, app_sync, ask, container, finished, finished_within, images_client},
    until,
};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const APP: &str = "gromacs";
/// The deadline of one copy.
const PATIENCE: Duration = Duration::from_secs(600);
const NAME: &str = "gromacs:2026.1";

/// Wall time, processor time and peak memory of one run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    pub wall: Duration,
    pub cpu: Duration,
    pub resident_kib: u64,
}

/// A source registry with one image.
pub struct Setup {
    pub source: Registry,
    pub layout: PathBuf,
    _directory: tempfile::TempDir,
    /// Total size of the layers in bytes.
    pub bytes: u64,
}

pub fn exact(number: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    {
        number as f64
    }
}

impl Setup {
    /// Pushes an image with layers of the given sizes.
    pub async fn new(layers: &[usize]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let layout = directory.path().join("layout");
        let bytes = layers.iter().map(|&size| size as u64).sum();
        let sizes = layers.to_vec();
        let to = layout.clone();
        tokio::task::spawn_blocking(move || images::write_sizes(&to, &sizes)).await?;
        let source = Registry::start().await;
        source.push(&layout, &format!("apps/{NAME}"));
        Ok(Self { source, layout, _directory: directory, bytes })
    }

    pub async fn registries(&self, count: usize) -> Vec<Registry> {
        let mut registries = Vec::new();
        for _ in 0..count {
            registries.push(Registry::start().await);
        }
        registries
    }

    /// Starts a proxy in front of the source.
    pub async fn proxy(&self, rule: impl FnMut(&ReceivedRequest) -> Action + Send + 'static) -> Proxy {
        Proxy::start(self.source.address, rule).await
    }

    pub async fn appferry(&self, regions: usize) -> Result<Measured> {
        self.appferry_to(&self.registries(regions).await).await
    }

    pub async fn appferry_to(&self, registries: &[Registry]) -> Result<Measured> {
        self.appferry_by(self.source.address, registries, None).await
    }

    pub async fn appferry_by(
        &self,
        source: SocketAddr,
        registries: &[Registry],
        worker: Option<&str>,
    ) -> Result<Measured> {
        let stores: Vec<String> = registries.iter().map(|registry| registry.store("apps")).collect();
        self.carry(source, &stores, worker).await
    }

    pub async fn appferry_into(&self, stores: &[String], worker: Option<&str>) -> Result<Measured> {
        self.carry(self.source.address, stores, worker).await
    }

    /// Starts a service and copies the image from `source` to the stores. Measures from the call to the end of the
    /// watch.
    async fn carry(&self, source: SocketAddr, stores: &[String], worker: Option<&str>) -> Result<Measured> {
        let (_site, served) = self.serve(source, stores, worker).await?;
        Self::synchronize(&served, stores.len()).await
    }

    /// Copies the image to the registries, then removes it from the catalog, adds it again and copies it a second time.
    /// Returns both measurements.
    pub async fn appferry_twice(&self, registries: &[Registry]) -> Result<[Measured; 2]> {
        let stores: Vec<String> = registries.iter().map(|registry| registry.store("apps")).collect();
        let (_site, served) = self.serve(self.source.address, &stores, None).await?;
        let first = Self::synchronize(&served, stores.len()).await?;
        let mut client = images_client(served.address, Some(ADMIN)).await;
        client.remove_image(RemoveImageRequest { image_id: APP.to_owned(), ..Default::default() }).await?;
        client.add_image(container(APP, &format!("{}/apps/{NAME}", self.source.address))).await?;
        Ok([first, Self::synchronize(&served, stores.len()).await?])
    }

    /// Copies the image to `stores` regions, and measures from the call to the end of the watch.
    async fn synchronize(served: &Served, stores: usize) -> Result<Measured> {
        let mut client = app_sync(served.address, Some(ADMIN)).await;
        let before = cpu(served.id());
        let started = Instant::now();
        let regions: Vec<String> = (0..stores).map(region).collect();
        let regions: Vec<&str> = regions.iter().map(String::as_str).collect();
        let request = client.synchronize_app(ask(APP, &regions)).await?.into_inner().request_id;
        let done = finished_within(&mut client, &request, PATIENCE).await;
        let wall = started.elapsed();
        if done.state() != SynchronizationState::Succeeded {
            return Err(format!("{done:?}").into());
        }
        let id = served.id();
        Ok(Measured { wall, cpu: cpu(id).saturating_sub(before), resident_kib: resident_peak(id).unwrap_or(0) })
    }

    async fn serve(&self, source: SocketAddr, stores: &[String], worker: Option<&str>) -> Result<(Site, Served)> {
        let mut site = Site::new().with(HOME, format!("registry+http://{source}/apps"), "");
        "stall_ms = 60000".clone_into(&mut site.worker);
        site.worker.push_str(worker.unwrap_or_default());
        for (place, store) in stores.iter().enumerate() {
            write!(site.more, "\n[[region]]\nid = \"{}\"\nstore = \"{store}\"\n", region(place))?;
        }
        debug_assert!(TARGETS.iter().all(|target| *target != region(0)));
        let served = site.serve().await;
        let mut client = images_client(served.address, Some(ADMIN)).await;
        client.add_image(container(APP, &format!("{source}/apps/{NAME}"))).await?;
        Ok((site, served))
    }

    /// Kills a worker halfway through the image and starts another. Returns the number of blobs that were complete when
    /// the worker was killed, and the number of those that were sent again.
    pub async fn killed_half_way(&self, proxy: &Proxy) -> Result<(usize, usize)> {
        let (site, mut served) =
            self.serve(self.source.address, &[proxy.store("apps")], Some("\nlease_ms = 2000")).await?;
        let mut client = app_sync(served.address, Some(ADMIN)).await;
        let request = client.synchronize_app(ask(APP, &[&region(0)])).await?.into_inner().request_id;
        let puts = || {
            let requests = proxy.requests();
            let writes =
                requests.into_iter().filter(|request| request.writes_blob() && request.method == http::Method::PUT);
            writes.filter_map(|request| request.path.rsplit_once("digest=").map(|(_, digest)| digest.to_owned()))
        };
        until("half of the image", async || (proxy.up() > self.bytes / 2).then_some(())).await;
        served.kill();
        // A blob is complete if `HEAD` finds it.
        let client = reqwest::Client::new();
        let mut finished_blobs = Vec::new();
        for digest in puts().collect::<std::collections::BTreeSet<_>>() {
            let url = format!("http://{}/v2/apps/gromacs/blobs/{}", proxy.address, digest.replace("%3A", ":"));
            if client.head(url).send().await?.status().is_success() {
                finished_blobs.push(digest);
            }
        }
        let before = puts().count();
        let served = Served::configured(&site.directory.path().join("appferry.toml")).await;
        let mut client = app_sync(served.address, Some(ADMIN)).await;
        let done = finished(&mut client, &request).await;
        if done.state() != SynchronizationState::Succeeded {
            return Err(format!("{done:?}").into());
        }
        let again = puts().skip(before).filter(|digest| finished_blobs.contains(digest)).count();
        Ok((finished_blobs.len(), again))
    }

    pub fn image(&self) -> String {
        self.source.docker(&format!("apps/{NAME}"))
    }
}

pub fn region(place: usize) -> String {
    format!("region-{place}")
}

/// Returns the processor time of a process so far (proc(5), `utime` and `stime`, in hundredths of a second).
pub fn cpu(id: u32) -> Duration {
    times(&format!("/proc/{id}/stat"), [13, 14]).unwrap_or_default()
}

/// Returns the processor time of the terminated children of this process.
pub fn cpu_of_children() -> Duration {
    times("/proc/self/stat", [15, 16]).unwrap_or_default()
}

fn times(path: &str, fields: [usize; 2]) -> Option<Duration> {
    let stat = std::fs::read_to_string(path).ok()?;
    // The second field is in parentheses and may contain spaces.
    let rest: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.iter().filter_map(|field| rest.get(field - 2)?.parse::<u64>().ok()).sum();
    Some(Duration::from_millis(ticks * 10))
}

/// Returns the peak resident memory of a process in KiB (proc(5), `VmHWM`).
pub fn resident_peak(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}
