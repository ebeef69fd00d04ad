//! appferry carries an HPC application's image from its home region to any number of other regions with one call,
//! `SynchronizeApp(app_id, target_region_ids)`: authorized, durable, verified, traced, and visible while it happens.
//!
//! The map, from the outside in. Arrows point down this list only: [`domain`] and [`ram`] know nothing of the rest; [`server`]
//! and [`worker`] never talk to each other but through [`db`]; only [`db`] knows sea-orm; only [`region`] knows how bytes
//! are stored; only [`server`], [`contract`], [`client`] and the command line know protobuf types.
//!
//! - [`cli`]: one file a command.
//! - [`client`]: calls of the service, for the command line and for other services.
//! - [`service`]: the composition root.
//! - [`reload`]: who may call and what is logged, read anew while a process runs.
//! - [`config`], [`telemetry`], [`audit`]: what comes in from the environment, what goes out of it.
//! - `descriptors`: how many files and connections a process may open, and who gets them.
//! - [`metrics`]: what is counted and measured, by whoever does it.
//! - [`server`]: the way in: the tower stack and the handlers.
//! - [`worker`]: the workers: claim, plan, copy, report.
//! - [`contract`]: the generated types and the tables of the descriptors.
//! - [`db`]: the database.
//! - [`region`]: the stores.
//! - [`identity`]: who calls: tokens, signatures, certificates.
//! - [`ram`]: who may do what.
//! - [`domain`]: ids, images, the replica's machine, the decision to accept.

pub mod audit;
pub mod cli;
pub mod client;
pub mod config;
pub mod contract;
pub mod db;
mod descriptors;
pub mod domain;
pub mod identity;
pub mod metrics;
pub mod ram;
pub mod region;
pub mod reload;
mod request_id;
pub mod server;
mod server_trust;
pub mod service;
mod system_clock;
pub mod telemetry;
pub mod worker;

pub use request_id::new_request_id;
pub use system_clock::system_clock;
