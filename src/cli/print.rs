//! Prints results and formats tables.

use std::io::{self, Write as _};

use super::{Error, Result};
use crate::{
    contract::{
        self,
        v1::{self, ErrorDetail, RegionState, SynchronizationState, Verification},
    },
    domain::{ForeignText, printable_json, printable_lines},
};

/// Writes text and a line break to standard output. Fails if the reader has closed it. Escapes control characters
/// except line breaks, so foreign texts must pass through [`ForeignText`] first.
pub fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", printable_lines(text))
        .and_then(|()| out.flush())
        .map_err(Error::local("failed to write to standard output"))
}

/// Writes text and a line break to standard error. Ignores errors, because the exit status also shows the result.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable_lines(text));
}

/// Writes a protobuf message as JSON.
pub fn message(name: &str, message: &impl prost::Message) -> Result<()> {
    let json = contract::json(name, &message.encode_to_vec())
        .map_err(Error::local("failed to convert the message to JSON"))?;
    line(&printable_json(&json.to_string()))
}

/// Formats a table. Escapes the cells, which may have foreign texts.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(ForeignText::message)).collect();
    let mut widths = heading.map(|h| h.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |cells: [&str; N]| {
        // Pads by hand, because a width argument of `format!` panics beyond 65,535.
        let pad = |(cell, width): (&&str, usize)| format!("{cell}{}", " ".repeat(width - cell.chars().count()));
        let padded = cells.iter().zip(widths).map(pad);
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let body = rows.iter().map(|row| render(row.each_ref().map(ForeignText::as_str)));
    [render(heading)].into_iter().chain(body).collect::<Vec<_>>().join("\n")
}

/// Formats a synchronization with its regions.
pub fn synchronization(s: &v1::Synchronization) -> String {
    let rows: Vec<_> = s.regions.iter().map(region).collect();
    let heading = ["REGION", "STATE", "COPIED", "SKIPPED", "TOTAL", "ATTEMPT", "ERROR"];
    let trace = if s.trace_id.is_empty() { String::new() } else { format!(", trace {}", s.trace_id) };
    let state = synchronization_state(s.state());
    let head = format!("{}  {}  {state}  requested by {}{trace}", s.request_id, s.app_id, s.principal);
    let warnings = s.regions.iter().flat_map(|region| self::warnings(&region.region_id, &region.warnings));
    let lines = [ForeignText::message(head).into(), table(heading, &rows)].into_iter().chain(warnings);
    lines.collect::<Vec<String>>().join("\n")
}

/// Formats the warnings of a region, one per line.
pub fn warnings(region: &str, warnings: &[String]) -> Vec<String> {
    let region = ForeignText::value(region);
    warnings.iter().map(|warning| format!("warning: {region}: {}", ForeignText::message(warning))).collect()
}

fn region(r: &v1::RegionSynchronization) -> [String; 7] {
    [
        r.region_id.clone(),
        available_as(r.state(), r.verification()),
        bytes(r.bytes_copied),
        bytes(r.bytes_skipped),
        bytes(r.bytes_total),
        r.attempt.to_string(),
        r.error.as_ref().map(error).unwrap_or_default(),
    ]
}

/// Formats the error of a region on one line.
pub fn error(detail: &ErrorDetail) -> String {
    ForeignText::message(&detail.message).into()
}

/// Formats a count of bytes with a binary unit.
pub fn bytes(count: i64) -> String {
    indicatif::BinaryBytes(count.unsigned_abs()).to_string()
}

/// Returns the name of a synchronization's state without its prefix.
pub fn synchronization_state(state: SynchronizationState) -> &'static str {
    state.as_str_name().trim_start_matches("SYNCHRONIZATION_STATE_")
}

/// Returns the name of a region's state, with a mark if the copy is trusted without having been read.
pub fn available_as(state: RegionState, verification: Verification) -> String {
    let trusted = if verification == Verification::Trusted { " (trusted)" } else { "" };
    format!("{}{trusted}", region_state(state))
}

/// Returns the name of a region's state without its prefix.
pub fn region_state(state: RegionState) -> &'static str {
    state.as_str_name().trim_start_matches("REGION_STATE_")
}

#[cfg(test)]
mod tests {
    use super::{synchronization, table};
    use crate::contract::v1::{RegionSynchronization, Synchronization};

    #[test]
    fn warnings_follow_the_table_of_regions() {
        let warnings = vec!["what refers to x is not carried: 403\u{1b}[2J".to_owned()];
        let region = RegionSynchronization { region_id: "cn-beijing".into(), warnings, ..Default::default() };
        let text = synchronization(&Synchronization { regions: vec![region], ..Default::default() });
        let last = text.lines().last().expect("a line");
        assert_eq!(last, "warning: cn-beijing: what refers to x is not carried: 403\\u{1b}[2J");
    }

    #[test]
    fn no_foreign_text_breaks_a_table() {
        let evil = |text: &str| [text.to_owned(), "second".to_owned()];
        let long = "x".repeat(100_000);
        let text = table(["A", "B"], &[evil(&long), evil("name\r\n\u{1b}[2JFAKE  AVAILABLE\u{202e}"), evil("力学")]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 4 && !text.contains(['\u{1b}', '\u{202e}', '\r']), "{text}");
        assert!(text.len() < 4 * 1_024, "{} bytes", text.len());
        let columns = lines.iter().skip(1).map(|line| line.chars().take_while(|c| *c != 's').count());
        assert!(columns.collect::<Vec<_>>().windows(2).all(|two| two[0] == two[1]), "{text}");
    }
}
