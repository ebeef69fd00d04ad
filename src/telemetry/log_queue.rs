//! Queues log lines for a thread that writes them to standard error. Code that logs never waits for the reader of
//! standard error: lines that exceed the queue are dropped and counted.

use std::{
    collections::VecDeque,
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use crate::metrics;

/// The capacity of the queue in bytes.
const CAPACITY: usize = 4 << 20;

/// A bounded queue of log lines with a writer thread. Clones share the queue.
#[derive(Debug, Clone)]
pub struct LogQueue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a line is queued and when all lines are written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    writing: bool,
    dropped: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogQueue {
    /// Starts the writer thread, which lives as long as the process.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Self(Arc::default());
        let shared = Arc::clone(&queue.0);
        thread::Builder::new().name("log".to_owned()).spawn(move || write(&shared, out))?;
        Ok(queue)
    }

    /// Waits until every line is written, for `limit` at most.
    pub fn flush(&self, limit: Duration) {
        let state = self.0.lock();
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        // Lines that are not written within the limit are lost with the process.
        drop(self.0.changed.wait_timeout_while(state, limit, busy));
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.bytes + line.len() > CAPACITY {
            state.dropped += 1;
            drop(state);
            metrics::record_dropped_line();
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        drop(state);
        self.0.changed.notify_all();
    }
}

fn write(shared: &Shared, mut out: impl Write) {
    loop {
        let mut state = shared.lock();
        state.writing = false;
        while state.lines.is_empty() {
            shared.changed.notify_all();
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let lines = mem::take(&mut state.lines);
        state.bytes = 0;
        state.writing = true;
        let dropped = mem::take(&mut state.dropped);
        drop(state);
        for line in &lines {
            // An error of standard error can't be reported anywhere.
            let _ = out.write_all(line);
        }
        if dropped > 0 {
            tracing::warn!(dropped, "log lines dropped: standard error was not read in time");
        }
    }
}

/// A writer for one event, which the formatter writes in one call.
#[derive(Debug)]
pub struct Line<'a>(&'a LogQueue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::mpsc::{self, Receiver, Sender},
        time::Duration,
    };

    use super::{CAPACITY, LogQueue};

    /// A writer that blocks until it is released.
    struct BlockedWriter {
        started: Sender<()>,
        release: Receiver<()>,
        written: Sender<usize>,
    }

    impl Write for BlockedWriter {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.started.send(());
            let _ = self.release.recv();
            let _ = self.written.send(line.len());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_find_no_room_are_dropped_and_no_caller_waits() {
        let ((started, has_started), (released, release), (written, lines)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let queue = LogQueue::start(BlockedWriter { started, release, written }).expect("a thread");
        queue.push(b"first");
        has_started.recv().expect("the first line");
        let line = vec![b'x'; CAPACITY / 4];
        for _ in 0..6 {
            queue.push(&line);
        }
        assert_eq!(queue.0.lock().dropped, 2);
        queue.flush(Duration::from_millis(1));
        drop(released);
        queue.flush(Duration::from_secs(60));
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), [5, CAPACITY / 4, CAPACITY / 4, CAPACITY / 4, CAPACITY / 4]);
    }
}
