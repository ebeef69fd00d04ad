//! The baseline: the minimal statements of a job queue, through sqlx. A claim is a `SELECT … FOR UPDATE SKIP LOCKED`
//! and an `UPDATE` in one transaction; a completion is one more `UPDATE`. The baseline makes no decisions, sends no
//! notifications and settles no synchronizations.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use sea_orm::sqlx::{self, Row as _, postgres::PgPoolOptions};
use tokio::task::JoinSet;

use super::{Result, work};

pub async fn run(url: &str, replicas: usize) -> Result<f64> {
    let pool = PgPoolOptions::new().max_connections(4).connect(url).await?;
    let done = Arc::new(AtomicUsize::new(0));
    let mut workers: JoinSet<Result<()>> = JoinSet::new();
    let started = Instant::now();
    for _ in 0..work::WORKERS {
        let (pool, done) = (pool.clone(), Arc::clone(&done));
        workers.spawn(async move {
            while done.load(Ordering::Relaxed) < replicas {
                let mut txn = pool.begin().await?;
                let rows = sqlx::query(
                    "SELECT image_id, region_id FROM replica WHERE due_at <= 1800000000000 AND state = 'PENDING' \
                     AND region_id = $1 ORDER BY due_at, image_id LIMIT $2 FOR UPDATE SKIP LOCKED",
                )
                .bind(format!("r{}", rand::random_range(0..super::THREE)))
                .bind(i64::try_from(work::IMAGES * super::THREE)?)
                .fetch_all(&mut *txn)
                .await?;
                let images: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
                let regions: Vec<String> = rows.iter().map(|row| row.get(1)).collect();
                sqlx::query(
                    "UPDATE replica AS r SET state = 'COPYING', lease_owner = 'w', due_at = 1900000000000, fence = fence + 1, \
                     attempt = attempt + 1 FROM UNNEST($1::text[], $2::text[]) AS w(image_id, region_id) \
                     WHERE r.image_id = w.image_id AND r.region_id = w.region_id",
                )
                .bind(&images)
                .bind(&regions)
                .execute(&mut *txn)
                .await?;
                txn.commit().await?;
                sqlx::query(
                    "UPDATE replica AS r SET state = 'AVAILABLE', lease_owner = NULL, due_at = NULL, finished_at = 1 \
                     FROM UNNEST($1::text[], $2::text[]) AS w(image_id, region_id) \
                     WHERE r.image_id = w.image_id AND r.region_id = w.region_id",
                )
                .bind(&images)
                .bind(&regions)
                .execute(&pool)
                .await?;
                done.fetch_add(images.len(), Ordering::Relaxed);
            }
            Ok(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    let took = started.elapsed().as_secs_f64();
    pool.close().await;
    Ok(f64::from(u32::try_from(done.load(Ordering::Relaxed))?) / took)
}
