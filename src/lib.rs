//! x
pub mod config;
pub mod contract;
pub mod domain;
pub mod ram;
pub mod region;

pub mod server;
pub mod service;
pub mod state;
pub mod sync;
pub mod telemetry;
