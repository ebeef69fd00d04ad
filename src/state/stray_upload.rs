//! Uploads that their store did not abort when it was asked, and that are no copy's any more: they are tried again later, a few times.

use std::time::Duration;

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Set};
use uuid::Uuid;

use super::{
    Result, State,
    database::Transaction,
    entity::stray_upload::{ActiveModel, Column, Entity, Model},
};
use crate::domain::RegionId;

/// How many of a region are read at once.
const SWEEP: u64 = 64;

/// An upload that is to be aborted.
#[derive(Debug, Clone)]
pub struct StrayUpload {
    /// Its key in the database.
    pub id: String,
    /// What its store needs to know about it. Empty if another database's password has sealed it: then no store knows it.
    pub session: String,
    /// How often it has been tried since it was remembered.
    pub tries: u32,
}

/// What a session belongs to.
fn context(region: &RegionId, id: &str) -> String {
    format!("{region} {id}")
}

impl State {
    /// Remembers an upload that its store did not abort. It is due at once.
    pub async fn stray_upload_note(&self, region: &RegionId, session: &str) -> Result<()> {
        let id = Uuid::now_v7().simple().to_string();
        let Some(sealed) = self.0.seal.seal(&context(region, &id), session) else {
            tracing::warn!(%region, "there is no randomness to seal an upload with; it stays in its store");
            return Ok(());
        };
        let now = self.time().await?.as_millis();
        let note = async |txn: Transaction| {
            let row = ActiveModel {
                id: Set(id.clone()),
                region_id: Set(region.to_string()),
                session: Set(sealed.clone()),
                tries: Set(0),
                due_at: Set(now),
            };
            Entity::insert(row).exec_without_returning(&txn).await?;
            Ok(())
        };
        self.0.db.transaction(note).await
    }

    /// The uploads of a region that are to be aborted by now, those first that have been due for longest.
    pub async fn stray_uploads_due(&self, region: &RegionId) -> Result<Vec<StrayUpload>> {
        let now = self.time().await?.as_millis();
        let of_region = Entity::find().filter(Column::RegionId.eq(region.as_str()));
        let due = of_region.filter(Column::DueAt.lte(now)).order_by_asc(Column::DueAt).limit(SWEEP);
        let rows: Vec<Model> = self.0.db.read(async |db| Ok(due.all(&db).await?)).await?;
        let read = |row: Model| {
            let session = self.0.seal.open(&context(region, &row.id), &row.session).unwrap_or_default();
            StrayUpload { session, tries: u32::try_from(row.tries).unwrap_or(0), id: row.id }
        };
        Ok(rows.into_iter().map(read).collect())
    }

    /// Remembers that an upload was not aborted once more, and is due again after a wait.
    pub async fn stray_upload_defer(&self, stray: &StrayUpload, wait: Duration) -> Result<()> {
        let due = self.time().await?.after(wait).as_millis();
        let tries = i32::try_from(stray.tries.saturating_add(1)).unwrap_or(i32::MAX);
        let defer = async |txn: Transaction| {
            let change = ActiveModel { tries: Set(tries), due_at: Set(due), ..ActiveModel::default() };
            Entity::update_many().set(change).filter(Column::Id.eq(stray.id.as_str())).exec(&txn).await?;
            Ok(())
        };
        self.0.db.transaction(defer).await
    }

    /// Forgets an upload: it is gone, or is not tried any more.
    pub async fn stray_upload_forget(&self, stray: &StrayUpload) -> Result<()> {
        let forget = async |txn: Transaction| {
            Entity::delete_by_id(stray.id.clone()).exec(&txn).await?;
            Ok(())
        };
        self.0.db.transaction(forget).await
    }
}
