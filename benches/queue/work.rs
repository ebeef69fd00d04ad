//! Four workers that claim and complete replicas without copying. Each has its own `Db`, like a separate process.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use appferry::{
    db::{ClaimRequest, Db, LaneCapacity, Report, Settings},
    domain::{Event, Progress, RegionId, Verification, Warnings, WorkerId},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Result, configured};

pub const WORKERS: usize = 4;
/// Images that each worker processes concurrently.
pub const IMAGES: usize = 32;

/// Claims and completes `replicas` replicas, and returns the number per second.
pub async fn run(url: &str, regions: usize, replicas: usize) -> Result<f64> {
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();
    let mut workers: JoinSet<Result<()>> = JoinSet::new();
    let done = Arc::new(AtomicUsize::new(0));
    let mut states = Vec::new();
    for _ in 0..WORKERS {
        let (state, running) = Db::open(&Settings::new(url.to_owned()), configured(regions)?, stop.clone()).await?;
        tasks.push(running);
        states.push(state);
    }
    // An image with a hundred regions has a hundred replicas.
    let images = (IMAGES * super::THREE / regions).max(1);
    let names: Vec<RegionId> =
        configured(regions)?.iter().filter(|region| region.as_str() != "home").cloned().collect();
    let started = Instant::now();
    for (number, state) in states.iter().enumerate() {
        let (state, done, names) = (state.clone(), Arc::clone(&done), names.clone());
        workers.spawn(async move { work(&state, number, images, &names, &done, replicas).await });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    let took = started.elapsed().as_secs_f64();
    stop.cancel();
    for tasks in tasks {
        tasks.join().await;
    }
    for state in states {
        state.close().await?;
    }
    Ok(f64::from(u32::try_from(done.load(Ordering::Relaxed))?) / took)
}

async fn work(
    state: &Db,
    number: usize,
    images: usize,
    regions: &[RegionId],
    done: &Arc<AtomicUsize>,
    replicas: usize,
) -> Result<()> {
    let owner = WorkerId(format!("w-{number}").into());
    let limits = BTreeMap::new();
    let lanes =
        regions.iter().map(|region| (region.clone(), LaneCapacity { primary: images, total: usize::MAX })).collect();
    while done.load(Ordering::Relaxed) < replicas {
        let lease = Duration::from_secs(60);
        let draw = rand::random_range(0..usize::MAX);
        let order = ClaimRequest { owner: &owner, lanes: &lanes, lease, limits: &limits, draw };
        let claims = state.replica_claim(order).await?;
        let mut reports: JoinSet<Result<usize>> = JoinSet::new();
        for claim in claims {
            for claimed in claim.regions {
                let (state, image) = (state.clone(), claim.id.clone());
                reports.spawn(async move {
                    let progress = Progress { total: 1, copied: 1, skipped: 0 };
                    let event = Event::Verified {
                        fence: claimed.fence,
                        progress,
                        verification: Verification::Verified,
                        warnings: Warnings::default(),
                    };
                    state.replica_report(&image, Report { region: claimed.region, event }).await??;
                    Ok(1)
                });
            }
        }
        while let Some(reported) = reports.join_next().await {
            done.fetch_add(reported??, Ordering::Relaxed);
        }
    }
    Ok(())
}
