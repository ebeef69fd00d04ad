//! What the service knows, in a database through sea-orm. Nobody else knows sea-orm or SQL.
//!
//! On SQLite every write goes through one connection; on PostgreSQL and MySQL any number of processes write, and rows are locked in
//! one order by all. Every acknowledged write is on the disk. What stands here is the truth: whoever acts on it (handlers, workers,
//! watchers) may crash and read it again. The time is the database's; on SQLite,
//! which one process has alone, it is the process's.

mod accept;
mod bell;
mod checkpoint;
mod claim;
mod database;
mod duty;
mod ecs_copy;
#[cfg(test)]
pub(crate) mod embedded;
mod entity;
mod error;
mod feed;
mod gate;
mod group;
mod image;
mod image_generation;
mod image_reference;
mod image_use;
mod nonce;
mod published;
mod queue;
mod region_store;
mod registry_habits;
mod replica;
mod report;
mod seal;
mod signal;
mod sql;
mod stray_upload;
mod synchronization;
mod upload;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sea_orm::DbBackend;
use tokio::{
    sync::{OnceCell, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use accept::{Ask, TraceContext};
pub use claim::{Claim, ClaimedRegion, Lane, Order};
pub use database::{Ownership, Settings, migrate};
pub use error::{Error, Result};
pub use feed::Snapshots;
pub use gate::Underway;
pub use image::{ImageFilter, ImagePage, Span, WithReplicas};
pub use image_reference::NameTaken;
pub use published::{Publication, ReadBlob, RegionName};
pub use region_store::RegionStore;
pub use report::Report;
pub use stray_upload::StrayUpload;
pub use synchronization::{Filter, SynchronizationPage};
pub use upload::Abandoned;

use crate::domain::{ClockWatch, Regions};

/// The service's state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct State(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: database::Connections,
    /// Seals what stores say of uploads.
    seal: seal::Seal,
    regions: Regions,
    asks: mpsc::Sender<accept::Queued>,
    reports: mpsc::Sender<report::Queued>,
    publications: mpsc::Sender<published::Queued>,
    subscriptions: feed::Subscriptions,
    signals: signal::Signals,
    /// Looks at the database's clock before something is forgotten by it.
    clock: Mutex<ClockWatch>,
    /// Set when the rows are there that are locked for regions with limits.
    gates: OnceCell<()>,
}

/// The tasks behind a [`State`]. They end when their token is canceled, and are then to be joined.
#[derive(Debug)]
pub struct Tasks(Vec<JoinHandle<()>>);

impl Tasks {
    /// Waits until every task has ended.
    pub async fn join(self) {
        for task in self.0 {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the state ended badly");
            }
        }
    }
}

impl State {
    /// Opens the database, whose schema must be the current one, and starts the tasks behind it: those that commit calls,
    /// reports and publications in groups, the one that feeds watchers, the one that tells other processes and hears from them, and on SQLite the one
    /// that folds the log back. They end when `stop` is canceled.
    pub async fn open(settings: &Settings, regions: Regions, stop: CancellationToken) -> Result<(Self, Tasks)> {
        let db = database::open(settings).await?;
        let seal = seal::Seal::of(settings)?;
        let (asks, asked) = mpsc::channel(settings.accept_queue);
        let (reports, told) = mpsc::channel(report::QUEUE);
        let (publications, noted) = mpsc::channel(published::QUEUE);
        let state = Self(Arc::new(Inner {
            db,
            seal,
            regions,
            asks,
            reports,
            publications,
            subscriptions: feed::Subscriptions::default(),
            signals: signal::Signals::default(),
            clock: Mutex::default(),
            gates: OnceCell::new(),
        }));
        let asked = group::Queue::new("calls", asked, database::GROUPS);
        let mut tasks: Vec<_> = (0..database::GROUPS)
            .map(|_| {
                let own = state.clone();
                let dedicated = own.0.db.dedicated();
                let commit = async move |asks: &[Ask]| accept::commit_together(&own, dedicated.as_ref(), asks).await;
                tokio::spawn(asked.clone().run(settings.accept_batch, stop.clone(), commit))
            })
            .collect();
        let own = state.clone();
        let commit = async move |told: &[report::Told]| report::commit_together(&own, told).await;
        tasks.push(tokio::spawn(group::Queue::new("reports", told, 1).run(report::BATCH, stop.clone(), commit)));
        let own = state.clone();
        let commit = async move |noted: &[published::Noted]| published::commit_together(&own, noted).await;
        let noted = group::Queue::new("publications", noted, 1);
        tasks.push(tokio::spawn(noted.run(published::BATCH, stop.clone(), commit)));
        tasks.push(tokio::spawn(feed::run(state.clone(), settings.poll, stop.clone())));
        if state.0.db.backend() == DbBackend::Sqlite {
            tasks.push(tokio::spawn(checkpoint::run(state.clone(), stop.clone())));
        }
        tasks.push(tokio::spawn(bell::run(state.clone(), stop)));
        Ok((state, Tasks(tasks)))
    }

    /// The configured regions.
    #[must_use]
    pub fn regions(&self) -> &Regions {
        &self.0.regions
    }

    /// Resolves when a replica may have become due since the last call for the same `seen`, or after `at_most`.
    pub async fn due(&self, seen: &mut u64, at_most: Duration) {
        // Time running out is as good a reason to look as a signal.
        let _ = tokio::time::timeout(at_most, self.0.signals.due.raised_since(seen)).await;
    }

    /// Resolves when anything may have changed since the last call for the same `seen`, or after `at_most`.
    pub async fn changed(&self, seen: &mut u64, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.0.signals.changed.raised_since(seen)).await;
    }

    /// Has metrics tell of the connections from now on, for the life of the process.
    pub fn observe_connections(&self) {
        self.0.db.observe();
    }

    /// Closes the connections, after the tasks have ended.
    pub async fn close(&self) -> Result<()> {
        self.0.db.close().await
    }
}
