//! Runs checkpoints of SQLite's write-ahead log concurrently with the writer. A commit that finds the log at its limit
//! runs a checkpoint itself (`wal_autocheckpoint`), and every call waits for it. Regular checkpoints leave little work
//! for such a commit.

use std::time::Duration;

use domain::with_causes;
use sea_orm::{ConnectionTrait as _, FromQueryResult};
use tokio_util::sync::CancellationToken;

use super::{
    Db, Result,
    connections::{PAGE_BYTES, Reader, WAL_LIMIT_BYTES},
    sql::Sql,
};

/// Interval between checkpoints while the database is being written to.
const INTERVAL: Duration = Duration::from_millis(200);

/// Interval between attempts to truncate an oversized log while nothing is written.
const TRUNCATE_INTERVAL: Duration = Duration::from_secs(2);

/// Runs checkpoints until `stop` is canceled.
pub(super) async fn run(db: Db, stop: CancellationToken) {
    let mut seen = 0;
    let mut is_over_limit = false;
    loop {
        let written = async {
            let written = db.0.signals.changed.raised_since(&mut seen);
            if is_over_limit {
                // A reader kept the log from restarting. The log is truncated once the reader has ended, even if
                // nothing is written.
                let _ = tokio::time::timeout(TRUNCATE_INTERVAL, written).await;
            } else {
                written.await;
            }
            tokio::time::sleep(INTERVAL).await;
        };
        if stop.run_until_cancelled(written).await.is_none() {
            return;
        }
        let limit = WAL_LIMIT_BYTES / PAGE_BYTES;
        match db.0.connections.read(async |reader| checkpoint(&reader, limit).await).await {
            Ok(is_over) => is_over_limit = is_over,
            Err(error) => tracing::debug!(error = %with_causes(&error), "checkpoint failed; the writer will run it"),
        }
    }
}

/// Result of `PRAGMA wal_checkpoint`, in pages.
#[derive(FromQueryResult)]
struct CheckpointResult {
    log: i64,
    checkpointed: i64,
}

/// Result of `PRAGMA busy_timeout`, in milliseconds.
#[derive(FromQueryResult)]
struct BusyTimeout {
    timeout: i64,
}

/// Runs a checkpoint, and truncates a log of more than `limit` pages. Returns whether the log was over the limit.
async fn checkpoint(reader: &Reader, limit: i64) -> Result<bool> {
    // PASSIVE checkpoints and other connections do not block each other
    // (<https://sqlite.org/c3ref/wal_checkpoint_v2.html>).
    let results: Vec<CheckpointResult> = Sql::new(reader).text("PRAGMA wal_checkpoint(PASSIVE)").all(reader).await?;
    let Some(result) = results.first().filter(|result| result.log > limit) else { return Ok(false) };
    if result.checkpointed < result.log {
        return Ok(true);
    }
    // Without a busy timeout, TRUNCATE does nothing while there is a reader or a writer, and does not make them wait.
    let timeouts: Vec<BusyTimeout> = Sql::new(reader).text("PRAGMA busy_timeout").all(reader).await?;
    let timeout = timeouts.first().map_or(0, |row| row.timeout);
    let truncate = "PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA busy_timeout = ";
    reader.execute_unprepared(&format!("{truncate}{timeout}")).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sea_orm::{ConnectionTrait as _, TransactionTrait as _};

    use super::checkpoint;
    use crate::testing::{TestDb, new_synchronization};

    const IMAGE: &str = "an-image-to-be-found";

    /// So few writes would stay in the log if no checkpoint ran.
    #[tokio::test]
    async fn written_rows_soon_reach_the_database_file() {
        let fixture = TestDb::open(["there"], |settings| settings).await;
        fixture.add(IMAGE).await;
        fixture.db.accept(new_synchronization(IMAGE)).await.expect("an id");
        let file = fixture.directory.path().join("state.db");
        let in_file = async {
            loop {
                let bytes = tokio::fs::read(&file).await.expect("a file");
                if bytes.windows(IMAGE.len()).any(|window| window == IMAGE.as_bytes()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), in_file).await.expect("a checkpoint");
        fixture.end().await;
    }

    #[tokio::test]
    async fn a_log_over_its_limit_is_truncated_once_its_reader_has_ended() {
        let fixture = TestDb::open(["there"], |settings| settings).await;
        let db = &fixture.db;
        let log = fixture.directory.path().join("state.db-wal");
        let length = || std::fs::metadata(&log).map_or(0, |log| log.len());
        let read = db.0.connections.read_pool().begin().await.expect("a connection");
        read.execute_unprepared("SELECT COUNT(*) FROM image").await.expect("a result");
        fixture.add(IMAGE).await;
        let run = async || db.0.connections.read(async |reader| checkpoint(&reader, 0).await).await.expect("a result");
        assert!(run().await, "it is over the limit");
        assert!(length() > 0, "there is a reader");
        read.rollback().await.expect("a rollback");
        let truncated = async {
            while length() > 0 {
                run().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), truncated).await.expect("a truncated log");
        fixture.end().await;
    }
}
