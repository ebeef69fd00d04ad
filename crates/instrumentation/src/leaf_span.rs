//! Spans outside of `tracing`, for operations that happen thousands of times a second.

use std::sync::OnceLock;

use opentelemetry::{
    KeyValue,
    trace::{SpanKind, Tracer as _},
};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sets the tracer of the process's leaf spans. Only the first call has an effect.
pub fn set_tracer(tracer: SdkTracer) {
    let _ = TRACER.set(tracer);
}

/// Creates a child of the current span. The child ends when it is dropped. Returns `None` without an export.
///
/// A leaf span has no log events and no children, because the bookkeeping of `tracing` would cost more than the span.
pub fn leaf_span<const N: usize>(name: &'static str, kind: SpanKind, attributes: [KeyValue; N]) -> Option<Span> {
    let tracer = TRACER.get()?;
    let builder = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
    Some(tracer.build_with_context(builder, &tracing::Span::current().context()))
}
