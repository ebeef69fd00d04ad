//! Groups: whatever has gathered is committed in one transaction, and then everybody is answered. Calls and workers' reports go this
//! way. What can't be written does not take its neighbours along, and whoever met others that change the same tries again.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Error, Result};
use crate::metrics;

/// How often something is tried again that met others who changed the same.
const TRIES: u32 = 8;

/// How long to wait at most before the first of these; twice as long before each further one.
const FIRST_WAIT: Duration = Duration::from_millis(4);

/// How long a group waits at most to become as large as groups have been lately.
const GROWTH: Duration = Duration::from_millis(2);

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
    waiting: Arc<Mutex<Waiting<T, A>>>,
}

#[derive(Debug)]
struct Waiting<T, A> {
    queue: mpsc::Receiver<Queued<T, A>>,
    /// How large groups have been lately, each counting as much as all before it; if several may be underway at the same time.
    lately: Option<usize>,
}

impl<T, A> Clone for Queue<T, A> {
    fn clone(&self) -> Self {
        Self { name: self.name, waiting: Arc::clone(&self.waiting) }
    }
}

impl<T, A> Queue<T, A> {
    /// A queue from which as many tasks take.
    pub fn new(name: &'static str, queue: mpsc::Receiver<Queued<T, A>>, tasks: u32) -> Self {
        let lately = (tasks > 1).then_some(0);
        Self { name, waiting: Arc::new(Mutex::new(Waiting { queue, lately })) }
    }

    /// Takes what has gathered, `most` at most; nothing if the queue is closed and empty. Once `stop` is canceled, it closes.
    ///
    /// One that is smaller than groups have been lately waits a little for more. Those that have been answered together come back
    /// one after the other: the next groups would begin with the first of them, one each, and all others would wait for these
    /// commits.
    async fn gather(&self, batch: &mut Vec<Queued<T, A>>, most: usize, stop: &CancellationToken) -> usize {
        let Waiting { queue, lately } = &mut *self.waiting.lock().await;
        while batch.is_empty() {
            tokio::select! {
                biased;
                received = queue.recv_many(batch, most) => if received == 0 { return 0 },
                () = stop.cancelled(), if !queue.is_closed() => queue.close(),
            }
        }
        let mut grown = pin!(sleep(GROWTH));
        while batch.len() < most.min(lately.unwrap_or_default()) {
            let room = most - batch.len();
            tokio::select! {
                biased;
                received = queue.recv_many(batch, room) => if received == 0 { break },
                () = stop.cancelled() => break,
                () = &mut grown => break,
            }
        }
        *lately = lately.map(|lately| usize::midpoint(lately, batch.len()));
        batch.len()
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
            metrics::record_commit(self.name, asked.len(), began.elapsed());
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::{
        sync::{mpsc, oneshot},
        task::JoinHandle,
        time::Instant,
    };
    use tokio_util::sync::CancellationToken;

    use super::{GROWTH, Queue, Queued};
    use crate::state::Result;

    /// A queue whose groups cost nothing, and how large they were.
    struct Groups {
        queue: mpsc::Sender<Queued<(), ()>>,
        sizes: Arc<Mutex<Vec<usize>>>,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Groups {
        fn new() -> Self {
            let (queue, queued) = mpsc::channel(1_000);
            let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
            let stop = CancellationToken::new();
            let seen = Arc::clone(&sizes);
            let commit = async move |asked: &[()]| {
                seen.lock().expect("nobody panicked").push(asked.len());
                Ok(asked.iter().map(|()| Ok(())).collect())
            };
            let task = tokio::spawn(Queue::new("test", queued, 2).run(200, stop.clone(), commit));
            Self { queue, sizes, stop, task }
        }

        fn ask(&self) -> oneshot::Receiver<Result<()>> {
            let (reply, answer) = oneshot::channel();
            self.queue.try_send(Queued { asked: (), reply }).expect("there is room");
            answer
        }

        /// Asks as many at once, and waits until all are answered.
        async fn ask_together(&self, count: usize) {
            let answers: Vec<_> = (0..count).map(|_| self.ask()).collect();
            for answer in answers {
                answer.await.expect("it is answered").expect("it is committed");
            }
        }

        fn sizes(&self) -> Vec<usize> {
            self.sizes.lock().expect("nobody panicked").clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_alone_waits_for_nobody() {
        let groups = Groups::new();
        let began = Instant::now();
        for _ in 0..10 {
            groups.ask_together(1).await;
        }
        assert_eq!(began.elapsed(), std::time::Duration::ZERO);
        assert_eq!(groups.sizes(), [1; 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_waits_for_those_that_come_back() {
        let groups = Groups::new();
        groups.ask_together(100).await;
        let mut answers = Vec::new();
        for _ in 0..100 {
            answers.push(groups.ask());
            // Whoever takes them could begin with what is there.
            tokio::task::yield_now().await;
        }
        for answer in answers {
            answer.await.expect("it is answered").expect("it is committed");
        }
        assert!(groups.sizes().iter().all(|size| *size >= 50), "{:?}", groups.sizes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_does_not_wait_for_long_and_soon_not_at_all() {
        let groups = Groups::new();
        groups.ask_together(200).await;
        let began = Instant::now();
        groups.ask_together(1).await;
        assert_eq!(began.elapsed(), GROWTH);
        for _ in 0..10 {
            groups.ask_together(1).await;
        }
        let began = Instant::now();
        groups.ask_together(1).await;
        assert_eq!(began.elapsed(), std::time::Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_when_it_stops_is_committed() {
        let groups = Groups::new();
        groups.ask_together(200).await;
        let answer = groups.ask();
        tokio::task::yield_now().await;
        let began = Instant::now();
        groups.stop.cancel();
        answer.await.expect("it is answered").expect("it is committed");
        groups.task.await.expect("it ends");
        assert_eq!(began.elapsed(), std::time::Duration::ZERO);
    }
}
