//! Copies many small images from one registry to three, compared with `regsync once` and `skopeo sync`, which people
//! run from cron for this. The registries do most of the work, so the requests per image are printed by kind. (The
//! count of the source includes the requests that register the images; the time does not.) The test tools do not
//! include regsync; build it with
//!
//! `source scripts/tools && build_by_go regsync github.com/regclient/regclient/cmd/regsync "$REGCLIENT"`

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use appferry::contract::v1::{ListSynchronizationsRequest, SynchronizationState};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use super::{
    baselines::run_all,
    harness::{
        address::free_address,
        images::{MANIFEST, digest, noise},
        process::Served,
        registry::Registry,
        site::{ADMIN, HOME, Site, app_sync, ask, container, images_client},
    },
    setup::{Measured, Result, cpu, region, resident_peak},
};

/// The number of repositories; each has [`TAGS`] tags, and each image [`LAYERS`] layers.
const REPOSITORIES: usize = 10;
const TAGS: usize = 100;
const IMAGES: usize = REPOSITORIES * TAGS;
const LAYERS: usize = 3;
const LAYER_BYTES: usize = 20_000;
const TARGETS: usize = 3;
/// Images that regsync copies concurrently.
const PARALLEL: usize = 8;
/// Concurrent calls, and concurrent pushes during setup.
const CALLS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(600);

/// A registry that exports the number of its requests.
pub struct CountingRegistry {
    pub registry: Registry,
    debug: std::net::SocketAddr,
}

/// Requests per image, by method, handler and status.
pub type Counts = BTreeMap<String, f64>;

impl CountingRegistry {
    async fn start() -> Self {
        let debug = free_address();
        let more = format!("  debug:\n    addr: {debug}\n    prometheus:\n      enabled: true");
        Self { registry: Registry::start_with(&more).await, debug }
    }

    /// Returns the number of requests since the registry started.
    async fn counts(&self) -> Result<Counts> {
        let text = reqwest::get(format!("http://{}/metrics", self.debug)).await?.text().await?;
        let mut counts = Counts::new();
        for line in text.lines().filter(|line| line.starts_with("registry_http_requests_total{")) {
            let Some((labels, value)) = line.rsplit_once("} ") else { continue };
            let label = |name: &str| labels.split(&format!("{name}=\"")).nth(1)?.split('"').next();
            let kind = [label("method"), label("handler"), label("code")].map(Option::unwrap_or_default).join(" ");
            *counts.entry(kind).or_default() += value.trim().parse::<f64>()?;
        }
        Ok(counts)
    }
}

/// The source registry with all images.
pub struct ManyImages {
    source: CountingRegistry,
}

fn repository(image: usize) -> String {
    format!("apps/sim{}", image / TAGS)
}

fn name(image: usize) -> String {
    format!("{}:v{}", repository(image), image % TAGS)
}

impl ManyImages {
    /// Pushes the images.
    pub async fn new() -> Result<Self> {
        let source = CountingRegistry::start().await;
        let base = format!("http://{}/v2", source.registry.address);
        let client = reqwest::Client::new();
        let pushed = stream::iter(0..IMAGES).map(|image| push(&client, &base, image));
        pushed.buffer_unordered(CALLS).try_collect::<Vec<()>>().await?;
        Ok(Self { source })
    }

    async fn targets(&self) -> Vec<CountingRegistry> {
        let mut targets = Vec::new();
        for _ in 0..TARGETS {
            targets.push(CountingRegistry::start().await);
        }
        targets
    }

    /// Runs `run` against new target registries. Returns its cost and the requests per image at the source and at all
    /// targets.
    async fn measure(
        &self,
        run: impl AsyncFnOnce(&[CountingRegistry]) -> Result<Measured>,
    ) -> Result<(Measured, Counts)> {
        let targets = self.targets().await;
        let before = self.source.counts().await?;
        let measured = run(&targets).await?;
        let mut counts = Counts::new();
        #[allow(clippy::cast_precision_loss)]
        let mut add = |kind: String, count: f64| *counts.entry(kind).or_default() += count / IMAGES as f64;
        for (kind, count) in self.source.counts().await? {
            add(format!("source {kind}"), count - before.get(&kind).copied().unwrap_or_default());
        }
        for target in &targets {
            for (kind, count) in target.counts().await? {
                add(format!("targets {kind}"), count);
            }
            complete(target).await?;
        }
        counts.retain(|_, count| *count > 0.0005);
        Ok((measured, counts))
    }

    pub async fn appferry(&self) -> Result<(Measured, Counts)> {
        self.measure(async |targets| {
            let source = self.source.registry.address;
            let mut site = Site::new().with(HOME, self.source.registry.store("apps"), "");
            site.worker.clear();
            for (place, target) in targets.iter().enumerate() {
                let store = target.registry.store("apps");
                write!(site.more, "\n[[region]]\nid = \"{}\"\nstore = \"{store}\"\n", region(place))?;
            }
            let served = site.serve().await;
            let images = images_client(served.address, Some(ADMIN)).await;
            let added = stream::iter(0..IMAGES).map(|image| {
                let mut images = images.clone();
                async move {
                    images.add_image(container(&format!("image-{image}"), &format!("{source}/{}", name(image)))).await
                }
            });
            added.buffer_unordered(CALLS).try_collect::<Vec<_>>().await?;
            synchronize(&served).await
        })
        .await
    }

    pub async fn regsync(&self) -> Result<(Measured, Counts)> {
        self.measure(async |targets| {
            let directory = tempfile::tempdir()?;
            let mut config = "version: 1\ncreds:\n".to_owned();
            for registry in targets.iter().chain([&self.source]) {
                write!(config, "  - registry: {}\n    tls: disabled\n", registry.registry.address)?;
            }
            write!(config, "defaults:\n  parallel: {PARALLEL}\nsync:\n")?;
            for target in targets {
                for repository in (0..REPOSITORIES).map(|number| repository(number * TAGS)) {
                    let (from, to) = (self.source.registry.address, target.registry.address);
                    write!(
                        config,
                        "  - source: {from}/{repository}\n    target: {to}/{repository}\n    type: repository\n"
                    )?;
                }
            }
            let file = directory.path().join("regsync.yml");
            fs::write(&file, config)?;
            let mut command = Command::new("regsync");
            command.args(["once", "--verbosity", "error", "--config"]).arg(&file);
            run_all(vec![command])
        })
        .await
    }

    /// Runs one process per target, all concurrently.
    pub async fn skopeo(&self) -> Result<(Measured, Counts)> {
        self.measure(async |targets| {
            let directory = tempfile::tempdir()?;
            let file = directory.path().join("sync.yml");
            fs::write(&file, self.skopeo_source()?)?;
            let copy = |target: &CountingRegistry| skopeo_command(&file, target);
            run_all(targets.iter().map(copy).collect())
        })
        .await
    }

    fn skopeo_source(&self) -> Result<String> {
        let mut config = format!("{}:\n  tls-verify: false\n  images:\n", self.source.registry.address);
        for number in 0..REPOSITORIES {
            writeln!(config, "    {}: []", repository(number * TAGS))?;
        }
        Ok(config)
    }
}

fn skopeo_command(file: &Path, target: &CountingRegistry) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["sync", "--all", "--src", "yaml", "--dest", "docker", "--dest-tls-verify=false"]);
    command.arg(file).arg(format!("{}/apps", target.registry.address));
    command
}

/// Pushes one image to a registry.
async fn push(client: &reqwest::Client, base: &str, image: usize) -> Result<()> {
    let repository = repository(image);
    let mut descriptors = Vec::new();
    for part in 0..=LAYERS {
        let seed = (image * (LAYERS + 1) + part + 1) as u64;
        let (kind, content) = if part == 0 {
            let config = json!({ "architecture": "amd64", "os": "linux", "author": format!("of {image}") });
            ("config.v1+json", config.to_string().into_bytes())
        } else {
            ("layer.v1.tar", noise(LAYER_BYTES, seed))
        };
        let upload = client.post(format!("{base}/{repository}/blobs/uploads/")).send().await?.error_for_status()?;
        let to = upload.headers().get("location").ok_or("a Location")?.to_str()?.to_owned();
        let digest = digest(&content);
        descriptors.push(json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": content.len(),
        }));
        client.put(format!("{to}&digest={digest}")).body(content).send().await?.error_for_status()?;
    }
    let config = descriptors.remove(0);
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors });
    let url = format!("{base}/{repository}/manifests/v{}", image % TAGS);
    let put = client.put(url).header("content-type", MANIFEST).body(manifest.to_string());
    put.send().await?.error_for_status()?;
    Ok(())
}

/// Requests all images in all regions, and waits until all copies are complete.
async fn synchronize(served: &Served) -> Result<Measured> {
    let client = app_sync(served.address, Some(ADMIN)).await;
    let (before, started) = (cpu(served.id()), Instant::now());
    let calls = stream::iter(0..IMAGES).map(|image| {
        let mut client = client.clone();
        async move { client.synchronize_app(ask(&format!("image-{image}"), &[])).await }
    });
    calls.buffer_unordered(CALLS).try_collect::<Vec<_>>().await?;
    let mut client = client;
    let mut in_state = async |state: SynchronizationState| -> Result<usize> {
        let request = ListSynchronizationsRequest { state: state.into(), page_size: 1, ..Default::default() };
        Ok(client.list_synchronizations(request).await?.into_inner().synchronizations.len())
    };
    while in_state(SynchronizationState::Running).await? > 0 {
        if started.elapsed() > PATIENCE {
            return Err("the images do not arrive".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wall = started.elapsed();
    let id = served.id();
    let measured = Measured { wall, cpu: cpu(id).saturating_sub(before), resident_kib: resident_peak(id).unwrap_or(0) };
    if in_state(SynchronizationState::Failed).await? > 0 {
        return Err("an image did not arrive".into());
    }
    Ok(measured)
}

/// Checks that a target has every image.
async fn complete(target: &CountingRegistry) -> Result<()> {
    let client = reqwest::Client::new();
    let responses = stream::iter(0..IMAGES).map(|image| {
        let name = name(image).replace(':', "/manifests/");
        // skopeo sync appends the last component of a repository's name to the target.
        let url = format!("http://{}/v2/{name}", target.registry.address);
        client.head(url).header("accept", MANIFEST).send()
    });
    let responses: Vec<_> = responses.buffer_unordered(CALLS).try_collect().await?;
    let missing = responses.iter().filter(|answer| !answer.status().is_success()).count();
    if missing > 0 { Err(format!("{missing} images are missing").into()) } else { Ok(()) }
}
