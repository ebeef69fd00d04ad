//! The workers claim due replicas, copy them, and report.
//!
//! Workers learn about calls only from the database. When a worker dies, another one resumes its copies from there.

mod active_copy;
mod copy_job;
mod ecs;
mod heartbeat;
mod import;
mod journal;
mod lanes;
mod leftovers;
mod maintenance;
mod pacing;
mod region_check;
mod reporting;
mod retract;
mod runner;
mod settings;
mod slots;
mod span_links;
mod transfer;

pub use import::import;
pub use leftovers::{LeftoverError, SAFE_AGE, find_leftovers};
pub use maintenance::{Maintenance, STRAY_UPLOADS, Settings as MaintenanceSettings};
pub use runner::Worker;
pub use settings::Settings;
pub use transfer::CopyError;
