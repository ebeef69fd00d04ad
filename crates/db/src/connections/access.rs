//! The only ways to query the database. Each has a deadline, so that a server that stops responding cannot block the
//! caller.

use std::time::Duration;

use sea_orm::{
    DbErr, RuntimeErr, SqliteTransactionMode, TransactionOptions, TransactionTrait as _,
    sqlx::{
        self, Executor as _,
        postgres::{PgListener, PgPoolOptions},
    },
};
use tokio::time::timeout;
use tracing::Instrument as _;

use super::{
    super::{Error, Result, group_commit::retry_conflicts},
    Connections,
    session::{Reader, Session, Transaction},
};

impl Connections {
    /// Runs queries on the read pool.
    pub async fn read<T, F: Future<Output = Result<T>>>(&self, queries: impl FnOnce(Reader) -> F) -> Result<T> {
        self.with_deadline(self.timeout, queries(self.reader.clone())).await
    }

    /// Runs a transaction and commits it if `queries` succeeds. Retries it after a write conflict.
    pub async fn transaction<T, F: Future<Output = Result<T>>>(&self, queries: impl Fn(Transaction) -> F) -> Result<T> {
        self.with_deadline(self.write_timeout, retry_conflicts(|| self.begin_and_commit(&queries))).await
    }

    /// Runs a transaction once, for callers that handle a write conflict themselves.
    pub async fn transaction_once<T, F: Future<Output = Result<T>>>(
        &self,
        queries: impl FnOnce(Transaction) -> F,
    ) -> Result<T> {
        self.with_deadline(self.write_timeout, self.begin_and_commit(queries)).await
    }

    /// Runs the queries of a batch, which use the pinned connection of its task.
    pub async fn batch<T>(&self, queries: impl Future<Output = Result<T>>) -> Result<T> {
        self.with_deadline(self.write_timeout, queries).await
    }

    async fn begin_and_commit<T, F: Future<Output = Result<T>>>(
        &self,
        queries: impl FnOnce(Transaction) -> F,
    ) -> Result<T> {
        let txn = self.begin().instrument(tracing::trace_span!("step: begin")).await?;
        // On an error, dropping the transaction rolls it back.
        let value = queries(txn.clone()).await?;
        let txn = txn.into_inner().ok_or_else(|| DbErr::Custom("a transaction is still in use".to_owned()))?;
        txn.commit().instrument(tracing::trace_span!("step: commit")).await?;
        self.write_health.confirm();
        Ok(value)
    }

    /// Begins a transaction. On SQLite it takes the write lock at once: a transaction that begins with a read can fail
    /// to upgrade its lock later.
    async fn begin(&self) -> Result<Transaction> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let txn = self.write_pool().await.begin_with_options(options).await?;
        Ok(Session::new(txn, self.time.clone()))
    }

    /// Applies a deadline. A transaction that misses the deadline is rolled back; a single statement may still be
    /// executed.
    async fn with_deadline<T>(&self, limit: Duration, queries: impl Future<Output = Result<T>>) -> Result<T> {
        let result = timeout(limit, queries).await.unwrap_or(Err(Error::Slow(limit)));
        if matches!(result, Err(Error::ReadOnly)) {
            self.failover.mark();
        }
        if matches!(result, Err(Error::ReadOnly | Error::Unavailable(_) | Error::Slow(_))) {
            self.write_health.invalidate();
        }
        result
    }

    /// Subscribes to a channel of PostgreSQL on a connection outside the pools, so that a connection that stops
    /// responding does not occupy a slot in a pool.
    pub async fn listen(&self, channel: &str) -> Result<Listener> {
        let options = self.reader.inner().get_postgres_connection_pool().connect_options();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.timeout)
            .test_before_acquire(false)
            .connect_lazy_with((*options).clone());
        let listen = async {
            let mut listener = PgListener::connect_with(&pool).await.map_err(connection_error)?;
            listener.ignore_pool_close_event(true);
            listener.listen(channel).await.map_err(connection_error)?;
            Ok(Listener { listener, timeout: self.timeout })
        };
        self.with_deadline(self.timeout, listen).await
    }
}

/// Interval at which the connection of a listener is checked while it receives nothing.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// Receives the notifications of a channel.
#[derive(Debug)]
pub struct Listener {
    listener: PgListener,
    timeout: Duration,
}

impl Listener {
    /// Returns the next message, or `None` after the connection was lost and messages may have been missed. Returns an
    /// error if the server does not respond.
    pub async fn next(&mut self) -> Result<Option<String>> {
        loop {
            match timeout(CHECK_INTERVAL, self.listener.try_recv()).await {
                Ok(message) => {
                    return Ok(message.map_err(connection_error)?.map(|message| message.payload().to_owned()));
                }
                Err(_) => {
                    let result = timeout(self.timeout, self.listener.execute("SELECT 1")).await;
                    result.map_err(|_| Error::Slow(self.timeout))?.map_err(connection_error)?;
                }
            }
        }
    }
}

fn connection_error(error: sqlx::Error) -> Error {
    DbErr::Conn(RuntimeErr::SqlxError(error.into())).into()
}
