//! The metrics of the service, and spans with little overhead.
//!
//! The root package exports them. Without an export, nothing is recorded.

mod leaf_span;
pub mod metrics;

pub use leaf_span::{leaf_span, set_tracer};
