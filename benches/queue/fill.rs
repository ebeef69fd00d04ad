//! Fills the tables with rows as the service would have written them.

use appferry::db::{Settings, migrate};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use uuid::Uuid;

use super::{Result, harness::postgres::Postgres};

/// A database to fill.
pub struct Fill {
    pub url: String,
    regions: usize,
}

/// SQL expression that derives a version 7 UUID from a row's number: the timestamp comes first, so the ids sort by
/// number.
const ID: &str = "(lpad(to_hex(1750000000000 + n), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid";

impl Fill {
    pub async fn new(server: &Postgres, name: &str, regions: usize) -> Result<Self> {
        let db = sea_orm::Database::connect(server.url("postgres")).await?;
        db.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
        db.close().await?;
        let url = server.url(name);
        migrate(&Settings::new(url.clone())).await?;
        Ok(Self { url, regions })
    }

    async fn connect(&self) -> Result<DatabaseConnection> {
        let mut options = sea_orm::ConnectOptions::new(&self.url);
        options.max_connections(1).sqlx_logging(false);
        let db = sea_orm::Database::connect(options).await?;
        db.execute_unprepared("SET synchronous_commit = off").await?;
        db.execute_unprepared("SET maintenance_work_mem = '512MB'").await?;
        Ok(db)
    }

    fn targets(&self) -> String {
        let mut names: Vec<String> = (0..self.regions).map(|n| format!("r{n}")).collect();
        names.sort();
        names.join(",")
    }

    async fn images(&self, db: &DatabaseConnection, prefix: &str, images: usize) -> Result<()> {
        db.execute_unprepared(&format!(
            "INSERT INTO image SELECT '{prefix}' || n, 'bench', '1', '', 'VM', 'n', 'home', 'x', 'sha256:' || repeat('00', 32), \
             1, 1, 0 FROM generate_series(1, {images}) AS n"
        ))
        .await?;
        Ok(())
    }

    /// Inserts `replicas` pending replicas, every image in every region, with one running synchronization per image.
    pub async fn pending(&self, replicas: usize) -> Result<()> {
        let images = replicas.div_ceil(self.regions);
        let db = self.connect().await?;
        self.images(&db, "p", images).await?;
        db.execute_unprepared(&format!(
            "INSERT INTO replica (image_id, region_id, state, due_at, fence) \
             SELECT 'p' || n, 'r' || r, 'PENDING', 1750000000000 + n, 1750000000000 + n \
             FROM generate_series(1, {images}) AS n, generate_series(0, {}) AS r",
            self.regions - 1
        ))
        .await?;
        db.execute_unprepared(&format!(
            "INSERT INTO synchronization (request_id, image_id, principal, parameters, targets, open, state, created_at) \
             SELECT {ID}, 'p' || n, 'acs:ram::1:user/bench', 'all', '{}', {}, 'RUNNING', 1750000000000 + n \
             FROM generate_series(1, {images}) AS n",
            self.targets(),
            self.regions
        ))
        .await?;
        db.execute_unprepared("VACUUM ANALYZE").await?;
        Ok(db.close().await?)
    }

    /// Inserts `replicas` available replicas.
    pub async fn ended_replicas(&self, replicas: usize) -> Result<()> {
        let images = replicas.div_ceil(self.regions);
        let db = self.connect().await?;
        self.images(&db, "i", images).await?;
        db.execute_unprepared(&format!(
            "INSERT INTO replica (image_id, region_id, state, fence, attempt, finished_at) \
             SELECT 'i' || n, 'r' || r, 'AVAILABLE', 1750000000000 + n, 1, 1750000001000 + n \
             FROM generate_series(1, {images}) AS n, generate_series(0, {}) AS r",
            self.regions - 1
        ))
        .await?;
        Ok(db.close().await?)
    }

    /// Inserts `replicas` ended replicas and as many targets of synchronizations. One in a hundred of the
    /// synchronizations has failed, and a few are running; the others have succeeded. Returns some of the request ids.
    pub async fn ended(&self, replicas: usize) -> Result<Vec<Uuid>> {
        self.ended_replicas(replicas).await?;
        let images = replicas.div_ceil(self.regions);
        let db = self.connect().await?;
        db.execute_unprepared(&format!(
            "INSERT INTO synchronization (request_id, image_id, principal, parameters, targets, open, state, created_at, finished_at) \
             SELECT {ID}, 'i' || n, 'acs:ram::1:user/bench', 'all', '{}', CASE WHEN n % 500 = 0 THEN {} ELSE 0 END, \
             CASE WHEN n % 500 = 0 THEN 'RUNNING' WHEN n % 100 = 0 THEN 'FAILED' ELSE 'SUCCEEDED' END, 1750000000000 + n, \
             CASE WHEN n % 500 = 0 THEN NULL ELSE 1750000001000 + n END FROM generate_series(1, {images}) AS n",
            self.targets(),
            self.regions
        ))
        .await?;
        db.execute_unprepared(&format!(
            "INSERT INTO synchronization_target (request_id, region_id, status, attempt, finished_at) \
             SELECT {ID}, 'r' || r, CASE WHEN n % 100 = 0 THEN 'FAILED' ELSE 'AVAILABLE' END, 1, 1750000001000 + n \
             FROM generate_series(1, {images}) AS n, generate_series(0, {}) AS r WHERE n % 500 <> 0",
            self.regions - 1
        ))
        .await?;
        db.execute_unprepared("VACUUM ANALYZE").await?;
        let every = (images / 2_000).max(1);
        let ask = format!(
            "SELECT request_id FROM (SELECT {ID} AS request_id FROM generate_series(1, {images}, {every}) AS n) AS ids"
        );
        let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, ask)).await?;
        let ids = rows.into_iter().map(|row| row.try_get("", "request_id")).collect::<std::result::Result<_, _>>()?;
        db.close().await?;
        Ok(ids)
    }
}
