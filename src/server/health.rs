//! Readiness: whether the service can carry calls out, which it can't without its database, nor while the audit log is blocked.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::SERVICES;
use crate::{audit::Audit, db::Db, domain::with_causes};

/// How often the database is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether the service can carry calls out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It can't, and why.
    NotReady(String),
}

/// Where it is told.
#[derive(Debug)]
pub struct Told {
    /// By gRPC, if calls are answered.
    pub grpc: Option<HealthReporter>,
    /// To whoever asks here.
    pub here: watch::Sender<Readiness>,
}

impl Told {
    async fn tell(&self, readiness: Readiness) {
        if let Some(grpc) = &self.grpc {
            let status = if readiness == Readiness::Ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            set(grpc, status).await;
        }
        self.here.send_replace(readiness);
    }
}

/// Publishes whether the database answers and takes writes and the audit log, if this process has one, is written, until `stop` is
/// canceled: then the service is not ready any more.
pub async fn run(told: Told, state: Db, audit: Option<Audit>, stop: CancellationToken) {
    let mut before = Readiness::Ready;
    loop {
        let asked = tokio::select! {
            asked = state.ready() => asked,
            () = stop.cancelled() => break,
        };
        let readiness = match &asked {
            Err(error) => {
                let error = with_causes(error);
                Readiness::NotReady(format!("the database does not answer, or takes no writes: {error}"))
            }
            Ok(()) if audit.as_ref().is_some_and(Audit::is_blocked) => {
                Readiness::NotReady("the audit log is not written and its queue is full".to_owned())
            }
            Ok(()) => Readiness::Ready,
        };
        let is_ready = readiness == Readiness::Ready;
        if is_ready != (before == Readiness::Ready) {
            match &readiness {
                Readiness::Ready => tracing::info!("the database answers and the audit log is written again; ready"),
                Readiness::NotReady(why) => tracing::warn!("{why}; not ready"),
            }
        }
        if readiness != before {
            told.tell(readiness.clone()).await;
        }
        before = readiness;
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => break,
        }
    }
    told.tell(Readiness::NotReady("it is shutting down".to_owned())).await;
}

/// Ends the streams of all who watch: a client that stays must not hold up the end of the service.
pub async fn end_watches(mut health: HealthReporter) {
    for service in SERVICES {
        health.clear_service_status(service).await;
    }
}

/// Sets the status of everything whose health is told.
pub async fn set(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}
