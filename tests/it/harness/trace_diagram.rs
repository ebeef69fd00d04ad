//! Draws traces as SVG, with one row per span. Spans are sorted by start time and indented below their parents.

use std::fmt::Write as _;

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};

const WIDTH: f64 = 1_000.0;
/// Horizontal position at which the bars start.
const LEFT: f64 = 430.0;
const ROW: f64 = 22.0;

/// Returns an SVG image of the traces, one below the other. Each trace has a title.
pub fn draw(traces: &[(&str, Vec<Span>)]) -> String {
    let all = || traces.iter().flat_map(|(_, spans)| spans);
    let begin = all().map(|span| span.start_time_unix_nano).min().expect("a span");
    let end = all().map(|span| span.end_time_unix_nano).max().expect("a span");
    let millis = |nanos: u64| std::time::Duration::from_nanos(nanos).as_secs_f64() * 1_000.0;
    let scale = (WIDTH - LEFT - 90.0) / millis(end - begin);
    let mut rows = String::new();
    let mut y = 10.0;
    for (title, spans) in traces {
        y += ROW;
        writeln!(rows, "<text x=\"10\" y=\"{y:.0}\" class=\"title\">{}</text>", escape(title)).expect("it is written");
        for (depth, span) in in_order(spans) {
            y += ROW;
            let x = LEFT + millis(span.start_time_unix_nano - begin) * scale;
            let took = millis(span.end_time_unix_nano - span.start_time_unix_nano);
            let class = match (span.status.clone().unwrap_or_default().code(), span.kind()) {
                (StatusCode::Error, _) => "error",
                (_, SpanKind::Server) => "server",
                (_, SpanKind::Client) => "client",
                _ => "own",
            };
            let name: String = span.name.chars().take(54 - 2 * depth).collect();
            #[allow(clippy::cast_precision_loss, reason = "a trace is not that deep")]
            let indent = 10.0 + 14.0 * depth as f64;
            writeln!(
                rows,
                "<text x=\"{indent:.0}\" y=\"{y:.0}\">{}</text>\
                 <rect x=\"{x:.1}\" y=\"{:.0}\" width=\"{:.1}\" height=\"12\" class=\"{class}\"/>\
                 <text x=\"{:.1}\" y=\"{y:.0}\" class=\"time\">{took:.1} ms</text>",
                escape(&name),
                y - 11.0,
                (took * scale).max(1.5),
                x + (took * scale).max(1.5) + 5.0,
            )
            .expect("it is written");
        }
        y += ROW / 2.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>rect.server {{ fill: #3b6fd4 }} rect.client {{ fill: #8a63d2 }} rect.own {{ fill: #2f9e6e }} rect.error {{ fill: #d0453a }} \
         text {{ fill: #1c2128 }} .time {{ fill: #5a6472 }} .title {{ font-weight: bold }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{rows}</svg>\n",
        y + ROW / 2.0
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Returns the spans with their depths. Each span follows its parent.
fn in_order(spans: &[Span]) -> Vec<(usize, &Span)> {
    let mut sorted: Vec<&Span> = spans.iter().collect();
    sorted.sort_by_key(|span| span.start_time_unix_nano);
    let is_root = |span: &&&Span| !sorted.iter().any(|other| other.span_id == span.parent_span_id);
    let mut order = Vec::new();
    let mut left: Vec<(usize, &Span)> = sorted.iter().filter(is_root).rev().map(|span| (0, *span)).collect();
    while let Some((depth, span)) = left.pop() {
        order.push((depth, span));
        let children = sorted.iter().rev().filter(|child| child.parent_span_id == span.span_id);
        left.extend(children.map(|child| (depth + 1, *child)));
    }
    order
}
