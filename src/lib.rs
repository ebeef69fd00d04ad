//! appferry copies an HPC application's image from its home region to any number of other regions with one call,
//! `SynchronizeApp(app_id, target_region_ids)`: authorized, durable, verified, traced, and observable while it runs.
//!
//! The modules, from the outside in. Dependencies point down this list only: [`domain`] depends on nothing else,
//! [`ram`] on [`domain`] only; [`server`] and [`worker`] communicate only through [`db`]; only [`db`] knows sea-orm;
//! only [`region`] knows how bytes are stored; only [`server`], [`contract`], [`client`], [`cli`] and [`app`] know
//! types of the contract. `ARCHITECTURE.md` has the same list with what each module must not know.
//!
//! - [`cli`]: the command line, one file per command.
//! - [`client`]: the client library, for the command line and for other services.
//! - [`app`]: the composition root.
//! - [`reload`]: reloads access and logs while a process runs.
//! - `descriptors`: the limit of file descriptors and its division.
//! - [`config`]: the configuration.
//! - [`server`]: listeners, tower stack and handlers.
//! - [`worker`]: the workers and the maintenance.
//! - [`audit`]: the audit log.
//! - [`db`]: the database.
//! - [`region`]: the stores.
//! - [`telemetry`]: logs, and the export of traces and metrics.
//! - [`contract`]: generated types, and the tables of the descriptors.
//! - [`identity`]: authentication: tokens, signatures, certificates.
//! - [`ram`]: authorization: principals, policies, decisions.
//! - `server_trust`: verification of the certificates of servers that this service calls.
//! - [`metrics`]: the instruments.
//! - `request_id`, `system_clock`: new request ids, and the wall clock, which other modules receive.
//! - [`domain`]: ids, images, the state machine of a replica, the decision to accept.

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
