//! SQLite's log is folded back into the database beside the writer. A commit that finds the log long folds back what is left of it
//! (`wal_autocheckpoint`), and every call waits for that; so there should not be much left.

use std::time::Duration;

use sea_orm::{ConnectionTrait as _, FromQueryResult};
use tokio_util::sync::CancellationToken;

use super::{
    Result, State,
    database::{LOG_LIMIT, PAGE, Reader},
    sql::Sql,
};
use crate::domain::with_causes;

/// How often, while something is written.
const EVERY: Duration = Duration::from_millis(200);

/// How often a log is looked at that has become too long, while nothing is written.
const AGAIN: Duration = Duration::from_secs(2);

/// Folds back what has been written, until `stop` is canceled.
pub(super) async fn run(state: State, stop: CancellationToken) {
    let mut seen = 0;
    let mut long = false;
    loop {
        let written = async {
            let written = state.0.signals.changed.raised_since(&mut seen);
            if long {
                // A reader kept it long; it is truncated once that reader has ended, even if nothing is written.
                let _ = tokio::time::timeout(AGAIN, written).await;
            } else {
                written.await;
            }
            tokio::time::sleep(EVERY).await;
        };
        if stop.run_until_cancelled(written).await.is_none() {
            return;
        }
        match state.0.db.read(async |db| fold(&db, LOG_LIMIT / PAGE).await).await {
            Ok(is_long) => long = is_long,
            Err(error) => {
                tracing::debug!(error = %with_causes(&error), "the log could not be folded back; the writer will do it");
            }
        }
    }
}

/// What a checkpoint says of the log, in pages.
#[derive(FromQueryResult)]
struct Folded {
    log: i64,
    checkpointed: i64,
}

/// How long a connection waits for others, in milliseconds.
#[derive(FromQueryResult)]
struct Patience {
    timeout: i64,
}

/// Folds the log back, and cuts one off that is longer than `limit` pages. Returns whether it is long, or was.
async fn fold(db: &Reader, limit: i64) -> Result<bool> {
    let sql = Sql::on(db).text("PRAGMA wal_checkpoint(PASSIVE)");
    // PASSIVE checkpoints neither block nor are blocked (<https://sqlite.org/c3ref/wal_checkpoint_v2.html>).
    let folded: Vec<Folded> = sql.all(db).await?;
    let Some(folded) = folded.first().filter(|folded| folded.log > limit) else { return Ok(false) };
    if folded.checkpointed < folded.log {
        return Ok(true);
    }
    // Without a busy time-out it does nothing while there is a reader or a writer, so that neither waits.
    let patience: Vec<Patience> = Sql::on(db).text("PRAGMA busy_timeout").all(db).await?;
    let patience = patience.first().map_or(0, |patience| patience.timeout);
    let cut = "PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA busy_timeout = ";
    db.execute_unprepared(&format!("{cut}{patience}")).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sea_orm::{ConnectionTrait as _, TransactionTrait as _};

    use super::fold;
    use crate::state::embedded::{Embedded, ask};

    const IMAGE: &str = "an-image-to-be-found";

    /// So few calls would stay in the log for good.
    #[tokio::test]
    async fn what_was_written_is_soon_in_the_database_itself() {
        let embedded = Embedded::open(["there"], |settings| settings).await;
        embedded.add(IMAGE).await;
        embedded.state.accept(ask(IMAGE)).await.expect("it is accepted");
        let file = embedded.directory.path().join("state.db");
        let folded = async {
            loop {
                let bytes = tokio::fs::read(&file).await.expect("it is a file");
                if bytes.windows(IMAGE.len()).any(|window| window == IMAGE.as_bytes()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), folded).await.expect("the log is folded back");
        embedded.end().await;
    }

    /// A reader keeps the log; once it has ended, the log is truncated.
    #[tokio::test]
    async fn a_log_that_has_become_long_is_cut_off_when_nobody_reads_it() {
        let embedded = Embedded::open(["there"], |settings| settings).await;
        let state = &embedded.state;
        let log = embedded.directory.path().join("state.db-wal");
        let length = || std::fs::metadata(&log).map_or(0, |log| log.len());
        let reading = state.0.db.readers().begin().await.expect("it is there");
        reading.execute_unprepared("SELECT COUNT(*) FROM image").await.expect("it answers");
        embedded.add(IMAGE).await;
        let cut = async || state.0.db.read(async |db| fold(&db, 0).await).await.expect("it answers");
        assert!(cut().await, "it is long");
        assert!(length() > 0, "there is a reader");
        reading.rollback().await.expect("it ends");
        let gone = async {
            while length() > 0 {
                cut().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.expect("it is cut off");
        embedded.end().await;
    }
}
