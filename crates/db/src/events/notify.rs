//! Wake-ups between processes through PostgreSQL's LISTEN and NOTIFY.
//!
//! A NOTIFY takes a global lock when it commits. It therefore runs in its own transaction, at most a few times a
//! second, regardless of the number of changes. A process that misses a notification polls a little later.

use std::time::Duration;

use sea_orm::DbBackend;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Db, Error, connections::Transaction, sql::Sql};

/// Name of the channel in the service's database.
const CHANNEL: &str = "appferry";
const DUE: &str = "due";
const CHANGED: &str = "changed";

/// Changes within this interval share one notification.
const INTERVAL: Duration = Duration::from_millis(50);

/// Wait before a lost connection is opened again.
const RECONNECT_WAIT: Duration = Duration::from_millis(500);

/// Publishes to the other processes and listens to them until `stop` is canceled.
pub async fn run(db: Db, stop: CancellationToken) {
    if db.0.connections.backend() != DbBackend::Postgres {
        return;
    }
    // Identifies the process's own notifications, which it ignores.
    let sender = Uuid::now_v7().simple().to_string();
    let both = async { tokio::join!(publish(&db, &sender), listen(&db, &sender)) };
    tokio::select! {
        _ = both => {}
        () = stop.cancelled() => {}
    }
}

async fn publish(db: &Db, sender: &str) {
    let pending = &db.0.signals.pending;
    loop {
        pending.wait().await;
        tokio::time::sleep(INTERVAL).await;
        let (due, changed) = pending.take();
        for (topic, _) in [(DUE, due), (CHANGED, changed)].into_iter().filter(|(_, is_pending)| *is_pending) {
            let notify = async |txn: Transaction| {
                let txn = &txn;
                Sql::new(txn)
                    .text("SELECT pg_notify(")
                    .value(CHANNEL)
                    .text(", ")
                    .value(format!("{topic} {sender}"))
                    .text(")")
                    .execute(txn)
                    .await?;
                Ok(())
            };
            if let Err(error) = db.0.connections.transaction_once(notify).await {
                tracing::debug!(%error, topic, "failed to notify other processes; they will poll");
            }
        }
    }
}

async fn listen(db: &Db, sender: &str) {
    let signals = &db.0.signals;
    loop {
        let listen = async {
            let mut listener = db.0.connections.listen(CHANNEL).await?;
            // Earlier notifications were missed.
            signals.due.raise();
            signals.changed.raise();
            while let Some(message) = listener.next().await? {
                match message.split_once(' ') {
                    Some((_, from)) if from == sender => {}
                    Some((DUE, _)) => signals.due.raise(),
                    Some((CHANGED, _)) => signals.changed.raise(),
                    _ => {}
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = listen.await {
            tracing::debug!(%error, "failed to listen for notifications; polling, will retry");
        }
        tokio::time::sleep(RECONNECT_WAIT).await;
    }
}
