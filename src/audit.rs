//! The audit log: one line of JSON a decision, who might do what and why. Lines are written in the order in which they came, by a
//! thread of their own; whoever decides waits where it can't keep up.

use std::{
    fmt::Display,
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    time::Duration,
};

use opentelemetry::trace::TraceId;
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::domain::{RequestId, Timestamp};

/// Lines that wait to be written.
const QUEUE: usize = 4_096;
/// Lines that are written at once.
const BATCH: usize = 1_024;
/// What is kept of lines that can't be written, in bytes.
const KEPT: usize = 4 << 20;
/// What most lines have room in, in bytes.
const LINE: usize = 512;
/// How long lines are gathered for, so that nobody is woken for each of them.
const GATHER: Duration = Duration::from_millis(5);

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
    /// The method.
    pub method: &'a str,
    /// The RAM action.
    pub action: Option<&'a str>,
    /// The RAM resource.
    pub resource: Option<&'a str>,
    /// `allow` or `deny`.
    pub decision: Verdict,
    /// The statement that decided, or what else did.
    #[serde(serialize_with = "shown")]
    pub reason: &'a (dyn Display + Sync),
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

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    Reopen,
}

/// Takes decisions.
#[derive(Debug, Clone)]
pub struct Audit {
    entries: mpsc::Sender<Entry>,
    /// The part of what is allowed that is written down, from 0 to 1.
    sampled: f64,
}

impl Audit {
    /// Starts to write, `sampled` of what is allowed and all that is denied. The task ends when the last clone is dropped, after the
    /// last line.
    pub fn start(to: Destination, sampled: f64) -> io::Result<(Self, JoinHandle<()>)> {
        let out = open(&to)?;
        let (entries, queue) = mpsc::channel(QUEUE);
        let task = tokio::task::spawn_blocking(move || write(queue, &to, out));
        Ok((Self { entries, sampled }, task))
    }

    /// Writes a decision down, unless it is one of those that are left out. Returns it where so many lines wait already that there is no
    /// room for it: whoever decides has to wait.
    pub fn record(&self, record: &Record<'_>) -> Option<Unwritten> {
        if record.decision == Verdict::Allow && self.sampled < 1.0 && rand::random::<f64>() >= self.sampled {
            return None;
        }
        let mut text = Vec::with_capacity(LINE);
        match serde_json::to_writer(&mut text, record) {
            Ok(()) => {
                text.push(b'\n');
                // It is open for as long as this lives.
                let full = self.entries.try_send(Entry::Line(text)).err()?;
                Some(Unwritten { entries: self.entries.clone(), line: full.into_inner() })
            }
            Err(error) => {
                tracing::error!(%error, "a decision could not be written down");
                None
            }
        }
    }

    /// Opens the file anew, which somebody has moved away.
    pub async fn reopen(&self) {
        let _ = self.entries.send(Entry::Reopen).await;
    }
}

/// A decision for which there is no room yet.
#[derive(Debug)]
pub struct Unwritten {
    entries: mpsc::Sender<Entry>,
    line: Entry,
}

impl Unwritten {
    /// Waits until there is.
    pub async fn written(self) {
        let _ = self.entries.send(self.line).await;
    }
}

fn open(to: &Destination) -> io::Result<Box<dyn Write + Send>> {
    Ok(match to {
        Destination::Stdout => Box::new(io::stdout()),
        Destination::Stderr => Box::new(io::stderr()),
        Destination::File(path) => {
            let file: File = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            Box::new(file)
        }
    })
}

fn write(mut queue: mpsc::Receiver<Entry>, to: &Destination, mut out: Box<dyn Write + Send>) {
    let mut entries = Vec::with_capacity(BATCH);
    let mut waiting = Waiting::default();
    while queue.blocking_recv_many(&mut entries, BATCH) > 0 {
        let reopen = entries.iter().any(|entry| matches!(entry, Entry::Reopen));
        for entry in entries.drain(..) {
            if let Entry::Line(line) = entry {
                waiting.take(&line);
            }
        }
        waiting.write(&mut out, to);
        if reopen {
            match open(to) {
                Ok(opened) => {
                    out = opened;
                    waiting.write(&mut out, to);
                }
                Err(error) => {
                    tracing::error!(%error, ?to, "the audit log can't be opened anew; the old file is written on");
                }
            }
        }
        // Not where lines are waiting already, and calls perhaps for them.
        if queue.len() < QUEUE / 4 {
            #[expect(clippy::disallowed_methods, reason = "this thread is none of the runtime's")]
            std::thread::sleep(GATHER);
        }
    }
}

/// Lines that have not been written yet. While they can't be, they are kept, up to [`KEPT`].
#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Whether they could not be written when that was last tried.
    failing: bool,
    /// Lines for which there was no room.
    lost: u64,
}

impl Waiting {
    fn take(&mut self, line: &[u8]) {
        if self.failing && self.lines.len() + line.len() > KEPT {
            self.lost += 1;
        } else {
            self.lines.extend_from_slice(line);
        }
    }

    fn write(&mut self, out: &mut impl Write, to: &Destination) {
        let mut written = 0;
        let ended = loop {
            match out.write(&self.lines[written..]) {
                Ok(0) if written < self.lines.len() => break Err(io::ErrorKind::WriteZero.into()),
                Ok(0) => break out.flush(),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        // What was written of a line is not written again, so that its rest makes it whole.
        self.lines.drain(..written);
        match &ended {
            // Once, not for every line.
            Err(error) if !self.failing => {
                tracing::error!(%error, ?to, "the audit log can't be written; some decisions are kept until it can");
            }
            Ok(()) if self.failing => tracing::warn!(lost = self.lost, "the audit log is written again"),
            _ => {}
        }
        self.failing = ended.is_err();
        if !self.failing {
            self.lost = 0;
        }
    }
}
