//! The thread that writes the audit log. It alone waits where the log's reader is slow or its disk is full.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    sync::atomic::Ordering,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{Condition, Destination, Entry, QUEUE};
use crate::metrics;

/// Lines that are written at once.
const BATCH: usize = 1_024;
/// How much of what can't be written is kept beside the queue, in bytes.
const KEPT: usize = 4 << 20;
/// How long lines are gathered for, so that the thread is not woken for each of them.
const GATHER: Duration = Duration::from_millis(5);
/// How long to wait before another attempt to write where nothing more can be kept.
const RETRY: Duration = Duration::from_millis(200);

pub(super) fn open(to: &Destination) -> io::Result<Box<dyn Write + Send>> {
    Ok(match to {
        Destination::Stdout => Box::new(io::stdout()),
        Destination::Stderr => Box::new(io::stderr()),
        Destination::File(path) => {
            let file: File = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            Box::new(file)
        }
    })
}

/// Writes what comes through the queue until its senders are gone.
pub(super) fn run(
    mut queue: mpsc::Receiver<Entry>,
    to: &Destination,
    mut out: Box<dyn Write + Send>,
    condition: &Condition,
) {
    let mut entries = Vec::with_capacity(BATCH);
    let mut waiting = Waiting::default();
    while queue.blocking_recv_many(&mut entries, BATCH) > 0 {
        for entry in entries.drain(..) {
            if let Entry::Line(line) = entry {
                waiting.lines.extend_from_slice(&line);
            }
        }
        waiting.write(&mut out, to);
        reopen(&mut out, to, condition, &mut waiting);
        // Where no more can be kept, no more is taken: the queue fills, and calls are refused instead of lines lost.
        while waiting.failing && waiting.lines.len() > KEPT && !queue.is_closed() {
            pause(RETRY);
            waiting.write(&mut out, to);
            reopen(&mut out, to, condition, &mut waiting);
        }
        if !waiting.failing && condition.blocked.swap(false, Ordering::AcqRel) {
            tracing::warn!("the audit log is written again; calls are accepted");
        }
        // Not where lines are waiting already, and calls perhaps for them.
        if queue.len() < QUEUE / 4 {
            pause(GATHER);
        }
    }
    if !waiting.lines.is_empty() {
        let lost = waiting.lines.split_inclusive(|byte| *byte == b'\n').count();
        metrics::record_lost_decisions(lost as u64);
        tracing::error!(lost, ?to, "lines of the audit log could not be written before the end");
    }
}

fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "this thread is none of the runtime's")]
    std::thread::sleep(time);
}

/// Opens the file again if that was asked for.
fn reopen(out: &mut Box<dyn Write + Send>, to: &Destination, condition: &Condition, waiting: &mut Waiting) {
    if !condition.reopen.swap(false, Ordering::AcqRel) {
        return;
    }
    match open(to) {
        Ok(opened) => {
            *out = opened;
            waiting.write(out, to);
        }
        Err(error) => tracing::error!(%error, ?to, "the audit log can't be reopened; writing to the old file"),
    }
}

/// Lines that have not been written yet.
#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Whether they could not be written when that was last tried.
    failing: bool,
}

impl Waiting {
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
                tracing::error!(%error, ?to, "the audit log can't be written; decisions are kept until it can, calls refused when there are too many");
            }
            Ok(()) if self.failing => tracing::warn!("the audit log is written again"),
            _ => {}
        }
        self.failing = ended.is_err();
    }
}
