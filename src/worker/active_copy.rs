//! One region of a claim, while it is copied to.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Span, field::Empty};

use super::{heartbeat::HeldClaim, lanes::Lane, span_links::link, transfer::Meter};
use crate::{db::ClaimedRegion, domain::Image, metrics::Running};

/// One region of a claim, how far its copy has come, and its span.
#[derive(Debug)]
pub struct ActiveCopy {
    /// What was claimed.
    pub claimed: ClaimedRegion,
    /// How far it has come.
    pub meter: Arc<Meter>,
    /// Its span.
    pub span: Span,
    /// When this attempt began.
    pub began: Instant,
    /// Counts it among the copies that are being made.
    _running: Running,
    /// Its place in the region's lanes.
    _lane: Lane,
}

impl ActiveCopy {
    /// Begins with a region.
    pub fn new(image: &Image, claimed: ClaimedRegion, lane: Lane) -> Self {
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
        link(&span, claimed.attempt, &claimed.traces);
        let running = Running::new(&claimed.region);
        Self { claimed, meter: Arc::default(), span, began: Instant::now(), _running: running, _lane: lane }
    }

    /// As the heartbeat knows it.
    pub fn held(&self) -> HeldClaim {
        HeldClaim { region: self.claimed.region.clone(), fence: self.claimed.fence, meter: Arc::clone(&self.meter) }
    }
}
