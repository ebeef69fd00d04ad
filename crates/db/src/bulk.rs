//! The statements that are written by hand because they run thousands of times a second: accepting calls, claiming
//! replicas, applying workers' reports, and settling synchronizations.

pub mod accept;
pub mod claim;
pub mod report;
pub mod settlement;
