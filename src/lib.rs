//! x
pub mod contract;
pub mod domain;
