//! The only ways to the database. Each has a deadline, whatever the network does: a server that goes silent is given up.

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
    super::{Error, Result, group::retrying},
    Connections,
    session::{Reader, Session, Transaction},
};

impl Connections {
    /// Reads, in time.
    pub async fn read<T, F: Future<Output = Result<T>>>(&self, ask: impl FnOnce(Reader) -> F) -> Result<T> {
        self.in_time(self.timeout, ask(self.reader.clone())).await
    }

    /// Carries out a transaction, in time, and commits it if `act` succeeds. Where others have changed the same, it is carried out
    /// again.
    pub async fn transaction<T, F: Future<Output = Result<T>>>(&self, act: impl Fn(Transaction) -> F) -> Result<T> {
        self.in_time(self.write_timeout, retrying(|| self.begin_and_commit(&act))).await
    }

    /// The same once, for who tries it again in another way.
    pub async fn transaction_once<T, F: Future<Output = Result<T>>>(
        &self,
        act: impl FnOnce(Transaction) -> F,
    ) -> Result<T> {
        self.in_time(self.write_timeout, self.begin_and_commit(act)).await
    }

    /// Carries out what a group does on connections that its task keeps, in time.
    pub async fn group<T>(&self, ask: impl Future<Output = Result<T>>) -> Result<T> {
        self.in_time(self.write_timeout, ask).await
    }

    async fn begin_and_commit<T, F: Future<Output = Result<T>>>(
        &self,
        act: impl FnOnce(Transaction) -> F,
    ) -> Result<T> {
        let txn = self.begin().instrument(tracing::trace_span!("step: begin")).await?;
        // Where it fails, the transaction is rolled back when it is dropped.
        let done = act(txn.clone()).await?;
        let txn = txn.into_inner().ok_or_else(|| DbErr::Custom("a transaction is still in use".to_owned()))?;
        txn.commit().instrument(tracing::trace_span!("step: commit")).await?;
        self.writable.believe();
        Ok(done)
    }

    /// Begins a transaction. On SQLite it takes the write lock at once: one that began by reading could be refused it later.
    async fn begin(&self) -> Result<Transaction> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let txn = self.writers().await.begin_with_options(options).await?;
        Ok(Session::new(txn, self.time.clone()))
    }

    /// Carries out what asks the database, in time. A transaction that is given up is rolled back; a statement that is one by itself may
    /// still be carried out.
    async fn in_time<T>(&self, limit: Duration, ask: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = timeout(limit, ask).await.unwrap_or(Err(Error::Slow(limit)));
        if matches!(answer, Err(Error::ReadOnly)) {
            self.demoted.note();
        }
        if matches!(answer, Err(Error::ReadOnly | Error::Unavailable(_) | Error::Slow(_))) {
            self.writable.doubt();
        }
        answer
    }

    /// Listens to a channel of PostgreSQL, on a connection of its own: one that went silent can be left behind without taking a place
    /// in a pool.
    pub async fn listen(&self, channel: &str) -> Result<Listener> {
        let options = self.reader.inner().get_postgres_connection_pool().connect_options();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.timeout)
            .test_before_acquire(false)
            .connect_lazy_with((*options).clone());
        let listen = async {
            let mut listener = PgListener::connect_with(&pool).await.map_err(not_heard)?;
            listener.ignore_pool_close_event(true);
            listener.listen(channel).await.map_err(not_heard)?;
            Ok(Listener { listener, timeout: self.timeout })
        };
        self.in_time(self.timeout, listen).await
    }
}

/// How often the connection of a listener is looked at while nothing is heard.
const LOOK: Duration = Duration::from_secs(15);

/// Receives the notifications of a channel.
#[derive(Debug)]
pub struct Listener {
    listener: PgListener,
    timeout: Duration,
}

impl Listener {
    /// The next message; nothing if the connection was lost, and messages may have been. Fails if the server does not answer any more.
    pub async fn next(&mut self) -> Result<Option<String>> {
        loop {
            match timeout(LOOK, self.listener.try_recv()).await {
                Ok(message) => return Ok(message.map_err(not_heard)?.map(|message| message.payload().to_owned())),
                Err(_) => {
                    let answer = timeout(self.timeout, self.listener.execute("SELECT 1")).await;
                    answer.map_err(|_| Error::Slow(self.timeout))?.map_err(not_heard)?;
                }
            }
        }
    }
}

fn not_heard(error: sqlx::Error) -> Error {
    DbErr::Conn(RuntimeErr::SqlxError(error.into())).into()
}
