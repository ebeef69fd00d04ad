//! Stray uploads: their store failed to abort them, and no copy will resume them. The leader retries a few times.

use std::time::Duration;

use domain::RegionId;
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Set};
use uuid::Uuid;

use super::{
    Db, Result,
    connections::Transaction,
    entity::{
        columns::Number,
        stray_upload::{ActiveModel, Column, Entity, Model},
    },
};

/// Maximum number of uploads of a region that are aborted in one round.
const SWEEP: u64 = 64;

/// An upload to abort.
#[derive(Debug, Clone)]
pub struct StrayUpload {
    /// Its key in the database.
    pub id: String,
    /// The session in the store's own format; empty if it cannot be decrypted.
    pub session: String,
    /// Number of failed attempts to abort it since it was recorded.
    pub attempts: u32,
}

/// Returns the encryption context, which binds a session to its upload.
fn context(region: &RegionId, id: &str) -> String {
    format!("{region} {id}")
}

impl Db {
    /// Records an upload that its store failed to abort. The upload is due at once.
    pub async fn stray_upload_note(&self, region: &RegionId, session: &str) -> Result<()> {
        let id = Uuid::now_v7().simple().to_string();
        let Some(sealed) = self.0.seal.seal(&context(region, &id), session) else {
            tracing::warn!(%region, "failed to encrypt the upload session for lack of randomness; the upload stays in its store");
            return Ok(());
        };
        let now = self.time().await?;
        let insert = async |txn: Transaction| {
            let row = ActiveModel {
                id: Set(id.clone()),
                region_id: Set(region.clone().into()),
                session: Set(sealed.clone()),
                attempts: Set(0.into()),
                due_at: Set(now.into()),
            };
            Entity::insert(row).exec_without_returning(&txn).await?;
            Ok(())
        };
        self.0.connections.transaction(insert).await
    }

    /// Returns the uploads of a region that are due, in the order of their due times. An upload that is deferred for
    /// longer than `longest` is due too, because the database's clock was set back since.
    pub async fn stray_uploads_due(&self, region: &RegionId, longest: Duration) -> Result<Vec<StrayUpload>> {
        let now = self.time().await?;
        let of_region = Entity::find().filter(Column::RegionId.eq(region.as_str()));
        let is_due =
            Condition::any().add(Column::DueAt.lte(Number(now))).add(Column::DueAt.gt(Number(now.after(longest))));
        let due = of_region.filter(is_due).order_by_asc(Column::DueAt).limit(SWEEP);
        let rows: Vec<Model> = self.0.connections.read(async |reader| Ok(due.all(&reader).await?)).await?;
        let open = |row: Model| {
            let session = self.0.seal.open(&context(region, &row.id), &row.session).unwrap_or_default();
            StrayUpload { session, attempts: row.attempts.0, id: row.id }
        };
        Ok(rows.into_iter().map(open).collect())
    }

    /// Records one more failed attempt to abort an upload, which is due again after `wait`.
    pub async fn stray_upload_defer(&self, stray: &StrayUpload, wait: Duration) -> Result<()> {
        let due = self.time().await?.after(wait);
        let attempts = stray.attempts.saturating_add(1);
        let update = async |txn: Transaction| {
            let change =
                ActiveModel { attempts: Set(attempts.into()), due_at: Set(due.into()), ..ActiveModel::default() };
            Entity::update_many().set(change).filter(Column::Id.eq(stray.id.as_str())).exec(&txn).await?;
            Ok(())
        };
        self.0.connections.transaction(update).await
    }

    /// Deletes the record of an upload that is aborted, or that is not tried again.
    pub async fn stray_upload_forget(&self, stray: &StrayUpload) -> Result<()> {
        let delete = async |txn: Transaction| {
            Entity::delete_by_id(stray.id.clone()).exec(&txn).await?;
            Ok(())
        };
        self.0.connections.transaction(delete).await
    }
}
