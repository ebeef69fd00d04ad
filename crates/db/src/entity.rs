//! Entities of the tables and their conversion to domain types.

pub mod ecs_copy;
pub mod image;
pub mod image_reference;
pub mod leader_lease;
pub mod nonce;
pub mod published;
pub mod read_blob;
pub mod region_lock;
pub mod region_store;
pub mod registry_habits;
pub mod replica;
pub mod stray_upload;
pub mod synchronization;
pub mod synchronization_target;
pub mod upload;
pub mod write_probe;
pub mod written_blob;

use std::{fmt::Display, str::FromStr};

use domain::{Fault, FaultKind, ForeignText, Progress, Warnings};
use sea_orm::DbErr;

/// Parses the text of a column. Returns [`DbErr::Type`], naming the column, for a value that this service does not
/// write.
pub(super) fn parse<T>(column: &'static str, text: &str) -> Result<T, DbErr>
where
    T: FromStr<Err: Display>,
{
    text.parse()
        .map_err(|error| DbErr::Type(format!("the column {column} holds {:?}: {error}", ForeignText::value(text))))
}

/// Parses the two columns of a fault.
fn fault(kind: Option<&str>, message: Option<&str>) -> Result<Option<Fault>, DbErr> {
    kind.map(|kind| {
        let kind: FaultKind = parse("fault_kind", kind)?;
        Ok(Fault::new(kind, message.unwrap_or_default()))
    })
    .transpose()
}

/// Parses the column of warnings, which is NULL without any.
fn warnings(text: Option<&str>) -> Result<Warnings, DbErr> {
    parse("warnings", text.unwrap_or_default())
}

/// Formats the column of warnings.
fn warnings_text(warnings: &Warnings) -> Option<String> {
    (!warnings.is_empty()).then(|| warnings.to_string())
}

/// Converts a stored count. Counts are stored as signed numbers, as not every database has unsigned ones.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Converts a count for storage. No count reaches the limit of `i64`.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn progress(total: i64, copied: i64, skipped: i64) -> Progress {
    Progress { total: unsigned(total), copied: unsigned(copied), skipped: unsigned(skipped) }
}
