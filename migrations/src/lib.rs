//! The database schema of appferry, with one module per step. A released step never changes; changes are further steps.
//! Steps change the schema through [`idempotent`], so that an interrupted step can be applied again.

pub use migrate::{Error, is_locked, migrate};
pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

mod column;
pub mod idempotent;
mod m20261124_000001_create_schema;
mod migrate;

/// All steps in order.
#[derive(Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20261124_000001_create_schema::Migration)]
    }
}
