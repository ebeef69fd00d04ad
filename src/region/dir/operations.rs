//! Operations on one directory that may block: as many at a time as a directory may have threads, so that one that hangs takes
//! none from other regions, and none is waited for that stands still.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use crate::region::{Activity, Error, Result};

/// Threads that one directory may hold at the same time.
const THREADS: usize = 16;
/// How long an operation may stand still, unless the store sets another limit.
pub const STALL: Duration = Duration::from_secs(60);

/// The operations of one directory.
#[derive(Debug)]
pub struct Operations {
    /// The directory, for errors.
    directory: String,
    threads: Arc<Semaphore>,
    stall: Duration,
    pulse: Arc<Pulse>,
}

/// When something moved last.
#[derive(Debug)]
struct Pulse {
    origin: Instant,
    /// Milliseconds after the origin.
    last: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self { origin: Instant::now(), last: AtomicU64::new(0) }
    }

    fn beat(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.origin + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// What an operation says about its progress while it runs.
#[derive(Debug)]
pub struct Progress {
    operation: Arc<Pulse>,
    directory: Arc<Pulse>,
    copy: Activity,
}

impl Progress {
    /// Something moved: a chunk was read, hashed or written.
    pub fn tick(&self) {
        self.operation.beat();
        self.directory.beat();
        self.copy.tick();
    }
}

impl Operations {
    /// The operations of a directory; each may stand still for as long as `stall`.
    pub fn new(directory: String, stall: Duration) -> Self {
        let threads = Arc::new(Semaphore::new(THREADS));
        Self { directory, threads, stall, pulse: Arc::new(Pulse::new()) }
    }

    /// Runs an operation on a thread that may block. Its thread counts until it has really returned, whether or not anything
    /// still waits for it.
    pub async fn run<T: Send + 'static>(
        &self,
        copy: &Activity,
        act: impl FnOnce(&Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let thread = self.thread().await?;
        let operation = Arc::new(Pulse::new());
        let progress =
            Progress { operation: Arc::clone(&operation), directory: Arc::clone(&self.pulse), copy: copy.clone() };
        progress.tick();
        let mut running = tokio::task::spawn_blocking(move || {
            let result = act(&progress);
            progress.tick();
            drop(thread);
            result
        });
        loop {
            let deadline = operation.last() + self.stall;
            match timeout_at(deadline, &mut running).await {
                Ok(Ok(result)) => return result,
                Ok(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Ok(Err(_)) => return Err(Error::Interrupted),
                Err(_) if operation.last() + self.stall <= Instant::now() => return Err(self.unresponsive()),
                Err(_) => {}
            }
        }
    }

    /// Starts an operation whose result nothing waits for, if there is a thread for it.
    pub fn start(&self, act: impl FnOnce() + Send + 'static) {
        let Ok(thread) = Arc::clone(&self.threads).try_acquire_owned() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // It runs by itself.
        drop(runtime.spawn_blocking(move || {
            act();
            drop(thread);
        }));
    }

    /// A thread for an operation, as soon as there is one. Nothing waits for a directory whose every thread stands still.
    async fn thread(&self) -> Result<OwnedSemaphorePermit> {
        loop {
            if let Ok(thread) = Arc::clone(&self.threads).try_acquire_owned() {
                return Ok(thread);
            }
            let Some(left) = (self.pulse.last() + self.stall).checked_duration_since(Instant::now()) else {
                return Err(self.unresponsive());
            };
            // Never zero: the deadline counts as passed only once it lies behind.
            let left = left.max(Duration::from_millis(1));
            if let Ok(Ok(thread)) = timeout(left, Arc::clone(&self.threads).acquire_owned()).await {
                return Ok(thread);
            }
        }
    }

    fn unresponsive(&self) -> Error {
        let pending = THREADS - self.threads.available_permits().min(THREADS);
        Error::Unresponsive { directory: self.directory.as_str().into(), pending }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Duration,
    };

    use super::{Activity, Error, Operations, THREADS};

    fn operations(stall: Duration) -> Arc<Operations> {
        Arc::new(Operations::new("/srv/apps".to_owned(), stall))
    }

    /// Fills every thread of a directory with an operation that returns when the sender is dropped.
    async fn hang(operations: &Operations) -> (mpsc::Sender<()>, Vec<super::Result<()>>) {
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let runs = (0..THREADS).map(|_| {
            let held = Arc::clone(&held);
            async move {
                let wait = move |_: &super::Progress| {
                    let _ = held.lock().expect("a lock").recv();
                    Ok(())
                };
                operations.run(&Activity::default(), wait).await
            }
        });
        let results = futures_util::future::join_all(runs).await;
        (release, results)
    }

    #[tokio::test]
    async fn a_directory_that_hangs_holds_its_own_threads_only_and_is_not_waited_for() {
        let (hanging, healthy) = (operations(Duration::from_millis(50)), operations(Duration::from_secs(60)));
        let (release, results) = hang(&hanging).await;
        for result in results {
            assert!(matches!(result, Err(Error::Unresponsive { .. })), "{result:?}");
        }
        let refused = hanging.run(&Activity::default(), |_| Ok(())).await.expect_err("every thread is held");
        let text = refused.to_string();
        assert!(text.contains("16 operations on the directory /srv/apps have not returned"), "{text}");
        healthy.run(&Activity::default(), |_| Ok(())).await.expect("another directory has threads of its own");

        // As soon as the threads have returned, the directory is used again.
        drop(release);
        crate::region::dir::tests::until(|| hanging.threads.available_permits() == THREADS).await;
        hanging.run(&Activity::default(), |_| Ok(())).await.expect("the threads are back");
    }

    #[tokio::test]
    async fn an_operation_that_moves_is_waited_for_however_long_it_takes() {
        let operations = operations(Duration::from_secs(1));
        let activity = Activity::default();
        let (release, held) = mpsc::channel::<()>();
        let moving = operations.run(&activity, move |progress| {
            for _ in 0..40 {
                let _ = held.recv_timeout(Duration::from_millis(40));
                progress.tick();
            }
            Ok(())
        });
        moving.await.expect("it moved all the time");
        drop(release);
        assert!(activity.count() >= 40, "the copy's activity counts it too");
    }
}
