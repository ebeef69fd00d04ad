//! Blocking operations on one directory. Each directory has its own limited number of threads, so that a directory that
//! hangs takes no threads from other regions. Callers do not wait for a stalled operation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{Activity, Error, Result};

/// Maximum number of concurrent threads per directory.
const THREADS: usize = 16;
/// Default time after which an operation without progress counts as stalled.
pub const STALL: Duration = Duration::from_secs(60);
/// Number of parts into which the stall time is divided. The clock also runs while the process is stopped or its
/// machine is suspended. Such a gap ends only one part, and the operation can make progress in the others.
const PARTS: u32 = 4;

/// Runs the operations of one directory.
#[derive(Debug)]
pub struct Operations {
    /// The directory, for error messages.
    directory: String,
    threads: Arc<Semaphore>,
    stall: Duration,
    pulse: Arc<Pulse>,
}

/// Counts steps of progress.
#[derive(Debug, Default)]
struct Pulse {
    steps: AtomicU64,
    /// Whether an operation has made no progress for the stall time.
    stalled: AtomicBool,
}

impl Pulse {
    fn beat(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.stalled.store(false, Ordering::Relaxed);
    }
}

/// Checks a pulse for progress at the end of each part of the stall time.
struct Observation<'a> {
    pulse: &'a Pulse,
    seen: u64,
    idle_parts: u32,
}

impl<'a> Observation<'a> {
    fn of(pulse: &'a Pulse) -> Self {
        Self { pulse, seen: pulse.steps.load(Ordering::Relaxed), idle_parts: 0 }
    }

    /// Returns whether the last [`PARTS`] parts, this one included, passed without progress.
    fn is_stalled_after_part(&mut self) -> bool {
        let steps = self.pulse.steps.load(Ordering::Relaxed);
        self.idle_parts = if steps == self.seen { self.idle_parts + 1 } else { 0 };
        self.seen = steps;
        self.idle_parts >= PARTS
    }
}

/// Reports the progress of an operation while it runs.
#[derive(Debug)]
pub struct Progress {
    operation: Arc<Pulse>,
    directory: Arc<Pulse>,
    copy: Activity,
}

impl Progress {
    /// Records a step: a chunk was read, hashed or written.
    pub fn tick(&self) {
        self.operation.beat();
        self.directory.beat();
        self.copy.tick();
    }
}

impl Operations {
    /// Creates the operations of a directory. Each fails after `stall` without progress.
    pub fn new(directory: String, stall: Duration) -> Self {
        let threads = Arc::new(Semaphore::new(THREADS));
        Self { directory, threads, stall, pulse: Arc::default() }
    }

    /// Runs an operation on a blocking thread. The thread counts toward the limit until the operation returns, even if
    /// the caller has stopped waiting.
    pub async fn run<T: Send + 'static>(
        &self,
        copy: &Activity,
        act: impl FnOnce(&Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let thread = self.thread().await?;
        let operation = Arc::<Pulse>::default();
        let progress =
            Progress { operation: Arc::clone(&operation), directory: Arc::clone(&self.pulse), copy: copy.clone() };
        progress.tick();
        let mut running = tokio::task::spawn_blocking(move || {
            let result = act(&progress);
            progress.tick();
            drop(thread);
            result
        });
        let mut observation = Observation::of(&operation);
        loop {
            match timeout(self.stall / PARTS, &mut running).await {
                Ok(Ok(result)) => return result,
                Ok(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Ok(Err(_)) => return Err(Error::Interrupted),
                Err(_) if observation.is_stalled_after_part() => return Err(self.unresponsive()),
                Err(_) => {}
            }
        }
    }

    /// Starts an operation whose result is ignored. Does nothing if no thread is free.
    pub fn start(&self, act: impl FnOnce() + Send + 'static) {
        let Ok(thread) = Arc::clone(&self.threads).try_acquire_owned() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // Detached.
        drop(runtime.spawn_blocking(move || {
            act();
            drop(thread);
        }));
    }

    /// Waits for a thread. Fails at once if the directory counts as stalled.
    async fn thread(&self) -> Result<OwnedSemaphorePermit> {
        let mut observation = Observation::of(&self.pulse);
        loop {
            if let Ok(thread) = Arc::clone(&self.threads).try_acquire_owned() {
                return Ok(thread);
            }
            if self.pulse.stalled.load(Ordering::Relaxed) {
                return Err(self.unresponsive());
            }
            match timeout(self.stall / PARTS, Arc::clone(&self.threads).acquire_owned()).await {
                Ok(Ok(thread)) => return Ok(thread),
                Ok(Err(_)) => return Err(Error::Interrupted),
                Err(_) if observation.is_stalled_after_part() => return Err(self.unresponsive()),
                Err(_) => {}
            }
        }
    }

    fn unresponsive(&self) -> Error {
        self.pulse.stalled.store(true, Ordering::Relaxed);
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

        // The directory is usable again once the threads have returned.
        drop(release);
        crate::dir::tests::until(|| hanging.threads.available_permits() == THREADS).await;
        hanging.run(&Activity::default(), |_| Ok(())).await.expect("the threads are back");
    }

    /// The clock jumps by ten times the limit, as after SIGSTOP and SIGCONT, while an operation runs and another one
    /// waits for a thread.
    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_takes_no_operation_for_stalled() {
        let operations = operations(Duration::from_secs(60));
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let runs: Vec<_> = (0..=THREADS)
            .map(|_| {
                let (operations, held) = (Arc::clone(&operations), Arc::clone(&held));
                tokio::spawn(async move {
                    let wait = move |_: &super::Progress| {
                        let _ = held.lock().expect("a lock").recv();
                        Ok(())
                    };
                    operations.run(&Activity::default(), wait).await
                })
            })
            .collect();
        while operations.threads.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(Duration::from_secs(600)).await;
        tokio::task::yield_now().await;
        drop(release);
        for run in runs {
            run.await.expect("no panic").expect("it returns");
        }
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
