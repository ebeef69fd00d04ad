//! Groups: whatever has gathered is committed in one transaction, and then everybody is answered. Calls and workers' reports go this
//! way. What can't be written does not take its neighbours along, and whoever met others that change the same tries again.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Error, Result};
use crate::metrics;

/// How often something is tried again that met others who changed the same.
const TRIES: u32 = 8;

/// How long to wait at most before the first of these; twice as long before each further one.
const FIRST_WAIT: Duration = Duration::from_millis(4);

/// Something that waits to be committed, and who waits for it.
#[derive(Debug)]
pub struct Queued<T, A> {
    pub asked: T,
    pub reply: oneshot::Sender<Result<A>>,
}

/// What waits, for the tasks that commit it.
#[derive(Debug)]
pub struct Queue<T, A> {
    /// What its metrics are called by.
    name: &'static str,
    queue: Arc<Mutex<mpsc::Receiver<Queued<T, A>>>>,
}

impl<T, A> Clone for Queue<T, A> {
    fn clone(&self) -> Self {
        Self { name: self.name, queue: Arc::clone(&self.queue) }
    }
}

impl<T, A> Queue<T, A> {
    pub fn new(name: &'static str, queue: mpsc::Receiver<Queued<T, A>>) -> Self {
        Self { name, queue: Arc::new(Mutex::new(queue)) }
    }

    /// Takes what has gathered, `most` at most; nothing if the queue is closed and empty. Once `stop` is canceled, it closes.
    async fn gather(&self, batch: &mut Vec<Queued<T, A>>, most: usize, stop: &CancellationToken) -> usize {
        let mut queue = self.queue.lock().await;
        loop {
            tokio::select! {
                biased;
                received = queue.recv_many(batch, most) => return received,
                () = stop.cancelled(), if !queue.is_closed() => queue.close(),
            }
        }
    }

    /// Has what is asked committed, until `stop` is canceled; what had been queued by then is still committed. Several may run on one
    /// queue. `commit` answers a group, in its order. If that fails in another way than that the database can't be reached, each is
    /// tried by itself.
    pub async fn run(self, most: usize, stop: CancellationToken, commit: impl AsyncFn(&[T]) -> Result<Vec<Result<A>>>) {
        let mut batch = Vec::with_capacity(most);
        while self.gather(&mut batch, most, &stop).await > 0 {
            let (asked, replies): (Vec<_>, Vec<_>) = batch.drain(..).map(|q| (q.asked, q.reply)).unzip();
            let began = Instant::now();
            let answers = answer(&asked, &commit).await;
            metrics::committed(self.name, asked.len(), began.elapsed());
            for (reply, answer) in replies.into_iter().zip(answers) {
                // Whoever has gone finds out in another way: a caller by its token or in the list, a worker has no use for it.
                let _ = reply.send(answer);
            }
        }
    }
}

async fn answer<T, A>(asked: &[T], commit: &impl AsyncFn(&[T]) -> Result<Vec<Result<A>>>) -> Vec<Result<A>> {
    let count = asked.len();
    match retrying(|| commit(asked)).await {
        Ok(answers) => answers,
        Err(Error::Database(error)) if count > 1 => {
            tracing::warn!(%error, count, "a group could not be committed; trying each by itself");
            let mut answers = Vec::with_capacity(count);
            for one in asked {
                let alone = retrying(|| commit(std::slice::from_ref(one))).await;
                answers.push(alone.and_then(|mut one| one.pop().unwrap_or(Err(Error::Closed))));
            }
            answers
        }
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    }
}

/// Tries something again, a few times, as long as all that is in the way is that others change the same.
pub async fn retrying<T, F: Future<Output = Result<T>>>(mut attempt: impl FnMut() -> F) -> Result<T> {
    let mut tried = 1;
    loop {
        match attempt().await {
            Err(Error::Conflict(cause)) if tried < TRIES => {
                tracing::debug!(?cause, tried, "others changed the same");
                let longest = FIRST_WAIT * 2_u32.pow(tried);
                tokio::time::sleep(longest.mul_f64(rand::random())).await;
                tried += 1;
            }
            answer => return answer,
        }
    }
}
