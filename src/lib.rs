//! x
pub mod contract;
pub mod domain;
pub mod state;
