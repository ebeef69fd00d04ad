//! SQLite's log is folded back into the database beside the writer. A commit that finds the log long folds back what is left of it
//! (`wal_autocheckpoint`), and every call waits for that; so there should not be much left.

use std::time::Duration;

use sea_orm::ConnectionTrait as _;
use tokio_util::sync::CancellationToken;

use super::State;
use crate::domain::with_causes;

/// How often, while something is written.
const EVERY: Duration = Duration::from_millis(200);

/// Folds back what has been written, until `stop` is canceled.
pub(super) async fn run(state: State, stop: CancellationToken) {
    let mut seen = 0;
    loop {
        let written = async {
            state.0.signals.changed.raised_since(&mut seen).await;
            tokio::time::sleep(EVERY).await;
        };
        if stop.run_until_cancelled(written).await.is_none() {
            return;
        }
        // It waits for nobody, and nobody for it (<https://sqlite.org/c3ref/wal_checkpoint_v2.html>).
        let fold = async { Ok(state.0.db.read.execute_unprepared("PRAGMA wal_checkpoint(PASSIVE)").await?) };
        if let Err(error) = state.in_time(fold).await {
            tracing::debug!(error = %with_causes(&error), "the log could not be folded back; the writer will do it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
}
