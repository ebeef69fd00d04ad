//! The rows of the tables, and what they are in the domain.

pub mod ecs_copy;
pub mod image;
pub mod image_reference;
pub mod nonce;
pub mod published;
pub mod read_blob;
pub mod region_store;
pub mod registry_habits;
pub mod replica;
pub mod stray_upload;
pub mod synchronization;
pub mod synchronization_target;
pub mod upload;
pub mod written_blob;

use std::{fmt::Display, str::FromStr};

use sea_orm::DbErr;

use crate::domain::{Fault, FaultKind, ForeignText, Progress, Warnings};

/// Reads a column's text as what it must be; a row that holds anything else was not written by this service.
pub(super) fn parse<T>(column: &'static str, text: &str) -> Result<T, DbErr>
where
    T: FromStr<Err: Display>,
{
    text.parse()
        .map_err(|error| DbErr::Type(format!("the column {column} holds {:?}: {error}", ForeignText::value(text))))
}

/// A fault in its two columns.
fn fault(kind: Option<&str>, message: Option<&str>) -> Result<Option<Fault>, DbErr> {
    kind.map(|kind| {
        let kind: FaultKind = parse("fault_kind", kind)?;
        Ok(Fault::new(kind, message.unwrap_or_default()))
    })
    .transpose()
}

/// Warnings in their column, which is empty without any.
fn warnings(text: Option<&str>) -> Result<Warnings, DbErr> {
    parse("warnings", text.unwrap_or_default())
}

/// See [`warnings`].
fn warnings_text(warnings: &Warnings) -> Option<String> {
    (!warnings.is_empty()).then(|| warnings.to_string())
}

/// Counts are stored as signed numbers, which every database has.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// See [`unsigned`]; no count comes near the bound.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn progress(total: i64, copied: i64, skipped: i64) -> Progress {
    Progress { total: unsigned(total), copied: unsigned(copied), skipped: unsigned(skipped) }
}
