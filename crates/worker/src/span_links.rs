//! Links the span of a copy to the traces of the calls that requested it.

use db::TraceContext;
use opentelemetry::{
    Context,
    propagation::TextMapPropagator as _,
    trace::{SpanContext, TraceContextExt as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Links the span of a copy to the calls that wait for it. The first attempt is a child of the first call; a later one
/// is the root of its own trace.
pub fn link(span: &Span, attempt: u32, traces: &[TraceContext]) {
    let contexts: Vec<Context> = traces.iter().map(context).collect();
    if attempt == 1
        && let Some(first) = contexts.first()
    {
        // Fails only without an exporter, and then there is nothing to link.
        let _ = span.set_parent(first.clone());
    }
    for context in &contexts {
        span.add_link(span_context(context));
    }
}

fn span_context(context: &Context) -> SpanContext {
    context.span().span_context().clone()
}

fn context(trace: &TraceContext) -> Context {
    let mut carrier = std::collections::HashMap::from([("traceparent".to_owned(), trace.parent.clone())]);
    carrier.extend(trace.state.clone().map(|state| ("tracestate".to_owned(), state)));
    TraceContextPropagator::new().extract(&carrier)
}
