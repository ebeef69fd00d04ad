//! Handles the signals of a running service and enforces the time limit of its shutdown.
//!
//! A separate task receives the signals, so that a service that hangs during its start can be stopped too. SIGTERM and
//! SIGINT start the shutdown and its time limit. A thread ends the process when the limit has passed, because the
//! threads of the runtime or the reader of standard error may hang.

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

/// The exit status after a shutdown that did not complete in time.
pub const SHUTDOWN_INCOMPLETE: u8 = 3;

/// The time limit of a shutdown that starts before the configuration is loaded.
const DEFAULT_LIMIT: Duration = Duration::from_secs(5);
/// The time limit for writing the last log line.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(100);

/// The signals of the process. Clones share them.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Canceled by SIGTERM or SIGINT.
    pub stop: CancellationToken,
    /// Notified by SIGHUP.
    pub reload: Arc<Notify>,
    /// The time limit of the shutdown, in milliseconds.
    limit: Arc<AtomicU64>,
}

impl Signals {
    /// Installs the handlers. Must be called within a runtime.
    pub fn receive() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let signals = Self { stop: CancellationToken::new(), reload: Arc::default(), limit: Arc::default() };
        signals.limit_to(DEFAULT_LIMIT);
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

    /// Sets the time limit of the shutdown, which starts with the signal.
    pub fn limit_to(&self, limit: Duration) {
        self.limit.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Ends the process after `limit`, unless the process ends earlier by itself.
fn end_within(limit: Duration) {
    let watchdog = move || {
        let (_open, never) = mpsc::channel::<()>();
        let _ = never.recv_timeout(limit);
        tracing::error!(?limit, "shutdown failed: a part of the service hangs; exiting, leases will expire");
        logs::flush(LOG_FLUSH_TIMEOUT);
        process::exit(SHUTDOWN_INCOMPLETE.into());
    };
    if let Err(error) = thread::Builder::new().name("shutdown".to_owned()).spawn(watchdog) {
        tracing::warn!(%error, "failed to start the shutdown watchdog; the shutdown may exceed its time limit");
    }
}
