//! Readiness: whether the service can handle calls. It can't while the database is unavailable or the audit log is
//! blocked.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::SERVICES;
use crate::{audit::Audit, db::Db, domain::with_causes};

/// Interval at which the database is checked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether the service can handle calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// The service can handle calls.
    Ready,
    /// The service can't handle calls, for this reason.
    NotReady(String),
}

/// Publishes the readiness to the gRPC health service and to the admin listener.
#[derive(Debug)]
pub struct PublishedHealth {
    /// The gRPC health service; `None` in workers, which have none.
    pub grpc: Option<HealthReporter>,
    /// The probes of the admin listener.
    pub admin: watch::Sender<Readiness>,
}

impl PublishedHealth {
    async fn publish(&self, readiness: Readiness) {
        if let Some(grpc) = &self.grpc {
            let status = if readiness == Readiness::Ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            set(grpc, status).await;
        }
        self.admin.send_replace(readiness);
    }
}

/// Publishes that the service is ready while the database accepts writes and the audit log, if this process has one, is
/// written. When `stop` is canceled, publishes that the service is not ready, and returns.
pub async fn run(health: PublishedHealth, state: Db, audit: Option<Audit>, stop: CancellationToken) {
    let mut before = Readiness::Ready;
    loop {
        let result = tokio::select! {
            result = state.ready() => result,
            () = stop.cancelled() => break,
        };
        let readiness = match &result {
            Err(error) => {
                let error = with_causes(error);
                Readiness::NotReady(format!("the database is unreachable or read-only: {error}"))
            }
            Ok(()) if audit.as_ref().is_some_and(Audit::is_blocked) => {
                Readiness::NotReady("the audit log can't be written and its queue is full".to_owned())
            }
            Ok(()) => Readiness::Ready,
        };
        let is_ready = readiness == Readiness::Ready;
        if is_ready != (before == Readiness::Ready) {
            match &readiness {
                Readiness::Ready => {
                    tracing::info!("ready again: the database accepts writes and the audit log is written");
                }
                Readiness::NotReady(reason) => tracing::warn!(%reason, "not ready; calls fail until the cause is gone"),
            }
        }
        if readiness != before {
            health.publish(readiness.clone()).await;
        }
        before = readiness;
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => break,
        }
    }
    health.publish(Readiness::NotReady("the service is shutting down".to_owned())).await;
}

/// Ends all streams of the health service, because an open stream would delay the shutdown.
pub async fn end_watches(mut health: HealthReporter) {
    for service in SERVICES {
        health.clear_service_status(service).await;
    }
}

/// Sets the status of all services.
pub async fn set(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}
