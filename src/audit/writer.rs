//! The thread that writes the audit log. Only this thread blocks on a slow reader or a full disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    sync::atomic::Ordering,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{Destination, Entry, QUEUE, WriterState};
use crate::metrics;

/// Maximum number of lines per write.
const BATCH: usize = 1_024;
/// Size in bytes of the buffer of unwritten lines above which the queue is no longer drained.
const MAX_BUFFERED: usize = 4 << 20;
/// Pause between writes, so that the thread is not woken for each line.
const BATCH_PAUSE: Duration = Duration::from_millis(5);
/// Pause before a failed write is retried.
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

/// Writes the lines of the queue until all senders are dropped.
pub(super) fn run(
    mut queue: mpsc::Receiver<Entry>,
    to: &Destination,
    mut out: Box<dyn Write + Send>,
    state: &WriterState,
) {
    let mut entries = Vec::with_capacity(BATCH);
    let mut buffer = WriteBuffer::default();
    while queue.blocking_recv_many(&mut entries, BATCH) > 0 {
        for entry in entries.drain(..) {
            if let Entry::Line(line) = entry {
                buffer.lines.extend_from_slice(&line);
            }
        }
        buffer.write(&mut out, to);
        reopen(&mut out, to, state, &mut buffer);
        // While the buffer is full, the queue is not drained. The queue fills up, and calls are rejected before lines
        // are lost.
        while buffer.failing && buffer.lines.len() > MAX_BUFFERED && !queue.is_closed() {
            pause(RETRY);
            buffer.write(&mut out, to);
            reopen(&mut out, to, state, &mut buffer);
        }
        if !buffer.failing && state.blocked.swap(false, Ordering::AcqRel) {
            tracing::warn!("audit log is writable again; calls are accepted again");
        }
        // Skips the pause if calls may be waiting for room in the queue.
        if queue.len() < QUEUE / 4 {
            pause(BATCH_PAUSE);
        }
    }
    if !buffer.lines.is_empty() {
        let lost = buffer.lines.split_inclusive(|byte| *byte == b'\n').count();
        metrics::record_lost_decisions(lost as u64);
        tracing::error!(lost, ?to, "lines of the audit log were lost at shutdown: it could not be written");
    }
}

fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "this thread is not part of the runtime")]
    std::thread::sleep(time);
}

/// Reopens the file if requested.
fn reopen(out: &mut Box<dyn Write + Send>, to: &Destination, state: &WriterState, buffer: &mut WriteBuffer) {
    if !state.reopen.swap(false, Ordering::AcqRel) {
        return;
    }
    match open(to) {
        Ok(opened) => {
            *out = opened;
            buffer.write(out, to);
        }
        Err(error) => tracing::error!(%error, ?to, "failed to reopen the audit log; keeping the old file open"),
    }
}

/// Lines that are not written yet.
#[derive(Default)]
struct WriteBuffer {
    lines: Vec<u8>,
    /// Whether the last write failed.
    failing: bool,
}

impl WriteBuffer {
    fn write(&mut self, out: &mut impl Write, to: &Destination) {
        let mut written = 0;
        let result = loop {
            match out.write(&self.lines[written..]) {
                Ok(0) if written < self.lines.len() => break Err(io::ErrorKind::WriteZero.into()),
                Ok(0) => break out.flush(),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        // A partially written line is continued by the next write.
        self.lines.drain(..written);
        match &result {
            // Logs only the first failure, not the failure of each retry.
            Err(error) if !self.failing => {
                tracing::error!(
                    %error, ?to,
                    "failed to write the audit log; retrying, and buffering decisions until calls have to be rejected"
                );
            }
            Ok(()) if self.failing => tracing::warn!("audit log is writable again"),
            _ => {}
        }
        self.failing = result.is_err();
    }
}
