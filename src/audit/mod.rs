//! The audit log: one JSON line per decision. A separate thread writes the lines in order, from a bounded queue.
//!
//! A call is rejected if the queue has no room for its decision for a second, so that no action is performed without a
//! record.

mod writer;

use std::{
    fmt::{self, Display},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::trace::TraceId;
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    domain::{RequestId, Timestamp},
    metrics,
};

/// Capacity of the queue, in lines.
const QUEUE: usize = 4_096;
/// Initial capacity of a line's buffer, in bytes; most lines are shorter.
const LINE_CAPACITY: usize = 512;
/// Maximum time that a decision waits for room in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; created with mode 0600.
    File(PathBuf),
}

/// The record of a decision. Contains no secrets.
#[derive(Clone, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Record<'a> {
    /// Time of the decision.
    #[serde(serialize_with = "serialize_display")]
    pub time: Timestamp,
    /// Id of the call.
    #[serde(serialize_with = "serialize_display")]
    pub request_id: RequestId,
    /// Trace of the call's span, if spans are exported.
    #[serde(serialize_with = "serialize_display_option")]
    pub trace_id: Option<TraceId>,
    /// The caller, if it was authenticated.
    pub principal: Option<&'a str>,
    /// Kind of the caller's credential.
    pub authenticated_by: Option<&'static str>,
    /// Path of the method; `None` if the method is unknown.
    pub method: Option<&'a str>,
    /// The RAM action that the method requires.
    pub action: Option<&'a str>,
    /// The RAM resource that the action is performed on.
    pub resource: Option<Truncated<'a>>,
    pub decision: Verdict,
    /// The policy statement that decided, or why the credential was rejected.
    pub reason: Truncated<'a>,
    /// Address of the caller.
    pub source_ip: Option<IpAddr>,
}

/// The outcome of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The call is permitted.
    Allow,
    /// The call is rejected.
    Deny,
}

fn serialize_display<S: serde::Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, reason = "serde passes the field by reference")]
fn serialize_display_option<S: serde::Serializer>(
    value: &Option<impl Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// Maximum length, in characters, of texts whose length a caller can choose.
const MAX_TEXT: usize = 400;

/// A text that is cut off after `MAX_TEXT` characters.
#[derive(Clone, Copy)]
pub struct Truncated<'a>(pub &'a (dyn Display + Sync));

impl Display for Truncated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Writes up to a number of characters and an ellipsis, and then fails.
        struct TruncatingWriter<'a, 'f>(&'a mut fmt::Formatter<'f>, usize);
        impl fmt::Write for TruncatingWriter<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                match text.char_indices().nth(self.1) {
                    Some((end, _)) => {
                        self.0.write_str(&text[..end])?;
                        self.0.write_str("…")?;
                        Err(fmt::Error)
                    }
                    None => {
                        self.1 -= text.chars().count();
                        self.0.write_str(text)
                    }
                }
            }
        }
        // An error means that the text was cut.
        let _ = fmt::Write::write_fmt(&mut TruncatingWriter(f, MAX_TEXT), format_args!("{}", self.0));
        Ok(())
    }
}

impl Serialize for Truncated<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A summary of rejected calls without a valid credential that exceeded the rate of individual records.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RejectionSummary {
    pub time: Timestamp,
    /// The callers' address; `None` if the summary covers several addresses.
    pub source_ip: Option<IpAddr>,
    /// Number of calls since the last summary.
    pub refused: u64,
}

/// The line of a summary.
#[derive(Serialize)]
struct RejectionSummaryLine {
    #[serde(serialize_with = "serialize_display")]
    time: Timestamp,
    decision: Verdict,
    reason: &'static str,
    source_ip: Option<IpAddr>,
    refused: u64,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// No line: wakes the writer to check [`WriterState`].
    Wake,
}

/// State that the writer shares with [`Audit`].
#[derive(Debug, Default)]
struct WriterState {
    /// Whether a decision found no room in time and nothing has been written since.
    blocked: AtomicBool,
    /// Whether the writer has to reopen the file.
    reopen: AtomicBool,
}

/// A decision could not be recorded in time: its call has to be rejected.
#[derive(Debug, thiserror::Error)]
#[error("the audit log can't be written")]
pub struct Blocked;

/// Records decisions in the audit log.
#[derive(Debug, Clone)]
pub struct Audit {
    entries: mpsc::Sender<Entry>,
    state: Arc<WriterState>,
    /// Fraction of allowed calls that are recorded, from 0 to 1.
    sample_allowed: f64,
}

impl Audit {
    /// Opens the log and starts the writer. Records all denied calls, and the fraction `sample_allowed` of the allowed
    /// calls. The task ends when all clones are dropped and the last line is written.
    ///
    /// # Errors
    ///
    /// Fails if the file can't be opened.
    pub fn start(to: Destination, sample_allowed: f64) -> io::Result<(Self, JoinHandle<()>)> {
        let out = writer::open(&to)?;
        let (entries, queue) = mpsc::channel(QUEUE);
        let state = Arc::<WriterState>::default();
        let shared = Arc::clone(&state);
        let task = tokio::task::spawn_blocking(move || writer::run(queue, &to, out, &shared));
        Ok((Self { entries, state, sample_allowed }, task))
    }

    /// Records a decision, unless sampling leaves it out. If the queue is full, returns the record, and the caller has
    /// to wait for it.
    #[must_use]
    pub fn record(&self, record: &Record<'_>) -> Option<PendingRecord> {
        if record.decision == Verdict::Allow
            && self.sample_allowed < 1.0
            && rand::random::<f64>() >= self.sample_allowed
        {
            return None;
        }
        self.write(record)
    }

    /// Records a summary. If the queue is full, returns the record.
    #[must_use]
    pub fn summarize(&self, summary: &RejectionSummary) -> Option<PendingRecord> {
        let RejectionSummary { time, source_ip, refused } = *summary;
        let reason = "calls without a valid credential, more than are recorded one by one";
        self.write(&RejectionSummaryLine { time, decision: Verdict::Deny, reason, source_ip, refused })
    }

    fn write(&self, line: &impl Serialize) -> Option<PendingRecord> {
        let mut text = Vec::with_capacity(LINE_CAPACITY);
        if let Err(error) = serde_json::to_writer(&mut text, line) {
            tracing::error!(%error, "failed to encode a decision for the audit log; its call is rejected");
            return Some(PendingRecord { audit: self.clone(), line: None });
        }
        text.push(b'\n');
        // The channel is open as long as `self` lives, so an error means that it is full.
        let full = self.entries.try_send(Entry::Line(text)).err()?;
        Some(PendingRecord { audit: self.clone(), line: Some(full.into_inner()) })
    }

    /// Reopens the file, for example after log rotation has renamed it.
    pub fn reopen(&self) {
        self.state.reopen.store(true, Ordering::Release);
        // Wakes an idle writer; if the queue is full, the writer is busy and checks the flag anyway.
        let _ = self.entries.try_send(Entry::Wake);
    }

    /// Whether calls are rejected because their decisions can't be recorded.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.state.blocked.load(Ordering::Acquire)
    }
}

/// A decision that waits for room in the queue.
#[derive(Debug)]
pub struct PendingRecord {
    audit: Audit,
    /// The line; `None` if the decision can't be encoded.
    line: Option<Entry>,
}

impl PendingRecord {
    /// Waits for room in the queue, for a second at most. Does not wait if an earlier wait failed and nothing has been
    /// written since.
    ///
    /// # Errors
    ///
    /// Fails if there is no room. The call has to be rejected then.
    pub async fn wait(self) -> Result<(), Blocked> {
        let Self { audit, line } = self;
        let Some(line) = line else {
            metrics::record_unaudited_call();
            return Err(Blocked);
        };
        let timeout = if audit.is_blocked() { Duration::ZERO } else { QUEUE_TIMEOUT };
        if let Ok(Ok(())) = tokio::time::timeout(timeout, audit.entries.send(line)).await {
            return Ok(());
        }
        metrics::record_unaudited_call();
        if !audit.state.blocked.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "the audit log can't be written and its queue is full; calls are rejected until it is writable again"
            );
        }
        Err(Blocked)
    }
}
