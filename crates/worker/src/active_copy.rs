//! The copy to one claimed region.

use std::sync::Arc;

use db::ClaimedRegion;
use domain::{Image, ImageId};
use instrumentation::metrics::{self, RunningCopy};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Span, field::Empty};

use super::{heartbeat::LeasedCopy, lanes::Lane, span_links::link, transfer::Meter};

/// A claimed region with the progress and the span of its copy.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ActiveCopy {
    pub claimed: ClaimedRegion,
    /// The progress of the copy.
    pub meter: Arc<Meter>,
    /// The span of this attempt.
    pub span: Span,
    /// When this attempt started.
    pub start: Instant,
    /// Canceled when the claim is lost or released. The copy must not write any more after that.
    pub lost: CancellationToken,
    _running: RunningCopy,
    _lane: Lane,
}

impl ActiveCopy {
    /// Starts an attempt for a claimed region.
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
        let running = RunningCopy::new(&claimed.region);
        Self {
            claimed,
            meter: Arc::default(),
            span,
            start: Instant::now(),
            lost: CancellationToken::new(),
            _running: running,
            _lane: lane,
        }
    }

    /// Returns the lease that the heartbeat renews.
    pub fn lease(&self) -> LeasedCopy {
        LeasedCopy { region: self.claimed.region.clone(), fence: self.claimed.fence, meter: Arc::clone(&self.meter) }
    }

    /// Stops the copy because its claim was lost.
    pub fn lose(&self, image: &ImageId) {
        let region = &self.claimed.region;
        self.lost.cancel();
        self.span.record("appferry.state", "LOST");
        metrics::record_lost_claim(region);
        tracing::info!(parent: &self.span, %image, %region, "claim lost: the copy was canceled or taken over");
    }
}
