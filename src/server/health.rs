//! Readiness: whether the service can carry calls out, which it can't without its database.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::SERVICES;
use crate::{domain::with_causes, state::State};

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

/// Tells whether the database answers and takes writes, until `stop` is canceled: then the service is not ready any more.
pub async fn run(told: Told, state: State, stop: CancellationToken) {
    let mut ready = true;
    loop {
        let asked = tokio::select! {
            asked = state.ready() => asked,
            () = stop.cancelled() => break,
        };
        match &asked {
            Ok(()) if !ready => {
                tracing::info!("the database answers again; ready");
                told.tell(Readiness::Ready).await;
            }
            Err(error) if ready => {
                let error = with_causes(error);
                tracing::warn!(error, "the database does not answer, or takes no writes; not ready");
                told.tell(Readiness::NotReady(format!("the database does not answer, or takes no writes: {error}")))
                    .await;
            }
            _ => {}
        }
        ready = asked.is_ok();
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => break,
        }
    }
    told.tell(Readiness::NotReady("it is shutting down".to_owned())).await;
}

/// Sets the status of everything whose health is told.
pub async fn set(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}
