//! How registries take blobs, where that is not as the specification has it: learned by one process, and known to all, for a while.
//! Registries are replaced and upgraded.

use std::time::Duration;

use sea_orm::{EntityTrait, FromQueryResult, Set, sea_query::OnConflict};

use super::{
    Result, State,
    database::{Reader, Transaction},
    entity,
    sql::Sql,
};

/// For how long what was learned counts.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The longest address of a registry that is remembered, in characters.
const MAX_SERVICE: usize = 400;

impl State {
    /// What was learned about a registry; nothing if nothing was within the last thirty days.
    pub async fn registry_habits(&self, service: &str) -> Result<Option<String>> {
        #[derive(FromQueryResult)]
        struct Row {
            habits: String,
        }
        let life = i64::try_from(LIFE.as_millis()).unwrap_or(i64::MAX);
        let find = async |db: Reader| {
            let sql = Sql::on(&db)
                .text("SELECT h.habits FROM registry_habits AS h WHERE h.service = ")
                .value(service)
                .text(" AND h.learned_at > ")
                .now()
                .text(" - ")
                .value(life);
            Ok(sql.all(&db).await?)
        };
        let rows: Vec<Row> = self.0.db.read(find).await?;
        Ok(rows.into_iter().next().map(|row| row.habits))
    }

    /// Remembers what was learned about a registry, in the place of what was known before.
    pub async fn registry_habits_note(&self, service: &str, habits: &str) -> Result<()> {
        use entity::registry_habits::{ActiveModel, Column, Entity};
        #[derive(FromQueryResult)]
        struct Now {
            now_millis: i64,
        }
        if service.chars().count() > MAX_SERVICE {
            return Ok(());
        }
        let note = async |txn: Transaction| {
            let txn = &txn;
            let now: Vec<Now> = Sql::on(txn).text("SELECT ").now().text(" AS now_millis").all(txn).await?;
            let row = ActiveModel {
                service: Set(service.to_owned()),
                habits: Set(habits.to_owned()),
                learned_at: Set(now.first().map_or(0, |now| now.now_millis)),
            };
            let known =
                OnConflict::column(Column::Service).update_columns([Column::Habits, Column::LearnedAt]).to_owned();
            Entity::insert(row).on_conflict(known).exec_without_returning(txn).await?;
            Ok(())
        };
        self.0.db.transaction(note).await
    }
}
