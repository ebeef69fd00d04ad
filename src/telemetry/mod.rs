//! Traces, metrics and logs on their way out.
//!
//! The standard `OTEL_*` variables configure the export. Without an endpoint nothing is exported, and no span is built for it.

mod log_queue;
pub mod logs;
pub mod metrics;

use std::{env, sync::OnceLock, time::Duration};

use opentelemetry::{
    KeyValue,
    trace::{SpanKind, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider, Span},
};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    Layer,
    filter::{FilterExt as _, LevelFilter, Targets, filter_fn},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// The variables of which one names the endpoint to export to (OpenTelemetry specification, "OTLP Exporter Configuration").
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// What its spans are from.
const SCOPE: &str = "appferry";
/// How long the last spans may take to be sent.
const FLUSH: Duration = Duration::from_secs(5);
/// How long the last log lines may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);
/// What is logged unless `RUST_LOG` says otherwise.
pub const DEFAULT_LOG: &str = "warn,appferry=info";

/// Makes the spans that `tracing` does not know.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Why telemetry can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `RUST_LOG` can't be read.
    #[error("RUST_LOG is not a filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter can't be built.
    #[error("traces or metrics can't be exported")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Metrics can't be collected.
    #[error("metrics can't be collected")]
    Metrics(#[from] opentelemetry_sdk::error::OTelSdkError),
    /// The protocol is not supported.
    #[error("OTEL_EXPORTER_OTLP_PROTOCOL: {0:?} is not supported; expected grpc")]
    Protocol(String),
    /// There is no thread to write the logs.
    #[error("the thread that writes logs can't be started")]
    Thread(#[source] std::io::Error),
    /// Something else has taken the place.
    #[error("logs are set up already")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

/// What must be flushed at the end. Shut down after the last span has ended.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Starts logs on standard error, of what `RUST_LOG` or else `default_log` names, and the export of traces if an endpoint is configured. Called within a runtime.
    pub fn start(default_log: &str) -> Result<Self, Error> {
        let registry = tracing_subscriber::registry().with(logs::layers(default_log)?);
        let provider = if exports(&ENDPOINTS, "OTEL_TRACES_EXPORTER") { Some(provider()?) } else { None };
        match &provider {
            Some(provider) => {
                registry.with(traces(provider)).try_init()?;
                // It is the first: nobody else has been able to take the place of the subscriber.
                let _ = TRACER.set(provider.tracer(SCOPE));
            }
            // Not a layer that is `None`: it would have every span of every library made, for nobody.
            None => registry.try_init()?,
        }
        Ok(Self(provider))
    }

    /// Sends the spans that have ended and what was measured, and writes the last log lines, waiting for a bounded time. Must not be called on a thread of the runtime that may
    /// not block.
    pub fn shutdown(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown_with_timeout(FLUSH)) {
            tracing::warn!(%error, "the last spans could not be sent");
        }
        metrics::shutdown();
        logs::flush(LAST_LINES);
    }
}

/// A span below the current one, which lasts until it is dropped; nothing if none are exported. Nothing can be logged in it, and no other
/// span can be below it: it is for what is done thousands of times a second, where what `tracing` keeps of each span would cost more
/// than the span.
pub fn leaf<const N: usize>(name: &'static str, kind: SpanKind, attributes: [KeyValue; N]) -> Option<Span> {
    let tracer = TRACER.get()?;
    let builder = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
    Some(tracer.build_with_context(builder, &tracing::Span::current().context()))
}

/// Exports this service's own spans, whatever is logged.
fn traces<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let own = Targets::new().with_target("appferry", LevelFilter::INFO);
    let spans = filter_fn(|metadata| metadata.is_span()).with_max_level_hint(LevelFilter::INFO);
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SCOPE))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        // Nobody here asks OpenTelemetry for the span they are in; they ask `tracing`.
        .with_context_activation(false)
        .with_target(false)
        .with_filter(own.and(spans))
}

/// Where traces are to be sent, if anywhere.
#[must_use]
pub fn endpoint() -> Option<String> {
    let set = ENDPOINTS.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
    set.filter(|_| exports(&ENDPOINTS, "OTEL_TRACES_EXPORTER"))
}

/// Whether one of the endpoints is configured, and nothing says that it is not to be used.
fn exports(endpoints: &[&str], exporter: &str) -> bool {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|v| v.eq_ignore_ascii_case(value));
    let set = |name: &&str| env::var(name).is_ok_and(|value| !value.is_empty());
    endpoints.iter().any(set) && !is("OTEL_SDK_DISABLED", "true") && !is(exporter, "none")
}

fn check_protocol(variables: &[&str]) -> Result<(), Error> {
    for name in variables {
        match env::var(name) {
            Ok(protocol) if !protocol.is_empty() && protocol != "grpc" => return Err(Error::Protocol(protocol)),
            _ => {}
        }
    }
    Ok(())
}

/// Who tells all this.
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
