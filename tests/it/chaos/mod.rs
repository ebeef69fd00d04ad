//! Chaos test: three servers and three workers share one PostgreSQL server and serve clients, while a seeded schedule
//! causes failures. At the end every acknowledged call must have ended, and every image that is reported AVAILABLE must
//! be complete, byte by byte.
//!
//! `scripts/chaos [--minutes N] [--seed S]` runs the test for a chosen duration. The test suite includes a short run.

mod clients;
mod cluster;
mod ledger;
mod scenario;
mod schedule;
mod verdict;

use std::{fmt, time::Duration};

use cluster::Cluster;
use ledger::Ledger;
use rand::{SeedableRng as _, rngs::StdRng};

pub use scenario::Scenario;

use crate::harness::history;

/// Lease duration of a claim.
const LEASE: Duration = Duration::from_secs(3);

/// How long a copy may make no progress before it counts as stalled.
const STALL: Duration = Duration::from_secs(2);

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Run {
    pub seed: u64,
    pub lasts: Duration,
    /// Scenarios that run once each, before randomly chosen ones.
    pub first: Vec<Scenario>,
}

/// The results of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub seed: u64,
    pub acknowledged: usize,
    pub canceled: usize,
    pub unavailable: usize,
    pub kills: usize,
    pub scenarios: Vec<(&'static str, usize)>,
    pub notes: Vec<String>,
    /// Acknowledged calls that are missing in the database or have not ended.
    pub lost: Vec<String>,
    /// Calls with a wrong outcome.
    pub wrong: Vec<String>,
    /// Replicas that are reported AVAILABLE but are missing or damaged.
    pub damaged: Vec<String>,
    /// Number of replicas whose content was verified.
    pub verified: usize,
    pub steps: usize,
    pub events: Vec<(&'static str, usize)>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        writeln!(
            f,
            "{} calls acknowledged, {} of them canceled again; {} answered ServiceUnavailable and repeated",
            self.acknowledged, self.canceled, self.unavailable
        )?;
        writeln!(f, "{} processes killed", self.kills)?;
        for (scenario, times) in &self.scenarios {
            writeln!(f, "  {scenario}: {times}")?;
        }
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        let events: Vec<String> = self.events.iter().map(|(event, times)| format!("{event} {times}")).collect();
        writeln!(f, "{} steps of the machine replayed: {}", self.steps, events.join(", "))?;
        writeln!(f, "{} available replicas read again", self.verified)?;
        write!(f, "{} lost, {} finished wrong, {} damaged", self.lost.len(), self.wrong.len(), self.damaged.len())?;
        for (what, of) in [("lost", &self.lost), ("wrong", &self.wrong), ("damaged", &self.damaged)] {
            for one in of.iter().take(20) {
                write!(f, "\n{what}: {one}")?;
            }
        }
        Ok(())
    }
}

impl Outcome {
    /// Returns whether every guarantee held.
    pub fn kept(&self) -> bool {
        self.lost.is_empty() && self.wrong.is_empty() && self.damaged.is_empty()
    }
}

/// Runs the schedule and checks the outcome.
pub async fn run(run: Run) -> Outcome {
    let mut random = StdRng::seed_from_u64(run.seed);
    let mut outcome = Outcome { seed: run.seed, ..Outcome::default() };
    let mut cluster = Cluster::start().await;
    history::record(&cluster.url()).await;
    let ledger = Ledger::open(cluster.directory());
    let clients = clients::start(&cluster, &ledger, run.seed);
    schedule::play(&mut cluster, &clients, &run, &mut random, &mut outcome).await;
    clients.finish().await;
    cluster.heal().await;
    verdict::judge(&cluster, &ledger, &mut outcome).await;
    let replayed = history::replay(&cluster.url(), &[LEASE]).await;
    outcome.steps = replayed.steps;
    outcome.events = replayed.events.into_iter().collect();
    outcome
}
