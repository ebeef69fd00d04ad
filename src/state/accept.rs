//! Accepting calls, many at a time: whatever has gathered is decided and committed in one transaction, and then everybody is
//! answered. A call that is refused costs its neighbours nothing.

mod batch;
mod known;

use known::Known;
use opentelemetry::{KeyValue, trace::SpanKind};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use super::{
    Error, Result, State,
    database::{Dedicated, Session, Transaction},
    group,
};
use crate::{
    domain::{ClientToken, ImageId, RequestId, Targets},
    telemetry,
};

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
    /// Whether what others have put in the image's place may be replaced.
    pub overwrite: bool,
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
pub(super) type Queued = group::Queued<Ask, RequestId>;

impl State {
    /// Accepts a call. Returns its id after the commit, and never before; for a call that repeats an earlier one, the id of
    /// that one.
    pub async fn accept(&self, ask: Ask) -> Result<RequestId> {
        // Nothing happens in it; it lasts until the answer is there.
        let attributes = [
            KeyValue::new("db.system.name", self.system()),
            KeyValue::new("db.operation.name", "INSERT"),
            KeyValue::new("db.collection.name", "synchronization"),
        ];
        let _span = telemetry::leaf("INSERT synchronization", SpanKind::Client, attributes);
        let (reply, answer) = oneshot::channel();
        self.0.asks.try_send(Queued { asked: ask, reply }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

/// Commits calls together, and answers each.
pub(super) async fn commit_together(
    state: &State,
    dedicated: Option<&Session<Dedicated>>,
    asks: &[Ask],
) -> Result<Vec<Result<RequestId>>> {
    let span = tracing::info_span!(
        "COMMIT",
        otel.kind = "client",
        db.system.name = state.system(),
        db.operation.name = "COMMIT",
        db.operation.batch.size = asks.len(),
    );
    let answers = commit(state, dedicated, asks).instrument(span).await?;
    state.0.signals.due();
    state.0.signals.changed();
    Ok(answers)
}

async fn commit(state: &State, dedicated: Option<&Session<Dedicated>>, asks: &[Ask]) -> Result<Vec<Result<RequestId>>> {
    let (regions, connections) = (&state.0.regions, &state.0.db);
    let Some(db) = dedicated else {
        let decide = async |txn: Transaction| {
            let txn = &txn;
            let (known, now) = Known::read(txn, asks).await?;
            let (answers, changes) = batch::decide(asks, known, regions, now);
            changes.write_after_locking(txn, now).await?;
            Ok(answers)
        };
        return connections.transaction_once(decide).await;
    };
    // Nothing is locked by reading it, and what is written is one transaction by itself, as a rule: two ways to the database and
    // back instead of four. A conflict on a key is retried.
    let decide = async {
        let (known, now) = Known::read(db, asks).await?;
        let (answers, changes) = batch::decide(asks, known, regions, now);
        if changes.stand_alone() {
            changes.write(db, now).await?;
        } else {
            let write = async |txn: Transaction| changes.write_after_locking(&txn, now).await;
            connections.transaction_once(write).await?;
        }
        Ok(answers)
    };
    connections.group(decide).await
}

#[cfg(test)]
mod tests {
    use sea_orm::TransactionTrait as _;

    use super::{super::Settings, Known, batch, commit_together};
    use crate::{
        domain::{RegionStatus, Synchronization},
        state::{
            Error, Filter,
            embedded::{Embedded, ask},
        },
    };

    /// As many rows as no single statement could take, in one transaction.
    #[tokio::test]
    async fn a_group_of_many_calls_to_many_regions_is_committed_together() {
        let regions: Vec<_> = (0..100).map(|n| format!("region-{n}")).collect();
        let embedded = Embedded::open(regions.iter().map(String::as_str), |settings| settings).await;
        let state = &embedded.state;
        for n in 0..100 {
            embedded.add(&format!("image-{n}")).await;
        }
        let mut asks: Vec<_> = (0..100).map(|n| ask(&format!("image-{n}"))).collect();
        asks.insert(50, ask("nobody-knows-it"));
        let answers = commit_together(state, state.0.db.dedicated().as_ref(), &asks).await.expect("one transaction");
        for (place, (answer, ask)) in answers.iter().zip(&asks).enumerate() {
            match answer {
                Ok(id) => assert_eq!(*id, ask.request_id),
                Err(Error::ImageNotFound(_)) => assert_eq!(place, 50),
                Err(error) => panic!("{error}"),
            }
        }
        let page = state.synchronization_list(&Filter::default(), None, 1_000).await.expect("a page");
        assert_eq!(page.synchronizations.len(), 100);
        let pending = |s: &Synchronization| s.regions.iter().all(|r| r.status == RegionStatus::Pending);
        assert!(page.synchronizations.iter().all(|s| s.regions.len() == 100 && pending(s)));
        embedded.end().await;
    }

    /// An image that is removed, or removed and added again, after a call for it was decided and before that is written.
    #[tokio::test]
    async fn a_call_is_not_written_once_its_image_is_gone() {
        let embedded = Embedded::open(["there"], |settings| settings).await;
        let state = &embedded.state;
        let db = state.0.db.dedicated().expect("its own connections");
        for again in [false, true] {
            embedded.add("an-image").await;
            embedded.add("another").await;
            let asks = [ask("an-image"), ask("another")];
            let (known, now) = Known::read(&db, &asks).await.expect("it answers");
            let (answers, changes) = batch::decide(&asks, known, state.regions(), now);
            assert!(answers.iter().all(Result::is_ok) && changes.stand_alone(), "{answers:?}");
            let image = "an-image".parse().expect("an id");
            state.image_remove(&image).await.expect("it is removed");
            if again {
                // By a clock that goes by milliseconds.
                let before = now;
                while crate::domain::Clock::system().now() <= before {}
                embedded.add("an-image").await;
            }
            let written = changes.write(&db, now).await;
            assert!(matches!(written, Err(Error::Conflict(None))), "{written:?}");
            let page = state.synchronization_list(&Filter::default(), None, 10).await.expect("a page");
            assert!(page.synchronizations.is_empty(), "nothing of the group is written");
            for name in ["an-image", "another"] {
                let found = state.image_get(&name.parse().expect("an id")).await;
                assert!(found.map_or(true, |(_, replicas)| replicas.is_empty()), "{name}");
            }
            state.image_remove(&"another".parse().expect("an id")).await.expect("it is removed");
        }
        embedded.end().await;
    }

    /// Somebody reads all that there is, on every connection that reads.
    #[tokio::test]
    async fn whoever_reads_does_not_make_calls_wait() {
        let embedded = Embedded::open(["there"], |settings| Settings { readers: 1, ..settings }).await;
        embedded.add("an-image").await;
        let reading = embedded.state.0.db.readers().begin().await.expect("it is there");
        embedded.state.accept(ask("an-image")).await.expect("it is accepted");
        drop(reading);
        embedded.end().await;
    }
}
