//! x
pub mod contract;
pub mod domain;
pub mod region;

pub mod state;
pub mod sync;
