//! Records the metrics of the service with OpenTelemetry's instruments.
//!
//! Every instrument of the project is defined here, with its unit and its attributes; `telemetry` exports them. Nothing
//! is recorded while no exporter is configured. No attribute has a value that a caller chooses freely: methods and
//! codes are those of the contract, regions those of the configuration.

mod instruments;

use std::{
    collections::BTreeMap,
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use domain::RegionId;
use opentelemetry::{KeyValue, global};

use self::instruments::Instruments;

/// The queue of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RegionQueue {
    pub region: RegionId,
    /// The number of replicas that are due.
    pub depth: u64,
    /// The time since the longest-waiting replica became due.
    pub age: Duration,
}

/// The queues as last measured by the leader; empty while another process is the leader.
static QUEUES: Mutex<Vec<RegionQueue>> = Mutex::new(Vec::new());

/// Suspended replicas in regions that are not configured, as the leader last counted them.
static SUSPENDED: Mutex<BTreeMap<RegionId, u64>> = Mutex::new(BTreeMap::new());

/// Whether an exporter is configured.
static ENABLED: AtomicBool = AtomicBool::new(false);

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| Instruments::new(&global::meter("appferry")));

fn region(region: &RegionId) -> KeyValue {
    KeyValue::new("appferry.region_id", region.as_str().to_owned())
}

/// Starts recording. The exporter must already be set up.
pub fn enable() {
    // A counter must exist at zero before its first event: Prometheus computes no increase for a series that is new.
    INSTRUMENTS.unaudited.add(0, &[]);
    INSTRUMENTS.audit_lost.add(0, &[]);
    INSTRUMENTS.log_dropped.add(0, &[]);
    ENABLED.store(true, Ordering::Release);
}

/// Whether an exporter is configured. Callers skip measurements that are expensive when there is none.
#[must_use]
pub fn are_exported() -> bool {
    ENABLED.load(Ordering::Acquire)
}

/// Returns the instruments; `None` without an exporter.
fn instruments() -> Option<&'static Instruments> {
    are_exported().then(|| &*INSTRUMENTS)
}

/// Creates the counters of copies into these regions at zero, for the same reason as in [`enable`].
pub fn register_regions<'a>(regions: impl Iterator<Item = &'a RegionId>) {
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

/// Records a finished call. `is_error` marks codes that are errors of the server.
pub fn record_call(method: &'static str, code: &'static str, is_error: bool, duration: Duration) {
    let Some(instruments) = instruments() else { return };
    let mut attributes = vec![
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
        KeyValue::new("rpc.response.status_code", code),
    ];
    attributes.extend(is_error.then(|| KeyValue::new("error.type", code)));
    instruments.call_duration.record(duration.as_secs_f64(), &attributes);
}

/// Records an authorization decision about an action of the contract. `action` is `None` for a method without one.
pub fn record_decision(action: Option<&'static str>, decision: &'static str) {
    let Some(instruments) = instruments() else { return };
    let action = KeyValue::new("appferry.action", action.unwrap_or("_OTHER"));
    instruments.decisions.add(1, &[action, KeyValue::new("appferry.decision", decision)]);
}

/// Records a call that was rejected because its decision could not be written to the audit log.
pub fn record_unaudited_call() {
    if let Some(instruments) = instruments() {
        instruments.unaudited.add(1, &[]);
    }
}

/// Records decisions that could not be written to the audit log.
pub fn record_lost_decisions(count: u64) {
    if let Some(instruments) = instruments() {
        instruments.audit_lost.add(count, &[]);
    }
}

/// Records a dropped log line.
pub fn record_dropped_line() {
    if let Some(instruments) = instruments() {
        instruments.log_dropped.add(1, &[]);
    }
}

/// Counts a copy as running until it is dropped.
#[derive(Debug)]
pub struct RunningCopy(RegionId);

impl RunningCopy {
    /// Counts a copy into `to`.
    #[must_use]
    pub fn new(to: &RegionId) -> Self {
        let running = Self(to.clone());
        running.count(1);
        running
    }

    fn count(&self, change: i64) {
        if let Some(instruments) = instruments() {
            instruments.copies_running.add(change, &[region(&self.0)]);
        }
    }
}

impl Drop for RunningCopy {
    fn drop(&mut self) {
        self.count(-1);
    }
}

/// Records a finished copy attempt. `state` is the resulting state of the replica; `copied` and `skipped` are in bytes.
pub fn record_attempt(to: &RegionId, state: &'static str, duration: Duration, copied: u64, skipped: u64) {
    let Some(instruments) = instruments() else { return };
    let to = region(to);
    instruments.copy_duration.record(duration.as_secs_f64(), &[to.clone(), KeyValue::new("appferry.state", state)]);
    for (bytes, kind) in [(copied, "copied"), (skipped, "skipped")] {
        instruments.copy_bytes.add(bytes, &[to.clone(), KeyValue::new("appferry.kind", kind)]);
    }
    instruments.copy_attempts.add(1, &[to, KeyValue::new("appferry.state", state)]);
}

/// Records a claim that was lost during its copy.
pub fn record_lost_claim(to: &RegionId) {
    if let Some(instruments) = instruments() {
        instruments.claims_lost.add(1, &[region(to)]);
    }
}

/// Records an attempt that was aborted because it made no progress.
pub fn record_stall(to: &RegionId) {
    if let Some(instruments) = instruments() {
        instruments.copy_stalls.add(1, &[region(to)]);
    }
}

/// Records a group commit of `size` entries, successful or not.
pub fn record_commit(queue: &'static str, size: usize, duration: Duration) {
    let Some(instruments) = instruments() else { return };
    let queue = [KeyValue::new("appferry.queue", queue)];
    instruments.commit_size.record(size as u64, &queue);
    instruments.commit_duration.record(duration.as_secs_f64(), &queue);
}

/// Sets the queues that the gauges report. A process that is not the leader sets none.
pub fn set_queues(queues: Vec<RegionQueue>) {
    *QUEUES.lock().unwrap_or_else(PoisonError::into_inner) = queues;
}

/// Sets the suspended replicas that the gauge reports. A process that is not the leader sets none.
pub fn set_suspended(counts: BTreeMap<RegionId, u64>) {
    *SUSPENDED.lock().unwrap_or_else(PoisonError::into_inner) = counts;
}

/// Registers a gauge of a connection pool. `count` returns the used and the idle connections at each export.
pub fn observe_pool(name: &'static str, count: impl Fn() -> (u64, u64) + Send + Sync + 'static) {
    let meter = global::meter("appferry");
    let connections = meter
        .u64_observable_gauge("db.client.connection.count")
        .with_unit("{connection}")
        .with_description("Connections to the database");
    // The meter keeps the callback for as long as it lives.
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
