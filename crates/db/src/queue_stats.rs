//! Statistics of the regions' queues, and the database's time.

use std::time::Duration;

use domain::{RegionId, RegionStatus, Timestamp};
use instrumentation::metrics::RegionQueue;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QuerySelect as _};

use super::{
    Db, Result,
    connections::Reader,
    entity::{self, columns::Number},
    sql,
};

impl Db {
    /// Reads the database's clock.
    pub async fn time(&self) -> Result<Timestamp> {
        self.0.connections.read(async |reader| Ok(sql::database_time(&reader).await?)).await
    }

    /// Counts the pending replicas of each configured region, with the age of the oldest one.
    pub async fn queues(&self) -> Result<Vec<RegionQueue>> {
        use entity::replica::{Column, Entity, Text};
        let count = async |reader: Reader| {
            let rows: Vec<(Text<RegionId>, Number<u64>, Number<Timestamp>)> = Entity::find()
                .select_only()
                .column(Column::RegionId)
                .column_as(Column::RegionId.count(), "depth")
                .column_as(Column::DueAt.min(), "oldest")
                .filter(Column::RegionId.is_in(self.0.regions.iter().map(RegionId::as_str)))
                .filter(Column::State.eq(RegionStatus::Pending.as_str()))
                .filter(Column::DueAt.is_not_null())
                .group_by(Column::RegionId)
                .into_tuple()
                .all(&reader)
                .await?;
            Ok((rows, sql::database_time(&reader).await?))
        };
        let (rows, now) = self.0.connections.read(count).await?;
        let queue = |region: &RegionId| {
            let row = rows.iter().find(|(id, ..)| id.0 == *region);
            RegionQueue {
                region: region.clone(),
                depth: row.map_or(0, |(_, depth, _)| depth.0),
                age: row.map_or(Duration::ZERO, |(.., oldest)| oldest.0.until(now)),
            }
        };
        Ok(self.0.regions.iter().map(queue).collect())
    }
}
