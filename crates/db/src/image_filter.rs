//! Selection of images in lists.

use domain::{ImageId, ImageKind};
use sea_orm::{
    ColumnTrait, Condition,
    sea_query::{Alias, Expr, ExprTrait as _, Query, SimpleExpr},
};

use super::entity::image::{Column, Entity};

/// Selects images in a list.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ImageFilter {
    /// Images with one of these ids; all if empty.
    pub ids: Vec<ImageId>,
    /// Images with one of these names; all if empty.
    pub names: Vec<String>,
    pub kind: Option<ImageKind>,
    /// Selects only the image that was registered last of every name and kind.
    pub latest_only: bool,
}

impl ImageFilter {
    /// Returns the condition of a query for images.
    pub(super) fn condition(&self) -> Condition {
        let ids: Vec<&str> = self.ids.iter().map(ImageId::as_str).collect();
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let one_of = |column: Column, values: Vec<&str>| (!values.is_empty()).then(|| column.is_in(values));
        let by_name = Condition::all()
            .add_option(one_of(Column::Name, names))
            .add_option(self.kind.map(|kind| Column::Kind.eq(kind.as_str())));
        let latest = self.latest_only.then(|| is_latest(by_name.clone()));
        by_name.add_option(one_of(Column::Id, ids)).add_option(latest)
    }
}

/// Returns the condition that no image of the same name and kind was registered later. The query reads the images that
/// meet `by_name` once, in the order of their names, so the cost is linear in the number of images with the same name.
fn is_latest(by_name: Condition) -> SimpleExpr {
    let (ranked, rank) = (Alias::new("ranked"), Alias::new("rank_of_name"));
    let newest_first = "ROW_NUMBER() OVER (PARTITION BY name, kind ORDER BY created_at DESC, id DESC)";
    let ranking = Query::select()
        .column(Column::Id)
        .expr_as(Expr::cust(newest_first), rank.clone())
        .from(Entity)
        .cond_where(by_name)
        .take();
    let first = Query::select()
        .column((ranked.clone(), Column::Id))
        .from_subquery(ranking, ranked.clone())
        .and_where(Expr::col((ranked, rank)).eq(1))
        .take();
    Expr::col((Entity, Column::Id)).in_subquery(first)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use sea_orm::{EntityTrait as _, QueryFilter as _, QueryTrait as _, sqlx};

    use super::ImageFilter;
    use crate::{entity::image::Entity, testing::TestDb};

    /// Number of virtual machine steps, in hundreds, that SQLite takes to find the newest of some images of one name.
    async fn steps(images: usize) -> u64 {
        let fixture = TestDb::open(["there"], |settings| settings).await;
        for n in 0..images {
            fixture.add(&format!("image-{n:04}")).await;
        }
        let filter = ImageFilter { latest_only: true, ..ImageFilter::default() };
        let query = Entity::find().filter(filter.condition()).build(sea_orm::DbBackend::Sqlite).to_string();
        let pool = fixture.db.0.connections.read_pool().get_sqlite_connection_pool().clone();
        let mut connection = pool.acquire().await.expect("a connection");
        let steps = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&steps);
        connection.lock_handle().await.expect("a handle").set_progress_handler(100, move || {
            counter.fetch_add(1, Ordering::Relaxed);
            true
        });
        let rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_all(&mut *connection).await.expect("rows");
        assert_eq!(rows.len(), 1);
        connection.lock_handle().await.expect("a handle").remove_progress_handler();
        drop(connection);
        fixture.end().await;
        steps.load(Ordering::Relaxed)
    }

    /// Doubling the number of images about doubles the cost instead of quadrupling it.
    #[tokio::test]
    async fn the_newest_of_a_name_costs_linear_time() {
        let (some, twice) = (steps(200).await, steps(400).await);
        assert!(twice < some * 3, "{some}, {twice}");
    }
}
