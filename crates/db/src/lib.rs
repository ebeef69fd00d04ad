//! The database layer: everything the service persists, through sea-orm. No other module knows sea-orm or SQL.
//!
//! On SQLite every write goes through one connection. On PostgreSQL, MySQL and MariaDB any number of processes write,
//! and all lock rows in the same order. An acknowledged write is on disk. The database is the only source of truth:
//! handlers, workers and watchers can crash and read it again. Times are those of the database server's clock or, on
//! SQLite, of the clock of the process that owns the database.

mod blob_records;
mod bulk;
mod checkpoint;
mod connections;
mod ecs_copy;
mod entity;
mod error;
mod events;
mod group_commit;
mod image;
mod image_filter;
mod image_generation;
mod image_reference;
mod image_use;
mod leader;
mod maintenance;
mod nonce;
mod published;
mod queue_stats;
mod region_capacity;
mod region_store;
mod registry_habits;
mod replica;
mod seal;
mod sql;
mod stray_upload;
mod synchronization;
mod system_clock;
#[cfg(test)]
pub(crate) mod testing;
mod upload;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{ClockWatch, Regions};
use sea_orm::DbBackend;
use tokio::{
    sync::{OnceCell, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use blob_records::ReadBlob;
pub use bulk::accept::{NewSynchronization, TraceContext};
pub use bulk::claim::{Claim, ClaimRequest, ClaimedRegion, LaneCapacity};
pub use bulk::report::Report;
pub use connections::{Ownership, Settings, migrate};
pub use error::{Error, Result};
pub use events::watchers::Snapshots;
pub use image::{ImagePage, PageRange, WithReplicas};
pub use image_filter::ImageFilter;
pub use image_reference::NameConflictPolicy;
pub use published::{Publication, RegionName};
pub use region_capacity::CopiesInFlight;
pub use region_store::RegionStore;
pub use stray_upload::StrayUpload;
pub use synchronization::{SynchronizationFilter, SynchronizationPage};
pub use system_clock::system_clock;
pub use upload::AbandonedUpload;

use self::{
    bulk::{accept, report},
    events::{notify, signal, watchers},
};

/// Handle of the database layer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Db(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: connections::Connections,
    /// Encrypts upload sessions.
    seal: seal::Seal,
    regions: Regions,
    accept_queue: mpsc::Sender<accept::Queued>,
    report_queue: mpsc::Sender<report::Queued>,
    publication_queue: mpsc::Sender<published::Queued>,
    subscriptions: watchers::Subscriptions,
    signals: signal::Signals,
    /// Detects when the database's clock is set. Pruning then pauses.
    clock_watch: Mutex<ClockWatch>,
    /// Set once the rows of `region_lock` exist.
    region_locks: OnceCell<()>,
}

/// Background tasks of a [`Db`]. They end when their token is canceled; join them before closing the [`Db`].
#[derive(Debug)]
pub struct Tasks(Vec<JoinHandle<()>>);

impl Tasks {
    /// Waits until every task has ended.
    pub async fn join(self) {
        for task in self.0 {
            if let Err(error) = task.await {
                tracing::error!(%error, "a database task panicked");
            }
        }
    }
}

impl Db {
    /// Opens the database and starts its background tasks, which end when `stop` is canceled: group commit of calls,
    /// reports and publications, the watchers' reader, notifications between processes, and checkpoints on SQLite.
    /// Returns an error unless the schema is the current one.
    pub async fn open(settings: &Settings, regions: Regions, stop: CancellationToken) -> Result<(Self, Tasks)> {
        let connections = connections::open(settings).await?;
        let seal = seal::Seal::new(settings)?;
        let (accept_queue, calls) = mpsc::channel(settings.accept_queue);
        let (report_queue, reports) = mpsc::channel(report::QUEUE);
        let (publication_queue, publications) = mpsc::channel(published::QUEUE);
        let db = Self(Arc::new(Inner {
            connections,
            seal,
            regions,
            accept_queue,
            report_queue,
            publication_queue,
            subscriptions: watchers::Subscriptions::default(),
            signals: signal::Signals::default(),
            clock_watch: Mutex::default(),
            region_locks: OnceCell::new(),
        }));
        let mut tasks = Vec::new();
        let calls = group_commit::Queue::new("calls", calls, connections::COMMIT_TASKS);
        for _ in 0..connections::COMMIT_TASKS {
            let (db, pinned) = (db.clone(), db.0.connections.pinned());
            let commit =
                async move |calls: &[NewSynchronization]| accept::commit_batch(&db, pinned.as_ref(), calls).await;
            tasks.push(tokio::spawn(calls.clone().run(settings.accept_batch, stop.clone(), commit)));
        }
        let reporting = db.clone();
        let commit = async move |batches: &[report::ReportBatch]| report::commit_batch(&reporting, batches).await;
        let reports = group_commit::Queue::new("reports", reports, 1);
        tasks.push(tokio::spawn(reports.run(report::BATCH, stop.clone(), commit)));
        let publishing = db.clone();
        let commit =
            async move |writes: &[published::PublicationWrite]| published::commit_batch(&publishing, writes).await;
        let publications = group_commit::Queue::new("publications", publications, 1);
        tasks.push(tokio::spawn(publications.run(published::BATCH, stop.clone(), commit)));
        tasks.push(tokio::spawn(watchers::run(db.clone(), settings.poll, stop.clone())));
        if db.0.connections.backend() == DbBackend::Sqlite {
            tasks.push(tokio::spawn(checkpoint::run(db.clone(), stop.clone())));
        }
        tasks.push(tokio::spawn(notify::run(db.clone(), stop)));
        Ok((db, Tasks(tasks)))
    }

    /// Returns the configured regions.
    #[must_use]
    pub fn regions(&self) -> &Regions {
        &self.0.regions
    }

    /// Waits until a replica may have become due since the last call with the same `seen`, at most for `limit`.
    pub async fn due(&self, seen: &mut u64, limit: Duration) {
        // The caller polls after a timeout too.
        let _ = tokio::time::timeout(limit, self.0.signals.due.raised_since(seen)).await;
    }

    /// Waits until anything may have changed since the last call with the same `seen`, at most for `limit`.
    pub async fn changed(&self, seen: &mut u64, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.0.signals.changed.raised_since(seen)).await;
    }

    /// Registers the metrics of the connection pools for the life of the process.
    pub fn observe_connections(&self) {
        self.0.connections.observe();
    }

    /// Closes the connections. Join the tasks first.
    pub async fn close(&self) -> Result<()> {
        self.0.connections.close().await
    }
}
