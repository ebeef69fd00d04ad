//! The OpenTelemetry instruments: names, units, descriptions and bucket boundaries.

use std::sync::PoisonError;

use opentelemetry::metrics::{Counter, Histogram, Meter, ObservableGauge, UpDownCounter};

use super::{QUEUES, RegionQueue, SUSPENDED, region};

/// Buckets for the duration of calls, in seconds (OpenTelemetry semantic conventions, "RPC metrics").
const CALL_SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Buckets for the duration of copies, in seconds: up to six hours.
const COPY_SECONDS: [f64; 12] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0, 7_200.0, 21_600.0];
/// Buckets for the duration of commits, in seconds.
const COMMIT_SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Histogram buckets for the number of entries in a group commit.
const COMMIT_ENTRIES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// All instruments of the process.
pub struct Instruments {
    pub call_duration: Histogram<f64>,
    pub decisions: Counter<u64>,
    pub unaudited: Counter<u64>,
    pub audit_lost: Counter<u64>,
    pub log_dropped: Counter<u64>,
    pub copies_running: UpDownCounter<i64>,
    pub copy_duration: Histogram<f64>,
    pub copy_bytes: Counter<u64>,
    pub copy_attempts: Counter<u64>,
    pub claims_lost: Counter<u64>,
    pub copy_stalls: Counter<u64>,
    pub commit_size: Histogram<u64>,
    pub commit_duration: Histogram<f64>,
    _queues: [ObservableGauge<f64>; 2],
    _suspended: ObservableGauge<u64>,
}

impl Instruments {
    /// Creates the instruments on `meter`.
    pub fn new(meter: &Meter) -> Self {
        let counter = |name: &'static str, unit: &'static str, description: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(description).build()
        };
        let seconds = |name: &'static str, description: &'static str, buckets: &[f64]| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(description);
            histogram.with_boundaries(buckets.to_vec()).build()
        };
        Self {
            call_duration: seconds(
                "rpc.server.call.duration",
                "Duration of calls, to the last byte of the response",
                &CALL_SECONDS,
            ),
            decisions: counter("appferry.authorization.decisions", "{decision}", "Authorization decisions"),
            unaudited: counter(
                "appferry.audit.refusals",
                "{call}",
                "Calls rejected because the audit log could not be written",
            ),
            audit_lost: counter(
                "appferry.audit.lost",
                "{decision}",
                "Decisions that could not be written to the audit log",
            ),
            log_dropped: counter(
                "appferry.log.dropped",
                "{line}",
                "Log lines dropped because standard error was not read in time",
            ),
            copies_running: meter
                .i64_up_down_counter("appferry.copies.running")
                .with_unit("{copy}")
                .with_description("Copies in progress in this process")
                .build(),
            copy_duration: seconds("appferry.copy.duration", "Duration of copy attempts", &COPY_SECONDS),
            copy_bytes: counter("appferry.copy.io", "By", "Bytes of finished copy attempts"),
            copy_attempts: counter(
                "appferry.copy.attempts",
                "{attempt}",
                "Finished copy attempts, by the resulting state of the replica; PENDING is retried",
            ),
            claims_lost: counter(
                "appferry.claims.lost",
                "{claim}",
                "Claims that were canceled, taken over or expired during the copy",
            ),
            copy_stalls: counter(
                "appferry.copy.stalls",
                "{attempt}",
                "Attempts aborted because nothing moved for `worker.stall_ms`",
            ),
            commit_size: meter
                .u64_histogram("appferry.commit.size")
                .with_unit("{entry}")
                .with_description("Calls or reports committed together")
                .with_boundaries(COMMIT_ENTRIES.to_vec())
                .build(),
            commit_duration: seconds("appferry.commit.duration", "Duration of group commits", &COMMIT_SECONDS),
            _suspended: suspended(meter),
            _queues: queues(meter),
        }
    }
}

fn suspended(meter: &Meter) -> ObservableGauge<u64> {
    meter
        .u64_observable_gauge("appferry.queue.suspended")
        .with_unit("{replica}")
        .with_description("Replicas suspended because their region is no longer configured")
        .with_callback(|observer| {
            for (to, count) in &*SUSPENDED.lock().unwrap_or_else(PoisonError::into_inner) {
                observer.observe(*count, &[region(to)]);
            }
        })
        .build()
}

fn queues(meter: &Meter) -> [ObservableGauge<f64>; 2] {
    let gauge = |name: &'static str, unit: &'static str, description: &'static str, read: fn(&RegionQueue) -> f64| {
        let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
        let observe = gauge.with_callback(move |observer| {
            for queue in &*QUEUES.lock().unwrap_or_else(PoisonError::into_inner) {
                observer.observe(read(queue), &[region(&queue.region)]);
            }
        });
        observe.build()
    };
    #[allow(clippy::cast_precision_loss, reason = "no queue is that long")]
    let depth = |queue: &RegionQueue| queue.depth as f64;
    [
        gauge("appferry.queue.depth", "{replica}", "Replicas waiting for a worker", depth),
        gauge("appferry.queue.age", "s", "Time since the longest-waiting replica became due", |queue| {
            queue.age.as_secs_f64()
        }),
    ]
}
