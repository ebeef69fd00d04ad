//! Logs on standard error: a line an event, for people or in JSON, each with the requests and the trace that it belongs to. What is
//! logged, and how, can be changed while the process runs.

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

/// Targets whose events belong to requests: the service's own.
const OWN: &str = "appferry";
/// The spans that know their requests: of calls and of copies.
const WITH_REQUESTS: [&str; 2] = ["call", "copy"];
/// The field of those spans that says which they are.
const REQUESTS: &str = "appferry.request_id";

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// An object of JSON a line.
    Json,
}

/// The longest line, in bytes: what is logged of others is shortened before, and this bounds the rest, other libraries' events among it.
const MAX_LINE: usize = 16 << 10;

/// What a process changes its logs by.
struct Running {
    filter: reload::Handle<EnvFilter, Registry>,
    lines: LogQueue,
    /// `RUST_LOG` has said what is logged, and goes on to.
    fixed: bool,
}

static RUNNING: OnceLock<Running> = OnceLock::new();
static JSON: AtomicBool = AtomicBool::new(false);

/// What logs only errors unless the filter names it: it warns of what its peers send, a line for every frame, so that whoever can
/// connect could fill the disk.
const QUIET: &str = "h2=error";

/// Reads what is logged, in the form of `RUST_LOG`.
pub fn parse_filter(text: &str) -> Result<EnvFilter, ParseError> {
    // What stands later wins.
    EnvFilter::try_new(format!("{QUIET},{text}"))
}

/// The layers that write logs: of what `RUST_LOG` or else `default_filter` names.
pub(super) fn layers(default_filter: &str) -> Result<impl Layer<Registry> + Send + Sync + use<>, Error> {
    let (filter, fixed) = match env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => (parse_filter(&text)?, true),
        _ => (parse_filter(default_filter)?, false),
    };
    let (filter, handle) = reload::Layer::new(filter);
    // The first that starts logs has them; another one can't take its place anyway.
    let queue = LogQueue::start(io::stderr()).map_err(Error::Thread)?;
    let _ = RUNNING.set(Running { filter: handle, lines: queue.clone(), fixed });
    // A line says everything by itself. Spans are for traces; only two kinds of them are made where nothing is exported.
    let events = filter_fn(|metadata| metadata.is_event()).with_max_level_hint(LevelFilter::TRACE);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Lines::new(io::stderr().is_terminal()))
        .with_ansi(io::stderr().is_terminal())
        .with_writer(queue)
        .with_filter(events.and(filter));
    let spans = filter_fn(|metadata| {
        metadata.is_span() && metadata.target().starts_with(OWN) && WITH_REQUESTS.contains(&metadata.name())
    });
    Ok(Remember.with_filter(spans.with_max_level_hint(LevelFilter::INFO)).and_then(lines))
}

/// Writes lines in this form from now on, of what this names.
pub fn apply(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let filter = parse_filter(filter)?;
    if let Some(running) = RUNNING.get().filter(|running| !running.fixed) {
        // It fails only where nothing is logged any more.
        let _ = running.filter.reload(filter);
    }
    Ok(())
}

/// Waits until everything that was logged has been written, for `limit` at most.
pub fn flush(limit: Duration) {
    if let Some(running) = RUNNING.get() {
        running.lines.flush(limit);
    }
}

/// Remembers the requests of spans.
struct Remember;

struct Requests(String);

impl Visit for Requests {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == REQUESTS {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == REQUESTS {
            self.0 = format!("{value:?}");
        }
    }
}

impl Remember {
    fn keep<S>(id: &Id, context: &Context<'_, S>, read: impl FnOnce(&mut Requests))
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let mut requests = Requests(String::new());
        read(&mut requests);
        if let Some(span) = context.span(id).filter(|_| !requests.0.is_empty()) {
            span.extensions_mut().replace(requests);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Remember {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        Self::keep(id, &context, |requests| attributes.record(requests));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        Self::keep(id, &context, |requests| values.record(requests));
    }
}

/// A line for people of bounded length, on which nothing is that a terminal would act on, but for the colours of `ansi`: escape characters
/// in what is logged are not among those.
fn bounded_line(line: &str, ansi: bool) -> Cow<'_, str> {
    let printable = printable(line, |c| ansi && c == '\u{1b}');
    if printable.len() <= MAX_LINE {
        return printable;
    }
    let end = printable.floor_char_boundary(MAX_LINE);
    Cow::Owned(format!("{}…", &printable[..end]))
}

/// A line of JSON, without its last brace, of which each text has a bounded length if all of it is too long.
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
        _ => Cow::Owned(shorter().unwrap_or_else(|| "{\"message\":\"a line was too long to be logged\"".to_owned())),
    }
}

/// Writes lines.
struct Lines {
    ansi: bool,
    human: Format<Full>,
    json: Format<Json>,
}

impl Lines {
    fn new(ansi: bool) -> Self {
        let json = Format::default().json().flatten_event(true).with_current_span(false).with_span_list(false);
        Self { ansi, human: Format::default().with_ansi(ansi), json }
    }
}

impl<N> FormatEvent<Registry, N> for Lines
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
        let (requests, trace) = if event.metadata().target().starts_with(OWN) { belongs(event) } else { (None, None) };
        let ids = [("request_id", requests), ("trace_id", trace)];
        // Both forms end in the same way each time; what is added goes before that.
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

/// The requests and the trace that an event belongs to: those of its span, or of what that is a part of.
fn belongs(event: &Event<'_>) -> (Option<String>, Option<String>) {
    tracing::dispatcher::get_default(|dispatch: &Dispatch| {
        let current = || dispatch.current_span().id().cloned();
        let Some(id) = event.parent().cloned().or_else(current) else { return (None, None) };
        let trace = get_otel_context(&id, dispatch).and_then(|context| {
            let span = context.span().span_context().clone();
            span.is_valid().then(|| span.trace_id().to_string())
        });
        let registry = dispatch.downcast_ref::<Registry>();
        let requests = registry.and_then(|registry| registry.span(&id)).and_then(|span| {
            span.scope().find_map(|span| span.extensions().get::<Requests>().map(|requests| requests.0.clone()))
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
