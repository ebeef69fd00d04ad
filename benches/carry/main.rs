//! Copies between registries, compared with skopeo, which people script today, and with curl, which only uploads the
//! same bytes. Every figure is a ratio within one run, from alternating rounds.
//!
//! `cargo bench --bench carry`, or `-- NAME…` for some of the parts: `large`, `small`, `many`, `bytes`, `link`, `cut`,
//! `killed`, `memory`.

mod baselines;
#[path = "../../tests/it/harness/mod.rs"]
#[allow(dead_code, clippy::expect_used, clippy::panic, reason = "it is the tests' harness, which panics as tests do")]
mod harness;
mod many;
mod setup;

use harness::proxy::{Action, ReceivedRequest};
use setup::{Measured, Result, Setup};

/// Rounds for each of the compared programs.
const ROUNDS: usize = 3;
const MIB: usize = 1 << 20;

fn main() -> Result<()> {
    let selected: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |part: &str| selected.is_empty() || selected.iter().any(|name| name == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if wants("large") {
            large().await?;
        }
        if wants("small") {
            small().await?;
        }
        if wants("many") {
            many().await?;
        }
        if wants("bytes") {
            bytes().await?;
        }
        if wants("link") {
            link().await?;
        }
        if wants("cut") {
            cut().await?;
        }
        if wants("killed") {
            killed().await?;
        }
        if wants("memory") {
            memory().await?;
        }
        Ok(())
    })
}

fn ratio(name: &str, value: f64) {
    println!("ratio {name} {value:.3}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn of(times: &[Measured], part: impl Fn(&Measured) -> f64) -> f64 {
    median(times.iter().map(part).collect())
}

fn wall(measured: &Measured) -> f64 {
    measured.wall.as_secs_f64()
}

fn cpu(measured: &Measured) -> f64 {
    measured.cpu.as_secs_f64()
}

/// Copies eight layers of 64 MiB to three regions, and to five.
async fn large() -> Result<()> {
    let setup = Setup::new(&[64 * MIB; 8]).await?;
    for regions in [3, 5] {
        let (mut ours, mut skopeo, mut curl) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(setup.appferry(regions).await?);
            skopeo.push(setup.skopeo(regions).await?);
            curl.push(setup.curl(regions).await?);
        }
        let megabytes = ours.iter().map(|m| m.resident_kib).max().unwrap_or(0) >> 10;
        println!(
            "512 MiB to {regions}: appferry {:.2} s, {:.2} s of CPU, {megabytes} MiB resident; skopeo {:.2} s, {:.2} s of CPU; curl {:.2} s",
            of(&ours, wall),
            of(&ours, cpu),
            of(&skopeo, wall),
            of(&skopeo, cpu),
            of(&curl, wall)
        );
        ratio(&format!("large_to_{regions}_of_skopeo"), of(&ours, wall) / of(&skopeo, wall));
        ratio(&format!("large_to_{regions}_of_curl"), of(&ours, wall) / of(&curl, wall));
        ratio(&format!("large_to_{regions}_cpu_of_skopeo"), of(&ours, cpu) / of(&skopeo, cpu));
    }
    Ok(())
}

/// Copies two hundred layers of 64 KiB to three regions, and again when the regions already have them.
async fn small() -> Result<()> {
    let setup = Setup::new(&[64 << 10; 200]).await?;
    let (mut ours, mut skopeo, mut ours_again, mut skopeo_again) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut others = Vec::new();
    for _ in 0..ROUNDS {
        let registries = setup.registries(3).await;
        let [first, again] = setup.appferry_twice(&registries).await?;
        ours.push(first);
        ours_again.push(again);
        // Uses a new service, which did not write the image itself.
        others.push(setup.appferry_to(&registries).await?);
        let registries = setup.registries(3).await;
        skopeo.push(setup.skopeo_to(&registries)?);
        skopeo_again.push(setup.skopeo_to(&registries)?);
    }
    println!(
        "200 layers of 64 KiB to 3: appferry {:.2} s, skopeo {:.2} s; all there: appferry {:.3} s, if others wrote it {:.3} s, \
         skopeo {:.2} s",
        of(&ours, wall),
        of(&skopeo, wall),
        of(&ours_again, wall),
        of(&others, wall),
        of(&skopeo_again, wall)
    );
    ratio("small_to_3_of_skopeo", of(&ours, wall) / of(&skopeo, wall));
    ratio("all_there_of_skopeo", of(&ours_again, wall) / of(&skopeo_again, wall));
    ratio("all_there_by_others_of_skopeo", of(&others, wall) / of(&skopeo_again, wall));
    Ok(())
}

/// Copies a thousand images of three small layers to three regions.
async fn many() -> Result<()> {
    let setup = many::ManyImages::new().await?;
    let (mut ours, mut regsync, mut skopeo) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let copied = [setup.appferry().await?, setup.regsync().await?, setup.skopeo().await?];
        for ((name, times), (measured, requests)) in
            [("appferry", &mut ours), ("regsync", &mut regsync), ("skopeo", &mut skopeo)].into_iter().zip(&copied)
        {
            let all: f64 = requests.values().sum();
            println!(
                "1,000 images to 3 by {name}: {:.2} s, {:.2} s of CPU, {all:.1} requests an image",
                wall(measured),
                cpu(measured)
            );
            for (kind, count) in requests.iter().filter(|_| round == 0) {
                println!("    {count:6.2} {kind}");
            }
            times.push(*measured);
        }
    }
    ratio("many_to_3_of_regsync", of(&ours, wall) / of(&regsync, wall));
    ratio("many_to_3_of_skopeo", of(&ours, wall) / of(&skopeo, wall));
    ratio("many_to_3_cpu_of_regsync", of(&ours, cpu) / of(&regsync, cpu));
    Ok(())
}

/// Counts, with a proxy, the bytes that are read from the source.
async fn bytes() -> Result<()> {
    let setup = Setup::new(&[32 * MIB, 100 * MIB, MIB]).await?;
    for regions in [1, 3, 5] {
        let proxy = setup.proxy(|_| Action::Pass).await;
        setup.appferry_by(proxy.address, &setup.registries(regions).await, None).await?;
        ratio(&format!("source_bytes_to_{regions}"), setup::exact(proxy.down()) / setup::exact(setup.bytes));
    }
    Ok(())
}

/// Copies from a source that is limited to 100 MiB/s.
async fn link() -> Result<()> {
    let setup = Setup::new(&[64 * MIB; 8]).await?;
    let mut times = Vec::new();
    for regions in [1, 5] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let proxy = setup.proxy(|_| Action::Pass).await;
            proxy.hold_link(100 << 20);
            rounds.push(setup.appferry_by(proxy.address, &setup.registries(regions).await, None).await?);
        }
        times.push(of(&rounds, wall));
    }
    println!("the source's link held to 100 MiB/s: one region {:.2} s, five {:.2} s", times[0], times[1]);
    ratio("held_link_five_of_one", times[1] / times[0]);
    Ok(())
}

/// Cuts the upload of a 1 GiB blob at 90 %. One registry keeps the received bytes; the distribution project's registry
/// discards them.
async fn cut() -> Result<()> {
    let setup = Setup::new(&[1_024 * MIB]).await?;
    let resumable_registry = harness::resumable_registry::ResumableRegistry::start().await;
    cut_to(&setup, resumable_registry.address, "sent_again_after_cut").await?;
    let distribution = setup.registries(1).await;
    cut_to(&setup, distribution[0].address, "sent_again_after_cut_to_distribution").await
}

async fn cut_to(setup: &Setup, registry: std::net::SocketAddr, name: &str) -> Result<()> {
    let cut_at = setup.bytes / 10 * 9;
    let mut passed = 0;
    let mut cut = false;
    let proxy = harness::proxy::Proxy::start(registry, move |request: &ReceivedRequest| {
        // Chunks are 64 MiB: the chunk that reaches the 90 % mark is cut there.
        if request.writes_blob() && !cut {
            if passed + (64 << 20) > cut_at {
                cut = true;
                return Action::CutRequest(cut_at - passed);
            }
            passed += 64 << 20;
        }
        Action::Pass
    })
    .await;
    setup.appferry_into(&[proxy.store("apps")], None).await?;
    if proxy.requests().iter().filter(|request| request.writes_blob()).count() <= 17 {
        return Err("the upload was not cut off".into());
    }
    let again = setup::exact(proxy.up()) - setup::exact(setup.bytes);
    println!("1 GiB cut at 90 %: {:.1} MiB sent again", again / setup::exact(MIB as u64));
    ratio(name, again / setup::exact(setup.bytes));
    Ok(())
}

/// Kills a worker halfway through twenty blobs.
async fn killed() -> Result<()> {
    let setup = Setup::new(&[16 * MIB; 20]).await?;
    let registry = setup.registries(1).await;
    let proxy = harness::proxy::Proxy::start(registry[0].address, |_| Action::Pass).await;
    let (finished, again) = setup.killed_half_way(&proxy).await?;
    println!("killed after {finished} of 20 blobs: {again} of them sent again");
    #[allow(clippy::cast_precision_loss)]
    ratio("finished_blobs_sent_again", again as f64 / finished as f64);
    Ok(())
}

/// Measures the peak memory while a blob of 4 GiB is copied to five regions.
async fn memory() -> Result<()> {
    let setup = Setup::new(&[4_096 * MIB]).await?;
    let measured = setup.appferry(5).await?;
    println!("4 GiB to 5: {} MiB resident at most, {:.1?}", measured.resident_kib >> 10, measured.wall);
    ratio("resident_of_192_mib", setup::exact(measured.resident_kib) / setup::exact(192 << 10));
    Ok(())
}
