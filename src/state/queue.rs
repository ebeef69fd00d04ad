//! What waits, and what time it is, for whoever wants to know how the service does.

use std::time::Duration;

use sea_orm::FromQueryResult;

use super::{Result, State, database::Reader, entity, gate::names, sql::Sql};
use crate::{
    domain::{RegionId, Timestamp},
    metrics::RegionQueue,
};

impl State {
    /// The database's own time.
    pub async fn time(&self) -> Result<Timestamp> {
        #[derive(FromQueryResult)]
        struct Row {
            now_millis: i64,
        }
        let ask = async |db: Reader| Ok(Sql::on(&db).text("SELECT ").now().text(" AS now_millis").all(&db).await?);
        let rows: Vec<Row> = self.0.db.read(ask).await?;
        Ok(Timestamp::from_millis(rows.first().map_or(0, |row| row.now_millis)))
    }

    /// How many replicas wait for a worker in each region, and how long one of them has been due. Regions in which none waits are told
    /// too.
    pub async fn queues(&self) -> Result<Vec<RegionQueue>> {
        #[derive(FromQueryResult)]
        struct Row {
            region_id: String,
            depth: i64,
            oldest: i64,
            now_millis: i64,
        }
        let count = async |db: Reader| {
            let db = &db;
            let sql = Sql::on(db)
            .text("SELECT r.region_id, COUNT(*) AS depth, MIN(r.due_at) AS oldest, ")
            .now()
            .text(" AS now_millis FROM ")
            .rows(names("id", self.0.regions.iter()))
            .join()
            .text("replica AS r ON r.region_id = w.id AND r.state = 'PENDING' AND r.due_at IS NOT NULL GROUP BY r.region_id");
            Ok(sql.all(db).await?)
        };
        let read: Vec<Row> = self.0.db.read(count).await?;
        let queue = |region: &RegionId| {
            let row = read.iter().find(|row| row.region_id == region.as_str());
            let age = |row: &Row| Timestamp::from_millis(row.oldest).until(Timestamp::from_millis(row.now_millis));
            RegionQueue {
                region: region.clone(),
                depth: row.map_or(0, |row| entity::unsigned(row.depth)),
                age: row.map_or(Duration::ZERO, age),
            }
        };
        Ok(self.0.regions.iter().map(queue).collect())
    }
}
