//! Nonces of signed requests. The first process that sees a nonce claims it, and no other process accepts it again.

use acs3::{CLOCK_SKEW, Nonce};
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, Set, SqlErr};
use sha2::{Digest as _, Sha256};

use super::{
    Db, Error, Result,
    connections::Transaction,
    entity::{
        columns::Number,
        nonce::{ActiveModel, Column, Entity},
    },
    sql,
};

impl Db {
    /// Claims a nonce. Returns whether it is new.
    pub async fn nonce_claim(&self, nonce: &Nonce) -> Result<bool> {
        // Stores a digest, because a nonce may be longer than an id and contain any character.
        let text = format!("{}\n{}", nonce.access_key_id, nonce.value);
        let row = ActiveModel { digest: Set(hex::encode(Sha256::digest(text))), expires_at: Set(nonce.until.into()) };
        let insert = async |txn: Transaction| Ok(Entity::insert(row).exec_without_returning(&txn).await?);
        match self.0.connections.transaction_once(insert).await {
            Ok(_) => Ok(true),
            Err(Error::Conflict(Some(error)))
                if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes the nonces of expired requests. Returns the number of deleted nonces.
    pub async fn nonce_prune(&self) -> Result<u64> {
        if !self.is_clock_steady().await? {
            return Ok(0);
        }
        let prune = async |txn: Transaction| {
            // The database's clock may be ahead of the clock by which the age of requests is checked.
            let until = sql::database_time(&txn).await?.before(CLOCK_SKEW);
            let deleted = Entity::delete_many().filter(Column::ExpiresAt.lt(Number(until))).exec(&txn).await?;
            Ok(deleted.rows_affected)
        };
        self.0.connections.transaction(prune).await
    }
}
