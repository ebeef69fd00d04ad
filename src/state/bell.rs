//! Wake-ups between processes, by PostgreSQL's LISTEN and NOTIFY.
//!
//! A NOTIFY takes a lock on the whole database when it commits: it is never part of a transaction that does anything else, and
//! however much happens in a process, it sends a few a second at most. Whoever misses one looks by itself a little later.

use std::time::Duration;

use sea_orm::DbBackend;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Error, State, database::Transaction, sql::Sql};

/// The channel, of the database that the service uses.
const CHANNEL: &str = "appferry";
const DUE: &str = "due";
const CHANGED: &str = "changed";

/// What comes within that time is told together.
const AT_MOST_EVERY: Duration = Duration::from_millis(50);

/// How long to wait before a connection is made again that was lost.
const AGAIN: Duration = Duration::from_millis(500);

/// Tells the other processes and hears from them, until `stop` is canceled.
pub(super) async fn run(state: State, stop: CancellationToken) {
    if state.0.db.backend() != DbBackend::Postgres {
        return;
    }
    // Whoever rings does not have to hear it.
    let own = Uuid::now_v7().simple().to_string();
    let both = async { tokio::join!(ring(&state, &own), hear(&state, &own)) };
    tokio::select! {
        _ = both => {}
        () = stop.cancelled() => {}
    }
}

async fn ring(state: &State, own: &str) {
    let untold = &state.0.signals.untold;
    loop {
        untold.any().await;
        tokio::time::sleep(AT_MOST_EVERY).await;
        let (due, changed) = untold.take();
        for (what, _) in [(DUE, due), (CHANGED, changed)].into_iter().filter(|(_, is)| *is) {
            let notify = async |txn: Transaction| {
                let txn = &txn;
                Sql::on(txn)
                    .text("SELECT pg_notify(")
                    .value(CHANNEL)
                    .text(", ")
                    .value(format!("{what} {own}"))
                    .text(")")
                    .execute(txn)
                    .await?;
                Ok(())
            };
            if let Err(error) = state.0.db.transaction_once(notify).await {
                tracing::debug!(%error, "other processes could not be told");
            }
        }
    }
}

async fn hear(state: &State, own: &str) {
    let signals = &state.0.signals;
    loop {
        let heard = async {
            let mut listener = state.0.db.listen(CHANNEL).await?;
            // What was told before is not heard any more.
            signals.due.raise();
            signals.changed.raise();
            while let Some(message) = listener.next().await? {
                match message.split_once(' ') {
                    Some((_, teller)) if teller == own => {}
                    Some((DUE, _)) => signals.due.raise(),
                    Some((CHANGED, _)) => signals.changed.raise(),
                    _ => {}
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = heard.await {
            tracing::debug!(%error, "other processes can't be heard for now");
        }
        tokio::time::sleep(AGAIN).await;
    }
}
