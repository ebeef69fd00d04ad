//! What the service knows, in a database through sea-orm. Nobody else knows sea-orm or SQL.
//!
//! Every write goes through one connection and every acknowledged one is on the disk; readers have connections of their own.
//! What stands here is the truth: whoever acts on it (handlers, workers, watchers) may crash and read it again.

mod accept;
mod connection;
mod entity;
mod error;
mod feed;
mod image;
mod replica;
mod signal;
mod synchronization;
mod upload;

use std::{sync::Arc, time::Duration};

use sea_orm::DatabaseConnection;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use accept::{Ask, TraceContext};
pub use connection::{Settings, migrate};
pub use error::{Error, Result};
pub use feed::Snapshots;
pub use image::ImagePage;
pub use replica::{Claim, ClaimedRegion, Report};
pub use synchronization::{Filter, SynchronizationPage};
pub use upload::Abandoned;

use crate::domain::{Clock, Regions};
use signal::Signal;

/// The service's state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct State(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    read: DatabaseConnection,
    write: DatabaseConnection,
    clock: Clock,
    regions: Regions,
    asks: mpsc::Sender<accept::Queued>,
    subscriptions: feed::Subscriptions,
    /// Raised when a replica may have become due.
    due: Signal,
    /// Raised when what a watcher sees may have changed.
    changed: Signal,
}

/// The tasks behind a [`State`]. They end when their token is canceled, and are then to be joined.
#[derive(Debug)]
pub struct Tasks {
    writer: JoinHandle<()>,
    feed: JoinHandle<()>,
}

impl Tasks {
    /// Waits until every task has ended.
    pub async fn join(self) {
        for task in [self.writer, self.feed] {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the state ended badly");
            }
        }
    }
}

impl State {
    /// Opens the database, whose schema must be the current one, and starts the tasks behind it: the one that commits
    /// accepted calls in groups, and the one that feeds watchers. They end when `stop` is canceled.
    pub async fn open(
        settings: &Settings,
        regions: Regions,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<(Self, Tasks)> {
        let (write, read) = connection::open(settings).await?;
        let (asks, queue) = mpsc::channel(settings.accept_queue);
        let state = Self(Arc::new(Inner {
            read,
            write,
            clock,
            regions,
            asks,
            subscriptions: feed::Subscriptions::default(),
            due: Signal::default(),
            changed: Signal::default(),
        }));
        let tasks = Tasks {
            writer: tokio::spawn(accept::run(state.clone(), queue, settings.accept_batch, stop.clone())),
            feed: tokio::spawn(feed::run(state.clone(), settings.poll, stop)),
        };
        Ok((state, tasks))
    }

    /// The configured regions.
    #[must_use]
    pub fn regions(&self) -> &Regions {
        &self.0.regions
    }

    /// Resolves when a replica may have become due since the last call for the same `seen`, or after `at_most`.
    pub async fn due(&self, seen: &mut u64, at_most: Duration) {
        // Time running out is as good a reason to look as a signal.
        let _ = tokio::time::timeout(at_most, self.0.due.raised_since(seen)).await;
    }

    /// Resolves when anything may have changed since the last call for the same `seen`, or after `at_most`.
    pub async fn changed(&self, seen: &mut u64, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.0.changed.raised_since(seen)).await;
    }

    /// Asks the database whether it answers.
    pub async fn ping(&self) -> Result<()> {
        Ok(self.0.read.ping().await?)
    }

    /// Closes the connections, after the tasks have ended.
    pub async fn close(&self) -> Result<()> {
        self.0.read.clone().close().await?;
        Ok(self.0.write.clone().close().await?)
    }
}
