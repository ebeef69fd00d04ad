//! Converts sections of the configuration into the settings of the service's parts.

use std::{sync::Arc, time::Duration};

use super::Error;
use crate::{
    config::{self, Config},
    domain::{RegionId, WorkerId},
    server::{Deadlines, ListenerSettings, Proxies},
    worker::{MaintenanceSettings, STRAY_UPLOADS, Settings as WorkerSettings},
};

/// The settings of a listener with at most `connections` connections; `http1` also accepts HTTP/1.1.
pub fn listener(config: &Config, connections: usize, http1: bool) -> ListenerSettings {
    ListenerSettings {
        max_connections: connections,
        max_per_source: config.server.max_connections_per_source,
        max_streams: config.server.max_streams_per_connection,
        max_age: Duration::from_secs(config.server.max_connection_age_seconds),
        max_idle: Duration::from_secs(config.server.max_connection_idle_seconds),
        max_call: Duration::from_secs(config.server.max_stream_seconds.max(config.server.max_deadline_seconds)),
        http1,
    }
}

pub fn proxies(config: &Config) -> Arc<Proxies> {
    Arc::new(config.server.proxies())
}

/// The deadlines of calls.
pub fn deadlines(config: &Config) -> Deadlines {
    let [default, longest, stream] =
        [config.server.default_deadline_seconds, config.server.max_deadline_seconds, config.server.max_stream_seconds]
            .map(Duration::from_secs);
    Deadlines { default, longest, stream }
}

/// The settings of the maintenance that the worker `id` performs while it is the leader.
pub fn maintenance(config: &Config, id: WorkerId) -> Result<MaintenanceSettings, Error> {
    Ok(MaintenanceSettings {
        id,
        interval: Duration::from_millis(config.housekeeping.interval_ms),
        keep: Duration::from_secs(config.housekeeping.keep_finished_seconds),
        locations: config.locations()?,
        lease: Duration::from_millis(config.worker.lease_ms),
        stray_uploads: STRAY_UPLOADS,
    })
}

/// The settings of a worker with a new, unique id that serves `regions`.
pub fn worker(config: &config::Worker, regions: Vec<RegionId>) -> WorkerSettings {
    let millis = Duration::from_millis;
    WorkerSettings {
        id: WorkerId(format!("worker-{}", uuid::Uuid::now_v7().simple()).into()),
        regions,
        concurrency: config.concurrency,
        lease: millis(config.lease_ms),
        heartbeat: millis(config.heartbeat_ms),
        poll: millis(config.poll_ms),
        patience: millis(config.patience_ms),
        stall: millis(config.stall_ms),
        backoff: config.backoff(),
    }
}
