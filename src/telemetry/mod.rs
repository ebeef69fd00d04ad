//! Exports traces and metrics, and writes logs.
//!
//! The standard `OTEL_*` variables configure the export. Without an endpoint, nothing is exported and no spans are
//! created for an export.

mod log_queue;
pub mod logs;
pub mod metrics;

use std::{env, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::Subscriber;
use tracing_subscriber::{
    Layer,
    filter::{FilterExt as _, LevelFilter, Targets, filter_fn},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// The environment variables that set the endpoint of traces (OpenTelemetry specification, "OTLP Exporter
/// Configuration").
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// The instrumentation scope of the spans.
const SCOPE: &str = "appferry";
/// The time limit for exporting the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit for writing the last log lines.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The log filter that applies without `RUST_LOG`.
pub const DEFAULT_LOG: &str = "warn,appferry=info";

/// Why telemetry can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `RUST_LOG` is not a filter.
    #[error("RUST_LOG: invalid filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// An exporter can't be built.
    #[error("failed to set up the export of traces or metrics")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The collection of metrics can't be set up.
    #[error("failed to set up the collection of metrics")]
    Metrics(#[from] opentelemetry_sdk::error::OTelSdkError),
    /// The OTLP protocol is not supported.
    #[error("OTEL_EXPORTER_OTLP_PROTOCOL: {0:?} is not supported; expected grpc")]
    Protocol(String),
    /// The thread that writes logs can't be started.
    #[error("failed to start the thread that writes logs")]
    Thread(#[source] std::io::Error),
    /// A global subscriber is already set.
    #[error("logging is already set up")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
}

/// The exporters, which must be shut down after the last span has ended.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Starts logging to standard error, filtered by `RUST_LOG` or else `default_log`, and the export of traces if an
    /// endpoint is configured. Must be called within a runtime.
    pub fn start(default_log: &str) -> Result<Self, Error> {
        let registry = tracing_subscriber::registry().with(logs::layers(default_log)?);
        let provider = if exports(&ENDPOINTS, "OTEL_TRACES_EXPORTER") { Some(provider()?) } else { None };
        match &provider {
            Some(provider) => {
                registry.with(trace_layer(provider)).try_init()?;
                // Set here and not before `try_init`, because only the first subscriber gets here.
                instrumentation::set_tracer(provider.tracer(SCOPE));
            }
            // Adds no layer at all. With a layer that is `None`, every library would create spans that are never
            // exported.
            None => registry.try_init()?,
        }
        Ok(Self(provider))
    }

    /// Exports the last spans and metrics and writes the last log lines, within time limits. Blocks, so it must not be
    /// called on a thread of the runtime.
    pub fn shutdown(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT)) {
            tracing::warn!(%error, "failed to flush spans on shutdown");
        }
        metrics::shutdown();
        logs::flush(LOG_FLUSH_TIMEOUT);
    }
}

/// Returns the layer that exports the spans of this crate, independent of the log filter.
fn trace_layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let targets = Targets::new().with_target("appferry", LevelFilter::INFO);
    let spans = filter_fn(|metadata| metadata.is_span()).with_max_level_hint(LevelFilter::INFO);
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SCOPE))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        // The current span is always read from `tracing`, never from OpenTelemetry.
        .with_context_activation(false)
        .with_target(false)
        .with_filter(targets.and(spans))
}

/// Returns the endpoint of traces, if they are exported.
#[must_use]
pub fn endpoint() -> Option<String> {
    let set = ENDPOINTS.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
    set.filter(|_| exports(&ENDPOINTS, "OTEL_TRACES_EXPORTER"))
}

/// Whether an endpoint is configured and its export is not disabled.
fn exports(endpoints: &[&str], exporter: &str) -> bool {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|v| v.eq_ignore_ascii_case(value));
    let set = |name: &&str| env::var(name).is_ok_and(|value| !value.is_empty());
    endpoints.iter().any(set) && !is("OTEL_SDK_DISABLED", "true") && !is(exporter, "none")
}

/// Fails if one of the variables names a protocol other than gRPC.
fn check_protocol(variables: &[&str]) -> Result<(), Error> {
    for name in variables {
        match env::var(name) {
            Ok(protocol) if !protocol.is_empty() && protocol != "grpc" => return Err(Error::Protocol(protocol)),
            _ => {}
        }
    }
    Ok(())
}

/// The resource of all telemetry: the service's name and version.
fn resource() -> Resource {
    let mut resource = Resource::builder();
    if env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("appferry");
    }
    resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build()
}

fn provider() -> Result<SdkTracerProvider, Error> {
    check_protocol(&["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"])?;
    let exporter = SpanExporter::builder().with_tonic().build()?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build())
}
