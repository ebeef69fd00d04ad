//! One region of a claim, while it is worked on.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Span, field::Empty};

use super::{destination::Meter, heartbeat::Held, tracing_links::tie};
use crate::{domain::Image, metrics::Running, state::ClaimedRegion};

/// One region of a claim, how far its copy has come, and its span.
#[derive(Debug)]
pub struct Underway {
    /// What was claimed.
    pub claimed: ClaimedRegion,
    /// How far it has come.
    pub meter: Arc<Meter>,
    /// Its span.
    pub span: Span,
    /// When this attempt began.
    pub began: Instant,
    /// Counts it among those that are carried.
    pub running: Running,
}

impl Underway {
    /// Begins with a region.
    pub fn new(image: &Image, claimed: ClaimedRegion) -> Self {
        let span = tracing::info_span!(
            "copy",
            otel.name = format!("copy {}", claimed.region),
            otel.status_code = Empty,
            otel.status_description = Empty,
            appferry.request_id = claimed.requests.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(","),
            appferry.app_id = %image.id,
            appferry.region_id = %claimed.region,
            appferry.source_region_id = Empty,
            appferry.attempt = claimed.attempt,
            appferry.bytes_total = image.size,
            appferry.bytes_copied = Empty,
            appferry.bytes_skipped = Empty,
            appferry.state = Empty,
        );
        tie(&span, claimed.attempt, &claimed.traces);
        let running = Running::new(&claimed.region);
        Self { claimed, meter: Arc::default(), span, began: Instant::now(), running }
    }

    /// As the heartbeat knows it.
    pub fn held(&self) -> Held {
        Held { region: self.claimed.region.clone(), fence: self.claimed.fence, meter: Arc::clone(&self.meter) }
    }
}
