//! Accepting calls, many at a time: whatever has gathered is decided and committed in one transaction, and then everybody is
//! answered. A call that is refused costs its neighbours nothing.

mod batch;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, instrument};

use super::{Error, Result, State};
use crate::domain::{ClientToken, ImageId, RequestId, Targets};

/// A call to accept.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The call's id, which becomes the synchronization's.
    pub request_id: RequestId,
    /// The image.
    pub image: ImageId,
    /// The regions.
    pub targets: Targets,
    /// Who asks.
    pub principal: String,
    /// The name by which the caller may repeat it.
    pub token: Option<ClientToken>,
    /// The caller's trace.
    pub trace: Option<TraceContext>,
}

/// A trace, as W3C Trace Context writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The header `traceparent`.
    pub parent: String,
    /// The header `tracestate`.
    pub state: Option<String>,
}

/// A call that waits to be committed.
#[derive(Debug)]
pub(super) struct Queued {
    ask: Ask,
    reply: oneshot::Sender<Result<RequestId>>,
}

impl State {
    /// Accepts a call. Returns its id after the commit, and never before; for a call that repeats an earlier one, the id of
    /// that one.
    #[instrument(name = "INSERT synchronization", skip_all, fields(otel.kind = "client", db.system.name = "sqlite"))]
    pub async fn accept(&self, ask: Ask) -> Result<RequestId> {
        let (reply, answer) = oneshot::channel();
        self.0.asks.try_send(Queued { ask, reply }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

/// Commits what is asked, until `stop` is canceled; what had been queued by then is still committed.
pub(super) async fn run(state: State, mut queue: mpsc::Receiver<Queued>, most: usize, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(most);
    loop {
        tokio::select! {
            biased;
            received = queue.recv_many(&mut batch, most) => if received == 0 { return },
            () = stop.cancelled(), if !queue.is_closed() => queue.close(),
        }
        if !batch.is_empty() {
            let (asks, replies): (Vec<_>, Vec<_>) = batch.drain(..).map(|q| (q.ask, q.reply)).unzip();
            let answers = commit(&state, asks).await;
            for (reply, answer) in replies.into_iter().zip(answers) {
                // A caller that has gone finds its synchronization by its token or in the list.
                let _ = reply.send(answer);
            }
        }
    }
}

/// Commits the calls together. If that fails in another way than that the database can't be reached, each is tried by itself,
/// so that one that can't be written does not take its neighbours along.
async fn commit(state: &State, asks: Vec<Ask>) -> Vec<Result<RequestId>> {
    let count = asks.len();
    match commit_together(state, &asks).await {
        Ok(answers) => answers,
        Err(Error::Database(error)) if count > 1 => {
            tracing::warn!(%error, count, "a group of calls could not be committed; trying each by itself");
            let mut answers = Vec::with_capacity(count);
            for ask in asks {
                let alone = commit_together(state, std::slice::from_ref(&ask)).await;
                answers.push(alone.and_then(|mut one| one.pop().unwrap_or(Err(Error::Closed))));
            }
            answers
        }
        Err(error) => vec![Err(error); count],
    }
}

async fn commit_together(state: &State, asks: &[Ask]) -> Result<Vec<Result<RequestId>>> {
    let span = tracing::info_span!(
        "COMMIT",
        otel.kind = "client",
        db.system.name = "sqlite",
        db.operation.batch.size = asks.len(),
    );
    async {
        let txn = state.write().await?;
        let known = batch::Known::read(&txn, asks).await?;
        let now = state.0.clock.now();
        let (answers, rows) = batch::decide(asks, known, &state.0.regions, now);
        rows.write(&txn).await?;
        txn.commit().await?;
        state.0.due.raise();
        state.0.changed.raise();
        Ok(answers)
    }
    .instrument(span)
    .await
}
