//! The target of statements, a pool or a transaction, with its clock.

use std::sync::Arc;

use domain::Timestamp;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult, Statement,
};

use super::process_time::ProcessTime;

/// A pool, a pinned connection or a transaction.
#[derive(Debug)]
pub struct Session<C> {
    inner: Arc<C>,
    /// The clock of a database that this process owns; `None` where the server's clock is used.
    time: Option<Arc<ProcessTime>>,
}

/// The read pool.
pub type Reader = Session<DatabaseConnection>;

/// A transaction on the write pool.
pub type Transaction = Session<DatabaseTransaction>;

impl<C> Session<C> {
    pub(super) fn new(inner: C, time: Option<Arc<ProcessTime>>) -> Self {
        Self { inner: Arc::new(inner), time }
    }

    pub(super) fn inner(&self) -> &C {
        &self.inner
    }

    /// Returns the target unless another clone exists.
    pub(super) fn into_inner(self) -> Option<C> {
        Arc::into_inner(self.inner)
    }

    /// Returns the time of the process, or `None` where the server's clock is used.
    pub fn now(&self) -> Option<Timestamp> {
        self.time.as_ref().map(|time| time.now())
    }
}

impl<C> Clone for Session<C> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), time: self.time.clone() }
    }
}

#[async_trait::async_trait]
impl<C: ConnectionTrait + Send> ConnectionTrait for Session<C> {
    fn get_database_backend(&self) -> DbBackend {
        self.inner.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.inner.execute_raw(statement).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.inner.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.inner.query_one_raw(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.inner.query_all_raw(statement).await
    }
}
