//! The queue on PostgreSQL: claims and completions relative to the bare statements, and the cost of reads and claims on
//! large tables.
//!
//! `cargo bench --bench queue`, or `-- claims`, `-- lists`, `-- regions`, `-- cost` for some of the parts. The
//! benchmark starts its own server. Every figure is a ratio within one run.

mod baseline;
mod cost;
mod fill;
#[path = "../../tests/it/harness/mod.rs"]
#[allow(dead_code, clippy::expect_used, clippy::panic, reason = "it is the tests' harness, which panics as tests do")]
mod harness;
mod work;

use std::{error::Error, time::Instant};

use appferry::{
    db::{Db, Settings, SynchronizationFilter},
    domain::{Regions, RequestId, SynchronizationState},
};
use fill::Fill;
use harness::postgres::Postgres;
use tokio_util::sync::CancellationToken;

/// The allocator that the service uses in production.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Regions of a typical image.
const THREE: usize = 3;

fn main() -> Result<()> {
    let selected: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |part: &str| selected.is_empty() || selected.iter().any(|name| name == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let server = Postgres::start(&[
            ("shared_buffers", "1GB"),
            ("max_wal_size", "16GB"),
            ("shared_preload_libraries", "pg_stat_statements"),
        ]);
        if wants("claims") {
            claims(&server).await?;
        }
        if wants("lists") {
            lists(&server).await?;
        }
        if wants("regions") {
            regions(&server).await?;
        }
        if wants("cost") {
            cost::measure(&server).await?;
        }
        Ok(())
    })
}

fn ratio(name: &str, value: f64) {
    println!("ratio {name} {value:.3}");
}

/// Returns a home region and `regions` other regions.
fn configured(regions: usize) -> Result<Regions> {
    let names: std::result::Result<Vec<_>, _> = (0..regions).map(|n| format!("r{n}").parse()).collect();
    Ok(Regions::new("home".parse()?, names?))
}

/// Claims and completes replicas of a short queue and of a long queue, and runs the bare statements on a long queue.
async fn claims(server: &Postgres) -> Result<()> {
    let short = Fill::new(server, "short", THREE).await?;
    short.pending(10_000).await?;
    let long = Fill::new(server, "long", THREE).await?;
    long.pending(1_000_000).await?;
    let bare = Fill::new(server, "bare", THREE).await?;
    bare.pending(1_000_000).await?;

    // Warms up: opens connections and prepares statements.
    work::run(&short.url, THREE, 999).await?;
    work::run(&long.url, THREE, 30_000).await?;
    baseline::run(&bare.url, 30_000).await?;
    let few = work::run(&short.url, THREE, 8_001).await?;
    let (mut rates, mut baselines) = (Vec::new(), Vec::new());
    for round in 1..=5 {
        let one = work::run(&long.url, THREE, 60_000).await?;
        let one_baseline = baseline::run(&bare.url, 60_000).await?;
        println!("round {round}: {one:.0} replicas/s claimed and completed, bare statements {one_baseline:.0}/s");
        rates.push(one);
        baselines.push(one_baseline);
    }
    let (rate, baseline) = (median(&mut rates), median(&mut baselines));
    println!("claimed and completed over four workers: {rate:.0} replicas/s of 1,000,000, {few:.0} of 10,000");
    ratio("claim_of_floor", rate / baseline);
    ratio("claim_cost_1m_of_10k", few / rate);
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Times queries of tables with ten thousand rows and with ten million.
async fn lists(server: &Postgres) -> Result<()> {
    let few = Fill::new(server, "few", THREE).await?;
    let of_few = few.ended(10_000).await?;
    let many = Fill::new(server, "many", THREE).await?;
    let of_many = many.ended(10_000_000).await?;
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();
    let mut states = Vec::new();
    for (fill, ids) in [(&few, of_few), (&many, of_many)] {
        let (state, running) = Db::open(&Settings::new(fill.url.clone()), configured(THREE)?, stop.clone()).await?;
        tasks.push(running);
        states.push((state, ids));
    }
    let [(few, of_few), (many, of_many)] = states.as_slice() else { return Err("two states".into()) };
    for (name, filter) in [
        ("get", None),
        ("list", Some(SynchronizationFilter::default())),
        ("list_of_image", Some(SynchronizationFilter { image: Some("i7".parse()?), state: None })),
        ("list_failed", Some(SynchronizationFilter { image: None, state: Some(SynchronizationState::Failed) })),
        ("list_running", Some(SynchronizationFilter { image: None, state: Some(SynchronizationState::Running) })),
    ] {
        // Alternates between the two databases, so that both see the same load of the machine.
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..400 {
            for ((state, ids), times) in [(few, of_few), (many, of_many)].into_iter().zip(&mut times) {
                let id: RequestId = ids[round * 7919 % ids.len()].into();
                let started = Instant::now();
                match &filter {
                    None => drop(state.synchronization_get(id).await?),
                    Some(filter) => {
                        // Alternates between a page at the end and a page in the middle.
                        let before = (round % 2 == 1).then_some(id);
                        state.synchronization_list(filter, before, 50).await?;
                    }
                }
                times.push(started.elapsed().as_secs_f64());
            }
        }
        let [few, many] = times.map(|mut times| median(&mut times));
        println!("{name}: {:.0} µs of ten thousand, {:.0} µs of ten million", few * 1e6, many * 1e6);
        ratio(&format!("{name}_10m_of_10k"), many / few);
    }
    stop.cancel();
    for tasks in tasks {
        tasks.join().await;
    }
    Ok(())
}

/// Times claims with a hundred regions and ten million replicas, a tenth of which are pending.
async fn regions(server: &Postgres) -> Result<()> {
    const HUNDRED: usize = 100;
    let small = Fill::new(server, "small", HUNDRED).await?;
    small.pending(100_000).await?;
    let large = Fill::new(server, "large", HUNDRED).await?;
    large.ended_replicas(9_000_000).await?;
    large.pending(1_000_000).await?;
    work::run(&small.url, HUNDRED, 10_000).await?;
    work::run(&large.url, HUNDRED, 10_000).await?;
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        few.push(work::run(&small.url, HUNDRED, 25_000).await?);
        many.push(work::run(&large.url, HUNDRED, 25_000).await?);
    }
    let (few, many) = (median(&mut few), median(&mut many));
    println!("a hundred regions: {few:.0} replicas/s of a hundred thousand, {many:.0} of ten million");
    ratio("claim_cost_100_regions_10m_of_100k", few / many);
    Ok(())
}
