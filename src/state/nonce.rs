//! Nonces of signed requests: whichever process sees one first keeps it, and no other takes it again.

use sea_orm::{
    EntityTrait, QueryFilter, Set, SqlErr,
    sea_query::{Expr, ExprTrait as _},
};
use sha2::{Digest as _, Sha256};

use super::{Result, State, entity::nonce, sql::now};
use crate::identity::acs3::{CLOCK_SKEW, Nonce};

impl State {
    /// Remembers a nonce. Returns whether it is new.
    pub async fn nonce_remember(&self, nonce: &Nonce) -> Result<bool> {
        self.in_time(self.nonce_remember_once(nonce)).await
    }

    async fn nonce_remember_once(&self, nonce: &Nonce) -> Result<bool> {
        // Its own text may be longer than a name, and in any characters.
        let text = format!("{}\n{}", nonce.access_key_id, nonce.value);
        let row = nonce::ActiveModel {
            digest: Set(hex::encode(Sha256::digest(text))),
            expires_at: Set(nonce.until.as_millis()),
        };
        let txn = self.write().await?;
        match nonce::Entity::insert(row).exec_without_returning(&txn).await {
            Ok(_) => {
                txn.commit().await?;
                Ok(true)
            }
            Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets nonces with which no request can come any more.
    pub async fn nonce_prune(&self) -> Result<u64> {
        self.in_time(async {
            let txn = self.write().await?;
            // The database's clock may be ahead of that by which requests are judged.
            let until = Expr::cust(format!("{} - {}", now(self.0.db.backend()), CLOCK_SKEW.as_millis()));
            let gone =
                nonce::Entity::delete_many().filter(Expr::col(nonce::Column::ExpiresAt).lt(until)).exec(&txn).await?;
            txn.commit().await?;
            Ok(gone.rows_affected)
        })
        .await
    }
}
