//! Metrics on their way out: scraped by Prometheus, or sent by OTLP. One set for the life of a process, as instruments are.

use std::sync::OnceLock;

use opentelemetry::global;
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder as _, Registry, TextEncoder};

use super::{Error, FLUSH, check_protocol, exports, resource};
use crate::metrics;

/// The variables of which one names the endpoint to export to (OpenTelemetry specification, "OTLP Exporter Configuration").
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    provider: SdkMeterProvider,
    registry: Registry,
}

/// The type of what [`scrape`] returns.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Starts to measure, if somebody scrapes or an endpoint is configured. Called within a runtime; only the first call of a process that
/// starts something counts.
pub fn start(scraped: bool) -> Result<(), Error> {
    let sent = exports(&ENDPOINTS, "OTEL_METRICS_EXPORTER");
    if EXPORT.get().is_some() || !(scraped || sent) {
        return Ok(());
    }
    let mut builder = SdkMeterProvider::builder().with_resource(resource());
    let registry = Registry::new();
    // Every reader keeps all measurements once more.
    if scraped {
        builder = builder.with_reader(opentelemetry_prometheus::exporter().with_registry(registry.clone()).build()?);
    }
    if sent {
        check_protocol(&["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"])?;
        builder = builder.with_periodic_exporter(MetricExporter::builder().with_tonic().build()?);
    }
    let provider = builder.build();
    if EXPORT.set(Export { provider: provider.clone(), registry }).is_ok() {
        global::set_meter_provider(provider);
        metrics::enable();
    }
    Ok(())
}

/// All metrics, as Prometheus reads them; nothing where nothing is measured.
#[must_use]
pub fn scrape() -> Option<Vec<u8>> {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&EXPORT.get()?.registry.gather(), &mut text) {
        Ok(()) => Some(text),
        Err(error) => {
            tracing::error!(%error, "the metrics can't be written down");
            None
        }
    }
}

/// Sends what was measured last, waiting for a bounded time.
pub(super) fn shutdown() {
    if let Some(Err(error)) = EXPORT.get().map(|export| export.provider.shutdown_with_timeout(FLUSH)) {
        tracing::warn!(%error, "the last metrics could not be sent");
    }
}
