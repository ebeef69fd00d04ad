//! Group commit of calls: a task decides about every waiting call, commits them in one transaction, and replies to
//! each. A rejected call does not affect the others.

mod batch;
mod snapshot;

use domain::{ClientToken, ImageId, RequestId, Targets};
use instrumentation::leaf_span;
use opentelemetry::{KeyValue, trace::SpanKind};
use snapshot::BatchSnapshot;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use crate::{
    Db, Error, Result,
    connections::{PinnedConnection, Session, Transaction},
    group_commit,
};

/// A request to create a synchronization.
#[derive(Debug, Clone)]
pub struct NewSynchronization {
    /// Id of the call, which becomes the synchronization's id.
    pub request_id: RequestId,
    /// The image to copy.
    pub image: ImageId,
    /// The regions to copy it to.
    pub targets: Targets,
    /// ARN of the caller.
    pub principal: String,
    /// Whether content that another program wrote under the image's name may be replaced.
    pub overwrite: bool,
    /// Idempotency token: a repeated call with the same token returns the id of the first call.
    pub token: Option<ClientToken>,
    /// Trace context of the call, if the caller sent one.
    pub trace: Option<TraceContext>,
}

/// A trace context (W3C Trace Context).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Value of the header `traceparent`.
    pub parent: String,
    /// Value of the header `tracestate`.
    pub state: Option<String>,
}

/// A call in the queue.
pub type Queued = group_commit::Queued<NewSynchronization, RequestId>;

impl Db {
    /// Accepts a call and returns its id once it is committed. For a call that repeats an earlier one, returns the
    /// earlier id.
    pub async fn accept(&self, call: NewSynchronization) -> Result<RequestId> {
        let attributes = [
            KeyValue::new("db.system.name", self.system()),
            KeyValue::new("db.operation.name", "INSERT"),
            KeyValue::new("db.collection.name", "synchronization"),
        ];
        let _span = leaf_span("INSERT synchronization", SpanKind::Client, attributes);
        let (reply, result) = oneshot::channel();
        self.0.accept_queue.try_send(Queued { item: call, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        result.await.map_err(|_| Error::Closed)?
    }
}

/// Commits calls in one transaction. Returns the result of each.
pub async fn commit_batch(
    db: &Db,
    pinned: Option<&Session<PinnedConnection>>,
    calls: &[NewSynchronization],
) -> Result<Vec<Result<RequestId>>> {
    let span = tracing::info_span!(
        "COMMIT",
        otel.kind = "client",
        db.system.name = db.system(),
        db.operation.name = "COMMIT",
        db.operation.batch.size = calls.len(),
    );
    let results = commit(db, pinned, calls).instrument(span).await?;
    db.0.signals.notify_due();
    db.0.signals.notify_changed();
    Ok(results)
}

async fn commit(
    db: &Db,
    pinned: Option<&Session<PinnedConnection>>,
    calls: &[NewSynchronization],
) -> Result<Vec<Result<RequestId>>> {
    let (regions, connections) = (&db.0.regions, &db.0.connections);
    let Some(session) = pinned else {
        let decide = async |txn: Transaction| {
            let txn = &txn;
            let (snapshot, now) = BatchSnapshot::read(txn, calls).await?;
            let (results, writes) = batch::decide(calls, snapshot, regions, now);
            writes.write_after_locking(txn, now).await?;
            Ok(results)
        };
        return connections.transaction_once(decide).await;
    };
    // The read takes no lock, and the write is usually one statement: two round trips instead of four. A write conflict
    // is retried.
    let decide = async {
        let (snapshot, now) = BatchSnapshot::read(session, calls).await?;
        let (results, writes) = batch::decide(calls, snapshot, regions, now);
        if writes.are_independent() {
            writes.write(session, now).await?;
        } else {
            let write = async |txn: Transaction| writes.write_after_locking(&txn, now).await;
            connections.transaction_once(write).await?;
        }
        Ok(results)
    };
    connections.batch(decide).await
}

#[cfg(test)]
mod tests {
    use domain::{RegionStatus, Synchronization};
    use sea_orm::TransactionTrait as _;

    use super::{BatchSnapshot, batch, commit_batch};
    use crate::{
        Error, Settings, SynchronizationFilter, system_clock,
        testing::{TestDb, new_synchronization},
    };

    /// The rows of one transaction have more values than a statement has parameters.
    #[tokio::test]
    async fn many_calls_to_many_regions_are_committed_together() {
        let regions: Vec<_> = (0..100).map(|n| format!("region-{n}")).collect();
        let fixture = TestDb::open(regions.iter().map(String::as_str), |settings| settings).await;
        let db = &fixture.db;
        for n in 0..100 {
            fixture.add(&format!("image-{n}")).await;
        }
        let mut calls: Vec<_> = (0..100).map(|n| new_synchronization(&format!("image-{n}"))).collect();
        calls.insert(50, new_synchronization("unknown"));
        let results = commit_batch(db, db.0.connections.pinned().as_ref(), &calls).await.expect("one transaction");
        for (index, (result, call)) in results.iter().zip(&calls).enumerate() {
            match result {
                Ok(id) => assert_eq!(*id, call.request_id),
                Err(Error::ImageNotFound(_)) => assert_eq!(index, 50),
                Err(error) => panic!("{error}"),
            }
        }
        let page = db.synchronization_list(&SynchronizationFilter::default(), None, 1_000).await.expect("a page");
        assert_eq!(page.synchronizations.len(), 100);
        let pending = |s: &Synchronization| s.regions.iter().all(|r| r.status == RegionStatus::Pending);
        assert!(page.synchronizations.iter().all(|s| s.regions.len() == 100 && pending(s)));
        fixture.end().await;
    }

    /// The image is removed, or removed and added again, after the decision and before the write.
    #[tokio::test]
    async fn a_call_is_not_written_after_its_image_was_removed() {
        let fixture = TestDb::open(["there"], |settings| settings).await;
        let db = &fixture.db;
        let session = db.0.connections.pinned().expect("a pinned connection");
        for is_added_again in [false, true] {
            fixture.add("an-image").await;
            fixture.add("another").await;
            let calls = [new_synchronization("an-image"), new_synchronization("another")];
            let (snapshot, now) = BatchSnapshot::read(&session, &calls).await.expect("a snapshot");
            let (results, writes) = batch::decide(&calls, snapshot, db.regions(), now);
            assert!(results.iter().all(Result::is_ok) && writes.are_independent(), "{results:?}");
            let image = "an-image".parse().expect("an id");
            db.image_remove(&image).await.expect("a removal");
            if is_added_again {
                // Waits for the next millisecond, the resolution of the clock.
                while system_clock().now() <= now {}
                fixture.add("an-image").await;
            }
            let written = writes.write(&session, now).await;
            assert!(matches!(written, Err(Error::Conflict(None))), "{written:?}");
            let page = db.synchronization_list(&SynchronizationFilter::default(), None, 10).await.expect("a page");
            assert!(page.synchronizations.is_empty(), "nothing of the batch is written");
            for name in ["an-image", "another"] {
                let image = db.image_get(&name.parse().expect("an id")).await;
                assert!(image.map_or(true, |(_, replicas)| replicas.is_empty()), "{name}");
            }
            db.image_remove(&"another".parse().expect("an id")).await.expect("a removal");
        }
        fixture.end().await;
    }

    /// Long reads occupy every connection of the read pool.
    #[tokio::test]
    async fn a_long_read_does_not_delay_calls() {
        let fixture = TestDb::open(["there"], |settings| Settings { readers: 1, ..settings }).await;
        fixture.add("an-image").await;
        let read = fixture.db.0.connections.read_pool().begin().await.expect("a connection");
        fixture.db.accept(new_synchronization("an-image")).await.expect("an id");
        drop(read);
        fixture.end().await;
    }
}
