//! Formats logs on standard error: one line per event, as plain text or JSON, with the request ids and the trace id of
//! the event. The format and the filter can be changed while the process runs.

use std::{
    borrow::Cow,
    env, fmt,
    io::{self, IsTerminal as _},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::trace::TraceContextExt as _;
use serde::Deserialize;
use serde_json::Value;
use tracing::{
    Dispatch, Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_opentelemetry::get_otel_context;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, LevelFilter, ParseError, filter_fn},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Json, Writer},
    },
    layer::Context,
    registry::LookupSpan,
    reload,
};

use super::{Error, log_queue::LogQueue};
use crate::domain::{ForeignText, printable, printable_json};

/// The target of this crate's events, which belong to requests.
const OWN_TARGET: &str = "appferry";
/// The spans with request ids: calls and copies.
const SPANS_WITH_IDS: [&str; 2] = ["call", "copy"];
/// The field of these spans that holds the request ids.
const REQUEST_ID_FIELD: &str = "appferry.request_id";

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Plain text.
    #[default]
    Human,
    /// A JSON object per line.
    Json,
}

/// The longest line, in bytes. Foreign texts are shortened before they are logged. This limit bounds all other texts,
/// including events of libraries.
const MAX_LINE: usize = 16 << 10;

/// Changes the logs of the running process.
struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    lines: LogQueue,
    /// Whether `RUST_LOG` is set, so that the filter is not reloaded.
    fixed: bool,
}

static HANDLE: OnceLock<LogHandle> = OnceLock::new();
static JSON: AtomicBool = AtomicBool::new(false);

/// Targets that log only errors unless the filter names them: h2 warns about every malformed frame, so that any peer
/// could fill the disk.
const QUIET_TARGETS: &str = "h2=error";

/// Parses a filter in the syntax of `RUST_LOG`.
pub fn parse_filter(text: &str) -> Result<EnvFilter, ParseError> {
    // Later directives override earlier ones.
    EnvFilter::try_new(format!("{QUIET_TARGETS},{text}"))
}

/// Returns the layers that write logs, filtered by `RUST_LOG` or else `default_filter`.
pub(super) fn layers(default_filter: &str) -> Result<impl Layer<Registry> + Send + Sync + use<>, Error> {
    let (filter, fixed) = match env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => (parse_filter(&text)?, true),
        _ => (parse_filter(default_filter)?, false),
    };
    let (filter, handle) = reload::Layer::new(filter);
    // Fails only for a second subscriber, which can't be installed anyway.
    let queue = LogQueue::start(io::stderr()).map_err(Error::Thread)?;
    let _ = HANDLE.set(LogHandle { filter: handle, lines: queue.clone(), fixed });
    // Lines have no span context, because spans are for traces. Without an export, only the two kinds of spans with
    // request ids are created.
    let events = filter_fn(|metadata| metadata.is_event()).with_max_level_hint(LevelFilter::TRACE);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(LineFormat::new(io::stderr().is_terminal()))
        .with_ansi(io::stderr().is_terminal())
        .with_writer(queue)
        .with_filter(events.and(filter));
    let spans = filter_fn(|metadata| {
        metadata.is_span() && metadata.target().starts_with(OWN_TARGET) && SPANS_WITH_IDS.contains(&metadata.name())
    });
    Ok(RequestIdLayer.with_filter(spans.with_max_level_hint(LevelFilter::INFO)).and_then(lines))
}

/// Applies a format and a filter to the running process.
pub fn apply(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let filter = parse_filter(filter)?;
    if let Some(handle) = HANDLE.get().filter(|handle| !handle.fixed) {
        // Fails only after the subscriber was dropped.
        let _ = handle.filter.reload(filter);
    }
    Ok(())
}

/// Waits until every line is written, for `limit` at most.
pub fn flush(limit: Duration) {
    if let Some(handle) = HANDLE.get() {
        handle.lines.flush(limit);
    }
}

/// Stores the request ids of spans for the lines of their events.
struct RequestIdLayer;

struct RequestIds(String);

impl Visit for RequestIds {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == REQUEST_ID_FIELD {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == REQUEST_ID_FIELD {
            self.0 = format!("{value:?}");
        }
    }
}

impl RequestIdLayer {
    fn keep<S>(id: &Id, context: &Context<'_, S>, read: impl FnOnce(&mut RequestIds))
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let mut requests = RequestIds(String::new());
        read(&mut requests);
        if let Some(span) = context.span(id).filter(|_| !requests.0.is_empty()) {
            span.extensions_mut().replace(requests);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for RequestIdLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        Self::keep(id, &context, |requests| attributes.record(requests));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        Self::keep(id, &context, |requests| values.record(requests));
    }
}

/// Bounds a text line and escapes its control characters. If `ansi` is set, keeps escape characters: they only come
/// from colors, because the formatter has already escaped those in logged values.
fn bounded_line(line: &str, ansi: bool) -> Cow<'_, str> {
    let printable = printable(line, |c| ansi && c == '\u{1b}');
    if printable.len() <= MAX_LINE {
        return printable;
    }
    let end = printable.floor_char_boundary(MAX_LINE);
    Cow::Owned(format!("{}…", &printable[..end]))
}

/// Bounds a JSON line, which is given without its last brace. If the line is too long, shortens each text in it.
fn bounded_json(line: &str) -> Cow<'_, str> {
    let shorter = || {
        let fields: serde_json::Map<String, Value> = serde_json::from_str(&format!("{line}}}")).ok()?;
        let cut = |value| match value {
            Value::String(text) => Value::String(ForeignText::message(text).into()),
            other => other,
        };
        let fields: serde_json::Map<_, _> = fields.into_iter().map(|(name, value)| (name, cut(value))).collect();
        let line = Value::Object(fields).to_string();
        Some(line.strip_suffix('}').unwrap_or(&line).to_owned())
    };
    match line.len() {
        0..=MAX_LINE => printable_json(line),
        _ => Cow::Owned(shorter().unwrap_or_else(|| "{\"message\":\"log line dropped: it was too long\"".to_owned())),
    }
}

/// Formats events as lines.
struct LineFormat {
    ansi: bool,
    human: Format<Full>,
    json: Format<Json>,
}

impl LineFormat {
    fn new(ansi: bool) -> Self {
        let json = Format::default().json().flatten_event(true).with_current_span(false).with_span_list(false);
        Self { ansi, human: Format::default().with_ansi(ansi), json }
    }
}

impl<N> FormatEvent<Registry, N> for LineFormat
where
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, Registry, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let json = JSON.load(Ordering::Relaxed);
        let mut line = String::new();
        if json {
            self.json.format_event(context, Writer::new(&mut line), event)?;
        } else {
            self.human.format_event(context, Writer::new(&mut line), event)?;
        }
        let (requests, trace) =
            if event.metadata().target().starts_with(OWN_TARGET) { ids_of(event) } else { (None, None) };
        let ids = [("request_id", requests), ("trace_id", trace)];
        // Each format has a fixed end; the ids are inserted before it.
        let end = if json { "}\n" } else { "\n" };
        let line = line.strip_suffix(end).unwrap_or(&line);
        writer.write_str(&if json { bounded_json(line) } else { bounded_line(line, self.ansi) })?;
        for (key, value) in ids.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
            if json {
                write!(writer, ",\"{key}\":\"{value}\"")?;
            } else {
                write!(writer, " {key}={value}")?;
            }
        }
        writer.write_str(end)
    }
}

/// Returns the request ids and the trace id of an event: those of its span, or of the nearest ancestor that has them.
fn ids_of(event: &Event<'_>) -> (Option<String>, Option<String>) {
    tracing::dispatcher::get_default(|dispatch: &Dispatch| {
        let current = || dispatch.current_span().id().cloned();
        let Some(id) = event.parent().cloned().or_else(current) else { return (None, None) };
        let trace = get_otel_context(&id, dispatch).and_then(|context| {
            let span = context.span().span_context().clone();
            span.is_valid().then(|| span.trace_id().to_string())
        });
        let registry = dispatch.downcast_ref::<Registry>();
        let requests = registry.and_then(|registry| registry.span(&id)).and_then(|span| {
            span.scope().find_map(|span| span.extensions().get::<RequestIds>().map(|requests| requests.0.clone()))
        });
        (requests, trace)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{MAX_LINE, bounded_json, bounded_line};

    #[test]
    fn no_line_is_longer_or_less_printable_than_it_should_be() {
        assert_eq!(
            bounded_line("WARN a: b=\u{1b}[31m\nFAKE \u{202e}", false),
            "WARN a: b=\\u{1b}[31m\\nFAKE \\u{202e}"
        );
        assert_eq!(bounded_line("\u{1b}[31mWARN\u{1b}[0m", true), "\u{1b}[31mWARN\u{1b}[0m");
        assert!(bounded_line(&"ä".repeat(4 << 20), false).len() <= MAX_LINE + 3);
        let json = bounded_json("{\"a\":\"\u{202e}\"");
        assert_eq!(json, "{\"a\":\"\\u202e\"");
        let long = format!("{{\"level\":\"WARN\",\"count\":7,\"error\":\"{}\"", "x".repeat(4 << 20));
        let short: Value = serde_json::from_str(&format!("{}}}", bounded_json(&long))).expect("JSON");
        assert_eq!((&short["level"], &short["count"]), (&Value::from("WARN"), &Value::from(7)));
        assert_eq!(short["error"].as_str().map(str::len), Some(768));
    }
}
