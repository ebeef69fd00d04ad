//! Reports the results of copies to the database.

use std::{sync::Arc, time::Duration};

use db::{ClaimedRegion, Report};
use domain::{Event, Fault, FaultKind, ImageId};
use instrumentation::metrics;
use storage::{Error, Verdict};

use super::{
    Worker,
    active_copy::ActiveCopy,
    transfer::{CopyError, CopySummary, Meter},
};

/// The wait before a report that the database did not accept is sent again.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// How often a copy is retried when its source, read over a network, returned outdated or damaged data.
const SOURCE_RETRIES: u32 = 2;

impl Worker {
    /// Reports the result of a copy. Returns whether the report was accepted. A stale report is not accepted.
    pub(super) async fn conclude(
        &self,
        image: &ImageId,
        copy: ActiveCopy,
        result: Result<CopySummary, CopyError>,
    ) -> bool {
        let ActiveCopy { claimed, span, meter, start, .. } = &copy;
        let (region, progress) = (&claimed.region, meter.read());
        span.record("appferry.bytes_copied", progress.copied);
        span.record("appferry.bytes_skipped", progress.skipped);
        let (state, report) = match result {
            Ok(CopySummary { verification, warnings }) => {
                if !warnings.is_empty() {
                    let warnings = warnings.iter().collect::<Vec<_>>().join("; ");
                    tracing::warn!(parent: span, %image, %region, %warnings, "image available, with warnings");
                }
                tracing::info!(
                    parent: span, %image, %region, copied = progress.copied, skipped = progress.skipped, %verification,
                    "image available"
                );
                let event = Event::Verified { fence: claimed.fence, progress, verification, warnings };
                ("AVAILABLE", Report { region: region.clone(), event })
            }
            Err(error) => {
                if matches!(error.error(), Error::Stalled(_)) {
                    metrics::record_stall(region);
                }
                let (fault, is_retryable) = classify(&error, claimed.faults);
                let jitter = rand::random::<f64>();
                let wait = if is_retryable { self.settings.backoff.wait(claimed.faults, jitter) } else { None };
                // A longer wait that the store asks for takes precedence.
                let retry_after = wait.map(|wait| wait.max(error.error().retry_after().unwrap_or_default()));
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", fault.message.as_str());
                tracing::warn!(parent: span, %image, %region, %fault, ?retry_after, "copy failed");
                let state = if retry_after.is_some() { "PENDING" } else { "FAILED" };
                (state, failure_report(claimed, meter, fault, retry_after))
            }
        };
        metrics::record_attempt(region, state, start.elapsed(), progress.copied, progress.skipped);
        span.record("appferry.state", state);
        self.report(image, report).await
    }

    /// Releases the claims of copies that were stopped. The attempts do not count.
    pub(super) async fn release(&self, image: &ImageId, copies: Vec<ActiveCopy>) {
        for ActiveCopy { claimed, span, .. } in copies {
            span.record("appferry.state", "RELEASED");
            let event = Event::Release { fence: claimed.fence };
            self.report(image, Report { region: claimed.region, event }).await;
        }
    }

    /// Sends a report, and retries as long as the claim may be valid. Returns whether the report was accepted.
    pub(super) async fn report(&self, image: &ImageId, report: Report) -> bool {
        let deadline = tokio::time::Instant::now() + self.settings.lease;
        let region = &report.region;
        loop {
            match self.state.replica_report(image, report.clone()).await {
                Ok(Ok(())) => return true,
                Ok(Err(stale)) => {
                    tracing::info!(%image, %region, reason = %stale, "report rejected: the claim was lost");
                    return false;
                }
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    tracing::error!(%error, %image, %region, "failed to write a report; the lease will expire");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(%error, %image, %region, "failed to write a report; will retry");
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            }
        }
    }
}

/// Returns the report of a failed copy. `retry_after` is `None` if the copy is not retried.
pub(super) fn failure_report(
    claimed: &ClaimedRegion,
    meter: &Arc<Meter>,
    fault: Fault,
    retry_after: Option<Duration>,
) -> Report {
    let event = Event::Faulted { fence: claimed.fence, fault, retry_after, progress: meter.read() };
    Report { region: claimed.region.clone(), event }
}

/// Returns the fault that a region shows for an error, and whether a retry may help after `faults` failed attempts.
fn classify(error: &CopyError, faults: u32) -> (Fault, bool) {
    let is_doubtful = matches!(error, CopyError::Source { error, is_remote: true, .. } if error.may_be_outdated())
        && faults < SOURCE_RETRIES;
    let (kind, cause) = match error {
        CopyError::Source { error, .. } if error.is_missing() => (FaultKind::ImageNotFound, error),
        CopyError::Source { error, .. } | CopyError::Destination(error) => (error.fault_kind(), error),
    };
    (Fault::new(kind, error), is_doubtful || cause.verdict() == Verdict::Retry)
}
