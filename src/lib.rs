//! appferry copies an HPC application's image from its home region to any number of other regions with one call,
//! `SynchronizeApp(app_id, target_region_ids)`: authorized, durable, verified, traced, and observable while it runs.
//!
//! The modules and crates, from the outside in. Dependencies point down this list only: [`domain`] depends on nothing
//! else; [`server`] and [`worker`] communicate only through [`db`]; only [`db`] knows sea-orm; only [`storage`] knows
//! how bytes are stored; only [`server`], [`contract`], [`client`], [`cli`] and [`app`] know types of the contract.
//! Modules that do not know the contract are separate crates under `crates/`. `ARCHITECTURE.md` has the same list, with
//! the details that each module must not know.
//!
//! - [`cli`]: the command line, one file per command.
//! - [`client`]: the client library, for the command line and for other services.
//! - [`app`]: the composition root.
//! - [`reload`]: reloads access and logs while a process runs.
//! - `descriptors`: the limit of file descriptors and its division.
//! - [`config`]: the configuration.
//! - [`server`]: listeners, tower stack and handlers.
//! - [`audit`]: the audit log.
//! - [`telemetry`]: logs, and the export of traces and metrics.
//! - [`contract`]: generated types, and the tables of the descriptors.
//! - [`identity`]: authentication: tokens, signatures, certificates.
//! - `request_id`: new request ids.
//! - [`worker`]: the workers and the maintenance.
//! - [`db`]: the database, and the wall clock, which the others receive.
//! - [`storage`]: the stores, and the trust in other servers' certificates.
//! - [`acs3`]: signatures with access keys.
//! - [`metrics`]: the instruments, in the crate `instrumentation`.
//! - [`domain`]: ids, images, the state machine of a replica, the decision to accept, and [`ram`]: authorization.

pub mod app;
pub mod audit;
pub mod cli;
pub mod client;
pub mod config;
pub mod contract;
mod descriptors;
pub mod identity;
pub mod reload;
mod request_id;
pub mod server;
pub mod telemetry;

pub use acs3;
pub use db::{self, system_clock};
pub use domain::{self, ram};
pub use instrumentation::metrics;
pub use request_id::new_request_id;
pub use storage;
pub use worker;
