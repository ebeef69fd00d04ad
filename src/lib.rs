//! x
pub mod contract;
pub mod domain;
pub mod ram;
pub mod region;

pub mod state;
pub mod sync;
pub mod telemetry;
