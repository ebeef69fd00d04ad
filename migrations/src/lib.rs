//! The database schema of appferry, one file a step. What a step that has been released makes is never changed; the next one follows
//! it. A step makes its changes by the functions of [`idempotent`], so that one which was interrupted can be applied again.

pub use migrate::{Error, is_locked, migrate};
pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

pub mod idempotent;
mod m20261124_000001_create_state;
mod m20261125_000002_remember_uploads;
mod m20261126_000003_many_processes;
mod m20261127_000004_remember_nonces;
mod m20261128_000005_find_images_by_name;
mod m20261129_000006_remember_ecs_copies;
mod m20261130_000007_queue_by_time_alone;
mod m20261201_000008_replicas_go_with_images;
mod m20261202_000009_know_stores;
mod m20261203_000010_names_and_verification;
mod m20261204_000011_count_image_changes;
mod m20261205_000012_registry_habits;
mod m20261206_000013_warn;
mod m20261207_000014_longer_digests;
mod m20261208_000015_remember_stray_uploads;
mod migrate;
mod name;

/// All steps, in order.
#[derive(Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261124_000001_create_state::Migration),
            Box::new(m20261125_000002_remember_uploads::Migration),
            Box::new(m20261126_000003_many_processes::Migration),
            Box::new(m20261127_000004_remember_nonces::Migration),
            Box::new(m20261128_000005_find_images_by_name::Migration),
            Box::new(m20261129_000006_remember_ecs_copies::Migration),
            Box::new(m20261130_000007_queue_by_time_alone::Migration),
            Box::new(m20261201_000008_replicas_go_with_images::Migration),
            Box::new(m20261202_000009_know_stores::Migration),
            Box::new(m20261203_000010_names_and_verification::Migration),
            Box::new(m20261204_000011_count_image_changes::Migration),
            Box::new(m20261205_000012_registry_habits::Migration),
            Box::new(m20261206_000013_warn::Migration),
            Box::new(m20261207_000014_longer_digests::Migration),
            Box::new(m20261208_000015_remember_stray_uploads::Migration),
        ]
    }
}
