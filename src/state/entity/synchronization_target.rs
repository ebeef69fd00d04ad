//! The table `synchronization_target`: how the regions of a synchronization ended. Until one has, it has no row and its replica
//! tells how it stands; the outcome that is written here stays, whatever becomes of the replica later.

use sea_orm::entity::prelude::*;

use super::{count, fault, parse, progress, signed, warnings, warnings_text};
use crate::{
    domain::{RegionView, Timestamp},
    state::{
        database::Transaction,
        sql::{Kind, Rows, Sql},
    },
};

/// How one region of a synchronization ended.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "synchronization_target")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub request_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    pub status: String,
    pub attempt: i64,
    pub bytes_total: i64,
    pub bytes_copied: i64,
    pub bytes_skipped: i64,
    pub fault_kind: Option<String>,
    pub fault_message: Option<String>,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    pub verification: Option<String>,
    /// What the image arrived without, a line each.
    pub warnings: Option<String>,
}

/// None is declared: what belongs together is read together by hand.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// The row of a region that has ended.
    pub fn of(request_id: Uuid, view: &RegionView) -> Self {
        let fault = view.fault.as_ref();
        Self {
            request_id,
            region_id: view.region.to_string(),
            status: view.status.as_str().to_owned(),
            attempt: view.attempt.into(),
            bytes_total: signed(view.progress.total),
            bytes_copied: signed(view.progress.copied),
            bytes_skipped: signed(view.progress.skipped),
            fault_kind: fault.map(|f| f.kind.as_str().to_owned()),
            fault_message: fault.map(|f| f.message.to_string()),
            started_at: view.started_at.map(Timestamp::as_millis),
            finished_at: view.finished_at.map(Timestamp::as_millis),
            verification: view.verification.map(|verification| verification.as_str().to_owned()),
            warnings: warnings_text(&view.warnings),
        }
    }

    /// How the region ended.
    pub fn view(&self) -> Result<RegionView, DbErr> {
        Ok(RegionView {
            region: parse("synchronization_target.region_id", &self.region_id)?,
            status: parse("synchronization_target.status", &self.status)?,
            verification: self
                .verification
                .as_deref()
                .map(|text| parse("synchronization_target.verification", text))
                .transpose()?,
            progress: progress(self.bytes_total, self.bytes_copied, self.bytes_skipped),
            attempt: count(self.attempt),
            next_attempt_at: None,
            fault: fault(self.fault_kind.as_deref(), self.fault_message.as_deref())?,
            started_at: self.started_at.map(Timestamp::from_millis),
            finished_at: self.finished_at.map(Timestamp::from_millis),
            warnings: warnings(self.warnings.as_deref())?,
        })
    }
}

/// Writes how some regions have ended.
pub async fn insert(txn: &Transaction, rows: impl IntoIterator<Item = Model>) -> Result<(), DbErr> {
    let columns = [
        ("request_id", Kind::Uuid),
        ("region_id", Kind::Name),
        ("status", Kind::Name),
        ("attempt", Kind::Number),
        ("bytes_total", Kind::Number),
        ("bytes_copied", Kind::Number),
        ("bytes_skipped", Kind::Number),
        ("fault_kind", Kind::MaybeText),
        ("fault_message", Kind::MaybeText),
        ("started_at", Kind::MaybeNumber),
        ("finished_at", Kind::MaybeNumber),
        ("verification", Kind::MaybeText),
        ("warnings", Kind::MaybeText),
    ];
    let rows = rows.into_iter().map(|row| {
        [
            row.request_id.into(),
            row.region_id.into(),
            row.status.into(),
            row.attempt.into(),
            row.bytes_total.into(),
            row.bytes_copied.into(),
            row.bytes_skipped.into(),
            row.fault_kind.into(),
            row.fault_message.into(),
            row.started_at.into(),
            row.finished_at.into(),
            row.verification.into(),
            row.warnings.into(),
        ]
    });
    Sql::on(txn).insert("synchronization_target", Rows::new(columns, rows), []).execute(txn).await.map(drop)
}
