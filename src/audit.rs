//! The audit log: one line of JSON a decision, who might do what and why. Lines are written in the order in which they came, by a
//! thread of their own, and wait in a bounded queue for it. A decision that finds no room there for a second is not acted upon: the
//! call is refused, so that nothing is done of which the log does not tell.

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

/// Lines that wait to be written.
const QUEUE: usize = 4_096;
/// What most lines have room in, in bytes.
const LINE: usize = 512;
/// How long a decision waits for room in the queue.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file that is appended to, which only its owner may read.
    File(PathBuf),
}

/// A decision. There is never a secret in it.
#[derive(Clone, Serialize)]
pub struct Record<'a> {
    /// When it was made.
    #[serde(serialize_with = "shown")]
    pub time: Timestamp,
    /// The call.
    #[serde(serialize_with = "shown")]
    pub request_id: RequestId,
    /// The trace that it is part of.
    #[serde(serialize_with = "shown_if_any")]
    pub trace_id: Option<TraceId>,
    /// Who called, if that was proved.
    pub principal: Option<&'a str>,
    /// How it was proved.
    pub authenticated_by: Option<&'static str>,
    /// The method, of those of the contract; what else a caller can name is none.
    pub method: Option<&'a str>,
    /// The RAM action.
    pub action: Option<&'a str>,
    /// The RAM resource.
    pub resource: Option<Shortened<'a>>,
    /// `allow` or `deny`.
    pub decision: Verdict,
    /// The statement that decided, or what else did.
    pub reason: Shortened<'a>,
    /// Where the call came from.
    pub source_ip: Option<IpAddr>,
}

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may go on.
    Allow,
    /// It is refused.
    Deny,
}

fn shown<S: serde::Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, reason = "it is handed so")]
fn shown_if_any<S: serde::Serializer>(value: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// The most characters of what a caller can choose the length of.
const MAX_TEXT: usize = 400;

/// A text of which the beginning alone is shown.
#[derive(Clone, Copy)]
pub struct Shortened<'a>(pub &'a (dyn Display + Sync));

impl Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Takes so many characters, and then no more.
        struct Beginning<'a, 'f>(&'a mut fmt::Formatter<'f>, usize);
        impl fmt::Write for Beginning<'_, '_> {
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
        // It fails where there was more than is shown.
        let _ = fmt::Write::write_fmt(&mut Beginning(f, MAX_TEXT), format_args!("{}", self.0));
        Ok(())
    }
}

impl Serialize for Shortened<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Calls that were refused because their credentials proved nothing, too many for a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// When it was told.
    pub time: Timestamp,
    /// Where they came from; from many places if nothing is said.
    pub source_ip: Option<IpAddr>,
    /// How many since it was told last.
    pub refused: u64,
}

/// How a summary stands in the log.
#[derive(Serialize)]
struct SummaryLine {
    #[serde(serialize_with = "shown")]
    time: Timestamp,
    decision: Verdict,
    reason: &'static str,
    source_ip: Option<IpAddr>,
    refused: u64,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Nothing to write, but something to look at in [`Condition`].
    Wake,
}

/// How the writing goes, for those who decide; and what the writer is asked to do beside it.
#[derive(Debug, Default)]
struct Condition {
    /// Whether a decision has found no room in time, and nothing has been written since then.
    blocked: AtomicBool,
    /// Whether the file is to be opened again.
    reopen: AtomicBool,
}

/// The decision could not be written down in time: it must not be acted upon.
#[derive(Debug, thiserror::Error)]
#[error("the audit log can't be written")]
pub struct Blocked;

/// Takes decisions.
#[derive(Debug, Clone)]
pub struct Audit {
    entries: mpsc::Sender<Entry>,
    condition: Arc<Condition>,
    /// The part of what is allowed that is written down, from 0 to 1.
    sampled: f64,
}

impl Audit {
    /// Starts to write, `sampled` of what is allowed and all that is denied. The task ends when the last clone is dropped, after the
    /// last line.
    pub fn start(to: Destination, sampled: f64) -> io::Result<(Self, JoinHandle<()>)> {
        let out = writer::open(&to)?;
        let (entries, queue) = mpsc::channel(QUEUE);
        let condition = Arc::<Condition>::default();
        let seen = Arc::clone(&condition);
        let task = tokio::task::spawn_blocking(move || writer::run(queue, &to, out, &seen));
        Ok((Self { entries, condition, sampled }, task))
    }

    /// Writes a decision down, unless it is one of those that are left out. Returns it where the queue is full: the caller has to wait
    /// until there is room.
    #[must_use]
    pub fn record(&self, record: &Record<'_>) -> Option<Unwritten> {
        if record.decision == Verdict::Allow && self.sampled < 1.0 && rand::random::<f64>() >= self.sampled {
            return None;
        }
        self.write(record)
    }

    /// Writes down how many calls were refused that are no line each. Returns it where the queue is full.
    #[must_use]
    pub fn summarize(&self, summary: &Summary) -> Option<Unwritten> {
        let Summary { time, source_ip, refused } = *summary;
        let reason = "calls without a valid credential, more than are written down one by one";
        self.write(&SummaryLine { time, decision: Verdict::Deny, reason, source_ip, refused })
    }

    fn write(&self, line: &impl Serialize) -> Option<Unwritten> {
        let mut text = Vec::with_capacity(LINE);
        if let Err(error) = serde_json::to_writer(&mut text, line) {
            tracing::error!(%error, "a decision can't be written down; its call is refused");
            return Some(Unwritten { audit: self.clone(), line: None });
        }
        text.push(b'\n');
        // It is open for as long as this lives.
        let full = self.entries.try_send(Entry::Line(text)).err()?;
        Some(Unwritten { audit: self.clone(), line: Some(full.into_inner()) })
    }

    /// Opens the file again, which has been moved away.
    pub fn reopen(&self) {
        self.condition.reopen.store(true, Ordering::Release);
        // A writer that finds no entry to write is woken by this one; one that is behind looks at the request in any case.
        let _ = self.entries.try_send(Entry::Wake);
    }

    /// Whether calls are refused because their decisions can't be written down.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.condition.blocked.load(Ordering::Acquire)
    }
}

/// A decision for which there is no room yet.
#[derive(Debug)]
pub struct Unwritten {
    audit: Audit,
    /// The line; nothing if it is none that can be written.
    line: Option<Entry>,
}

impl Unwritten {
    /// Waits until there is room, for a second at most; not at all where others have waited in vain and nothing has been
    /// written since then.
    pub async fn written(self) -> Result<(), Blocked> {
        let Self { audit, line } = self;
        let Some(line) = line else {
            metrics::record_unaudited_call();
            return Err(Blocked);
        };
        let limit = if audit.is_blocked() { Duration::ZERO } else { PATIENCE };
        if let Ok(Ok(())) = tokio::time::timeout(limit, audit.entries.send(line)).await {
            return Ok(());
        }
        metrics::record_unaudited_call();
        if !audit.condition.blocked.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "the audit log is not written and its queue is full; calls are refused until it is written again"
            );
        }
        Err(Blocked)
    }
}
