//! Exports metrics: Prometheus scrapes them, or the process sends them by OTLP. Like the instruments, the export exists
//! once and lasts for the life of the process.

use std::sync::OnceLock;

use opentelemetry::global;
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder as _, Registry, TextEncoder};

use super::{Error, FLUSH_TIMEOUT, check_protocol, exports, resource};
use crate::metrics;

/// The environment variables that set the endpoint of metrics (OpenTelemetry specification, "OTLP Exporter
/// Configuration").
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    provider: SdkMeterProvider,
    registry: Registry,
}

/// The content type of [`scrape`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Starts to record metrics if Prometheus scrapes them or an endpoint is configured. Must be called within a runtime.
/// Has no effect once metrics are recorded.
pub fn start(is_scraped: bool) -> Result<(), Error> {
    let is_sent = exports(&ENDPOINTS, "OTEL_METRICS_EXPORTER");
    if EXPORT.get().is_some() || !(is_scraped || is_sent) {
        return Ok(());
    }
    let mut builder = SdkMeterProvider::builder().with_resource(resource());
    let registry = Registry::new();
    // Added only if needed, because every reader keeps its own copy of all measurements.
    if is_scraped {
        builder = builder.with_reader(opentelemetry_prometheus::exporter().with_registry(registry.clone()).build()?);
    }
    if is_sent {
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

/// Returns all metrics in the text format of Prometheus; `None` if nothing is recorded.
#[must_use]
pub fn scrape() -> Option<Vec<u8>> {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&EXPORT.get()?.registry.gather(), &mut text) {
        Ok(()) => Some(text),
        Err(error) => {
            tracing::error!(%error, "failed to encode metrics; the scrape fails");
            None
        }
    }
}

/// Exports the last metrics within a time limit.
pub(super) fn shutdown() {
    if let Some(Err(error)) = EXPORT.get().map(|export| export.provider.shutdown_with_timeout(FLUSH_TIMEOUT)) {
        tracing::warn!(%error, "failed to flush metrics on shutdown");
    }
}
