//! Makes calls and counts their results.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use appferry::{
    client::{AppSync, Client},
    contract::{
        ApiErrorCode, ApiErrorResponse,
        v1::{ErrorCode, SynchronizeAppRequest},
    },
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::Result;

/// The number of rejections that are decoded.
const DECODED: usize = 1_000;
/// The interval at which an open loop makes all calls that are due.
const TICK: Duration = Duration::from_millis(1);

/// When calls are made.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// A fixed number of concurrent calls. Each call starts after the response to the previous one.
    Closed {
        /// The number of concurrent calls.
        in_flight: usize,
    },
    /// A fixed rate, independent of the responses.
    Open {
        /// The rate, in calls a second.
        rate: u32,
    },
}

/// The clients, and the request that they send.
pub struct Load {
    clients: Vec<AppSync>,
    request: SynchronizeAppRequest,
}

/// The results of calls and their latencies.
#[derive(Debug, Default)]
pub struct Report {
    duration: Duration,
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

    /// Makes calls for `time`.
    pub async fn run(&self, pace: Pace, time: Duration) -> Result<Report> {
        let outcomes = Outcomes::default();
        let mut callers = JoinSet::new();
        let start = Instant::now();
        match pace {
            Pace::Closed { in_flight } => {
                for caller in 0..in_flight {
                    let (mut client, outcomes) = (self.client(caller), Arc::clone(&outcomes));
                    let request = self.request.clone();
                    callers.spawn(async move {
                        while start.elapsed() < time {
                            call(&mut client, request.clone(), Instant::now(), &outcomes).await;
                        }
                    });
                }
            }
            Pace::Open { rate } => {
                let mut ticks = interval(TICK);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut made = 0_u32;
                while start.elapsed() < time {
                    ticks.tick().await;
                    while f64::from(made) < start.elapsed().as_secs_f64() * f64::from(rate) {
                        // Measured from when the call was due, so that a late load generator does not hide latency.
                        let due = start + Duration::from_secs_f64(f64::from(made) / f64::from(rate));
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
        report.duration = start.elapsed();
        report.accepted.sort_unstable();
        report.shed.sort_unstable();
        Ok(report)
    }

    fn client(&self, caller: usize) -> AppSync {
        self.clients[caller % self.clients.len()].clone()
    }
}

async fn call(client: &mut AppSync, request: SynchronizeAppRequest, due: Instant, outcomes: &Outcomes) {
    let response = client.synchronize_app(request).await;
    let latency = due.elapsed();
    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    match response {
        Ok(_) => outcomes.accepted.push(latency),
        // The first rejections are decoded to check their code. Decoding all of them would slow down the load
        // generator.
        Err(status) if status.code() == tonic::Code::Unavailable && outcomes.shed.len() > DECODED => {
            outcomes.shed.push(latency);
        }
        Err(status) => match ApiErrorResponse::from(status) {
            refusal if refusal.error == Some(ApiErrorCode::SynchronizeApp(ErrorCode::ServiceUnavailable)) => {
                outcomes.shed.push(latency);
            }
            refusal => outcomes.other.push(refusal.to_string()),
        },
    }
}

fn fraction(some: usize, all: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "there are fewer than 2^52 calls")]
    let (some, all) = (some as f64, all as f64);
    if all > 0.0 { some / all } else { 1.0 }
}

fn slowest(times: &[Duration], of: usize) -> Duration {
    times.get(times.len() - times.len().div_ceil(of)).copied().unwrap_or_default()
}

impl Report {
    pub fn accepted_a_second(&self) -> f64 {
        fraction(self.accepted.len(), 1) / self.duration.as_secs_f64()
    }

    /// The 99th percentile of the latency of accepted calls.
    pub fn slowest_hundredth(&self) -> Duration {
        slowest(&self.accepted, 100)
    }

    /// Adds another report.
    pub fn add(&mut self, other: Self) {
        self.duration += other.duration;
        self.accepted.extend(other.accepted);
        self.shed.extend(other.shed);
        self.other.extend(other.other);
        self.accepted.sort_unstable();
        self.shed.sort_unstable();
    }

    /// The fraction of rejected calls that were rejected within `time`.
    pub fn shed_within(&self, time: Duration) -> f64 {
        fraction(self.shed.partition_point(|latency| *latency <= time), self.shed.len())
    }

    /// The fraction of calls with other errors.
    pub fn otherwise(&self) -> f64 {
        fraction(self.other.len(), self.accepted.len() + self.shed.len() + self.other.len())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} accepted a second, p99 {:.1?}", self.accepted_a_second(), self.slowest_hundredth())?;
        if !self.shed.is_empty() {
            write!(f, "; {} rejected, p99 {:.1?}", self.shed.len(), slowest(&self.shed, 100))?;
        }
        match self.other.first() {
            Some(first) => write!(f, "; {} other errors: {first}", self.other.len()),
            None => Ok(()),
        }
    }
}
