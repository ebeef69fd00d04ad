//! Group commit: a task takes every waiting item, commits them in one transaction, and replies to each. Calls, workers'
//! reports and publications are committed this way. An item that cannot be written does not affect the others, and a
//! write conflict is retried.

use std::{pin::pin, sync::Arc, time::Duration};

use instrumentation::metrics;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Error, Result};

/// Maximum number of attempts while each one ends in a write conflict.
const MAX_ATTEMPTS: u32 = 8;

/// Base of the backoff between these attempts; it doubles with each.
const CONFLICT_BACKOFF: Duration = Duration::from_millis(4);

/// Maximum time that a batch waits to become as large as recent batches.
const MAX_LINGER: Duration = Duration::from_millis(2);

/// An item that waits for its commit.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Queued<T, A> {
    pub item: T,
    /// Receives the result.
    pub reply: oneshot::Sender<Result<A>>,
}

/// The waiting items, shared by the tasks that commit them.
#[derive(Debug)]
pub struct Queue<T, A> {
    /// Name of the queue in metrics.
    name: &'static str,
    waiting: Arc<Mutex<Waiting<T, A>>>,
}

#[derive(Debug)]
struct Waiting<T, A> {
    items: mpsc::Receiver<Queued<T, A>>,
    /// Moving average of batch sizes, in which each batch counts as much as all earlier ones together. `None` for a
    /// queue with a single task, which does not linger.
    recent_size: Option<usize>,
}

impl<T, A> Clone for Queue<T, A> {
    fn clone(&self) -> Self {
        Self { name: self.name, waiting: Arc::clone(&self.waiting) }
    }
}

impl<T, A> Queue<T, A> {
    /// Creates a queue that `tasks` tasks take from.
    pub fn new(name: &'static str, items: mpsc::Receiver<Queued<T, A>>, tasks: u32) -> Self {
        let recent_size = (tasks > 1).then_some(0);
        Self { name, waiting: Arc::new(Mutex::new(Waiting { items, recent_size })) }
    }

    /// Takes up to `limit` waiting items and returns their number, 0 once the queue is closed and empty. Closes the
    /// queue once `stop` is canceled.
    ///
    /// A batch that is smaller than recent ones lingers. Callers of one batch get their replies together but submit
    /// their next items one after the other. Without lingering, the next batch would hold only the first of these
    /// items, and the others would wait for its commit.
    async fn take_batch(&self, batch: &mut Vec<Queued<T, A>>, limit: usize, stop: &CancellationToken) -> usize {
        let Waiting { items, recent_size } = &mut *self.waiting.lock().await;
        while batch.is_empty() {
            tokio::select! {
                biased;
                received = items.recv_many(batch, limit) => if received == 0 { return 0 },
                () = stop.cancelled(), if !items.is_closed() => items.close(),
            }
        }
        let mut lingered = pin!(sleep(MAX_LINGER));
        while batch.len() < limit.min(recent_size.unwrap_or_default()) {
            let free = limit - batch.len();
            tokio::select! {
                biased;
                received = items.recv_many(batch, free) => if received == 0 { break },
                () = stop.cancelled() => break,
                () = &mut lingered => break,
            }
        }
        *recent_size = recent_size.map(|size| usize::midpoint(size, batch.len()));
        batch.len()
    }

    /// Commits batches of up to `limit` items until `stop` is canceled; items that are queued by then are still
    /// committed. Several tasks may run on one queue. `commit` returns the results of a batch in its order. If it fails
    /// although the database is available, each item is committed separately.
    pub async fn run(
        self,
        limit: usize,
        stop: CancellationToken,
        commit: impl AsyncFn(&[T]) -> Result<Vec<Result<A>>>,
    ) {
        let mut batch = Vec::with_capacity(limit);
        while self.take_batch(&mut batch, limit, &stop).await > 0 {
            let (items, replies): (Vec<_>, Vec<_>) = batch.drain(..).map(|q| (q.item, q.reply)).unzip();
            let started = Instant::now();
            let results = commit_all(&items, &commit).await;
            metrics::record_commit(self.name, items.len(), started.elapsed());
            for (reply, result) in replies.into_iter().zip(results) {
                // A caller that has gone can find the result by its token or in the list. A worker that has gone needs
                // no result.
                let _ = reply.send(result);
            }
        }
    }
}

async fn commit_all<T, A>(items: &[T], commit: &impl AsyncFn(&[T]) -> Result<Vec<Result<A>>>) -> Vec<Result<A>> {
    let count = items.len();
    match retry_conflicts(|| commit(items)).await {
        Ok(results) => results,
        Err(Error::Database(error)) if count > 1 => {
            tracing::warn!(%error, count, "batch commit failed; retrying each item by itself");
            let mut results = Vec::with_capacity(count);
            for item in items {
                let alone = retry_conflicts(|| commit(std::slice::from_ref(item))).await;
                results.push(alone.and_then(|mut result| result.pop().unwrap_or(Err(Error::Closed))));
            }
            results
        }
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    }
}

/// Retries an operation a few times, with backoff, while it ends in a write conflict.
pub async fn retry_conflicts<T, F: Future<Output = Result<T>>>(mut operation: impl FnMut() -> F) -> Result<T> {
    let mut attempt = 1;
    loop {
        match operation().await {
            Err(Error::Conflict(cause)) if attempt < MAX_ATTEMPTS => {
                tracing::debug!(?cause, attempt, "write conflict; will retry");
                let longest = CONFLICT_BACKOFF * 2_u32.pow(attempt);
                tokio::time::sleep(longest.mul_f64(rand::random())).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use tokio::{
        sync::{mpsc, oneshot},
        task::JoinHandle,
        time::Instant,
    };
    use tokio_util::sync::CancellationToken;

    use super::{MAX_LINGER, Queue, Queued};
    use crate::Result;

    /// A queue whose commits take no time, and the sizes of its batches.
    struct Batches {
        queue: mpsc::Sender<Queued<(), ()>>,
        sizes: Arc<Mutex<Vec<usize>>>,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Batches {
        fn new() -> Self {
            let (queue, items) = mpsc::channel(1_000);
            let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
            let stop = CancellationToken::new();
            let recorded = Arc::clone(&sizes);
            let commit = async move |items: &[()]| {
                recorded.lock().expect("no panic").push(items.len());
                Ok(items.iter().map(|()| Ok(())).collect())
            };
            let task = tokio::spawn(Queue::new("test", items, 2).run(200, stop.clone(), commit));
            Self { queue, sizes, stop, task }
        }

        fn submit(&self) -> oneshot::Receiver<Result<()>> {
            let (reply, result) = oneshot::channel();
            self.queue.try_send(Queued { item: (), reply }).expect("space in the queue");
            result
        }

        /// Submits items at once and waits for every result.
        async fn submit_together(&self, count: usize) {
            let results: Vec<_> = (0..count).map(|_| self.submit()).collect();
            for result in results {
                result.await.expect("a reply").expect("a commit");
            }
        }

        fn sizes(&self) -> Vec<usize> {
            self.sizes.lock().expect("no panic").clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_caller_does_not_wait() {
        let batches = Batches::new();
        let started = Instant::now();
        for _ in 0..10 {
            batches.submit_together(1).await;
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(batches.sizes(), [1; 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_waits_for_callers_that_return() {
        let batches = Batches::new();
        batches.submit_together(100).await;
        let mut results = Vec::new();
        for _ in 0..100 {
            results.push(batches.submit());
            // Lets the task begin with the items so far.
            tokio::task::yield_now().await;
        }
        for result in results {
            result.await.expect("a reply").expect("a commit");
        }
        assert!(batches.sizes().iter().all(|size| *size >= 50), "{:?}", batches.sizes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_lingers_briefly_and_soon_not_at_all() {
        let batches = Batches::new();
        batches.submit_together(200).await;
        let started = Instant::now();
        batches.submit_together(1).await;
        assert_eq!(started.elapsed(), MAX_LINGER);
        for _ in 0..10 {
            batches.submit_together(1).await;
        }
        let started = Instant::now();
        batches.submit_together(1).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn items_that_wait_at_the_stop_are_committed() {
        let batches = Batches::new();
        batches.submit_together(200).await;
        let result = batches.submit();
        tokio::task::yield_now().await;
        let started = Instant::now();
        batches.stop.cancel();
        result.await.expect("a reply").expect("a commit");
        batches.task.await.expect("the task's end");
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
