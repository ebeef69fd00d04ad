//! Records of how registries accept blobs where they deviate from the specification. One process learns a deviation,
//! and all processes use the record. Records expire, because registries are replaced and upgraded.

use std::time::Duration;

use sea_orm::{EntityTrait as _, Set, sea_query::OnConflict};

use super::{
    Db, Result,
    connections::{Reader, Transaction},
    entity::registry_habits::{ActiveModel, Column, Entity},
    sql,
};

/// Time after which a record expires.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Maximum length of a recorded registry address, in characters.
const MAX_SERVICE_LENGTH: usize = 400;

impl Db {
    /// Returns the record of a registry, unless it is older than 30 days.
    pub async fn registry_habits(&self, service: &str) -> Result<Option<String>> {
        let find = async |reader: Reader| {
            let row = Entity::find_by_id(service).one(&reader).await?;
            let now = sql::database_time(&reader).await?;
            Ok(row.filter(|row| row.learned_at.0.after(LIFETIME) > now).map(|row| row.habits))
        };
        self.0.connections.read(find).await
    }

    /// Records how a registry accepts blobs, replacing the earlier record. Addresses of more than 400 characters are
    /// not recorded.
    pub async fn registry_habits_save(&self, service: &str, habits: &str) -> Result<()> {
        if service.chars().count() > MAX_SERVICE_LENGTH {
            return Ok(());
        }
        let save = async |txn: Transaction| {
            let row = ActiveModel {
                service: Set(service.to_owned()),
                habits: Set(habits.to_owned()),
                learned_at: Set(sql::database_time(&txn).await?.into()),
            };
            let conflict =
                OnConflict::column(Column::Service).update_columns([Column::Habits, Column::LearnedAt]).to_owned();
            Entity::insert(row).on_conflict(conflict).exec_without_returning(&txn).await?;
            Ok(())
        };
        self.0.connections.transaction(save).await
    }
}
