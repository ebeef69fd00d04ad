//! Shuts down a running service in a fixed order and within a deadline.

use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::Service;
use crate::{db::Db, server};

/// When the stages of a shutdown end, in percent of the configured time. The rest is for the last spans and log lines.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Calls and copies in flight finish.
    Calls = 60,
    /// Calls and copies finish after their connections were cut.
    CutCalls = 70,
    /// The tasks of the database end.
    StateTasks = 75,
    /// The admin listener ends.
    Admin = 78,
    /// The last lines of the audit log are written.
    Audit = 82,
    /// The connections to the database are closed.
    Database = 86,
}

/// The outcome of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Every part has ended.
    Complete,
    /// A part did not end in time and was left behind.
    Incomplete,
}

impl Service {
    /// Shuts the service down in this order: reports that it is not ready, stops accepting calls, finishes the calls in
    /// flight, releases leases, and closes the database. Returns within [`Self::shutdown_limit`], even if clients,
    /// stores or the database hang.
    pub async fn shutdown(self) -> Shutdown {
        if let Some(health) = &self.health {
            server::health::set(health, tonic_health::ServingStatus::NotServing).await;
        }
        self.tokens.drain.cancel();
        tokio::time::sleep(self.drain_time).await;
        let start = Instant::now();
        let deadline = |stage: Stage| start + self.shutdown_time * stage as u32 / 100;
        self.tokens.stop.cancel();
        if let Some(health) = self.health {
            server::health::end_watches(health).await;
        }
        let mut is_complete = true;
        let finish = join_all(self.tasks);
        tokio::pin!(finish);
        if timeout_at(deadline(Stage::Calls), finish.as_mut()).await.is_err() {
            tracing::warn!("calls are still in flight; cutting their connections");
            self.tokens.abandon.cancel();
            if timeout_at(deadline(Stage::CutCalls), finish).await.is_err() {
                tracing::error!("tasks did not end in time; leases will expire");
                is_complete = false;
            }
        }
        self.tokens.state.cancel();
        if timeout_at(deadline(Stage::StateTasks), self.state_tasks.join()).await.is_err() {
            tracing::error!(
                "the database did not answer in time; unwritten reports are lost and their leases will expire"
            );
            is_complete = false;
        }
        if let Some(task) = self.admin
            && !matches!(timeout_at(deadline(Stage::Admin), task).await, Ok(Ok(())))
        {
            tracing::warn!("the admin listener did not shut down cleanly");
        }
        if let Some(task) = self.audit
            && timeout_at(deadline(Stage::Audit), task).await.is_err()
        {
            tracing::error!("failed to write the audit log to its end in time; its last lines are lost");
            is_complete = false;
        }
        close(&self.state, deadline(Stage::Database)).await;
        if is_complete { Shutdown::Complete } else { Shutdown::Incomplete }
    }
}

async fn join_all(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task of the service panicked");
        }
    }
}

async fn close(state: &Db, deadline: Instant) {
    match timeout_at(deadline, state.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "failed to close the database"),
        Err(_) => tracing::warn!("failed to close the connections to the database in time"),
    }
}
