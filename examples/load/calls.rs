//! The load generator: makes calls in a closed or an open loop and records their outcomes.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use appferry::{
    client::{AppSync, Client},
    contract::{Code, Refusal, v1::ErrorCode, v1::SynchronizeAppRequest},
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::Result;

/// Number of rejections that are decoded and checked.
const READ: usize = 1_000;
/// Interval of the open loop: at each tick, it makes the calls that are due.
const TICK: Duration = Duration::from_millis(1);

/// The pacing of the calls.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// A fixed number of calls in flight.
    Closed { in_flight: usize },
    /// A fixed rate, independent of the responses.
    Open {
        /// Calls per second.
        rate: u32,
    },
}

/// The clients and the request to repeat.
pub struct Load {
    clients: Vec<AppSync>,
    request: SynchronizeAppRequest,
}

/// Outcomes and latencies of the calls.
#[derive(Debug, Default)]
pub struct Report {
    took: Duration,
    accepted: Vec<Duration>,
    shed: Vec<Duration>,
    other: Vec<String>,
}

type Outcomes = Arc<Mutex<Report>>;

impl Load {
    pub async fn connect(
        endpoint: &str,
        token: &str,
        connections: usize,
        app_id: &str,
        regions: Vec<String>,
    ) -> Result<Self> {
        let mut clients = Vec::with_capacity(connections);
        for _ in 0..connections {
            clients.push(Client::builder(endpoint).token(token).connect().await?.app_sync());
        }
        let request =
            SynchronizeAppRequest { app_id: app_id.to_owned(), target_region_ids: regions, ..Default::default() };
        Ok(Self { clients, request })
    }

    /// Generates load for the given duration.
    pub async fn run(&self, pace: Pace, time: Duration) -> Result<Report> {
        let outcomes = Outcomes::default();
        let mut callers = JoinSet::new();
        let began = Instant::now();
        match pace {
            Pace::Closed { in_flight } => {
                for caller in 0..in_flight {
                    let (mut client, outcomes) = (self.client(caller), Arc::clone(&outcomes));
                    let request = self.request.clone();
                    callers.spawn(async move {
                        while began.elapsed() < time {
                            call(&mut client, request.clone(), Instant::now(), &outcomes).await;
                        }
                    });
                }
            }
            Pace::Open { rate } => {
                let mut ticks = interval(TICK);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut made = 0_u32;
                while began.elapsed() < time {
                    ticks.tick().await;
                    while f64::from(made) < began.elapsed().as_secs_f64() * f64::from(rate) {
                        // Measured from the scheduled time, so that a late load generator does not hide queueing
                        // (coordinated omission).
                        let due = began + Duration::from_secs_f64(f64::from(made) / f64::from(rate));
                        let (mut client, outcomes) = (self.client(made as usize), Arc::clone(&outcomes));
                        let request = self.request.clone();
                        callers.spawn(async move { call(&mut client, request, due, &outcomes).await });
                        made += 1;
                    }
                    while callers.try_join_next().is_some() {}
                }
            }
        }
        while let Some(ended) = callers.join_next().await {
            ended?;
        }
        let mut report = std::mem::take(&mut *outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        report.took = began.elapsed();
        report.accepted.sort_unstable();
        report.shed.sort_unstable();
        Ok(report)
    }

    fn client(&self, caller: usize) -> AppSync {
        self.clients[caller % self.clients.len()].clone()
    }
}

async fn call(client: &mut AppSync, request: SynchronizeAppRequest, due: Instant, outcomes: &Outcomes) {
    let answer = client.synchronize_app(request).await;
    let took = due.elapsed();
    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    match answer {
        Ok(_) => outcomes.accepted.push(took),
        // Only the first few rejections are decoded and checked; decoding all of them would slow down the load
        // generator.
        Err(status) if status.code() == tonic::Code::Unavailable && outcomes.shed.len() > READ => {
            outcomes.shed.push(took);
        }
        Err(status) => match Refusal::from(status) {
            refusal if refusal.error == Some(Code::Own(ErrorCode::ServiceUnavailable)) => outcomes.shed.push(took),
            refusal => outcomes.other.push(refusal.to_string()),
        },
    }
}

fn part(some: usize, all: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "nobody makes that many calls")]
    let (some, all) = (some as f64, all as f64);
    if all > 0.0 { some / all } else { 1.0 }
}

fn slowest(times: &[Duration], of: usize) -> Duration {
    times.get(times.len() - times.len().div_ceil(of)).copied().unwrap_or_default()
}

impl Report {
    pub fn accepted_a_second(&self) -> f64 {
        part(self.accepted.len(), 1) / self.took.as_secs_f64()
    }

    /// Returns the 99th percentile of the latency of accepted calls.
    pub fn percentile_99(&self) -> Duration {
        slowest(&self.accepted, 100)
    }

    /// Adds the outcomes of another report.
    pub fn add(&mut self, others: Self) {
        self.took += others.took;
        self.accepted.extend(others.accepted);
        self.shed.extend(others.shed);
        self.other.extend(others.other);
        self.accepted.sort_unstable();
        self.shed.sort_unstable();
    }

    /// Returns the fraction of rejected calls that were rejected within `time`.
    pub fn shed_within(&self, time: Duration) -> f64 {
        part(self.shed.partition_point(|took| *took <= time), self.shed.len())
    }

    /// Returns the fraction of calls that were neither accepted nor shed.
    pub fn otherwise(&self) -> f64 {
        part(self.other.len(), self.accepted.len() + self.shed.len() + self.other.len())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} accepted a second, the slowest hundredth in {:.1?} and more",
            self.accepted_a_second(),
            self.percentile_99()
        )?;
        if !self.shed.is_empty() {
            write!(
                f,
                "; {} shed, the slowest hundredth in {:.1?} and more",
                self.shed.len(),
                slowest(&self.shed, 100)
            )?;
        }
        match self.other.first() {
            Some(first) => write!(f, "; {} otherwise: {first}", self.other.len()),
            None => Ok(()),
        }
    }
}
