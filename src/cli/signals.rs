//! The signals of a running service, and its end in time whatever hangs.
//!
//! Signals are received by a task of their own, so that a start that hangs can be ended too. SIGTERM and SIGINT begin the shutdown and
//! the time that it may take; a thread ends the process when that has passed, because what hangs may be the runtime's own threads, or
//! the reader of standard error.

use std::{
    io, process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::logs;

/// The exit status of a process that could not be shut down in order: something hung until the time was over.
pub const CUT_SHORT: u8 = 3;

/// How long a process may take to end before its configuration says how long.
const UNCONFIGURED: Duration = Duration::from_secs(5);
/// How long the last log line may take when the time is over.
const LAST_LINE: Duration = Duration::from_millis(100);

/// What signals ask for.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Canceled by SIGTERM and SIGINT.
    pub stop: CancellationToken,
    /// Notified by SIGHUP.
    pub reload: Arc<Notify>,
    /// How long the shutdown may take, in milliseconds.
    limit: Arc<AtomicU64>,
}

impl Signals {
    /// Begins to receive them. Called within a runtime.
    pub fn receive() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let signals = Self { stop: CancellationToken::new(), reload: Arc::default(), limit: Arc::default() };
        signals.limit_to(UNCONFIGURED);
        let received = signals.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    _ = hangup.recv() => received.reload.notify_one(),
                }
            }
            end_within(Duration::from_millis(received.limit.load(Ordering::Relaxed)));
            received.stop.cancel();
        });
        Ok(signals)
    }

    /// Sets how long the shutdown may take from the signal on.
    pub fn limit_to(&self, limit: Duration) {
        self.limit.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Ends the process when that time has passed, if it has not ended by then.
fn end_within(limit: Duration) {
    let watch = move || {
        let (_open, never) = mpsc::channel::<()>();
        let _ = never.recv_timeout(limit);
        tracing::error!(?limit, "shutdown failed: something hangs; exiting, leases will expire");
        logs::flush(LAST_LINE);
        process::exit(CUT_SHORT.into());
    };
    if let Err(error) = thread::Builder::new().name("shutdown".to_owned()).spawn(watch) {
        tracing::warn!(%error, "the shutdown can't be watched; it may take longer than configured if something hangs");
    }
}
