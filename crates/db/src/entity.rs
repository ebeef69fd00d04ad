//! Entities of the tables and their conversion to domain types.

pub mod columns;
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

use columns::{Number, Text};
use domain::{Fault, FaultKind, Progress, Warnings};

pub use columns::parse;

/// Builds the fault of a row from its two columns.
fn fault<E>(kind: Option<&Text<E, FaultKind>>, message: Option<&str>) -> Option<Fault> {
    kind.map(|kind| Fault::new(kind.0, message.unwrap_or_default()))
}

/// Converts warnings to a column, which is NULL if there are none.
fn warnings_column<E>(warnings: &Warnings) -> Option<Text<E, Warnings>> {
    (!warnings.is_empty()).then(|| warnings.clone().into())
}

/// Returns the warnings of a row.
fn warnings<E>(column: Option<&Text<E, Warnings>>) -> Warnings {
    column.map(|warnings| warnings.0.clone()).unwrap_or_default()
}

fn progress(total: Number<u64>, copied: Number<u64>, skipped: Number<u64>) -> Progress {
    Progress { total: total.0, copied: copied.0, skipped: skipped.0 }
}
