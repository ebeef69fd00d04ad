//! What is counted and measured, by OpenTelemetry's instruments. Here stands every one of them, with its unit and its attributes; who
//! exports them is `telemetry`'s affair, and without anybody who does, recording costs next to nothing.
//!
//! Nothing that callers choose freely is an attribute: methods and codes are those of the contract, regions those of the configuration.

use std::{
    collections::BTreeMap,
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram, Meter, ObservableGauge, UpDownCounter},
};

use crate::domain::RegionId;

/// Seconds of calls (OpenTelemetry semantic conventions, "RPC metrics").
const CALL_SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Seconds of copies: up to hours.
const COPY_SECONDS: [f64; 12] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0, 7_200.0, 21_600.0];
/// Seconds of commits.
const COMMIT_SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Calls or reports in a group.
const GROUP: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The queue of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionQueue {
    /// The region.
    pub region: RegionId,
    /// Replicas that wait.
    pub depth: u64,
    /// How long the one that has been due for longest has been so.
    pub age: Duration,
}

/// The queues, as whoever keeps house has last seen them; nothing where somebody else does.
static QUEUES: Mutex<Vec<RegionQueue>> = Mutex::new(Vec::new());

/// Suspended replicas in regions that are not configured, as the leader has last counted them.
static SUSPENDED: Mutex<BTreeMap<RegionId, u64>> = Mutex::new(BTreeMap::new());

/// Whether anybody exports what is measured.
static ENABLED: AtomicBool = AtomicBool::new(false);

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| Instruments::new(&global::meter("appferry")));

struct Instruments {
    call_duration: Histogram<f64>,
    decisions: Counter<u64>,
    unaudited: Counter<u64>,
    audit_lost: Counter<u64>,
    log_dropped: Counter<u64>,
    copies_running: UpDownCounter<i64>,
    copy_duration: Histogram<f64>,
    copy_bytes: Counter<u64>,
    copy_attempts: Counter<u64>,
    claims_lost: Counter<u64>,
    copy_stalls: Counter<u64>,
    commit_size: Histogram<u64>,
    commit_duration: Histogram<f64>,
    _queues: [ObservableGauge<f64>; 2],
    _suspended: ObservableGauge<u64>,
}

impl Instruments {
    fn new(meter: &Meter) -> Self {
        let queue = |name: &'static str, unit: &'static str, about: &'static str, read: fn(&RegionQueue) -> f64| {
            let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(about);
            let observe = gauge.with_callback(move |observer| {
                for queue in &*QUEUES.lock().unwrap_or_else(PoisonError::into_inner) {
                    observer.observe(read(queue), &[region(&queue.region)]);
                }
            });
            observe.build()
        };
        #[allow(clippy::cast_precision_loss, reason = "no queue is that long")]
        let depth = |queue: &RegionQueue| queue.depth as f64;
        Self {
            call_duration: meter
                .f64_histogram("rpc.server.call.duration")
                .with_unit("s")
                .with_description("How long calls took, to the last byte of the answer")
                .with_boundaries(CALL_SECONDS.to_vec())
                .build(),
            decisions: meter
                .u64_counter("appferry.authorization.decisions")
                .with_unit("{decision}")
                .with_description("Decisions about who may call what")
                .build(),
            unaudited: meter
                .u64_counter("appferry.audit.refusals")
                .with_unit("{call}")
                .with_description("Calls that were refused because the audit log could not be written")
                .build(),
            audit_lost: meter
                .u64_counter("appferry.audit.lost")
                .with_unit("{decision}")
                .with_description("Decisions that were made and could not be written to the audit log")
                .build(),
            log_dropped: meter
                .u64_counter("appferry.log.dropped")
                .with_unit("{line}")
                .with_description("Log lines that were dropped because standard error was not read in time")
                .build(),
            copies_running: meter
                .i64_up_down_counter("appferry.copies.running")
                .with_unit("{copy}")
                .with_description("Copies that this process is carrying")
                .build(),
            copy_duration: meter
                .f64_histogram("appferry.copy.duration")
                .with_unit("s")
                .with_description("How long attempts took")
                .with_boundaries(COPY_SECONDS.to_vec())
                .build(),
            copy_bytes: meter
                .u64_counter("appferry.copy.io")
                .with_unit("By")
                .with_description("Bytes of attempts that have ended")
                .build(),
            copy_attempts: meter
                .u64_counter("appferry.copy.attempts")
                .with_unit("{attempt}")
                .with_description(
                    "Attempts that have ended, by what the replica is since then: one that is PENDING is tried again",
                )
                .build(),
            claims_lost: meter
                .u64_counter("appferry.claims.lost")
                .with_unit("{claim}")
                .with_description("Claims that were canceled, taken over or ran out while they were worked on")
                .build(),
            copy_stalls: meter
                .u64_counter("appferry.copy.stalls")
                .with_unit("{attempt}")
                .with_description("Attempts that were given up because nothing moved for `worker.stall_ms`")
                .build(),
            commit_size: meter
                .u64_histogram("appferry.commit.size")
                .with_unit("{entry}")
                .with_description("Calls or reports that were committed together")
                .with_boundaries(GROUP.to_vec())
                .build(),
            commit_duration: meter
                .f64_histogram("appferry.commit.duration")
                .with_unit("s")
                .with_description("How long it took to commit a group")
                .with_boundaries(COMMIT_SECONDS.to_vec())
                .build(),
            _suspended: meter
                .u64_observable_gauge("appferry.queue.suspended")
                .with_unit("{replica}")
                .with_description("Replicas that are suspended because their region is not configured any more")
                .with_callback(|observer| {
                    for (to, count) in &*SUSPENDED.lock().unwrap_or_else(PoisonError::into_inner) {
                        observer.observe(*count, &[region(to)]);
                    }
                })
                .build(),
            _queues: [
                queue("appferry.queue.depth", "{replica}", "Replicas that wait for a worker", depth),
                queue("appferry.queue.age", "s", "How long the longest-waiting replica has been due", |queue| {
                    queue.age.as_secs_f64()
                }),
            ],
        }
    }
}

fn region(region: &RegionId) -> KeyValue {
    KeyValue::new("appferry.region_id", region.as_str().to_owned())
}

/// Begins to measure. Whoever exports has been set up before.
pub fn enable() {
    // What is counted for the first time only when it happens looks to Prometheus as if it had always been there.
    INSTRUMENTS.unaudited.add(0, &[]);
    INSTRUMENTS.audit_lost.add(0, &[]);
    INSTRUMENTS.log_dropped.add(0, &[]);
    ENABLED.store(true, Ordering::Release);
}

/// Whether anybody exports what is measured: what costs something to find out need not be otherwise.
#[must_use]
pub fn are_exported() -> bool {
    ENABLED.load(Ordering::Acquire)
}

/// The instruments, if anybody exports what they measure.
fn instruments() -> Option<&'static Instruments> {
    are_exported().then(|| &*INSTRUMENTS)
}

/// Begins to count at nothing what may happen to copies into these regions: what is counted for the first time only when it happens looks
/// to Prometheus as if it had always been there.
pub fn regions<'a>(regions: impl Iterator<Item = &'a RegionId>) {
    let Some(instruments) = instruments() else { return };
    for to in regions {
        for state in ["AVAILABLE", "PENDING", "FAILED"] {
            instruments.copy_attempts.add(0, &[region(to), KeyValue::new("appferry.state", state)]);
        }
        for kind in ["copied", "skipped"] {
            instruments.copy_bytes.add(0, &[region(to), KeyValue::new("appferry.kind", kind)]);
        }
        instruments.claims_lost.add(0, &[region(to)]);
        instruments.copy_stalls.add(0, &[region(to)]);
        instruments.copies_running.add(0, &[region(to)]);
    }
}

/// A call has ended. `error` says that its code is an error of the server.
pub fn called(method: &'static str, code: &'static str, error: bool, took: Duration) {
    let Some(instruments) = instruments() else { return };
    let mut attributes = vec![
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
        KeyValue::new("rpc.response.status_code", code),
    ];
    attributes.extend(error.then(|| KeyValue::new("error.type", code)));
    instruments.call_duration.record(took.as_secs_f64(), &attributes);
}

/// It was decided whether somebody may perform an action of the contract.
pub fn decided(action: Option<&'static str>, decision: &'static str) {
    let Some(instruments) = instruments() else { return };
    let action = KeyValue::new("appferry.action", action.unwrap_or("_OTHER"));
    instruments.decisions.add(1, &[action, KeyValue::new("appferry.decision", decision)]);
}

/// A call was refused because its decision could not be written to the audit log.
pub fn unaudited() {
    if let Some(instruments) = instruments() {
        instruments.unaudited.add(1, &[]);
    }
}

/// Decisions were made that could not be written to the audit log.
pub fn audit_lost(decisions: u64) {
    if let Some(instruments) = instruments() {
        instruments.audit_lost.add(decisions, &[]);
    }
}

/// A log line was dropped.
pub fn log_dropped() {
    if let Some(instruments) = instruments() {
        instruments.log_dropped.add(1, &[]);
    }
}

/// A copy that is being carried; it no longer is when this is dropped.
#[derive(Debug)]
pub struct Running(RegionId);

impl Running {
    fn count(&self, by: i64) {
        if let Some(instruments) = instruments() {
            instruments.copies_running.add(by, &[region(&self.0)]);
        }
    }
}

impl Running {
    /// It begins.
    #[must_use]
    pub fn new(to: &RegionId) -> Self {
        let running = Self(to.clone());
        running.count(1);
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.count(-1);
    }
}

/// An attempt has ended. `outcome` is the state of the replica after it.
pub fn copied(to: &RegionId, outcome: &'static str, took: Duration, copied: u64, skipped: u64) {
    let Some(instruments) = instruments() else { return };
    let to = region(to);
    instruments.copy_duration.record(took.as_secs_f64(), &[to.clone(), KeyValue::new("appferry.state", outcome)]);
    for (bytes, kind) in [(copied, "copied"), (skipped, "skipped")] {
        instruments.copy_bytes.add(bytes, &[to.clone(), KeyValue::new("appferry.kind", kind)]);
    }
    instruments.copy_attempts.add(1, &[to, KeyValue::new("appferry.state", outcome)]);
}

/// A claim that was worked on is not good any more.
pub fn lost(to: &RegionId) {
    if let Some(instruments) = instruments() {
        instruments.claims_lost.add(1, &[region(to)]);
    }
}

/// An attempt was given up because nothing of it moved.
pub fn stalled(to: &RegionId) {
    if let Some(instruments) = instruments() {
        instruments.copy_stalls.add(1, &[region(to)]);
    }
}

/// A group was committed, or could not be.
pub fn committed(queue: &'static str, size: usize, took: Duration) {
    let Some(instruments) = instruments() else { return };
    let queue = [KeyValue::new("appferry.queue", queue)];
    instruments.commit_size.record(size as u64, &queue);
    instruments.commit_duration.record(took.as_secs_f64(), &queue);
}

/// The queues are like this, seen from here; none where somebody else looks.
pub fn queues(seen: Vec<RegionQueue>) {
    *QUEUES.lock().unwrap_or_else(PoisonError::into_inner) = seen;
}

/// Replicas that are suspended in regions that are not configured; none where another process is the leader.
pub fn suspended(counted: BTreeMap<RegionId, u64>) {
    *SUSPENDED.lock().unwrap_or_else(PoisonError::into_inner) = counted;
}

/// Has the connections of a pool told whenever somebody asks: how many are used, and how many are idle.
pub fn pool(name: &'static str, count: impl Fn() -> (u64, u64) + Send + Sync + 'static) {
    let meter = global::meter("appferry");
    let connections = meter
        .u64_observable_gauge("db.client.connection.count")
        .with_unit("{connection}")
        .with_description("Connections to the database");
    // It is told for as long as the meter lives.
    let _ = connections
        .with_callback(move |observer| {
            let (used, idle) = count();
            for (connections, state) in [(used, "used"), (idle, "idle")] {
                let pool = KeyValue::new("db.client.connection.pool.name", name);
                observer.observe(connections, &[pool, KeyValue::new("db.client.connection.state", state)]);
            }
        })
        .build();
}
