//! The cost of one failing region for the healthy regions: the time until two healthy registries have every image,
//! relative to the same work without the failing region, in alternating rounds.
//!
//! `cargo bench --bench apart`, or `-- NAME…` to select failures (`refuses`, `silent`, `slow`, `frozen`, `last`),
//! numbers of processes (`one`, `three`) and numbers of images (`1`, `30`, `300`). `frozen`, a disk that blocks every
//! write, requires root.
//! Prints `ratio apart_SICK_IMAGES_PROCESSES VALUE`.

mod failure;
#[path = "../../tests/it/harness/mod.rs"]
#[allow(dead_code, clippy::expect_used, clippy::panic, reason = "it is the tests' harness, which panics as tests do")]
mod harness;
mod work;

use failure::Failure;
use harness::{postgres::Postgres, registry::Registry};
use work::{Images, Load, Processes, Work};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const LOADS: [Load; 3] = [
    Load { images: 1, size: 128 << 20, link: 48 << 20, rounds: 5 },
    Load { images: 30, size: 4 << 20, link: 16 << 20, rounds: 3 },
    Load { images: 300, size: 128 << 10, link: 1 << 20, rounds: 1 },
];

fn main() -> Result<()> {
    let selected: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |names: &[String], all: &[String]| {
        let named: Vec<&String> = selected.iter().filter(|name| all.contains(name)).collect();
        named.is_empty() || names.iter().any(|name| named.contains(&name))
    };
    let names = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (failures, processes) = (names(&Failure::ALL.map(Failure::name)), names(&Processes::ALL.map(Processes::name)));
    let counts: Vec<String> = LOADS.iter().map(|load| load.images.to_string()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let healthy = [Registry::start().await, Registry::start().await];
        let behind = Registry::start().await;
        let postgres = Postgres::start(&[]);
        for load in LOADS {
            if !wants(&[load.images.to_string()], &counts) {
                continue;
            }
            let images = Images::make(load)?;
            for process in Processes::ALL {
                if !wants(&[process.name().to_owned()], &processes) {
                    continue;
                }
                for failure in Failure::ALL {
                    if wants(&[failure.name().to_owned()], &failures) {
                        compare(
                            failure,
                            Work {
                                images: &images,
                                healthy: &healthy,
                                behind: &behind,
                                processes: process,
                                postgres: &postgres,
                            },
                        )
                        .await?;
                    }
                }
            }
        }
        Ok(())
    })
}

async fn compare(failure: Failure, work: Work<'_>) -> Result<()> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..work.images.load.rounds {
        without.push(work.time(None).await?.as_secs_f64());
        with.push(work.time(Some(failure)).await?.as_secs_f64());
    }
    let (without, with) = (median(without), median(with));
    let (count, name) = (work.images.load.images, work.processes.name());
    println!(
        "{count} images, {name} process(es), a region that is {}: {with:.2} s; without it {without:.2} s",
        failure.name()
    );
    println!("ratio apart_{}_{count}_{name} {:.3}", failure.name(), with / without);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
