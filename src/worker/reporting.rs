//! Reports to the database how copies ended.

use std::{sync::Arc, time::Duration};

use super::{
    Worker,
    active_copy::ActiveCopy,
    transfer::{Copied, CopyError, Meter},
};
use crate::{
    db::{ClaimedRegion, Report},
    domain::{Event, Fault, FaultKind, ImageId},
    metrics,
    region::{Error, Verdict},
};

/// How long to wait before a report is tried again that the database did not take.
const DATABASE_WAIT: Duration = Duration::from_millis(500);

impl Worker {
    /// Reports how the copy to a region ended. Returns whether the report counts.
    pub(super) async fn conclude(&self, image: &ImageId, copy: ActiveCopy, result: Result<Copied, CopyError>) -> bool {
        let ActiveCopy { claimed, span, meter, began, .. } = &copy;
        let progress = meter.read();
        span.record("appferry.bytes_copied", progress.copied);
        span.record("appferry.bytes_skipped", progress.skipped);
        let (state, report) = match result {
            Ok(Copied { verification, warnings }) => {
                if !warnings.is_empty() {
                    let warnings = warnings.iter().collect::<Vec<_>>().join("; ");
                    tracing::warn!(parent: span, %image, region = %claimed.region, %warnings, "the image arrived with warnings");
                }
                tracing::info!(parent: span, %image, region = %claimed.region, copied = progress.copied, skipped = progress.skipped, %verification, "the image is available");
                let event = Event::Verified { fence: claimed.fence, progress, verification, warnings };
                ("AVAILABLE", Report { region: claimed.region.clone(), event })
            }
            Err(error) => {
                if matches!(error.error(), Error::Stalled(_)) {
                    metrics::stalled(&claimed.region);
                }
                let (fault, retry) = judge(&error, claimed.faults);
                let jitter = rand::random::<f64>();
                let wait = if retry { self.settings.backoff.wait(claimed.faults, jitter) } else { None };
                // A store that says when it wants to be asked again knows better.
                let retry_after = wait.map(|wait| wait.max(error.error().retry_after().unwrap_or_default()));
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", fault.message.as_str());
                tracing::warn!(parent: span, %image, region = %claimed.region, %fault, ?retry_after, "copy failed");
                let state = if retry_after.is_some() { "PENDING" } else { "FAILED" };
                (state, failed(claimed, meter, fault, retry_after))
            }
        };
        metrics::copied(&claimed.region, state, began.elapsed(), progress.copied, progress.skipped);
        span.record("appferry.state", state);
        self.report(image, report).await
    }

    /// Reports, and retries for as long as the claim may still be good. Returns whether the report counts.
    pub(super) async fn report(&self, image: &ImageId, report: Report) -> bool {
        let deadline = tokio::time::Instant::now() + self.settings.lease;
        loop {
            match self.state.replica_report(image, report.clone()).await {
                Ok(Ok(())) => return true,
                Ok(Err(stale)) => {
                    tracing::info!(%image, region = %report.region, "the report came too late: {stale}");
                    return false;
                }
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    tracing::error!(%error, %image, region = %report.region, "failed to write a report; the lease will expire");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(%error, %image, region = %report.region, "failed to write a report; will retry");
                    tokio::time::sleep(DATABASE_WAIT).await;
                }
            }
        }
    }
}

/// How often a copy is tried again whose source, read over a network, gave what may have been outdated or damaged on the way.
const DOUBTS: u32 = 2;

/// The report of a copy that failed.
pub(super) fn failed(
    claimed: &ClaimedRegion,
    meter: &Arc<Meter>,
    fault: Fault,
    retry_after: Option<Duration>,
) -> Report {
    let event = Event::Faulted { fence: claimed.fence, fault, retry_after, progress: meter.read() };
    Report { region: claimed.region.clone(), event }
}

/// What a region shows of an error, and whether trying again is of any use, `faults` attempts having failed before.
fn judge(error: &CopyError, faults: u32) -> (Fault, bool) {
    let is_doubtful =
        matches!(error, CopyError::Source { error, is_remote: true, .. } if error.may_be_outdated()) && faults < DOUBTS;
    let (kind, cause) = match error {
        CopyError::Source { error, .. } if error.is_missing() => (FaultKind::ImageNotFound, error),
        CopyError::Source { error, .. } | CopyError::Destination(error) => (error.fault_kind(), error),
    };
    (Fault::new(kind, error), is_doubtful || cause.verdict() == Verdict::Retry)
}
