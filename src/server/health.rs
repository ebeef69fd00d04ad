//! Readiness: whether the service can carry calls out, which it can't without its database.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::SERVICES;
use crate::{domain::with_causes, state::State};

/// How often the database is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tells whether the database answers and takes writes, until `stop` is canceled: then the service is not ready any more.
pub async fn run(health: HealthReporter, state: State, stop: CancellationToken) {
    let mut ready = true;
    loop {
        let asked = tokio::select! {
            asked = state.ready() => asked,
            () = stop.cancelled() => break,
        };
        match &asked {
            Ok(()) if !ready => {
                tracing::info!("the database answers again; ready");
                set(&health, ServingStatus::Serving).await;
            }
            Err(error) if ready => {
                tracing::warn!(
                    error = with_causes(error),
                    "the database does not answer, or takes no writes; not ready"
                );
                set(&health, ServingStatus::NotServing).await;
            }
            _ => {}
        }
        ready = asked.is_ok();
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => break,
        }
    }
    set(&health, ServingStatus::NotServing).await;
}

/// Sets the status of everything whose health is told.
pub async fn set(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}
