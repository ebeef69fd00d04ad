//! Nonces of signed requests: whichever process sees one first keeps it, and no other takes it again.

use sea_orm::{EntityTrait, Set, SqlErr};
use sha2::{Digest as _, Sha256};

use super::{Error, Result, State, database::Transaction, entity::nonce, sql::Sql};
use crate::identity::acs3::{CLOCK_SKEW, Nonce};

impl State {
    /// Remembers a nonce. Returns whether it is new.
    pub async fn nonce_remember(&self, nonce: &Nonce) -> Result<bool> {
        // Its own text may be longer than a name, and in any characters.
        let text = format!("{}\n{}", nonce.access_key_id, nonce.value);
        let row = nonce::ActiveModel {
            digest: Set(hex::encode(Sha256::digest(text))),
            expires_at: Set(nonce.until.as_millis()),
        };
        let insert = async |txn: Transaction| Ok(nonce::Entity::insert(row).exec_without_returning(&txn).await?);
        match self.0.db.transaction_once(insert).await {
            Ok(_) => Ok(true),
            Err(Error::Conflict(Some(error)))
                if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets nonces with which no request can come any more.
    pub async fn nonce_prune(&self) -> Result<u64> {
        if !self.clock_is_steady().await? {
            return Ok(0);
        }
        let skew = i64::try_from(CLOCK_SKEW.as_millis()).unwrap_or(i64::MAX);
        // The database's clock may be ahead of that by which requests are judged.
        let prune = async |txn: Transaction| {
            let txn = &txn;
            let delete = Sql::on(txn).text("DELETE FROM nonce WHERE expires_at < ").now().text(" - ").value(skew);
            Ok(delete.execute(txn).await?)
        };
        self.0.db.transaction(prune).await
    }
}
